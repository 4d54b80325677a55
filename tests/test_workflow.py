"""GitHub's workflow does what a person does: the Makefile's verbs, then the gate."""

import re

import pytest
import yaml

from pipeline import files, gate
from pipeline.gate import Check, Verdict


@pytest.fixture(scope="module")
def steps():
    workflow = yaml.safe_load((files.ROOT / ".github/workflows/ci.yml").read_text("utf-8"))
    return workflow["jobs"]["ci"]["steps"]


def test_the_workflow_runs_make_check_make_test_make_and_the_gate_in_this_order(steps):
    commands = [step["run"] for step in steps if step.get("run", "").startswith(("make", ".venv"))]
    assert commands == ["make check", "make test", "make", ".venv/bin/python -m pipeline.gate"]


def test_every_verb_is_one_of_the_makefile(steps):
    verbs = re.findall(r"^make (\w+)$", "\n".join(step.get("run", "") for step in steps), re.MULTILINE)
    makefile = (files.ROOT / "Makefile").read_text("utf-8")
    assert verbs
    assert all(f"\n{verb}:" in makefile for verb in verbs)


def test_what_is_restored_is_keyed_by_what_it_was_made_from(steps):
    keys = {
        step["with"]["path"]: step["with"]["key"] for step in steps if step.get("uses", "").startswith("actions/cache")
    }
    assert "hashFiles('requirements*.lock')" in keys[".venv"]
    assert "hashFiles('dvc.lock')" in keys[".dvc/cache"]


def test_the_comment_is_found_again_by_how_the_page_begins(steps):
    comment = next(step for step in steps if "GH_TOKEN" in step.get("env", {}))
    (beginning,) = re.findall(r'startswith\("(.*?)"\)', comment["env"]["OURS"])
    error = gate.IncomparableError("no baseline")
    for verdict in Verdict:
        assert gate.render([Check("any", verdict, "", "")], error, error).startswith(beginning)

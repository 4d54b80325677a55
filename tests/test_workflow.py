"""GitHub's workflow does what a person does: the Makefile's verbs, then the gate."""

import re
import subprocess
import sys

import pytest
import yaml
from conftest import LONGEST, environment

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


def test_the_files_that_start_first_are_there():
    assert {f"test_{name}" for name in LONGEST} <= {path.stem for path in (files.ROOT / "tests").rglob("test_*.py")}


BROKEN = """
import os
def pytest_runtest_protocol(item):
    if item.name == "test_two" and "MENDED" not in os.environ:
        raise KeyError("a worker of pytest-xdist")
"""


@pytest.mark.slow
def test_a_run_that_broke_off_is_retried_whole(tmp_path):
    (tmp_path / "broken.py").write_text(BROKEN)
    (tmp_path / "test_it.py").write_text("import os\ndef test_one(): os.environ['MENDED']\ndef test_two(): pass\n")
    words = [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "broken", "--last-failed"]
    variables = environment() | {"PYTHONPATH": f"{tmp_path}:{files.ROOT}:{files.ROOT / 'tests'}"}
    first = subprocess.run(words, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert first.returncode == pytest.ExitCode.INTERNAL_ERROR, first.stderr
    again = subprocess.run(words, cwd=tmp_path, env=variables | {"MENDED": "1"}, capture_output=True, text=True)
    assert "2 passed" in again.stdout

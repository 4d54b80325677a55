"""What the README shows and no other test runs: a team's remote, a recipe for a run, the verbs of make."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from conftest import Project

from pipeline import files, scoring

README = (files.ROOT / "README.md").read_text("utf-8")


def test_every_verb_of_make_that_is_shown_is_there() -> None:
    makefile = (files.ROOT / "Makefile").read_text("utf-8")
    verbs = set(re.findall(r"(?:^\$ |`|=\S+ )make (\w+)", README, re.MULTILINE))
    assert {"test", "gate", "sweep", "photo", "demo", "ui", "bench"} <= verbs
    assert [verb for verb in verbs if f"\n{verb}:" not in makefile] == []


def measured(title: str) -> dict[str, float]:
    """Return the percentages of a part of benchmarks/README.md by the names of its rows."""
    report = (files.ROOT / "benchmarks/README.md").read_text("utf-8")
    part = report.split(f"\n## {title}\n")[1].split("\n## ")[0]
    return {name: float(share) for name, share in re.findall(r"^\| (.+?) \| \d+ \| ([\d.]+)% \|", part, re.MULTILINE)}


def test_what_is_said_of_rendered_pictures_was_measured() -> None:
    found = measured("Rendered photographs")
    paragraph = README.split("Of a thousand more")[1].split("\n\n")[0]
    for name in ("single: --one", "multi: whole string right", "touching pairs: both right"):
        assert f"{found[name]}%" in paragraph, name


def test_what_is_said_of_refusals_was_measured() -> None:
    found = measured("What is refused")
    paragraph = README.split("At the threshold that accepts")[1].split("\n\n")[0]
    assert f"{found['test digits']}% of the test digits" in paragraph
    assert f"{found['all that is no digit']}%" in paragraph
    for name in ("letters", "scribbles", "textures"):
        assert f"{name} at {found[name]:.0f}%" in paragraph, name


def test_what_is_said_of_real_photographs_was_measured() -> None:
    """The report counts; the README's shares and intervals are those of its counts."""
    report = (files.ROOT / "benchmarks/photos.txt").read_text("utf-8")
    counts = {
        name.strip(): (int(right), int(of)) for name, right, of in re.findall(r"^(.+?)  +(\d+) / (\d+)", report, re.M)
    }

    def row(right: int, of: int) -> str:
        low, high = (100 * limit for limit in scoring.wilson(right, of))
        return f"{100 * right / of:.1f}% [{low:.1f}, {high:.1f}] |"

    scans = counts["SageLabTW, single --one"]
    article, common = (counts[f"single: the {way}"] for way in ("article's method", "common recipe"))
    ours = counts["single: --one"]
    cameras = ours[0] - scans[0], ours[1] - scans[1]
    for said in (
        f"| {cameras[1]} of one digit, by cameras (`--one`) | | | {row(*cameras)}",
        f"faint scans of 28 x 28 (`--one`) | | | {row(*scans)}",
        f"| {100 * article[0] / article[1]:.1f}% | {100 * common[0] / common[1]:.1f}% | {row(*ours)}",
        f"unasked | | | {row(*counts['single: right number of digits without --one'])}",
        f"whole string right | | | {row(*counts['multi: whole string right'])}",
        f"| ... the right number of digits | | | {row(*counts['multi: right number of digits'])}",
        f"Of the {ours[1]},\n{counts['single: accepted as a digit (--one)'][0]} are accepted",
    ):
        assert said in README, said


def test_what_is_said_of_photographs_left_out_was_measured() -> None:
    report = (files.ROOT / "benchmarks/tuning.md").read_text("utf-8")
    row = next(line for line in report.splitlines() if line.startswith("| chosen without the photograph"))
    digits, strings = re.findall(r"([\d.]+)%", row)
    assert f"{digits}% of the digits and {strings}% of the strings" in README


@pytest.mark.slow
def test_a_team_pulls_what_one_of_it_pushed(made_project: Project, tmp_path: Path) -> None:
    assert "$ dvc remote add --default team " in README
    assert "$ dvc push " in README
    made_project.dvc("remote", "add", "--default", "team", str(tmp_path / "team"))
    made_project.git("commit", "--quiet", "--message", "Share", ".dvc/config")
    made_project.dvc("push")
    made_project.git("clone", "--quiet", str(made_project.root), str(tmp_path / "colleague"))
    colleague = Project(tmp_path / "colleague")
    colleague.dvc("pull")
    assert colleague.dvc("status").strip() == "Data and pipelines are up to date."
    for name in ("models/digits.keras", "data/prepared/test-images.npy"):
        assert files.sha256(colleague.root / name) == files.sha256(made_project.root / name)


@pytest.mark.slow
def test_a_recipe_of_the_ladder_is_the_projects_own_for_a_run(made_project: Project) -> None:
    command = "dvc exp run $(python -m benchmarks.recipes --options article)"
    assert f"`{command}`" in README
    made_project.run("sh", "-e", "-c", f"{command} --quiet train")
    train = yaml.safe_load((made_project.root / "params.yaml").read_text("utf-8"))["train"]
    assert (train["network"], train["dropout"], train["augment"]["share"]) == ("article", 0.2, 0.0)
    assert made_project.json("train.json")["parameters"] == 53_578

"""One command learns from the corrections, judges the model and says in one line what came of it."""

import json
import re
import shutil
from pathlib import Path

import pytest
from conftest import Project

from pipeline import config, corrections, files, learn
from pipeline.config import DIGITS
from pipeline.console import UserError

PHOTOS = files.ROOT / files.PHOTOS
FOUND = {"measured": 50, "right": 49, "right_before": 41, "difference_low": 0.0445, "difference_high": 0.2929}
EASY = {"test_accuracy_low": 0.3, "photo_accuracy": 0.0, "calibration_error_high": 0.9, "margin": 0.5, "worse_p": 1e-9}
METRICS = {"test_accuracy": 0.9951}


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copy(files.ROOT / files.PARAMS, tmp_path)
    return tmp_path


def keep(count: int, folder: Path = files.CORRECTIONS, writer: str = "") -> None:
    rows = [row for row in files.read_csv(PHOTOS / "labels.csv") if len(row["label"]) == 1]
    for row in rows[:count]:
        corrections.keep((PHOTOS / row["file"]).read_bytes(), row["label"], DIGITS, writer=writer, folder=folder)


@pytest.mark.parametrize(
    ("found", "before", "line"),
    [
        (FOUND, 0.995, "41 of 50 right before, 49 now [+4.5, +29.3] points; test digits 99.51%, was 99.50%"),
        ({"measured": 50, "right": 49}, None, "49 of 50 right now; test digits 99.51%"),
        ({}, 0.995, "none to measure on yet; test digits 99.51%, was 99.50%"),
    ],
)
def test_what_came_of_it_is_one_line(found: dict[str, float], before: float | None, line: str) -> None:
    assert learn.describe(found, METRICS, before) == f"your corrections: {line}"


@pytest.mark.usefixtures("workplace")
def test_without_corrections_there_is_nothing_to_learn() -> None:
    with pytest.raises(UserError, match=r"^data/corrections: expected pictures to learn from; `make demo` keeps them"):
        learn.main([])


@pytest.mark.usefixtures("workplace")
def test_corrections_that_are_all_measured_are_nothing_to_learn_from() -> None:
    keep(3, writer="Ada")
    with pytest.raises(UserError, match=r"^data/corrections: all 3 pictures fall to the half that is measured"):
        learn.main([])
    assert config.load().train.corrections == 0


@pytest.mark.usefixtures("workplace")
def test_a_share_that_cannot_be_changes_nothing() -> None:
    keep(6)
    before = files.PARAMS.read_bytes()
    with pytest.raises(UserError, match=r"^--share: train\.corrections is 1\.5; expected a number"):
        learn.main(["--share", "1.5"])
    assert files.PARAMS.read_bytes() == before


@pytest.mark.slow
def test_one_command_learns_measures_and_offers_the_model(made_project: Project) -> None:
    project = made_project
    project.set(**{f"gate.{name}": value for name, value in EASY.items()})
    project.git("commit", "--quiet", "--all", "--message", "Ask little of few digits")
    trained = project.json("train.json")["model_sha256"]
    keep(12, project.root / files.CORRECTIONS)
    assert project.git("status", "--porcelain") == ""
    assert "Stage 'train' didn't change, skipping" in project.dvc("repro")
    said = project.stage("learn").stdout
    first, *_, offered, last = said.splitlines()
    assert first == "params.yaml: train.corrections is 0.05, was 0"
    assert project.json("train.json")["model_sha256"] != trained
    folder = project.root / files.CORRECTIONS
    measured = len(corrections.split(corrections.load(folder, DIGITS), folder).measured)
    found = json.loads((project.root / "reports/corrections.json").read_text())
    assert found["measured"] == measured > 2
    assert re.search(r"^corrections +pass +p = ", said, re.MULTILINE)
    assert offered.startswith("challenger: version 1 of digits")
    assert last.startswith(
        f"your corrections: {found['right_before']} of {measured} right before, {found['right']} now ["
    )
    assert ", was " in last

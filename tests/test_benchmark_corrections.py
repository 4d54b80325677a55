"""The study of corrections compares the same pictures, and puts as many other digits in the place of corrections."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import corrections as study
from pipeline import config, files
from pipeline.console import UserError
from pipeline.corrections import split
from pipeline.learning.trajectory import Digits

PHOTOS = files.ROOT / files.PHOTOS
SETTING = {"source": "shipped", "share": "0.1", "precision": "float32"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of the first shipped photographs, as the study takes them."""
    rows = [row for row in files.read_csv(PHOTOS / "labels.csv") if row["file"] < "single_13"]
    for row in rows:
        (tmp_path / row["file"]).symlink_to(PHOTOS / row["file"])
    kept = [{"file": row["file"], "label": row["label"], "group": f"shipped:{row['label']}"} for row in rows]
    files.write_csv(tmp_path / "labels.csv", kept, list(kept[0]))
    return tmp_path


def test_every_seed_is_trained_without_with_corrections_and_with_as_many_digits(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "kept"
    halves = split(study.copy_source(folder, "shipped", target), target)
    labels = (np.arange(400) % 10).astype(np.uint8)
    images = np.arange(400 * 784, dtype=np.uint32).astype(np.uint8).reshape(400, 28, 28)
    digits = Digits(images, labels, images, labels, sha256="few")
    work = study.plan(halves, digits, config.load().train, target, SETTING, seeds=2)
    assert [(each.row["seed"], each.row["kind"]) for each in work] == [(s, k) for s in "12" for k in study.KINDS]
    without, corrected, others, resumed = work[:4]
    assert [each.train.corrections for each in work[:4]] == [0.0, 0.1, 0.1, 0.1]
    assert resumed.after == (without.digits, without.train)
    assert resumed.train == corrected.train.model_copy(update={"epochs": corrected.train.epochs + study.RESUMED})
    assert [each.after for each in work[:3]] == [None] * 3
    assert len(without.digits.corrected[1]) == 0
    np.testing.assert_array_equal(corrected.digits.corrected[1], others.digits.corrected[1])
    assert len({each.digits.sha256 for each in work}) == 3
    taken = {image.tobytes() for image in images}
    assert {image.tobytes() for image in others.digits.corrected[0]} <= taken
    assert not {image.tobytes() for image in corrected.digits.corrected[0]} & taken


def test_an_unknown_source_is_named_with_those_that_are_there(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^dinner: expected a source with labels in .*: shipped$"):
        study.copy_source(folder, "dinner", tmp_path / "kept")


def test_answers_are_compared_with_those_of_the_same_seed() -> None:
    answers = {"without": ("xx-", "x--"), "corrections": ("xxx", "-xx"), "digits": ("xx-", "x-x")}
    answers["resumed"] = ("-x-", "xx-")
    rows = [
        {
            "kind": kind,
            "seed": str(seed),
            "answers": text,
            "measured": 3,
            "right": text.count("x"),
            "test_accuracy": 0.99,
        }
        for kind, texts in answers.items()
        for seed, text in enumerate(texts, 1)
    ]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in study.table(rows)[2:]]
    assert [row[0] for row in cells] == list(study.KINDS)
    assert [row[2] for row in cells] == ["1.5 ± 0.7 of 3", "2.5 ± 0.7 of 3", "2.0 ± 0.0 of 3", "1.5 ± 0.7 of 3"]
    assert [row[3] for row in cells] == ["0, 0", "1, 3", "0, 1", "1, 1"]


def test_the_documented_table_is_that_of_the_trainings() -> None:
    rows = [dict(row) for row in files.read_csv(files.ROOT / study.REPORT)]
    documented = (files.ROOT / "docs/corrections.md").read_text("utf-8")
    for source in {row["source"] for row in rows}:
        assert "\n".join(study.table([row for row in rows if row["source"] == source])) in documented

"""The study of batch size, dropout and patience: what its rows say, in words, and what docs/study.md quotes of them."""

import itertools
import re
import sys

import numpy as np
import pytest

from benchmarks import study
from pipeline import files
from pipeline.console import UserError

GRID = {"batch_size": [64, 128], "dropout": [0.05, 0.4], "patience": [1, 3]}


def rows_of(seeds=5, network="article"):
    """Return rows in which dropout 0.4 costs a point, patience 3 two epochs, and the batch size nothing."""
    random, found = np.random.default_rng(1), []
    for seed in range(1, seeds + 1):
        common = random.normal(0, 0.0005)
        for setting, values in enumerate(itertools.product(*GRID.values())):
            varied = dict(zip(GRID, map(str, values), strict=True))
            accuracy = 0.99 + common - 0.01 * (varied["dropout"] == "0.4") + random.normal(0, 0.0003)
            facts = {"network": network, "setting": setting, **varied, "precision": "float32", "seed": seed}
            found.append({**facts, "val_accuracy": round(accuracy, 6), "epochs": 8 + 2 * (varied["patience"] == "3")})
    return found


def test_each_parameter_has_a_sentence_with_its_worth_in_points_and_epochs_and_what_is_not_told_apart():
    batch, dropout, patience = [line for line in study.report(rows_of()) if line.startswith("- ")]
    worth = r"- Dropout: for the article's network \(5 seeds, against 0\.05\) 0\.4 is worth "
    assert re.fullmatch(worth + r"-(1\.0|0\.9)\d \[-[\d.]+, -[\d.]+\] points and no epochs\.", dropout)
    assert "points and +2.0 [+2.0, +2.0] epochs" in patience
    assert re.search(r"128 is worth \S+ \[\S+, \S+, not told apart\] points", batch)


def test_a_network_has_a_table_of_all_its_settings_and_the_study_a_sentence_for_both():
    lines = study.report(rows_of() + rows_of(network="deep"))
    assert len([line for line in lines if line.startswith("| ")]) == 2 * (1 + 1 + 8)
    assert all("for the article's network" in line and "for our network" in line for line in lines if line[:2] == "- ")


def test_each_network_has_a_picture_of_its_effects(tmp_path):
    study.draw(rows_of() + rows_of(network="deep"), tmp_path)
    pictures = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(pictures) == {f"study-{network}.png" for network in study.NETWORKS}
    assert all(content.startswith(b"\x89PNG") for content in pictures.values())


def test_rows_without_the_present_parameters_say_nothing_yet():
    with pytest.raises(UserError, match="expected rows"):
        study.report([row for row in rows_of() if row["setting"]])


def test_a_table_of_another_grid_is_named_before_anything_trains():
    rows = [{**row, "average": 0.9} for row in rows_of()]
    with pytest.raises(UserError, match=r"it varies average, batch_size, dropout, patience, params\.yaml batch_size, "):
        study.run("article", 1, {}, 1, rows)


def test_the_docs_quote_the_study():
    said = study.report(files.read_csv(files.ROOT / study.TABLE))
    text = (files.ROOT / "docs" / "study.md").read_text("utf-8")
    quoted = [
        line
        for line in text.splitlines()
        if line.startswith(("| ", "- ", "### ", "Of the variance", "With one seed each"))
    ]
    assert set(said) - {""} <= set(text.splitlines())
    assert set(quoted) <= set(said)
    readme = " ".join((files.ROOT / "README.md").read_text("utf-8").split())
    worth = re.findall(r"\S+ is worth \S+ \[\S+ \S+\] points", readme)
    assert len(worth) == 4
    assert all(each in "\n".join(said) for each in worth)
    ours = [line for line in said if line.startswith("With one seed each")][-1]
    assert len(set(re.findall(r"batch \d+", ours))) == 3
    assert "With one seed each, the sweep of ours would have named three different batches" in readme


def test_one_seed_each_names_the_best_of_that_seed_and_of_equals_the_one_with_fewer_epochs():
    rows = [row for row in rows_of(seeds=2) if row["setting"] < 2]
    for row, accuracy in zip(rows, (0.99, 0.98, 0.99, 0.99), strict=True):
        row |= {"val_accuracy": accuracy, "epochs": 9 - row["setting"]}
    (current,) = study.races_of(rows).values()
    first, second = "batch 64 · dropout 0.05 · patience 1", "batch 64 · dropout 0.05 · patience 3"
    assert study.named_by_seed(current) == f"{first} by seed 1; {second} by seed 2"


@pytest.mark.slow
def test_a_study_reads_patience_off_each_history_and_trains_nothing_again(small_project):
    small_project.set(**{"sweep.parameters": {"batch_size": [32], "patience": [1, 3]}, "train.batch_size": 32})
    small_project.stage("preprocess")
    (small_project.root / study.TABLE).unlink()
    words = (sys.executable, "-m", "benchmarks.study", "--network", "deep", "--seeds", "1", "--workers", "1")
    small_project.run(*words)
    kept = {file: file.stat().st_mtime_ns for file in (small_project.root / ".checkpoints").glob("*/*.epoch")}
    table = (small_project.root / study.TABLE).read_bytes()
    rows = files.read_csv(small_project.root / study.TABLE)
    assert [(row["setting"], row["patience"]) for row in rows] == [("0", "3"), ("1", "1")]
    assert len({file.parent for file in kept}) == 1
    (small_project.root / study.TABLE).unlink()
    small_project.run(*words)
    assert (small_project.root / study.TABLE).read_bytes() == table
    assert kept == {file: file.stat().st_mtime_ns for file in (small_project.root / ".checkpoints").glob("*/*.epoch")}

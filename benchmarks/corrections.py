"""Measure what corrections are worth: half of one source's pictures are learned from, the others are only measured.

    python -m benchmarks.corrections DIR SOURCE [--seeds 5] [--share 0.05] [--workers 2]

DIR holds pictures and ``labels.csv`` (benchmarks/photos.py), SOURCE is the beginning of ``group``. Every seed is
trained four times: without corrections; with them; with as many MNIST digits of the same labels in their place, which
are repeated just so; and without them, then two epochs more with them, at the falling end of the rate of a training
that is so much longer ("resumed": from the present weights). The halves are those of `pipeline.corrections`, by
picture. A training takes about seven minutes of CPU, less by ``--precision bfloat16 --instructions native`` where the
processor can. What was trained is kept in .checkpoints/ and in the table, so that a study that was stopped resumes.
Writes benchmarks/corrections.csv, a training a row, and prints its means.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import recipes
from pipeline import config, console, corrections, files, prepare_corrections, scoring
from pipeline.config import DIGITS, Train
from pipeline.console import UserError
from pipeline.corrections import Halves
from pipeline.learning import model, trajectory
from pipeline.learning.classifier import Classifier
from pipeline.learning.trajectory import Digits, Epoch

REPORT = Path("benchmarks/corrections.csv")
KINDS = ("without", "corrections", "digits", "resumed")
RESUMED = 2  # epochs after the first training
SETTING = ("source", "kind", "share", "precision", "seed")  # what a row is of
COLUMNS = (*SETTING, "learned", "fields", "measured", "right", "answers", "test_accuracy")


@dataclass(frozen=True)
class Work:
    """One training: its setting, the digits with what is learned from besides, and the pictures to measure on.

    ``after`` is the training whose last epoch it resumes.
    """

    row: dict[str, Any]
    digits: Digits
    train: Train
    after: tuple[Digits, Train] | None
    halves: Halves
    folder: Path


def main(arguments: Sequence[str]) -> None:
    """Run the study and print the table."""
    given = _arguments(arguments)
    params = config.load()
    train = params.train.model_dump() | {"threads": 1, "precision": given.precision, "instructions": given.instructions}
    train |= {"epochs": given.epochs} if given.epochs else {}
    base = config.check(Train, train, "options", "train.")
    digits = first(trajectory.load_digits(files.PREPARED, files.PREPARED / "no corrections"), given.train)
    rows = [dict(row) for row in files.read_csv(given.out)] if given.out.exists() else []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        halves = corrections.split(copy_source(given.folder, given.source, folder), folder)
        setting = {"source": given.source, "share": str(given.share), "precision": given.precision}
        work = plan(halves, digits, base, folder, setting, given.seeds)
        done = {key(row) for row in rows}
        ahead = [each for each in work if key(each.row) not in done]
        with (
            console.progress(len(ahead), "study", "training") as bar,
            multiprocessing.get_context("spawn").Pool(given.workers, maxtasksperchild=1) as pool,
        ):
            for row in pool.imap_unordered(study, ahead):
                rows = sorted([*rows, row], key=key)
                files.write_csv(given.out, rows, COLUMNS)
                bar.update()
    wanted = {key(each.row) for each in work}
    print("\n".join(table([row for row in rows if key(row) in wanted])))


def _arguments(arguments: Sequence[str]) -> argparse.Namespace:
    words = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.corrections", description=words)
    parser.add_argument("folder", type=Path)
    parser.add_argument("source")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--share", type=float, default=0.05, help="of an epoch's digits")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--instructions", default="avx2")
    parser.add_argument("--epochs", type=int, default=0, help="at most; default: params.yaml's")
    parser.add_argument("--train", type=int, default=0, help="only the first so many training digits")
    parser.add_argument("--out", type=Path, default=REPORT)
    return parser.parse_args(arguments)


def key(row: dict[str, Any]) -> tuple[str, ...]:
    """Return the setting of a row."""
    return tuple(str(row[name]) for name in SETTING)


def first(digits: Digits, count: int) -> Digits:
    """Return the first ``count`` training digits alone, all of them for 0."""
    if not count:
        return digits
    name = files.digest(digits.sha256, count)
    return replace(digits, images=digits.images[:count], labels=digits.labels[:count], sha256=name)


def copy_source(folder: Path, source: str, target: Path) -> list[corrections.Correction]:
    """Keep the labelled pictures of a source in ``target``; raise ``UserError`` where there are none."""
    rows = files.read_csv(folder / "labels.csv")
    sources = sorted({row["group"].split(":")[0] for row in rows})
    for row in rows:
        if row["group"].split(":")[0] == source and row["label"]:
            corrections.keep((folder / row["file"]).read_bytes(), row["label"], DIGITS, folder=target)
    found = corrections.load(target, DIGITS)
    if not found:
        raise UserError(f"{source}: expected a source with labels in {folder}: {', '.join(sources)}")
    return found


def plan(halves: Halves, digits: Digits, base: Train, folder: Path, setting: dict[str, Any], seeds: int) -> list[Work]:
    """Return every training; raise ``UserError`` where no picture can be learned from, or none is left to measure."""
    images, labels, used = prepare_corrections.prepare(halves.learned, DIGITS, folder)
    if not used or not halves.measured:
        halved = f"{used} of {len(halves.learned)} to learn from and {len(halves.measured)} to measure"
        raise UserError(f"{setting['source']}: expected pictures in both halves, found {halved}")
    extra = dict.fromkeys(("corrections", "resumed"), (images, labels)) | {"digits": drawn(digits, labels)}
    work = []
    for seed in range(1, seeds + 1):
        for kind in KINDS:
            share = float(setting["share"]) if kind in extra else 0.0
            row = setting | {"kind": kind, "seed": str(seed), "learned": used, "fields": len(labels)}
            added = with_extra(digits, *extra[kind]) if kind in extra else digits
            train = base.model_copy(update={"seed": seed, "corrections": share})
            after = (digits, train.model_copy(update={"corrections": 0.0})) if kind == "resumed" else None
            if after:
                train = train.model_copy(update={"epochs": train.epochs + RESUMED})
            work.append(Work(row, added, train, after, halves, folder))
    return work


def drawn(digits: Digits, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a training digit for each label, none twice."""
    order = np.random.default_rng(0).permutation(len(digits.labels))
    places = {label: iter(order[digits.labels[order] == label]) for label in range(len(digits.classes))}
    chosen = np.array([next(places[int(label)]) for label in labels])
    return digits.images[chosen], digits.labels[chosen]


def with_extra(digits: Digits, images: np.ndarray, labels: np.ndarray) -> Digits:
    """Return the digits with what takes a share of each epoch."""
    name = files.digest(digits.sha256, images.tobytes().hex(), labels.tolist())
    return replace(digits, corrected=(images, labels), sha256=name)


def study(work: Work) -> dict[str, Any]:
    """Train once and return the row."""
    if work.after:
        *_, best = trajectory.train_epochs(work.digits, work.train, trained(*work.after)[-1])
    else:
        epochs = trained(work.digits, work.train)
        best = epochs[trajectory.best_epoch([each.metrics for each in epochs], work.train.monitor) - 1]
    content = model.package(best, work.train, work.digits)
    with tempfile.TemporaryDirectory() as folder:
        model.write(content, Path(folder))
        classifier = Classifier.load(Path(folder))
    right = corrections.read_right(work.halves.measured, classifier, work.folder)
    accuracy, _ = recipes.tested(content)
    return work.row | {
        "measured": len(right),
        "right": int(right.sum()),
        "answers": "".join("x" if each else "-" for each in right),  # a picture each: read right, or not
        "test_accuracy": round(accuracy, 4),
    }


def trained(digits: Digits, train: Train) -> list[Epoch]:
    """Return the epochs of a training to its end, those on disk loaded."""
    kept = trajectory.open_checkpoints(train, digits.sha256, config.load().checkpoints)
    epochs: list[Epoch] = []
    for epoch in trajectory.load_or_train(digits, train, kept):
        epochs.append(epoch)
        if trajectory.is_finished([each.metrics for each in epochs], train):
            break
    return epochs


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the lines of a Markdown table: a kind a row, mean and standard deviation over seeds.

    What was lost and won against the training of the same seed without corrections is summed over the seeds.
    """
    lines = ["| learned from | n | right | lost, won | 95% of the difference, of one seed | test accuracy |"]
    lines += ["|---|---:|---:|---:|---|---:|"]
    before = {row["seed"]: row["answers"] for row in rows if row["kind"] == "without"}
    for kind in KINDS:
        group = [row for row in rows if row["kind"] == kind]
        pairs = [(old, new) for row in group for old, new in zip(before[row["seed"]], row["answers"], strict=True)]
        lost, won = pairs.count(("x", "-")), pairs.count(("-", "x"))
        images = int(group[0]["measured"])
        low, high = scoring.difference_interval(round(lost / len(group)), round(won / len(group)), images)
        right, accuracy = ([float(row[name]) for row in group] for name in ("right", "test_accuracy"))
        lines.append(
            f"| {kind} | {len(group)} | {spread(right, 1)} of {images} | {lost}, {won} "
            f"| {100 * low:+.1f} to {100 * high:+.1f} points | {spread([100 * each for each in accuracy], 3)} |"
        )
    return lines


def spread(values: Sequence[float], places: int) -> str:
    """Return mean and standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{places}f} ± {deviation:.{places}f}"


if __name__ == "__main__":
    console.run(main)

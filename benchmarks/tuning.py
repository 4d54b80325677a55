"""Measure how far the reader's constants were fitted to the photographs: choose them without one, and read that one.

    python -m benchmarks.tuning DIR

DIR is as for `benchmarks.photos`, and its column group names the photograph that a picture was cut from. Every
constant is made smaller and larger, one at a time, and every picture is read in every way. For each photograph, and for
each source of them, the change is chosen that reads most of all the other pictures right, and what was left out is
read with it; where several are equally good, their mean counts. What was fitted to one photograph loses without it.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np

from pipeline import console, files
from pipeline.console import UserError
from pipeline.learning.classifier import Classifier
from pipeline.photos import lines, photo, reading

CONSTANTS: dict[ModuleType, tuple[str, ...]] = {
    photo: ("NOISY", "SMALL", "NARROW", "EDGE", "GAMMA", "CLEAR", "TALL", "BAR", "SIDE", "TICK", "SOFT", "INSIDE"),
    lines: ("THICK", "COVER", "BLANK", "EDGE", "APART", "OUTER", "BRIDGE"),
    reading: (
        "RIM",
        "FLAT",
        "UPRIGHT",
        "OUT",
        "WIDE",
        "LIKE",
        "UNLIKE",
        "BROAD",
        "CUT",
        "CUT_STROKE",
        "JOIN",
        "JOIN_GAP",
        "MARK",
        "ASIDE",
    ),
}
FACTORS = (0.5, 0.7, 1.4, 2.0)
CHANGES = [(photo, "GAMMA", 1.0)] + [  # the first is none
    (module, name, factor) for module, names in CONSTANTS.items() for name in names for factor in FACTORS
]


def read_right(folder: Path, models: Path, number: int) -> list[bool]:
    """Read every labelled picture of a folder after one of ``CHANGES``, and tell which are read right."""
    module, name, factor = CHANGES[number]
    committed = getattr(module, name)
    setattr(module, name, factor * committed)
    try:
        classifier = Classifier.load(models)
        return [_is_right(folder / row["file"], row["label"], classifier) for row in _rows(folder)]
    finally:
        setattr(module, name, committed)


def _rows(folder: Path) -> list[dict[str, str]]:
    return [row for row in files.read_csv(folder / "labels.csv") if row["label"]]


def _is_right(file: Path, label: str, classifier: Classifier) -> bool:
    read = reading.read_one if len(label) == 1 else reading.read
    return read(photo.open_picture(file), classifier).text == label


def left_out(right: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """Return how well each picture is read by what was chosen without its group, float [n], of bool [changes, n].

    It is the share that reads it right of the changes that read most pictures of the other groups right.
    """
    names, result = np.array(groups), np.empty(right.shape[1])
    for group in set(groups):
        out = names == group
        score = right[:, ~out].sum(1)
        result[out] = right[score == score.max()][:, out].mean(0)
    return result


def table(right: np.ndarray, labels: Sequence[str], groups: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table by what is left out, and a sentence on what single changes do."""
    single = np.array([len(label) == 1 for label in labels])
    read = {"as committed": right[0].astype(float)}
    read |= {f"chosen without the {name}, {len(set(of))} times": left_out(right, of) for name, of in groups.items()}
    return [
        f"| constants | one digit (`--one`), of {single.sum()} | whole strings, of {(~single).sum()} |",
        "| --- | ---: | ---: |",
        *(f"| {name} | {_share(each[single])} | {_share(each[~single])} |" for name, each in read.items()),
        "",
        _summary(right.sum(1)),
    ]


def _summary(total: np.ndarray) -> str:
    committed, changed = total[0], total[1:]
    _, worst, factor = CHANGES[1 + int(changed.argmin())]
    more, fewer = (changed > committed).sum(), (changed < committed).sum()
    factors = ", ".join(map(str, FACTORS))
    return (
        f"Of {len(changed)} changes of one constant, by {factors}, {more} read more right than the {committed} "
        f"as committed, {changed.max()} at most, and {fewer} fewer, {changed.min()} at least ({worst} by {factor})."
    )


def _share(read: np.ndarray) -> str:
    return f"{read.sum():.1f}, {100 * read.mean():.1f}%"


def main(arguments: Sequence[str]) -> None:
    """Read the folder in every way and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tuning", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--models", type=Path, default=files.MODELS, help="folder of digits.tflite and calibration.json"
    )
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args(arguments)
    rows = _rows(options.folder)
    photographs = [row.get("group", "") for row in rows]
    if len(set(photographs)) < 2:
        raise UserError(f"{options.folder / 'labels.csv'}: expected a column group that names two photographs at least")
    groups = {"photograph": photographs, "source": [name.split(":")[0] for name in photographs]}
    right = []
    with (
        console.progress(len(CHANGES), "read", "change") as bar,
        multiprocessing.get_context("spawn").Pool(options.workers) as pool,
    ):
        for each in pool.imap(partial(read_right, options.folder, options.models), range(len(CHANGES))):
            right.append(each)
            bar.update()
    print("\n".join(table(np.array(right), [row["label"] for row in rows], groups)))


if __name__ == "__main__":
    console.run(main)

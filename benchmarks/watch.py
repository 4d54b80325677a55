"""Simulate weeks of a service, and count how often `pipeline.watch` says that something has moved.

    python -m benchmarks.watch [--weeks 200]

Reads   models/ and the validation digits
Writes  benchmarks/watch.csv
Prints  a table for benchmarks/README.md

For each week the validation digits are dealt out anew: some to this week, where a change may have drawn them anew, as
many to last week, and the rest is what the model was validated on.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pipeline import config, console, counts, files, scoring, watch
from pipeline.counts import Observed
from pipeline.learning import augmentation
from pipeline.learning.classifier import Classifier
from pipeline.learning.handwriting import write_european
from pipeline.serving import read_fields
from pipeline.watch import LAST, THIS, VALIDATION

TABLE = Path("benchmarks/watch.csv")
SIZES = (50, 100, 200, 500)  # pictures a week
LEVEL = 0.01  # watch's own
AGAINST = {"last week": (LAST,), "both": (LAST, VALIDATION)}
Pictures = list[list[Observed]]


def main(arguments: Sequence[str]) -> None:
    """Draw the weeks of every change and size, write how often each was noticed, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.watch", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--weeks", type=int, default=200, help="without a change; a fifth of them of each")
    given = parser.parse_args(arguments)
    usual, changed = observed_digits()
    rows = []
    for change, pictures in changed.items():
        weeks = given.weeks if change == NOTHING else max(given.weeks // 5, 1)
        for against, size in itertools.product(AGAINST, SIZES):
            found = noticed(pictures, usual, AGAINST[against], size, weeks)
            rows.append({"change": change, "against": against, "pictures": size, "weeks": weeks, "noticed": found})
    files.write_csv(TABLE, rows, list(rows[0]))
    print(table(rows))


def observed_digits() -> tuple[Pictures, dict[str, Pictures]]:
    """Return what is counted of each validation digit, as it is and as each change draws it."""
    settings, classifier = config.load().train.augment, Classifier.load()
    images, labels = (np.load(files.PREPARED / f"validation-{name}.npy") for name in ("images", "labels"))
    rng = np.random.default_rng(0)
    found = {
        name: [counts.observed(each) for each in read_fields(change(images, labels, rng, settings), classifier)]
        for name, change in CHANGES.items()
    }
    return found[NOTHING], found


def rotated(images: np.ndarray, degrees: float) -> np.ndarray:
    """Turn fields about their middle, as a camera held askew does."""
    turn = cv2.getRotationMatrix2D((13.5, 13.5), degrees, 1)
    return np.stack([cv2.warpAffine(image, turn, image.shape) for image in images])


def broad_pen(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw digits with a marker: strokes up to a pixel broader on either side, half of that on average."""
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    broad = np.stack([cv2.dilate(image, cross) for image in images])
    return augmentation.clipped(images + rng.random((len(images), 1, 1)) * (broad.astype(float) - images))


def halved(images: np.ndarray, changed: np.ndarray) -> np.ndarray:
    """Return every second image as it was: half of a service's people have changed."""
    return np.where((np.arange(len(images)) % 2 == 0)[:, None, None], images, changed)


Change = Callable[[np.ndarray, np.ndarray, np.random.Generator, config.Augment], np.ndarray]
NOTHING = "nothing"
CHANGES: Mapping[str, Change] = {
    NOTHING: lambda images, *_: images,
    "rotated by 15 degrees": lambda images, *_: rotated(images, 15),
    "half of them rotated by 30 degrees": lambda images, *_: halved(images, rotated(images, 30)),
    "a broader pen": lambda images, _, rng, __: broad_pen(images, rng),
    "another country's 1, 7 and 9": lambda images, labels, rng, _: write_european(images, labels, rng, 1.0),
    "photographs": lambda images, labels, _, settings: augmentation.degrade(images, labels, seed=0, settings=settings),
}


def noticed(changed: Pictures, usual: Pictures, against: Sequence[str], size: int, weeks: int) -> int:
    """Return in how many of ``weeks`` something is said to have moved, ``size`` pictures in each week."""
    rng, found = np.random.default_rng(size), 0
    for _ in range(weeks):
        this, last, rest = np.split(rng.permutation(len(usual)), [size, 2 * size])
        dealt = {THIS: (changed, this), LAST: (usual, last), VALIDATION: (usual, rest)}
        known = {
            name: watch.tally(pictures[place] for place in places)
            for name, (pictures, places) in dealt.items()
            if name in (THIS, *against)
        }
        found += any(each.has_moved for each in watch.compare(known, LEVEL))
    return found


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return how often each change is noticed, by the number of pictures; of no change, the false alarms."""
    weeks = sorted({row["weeks"] for row in rows}, reverse=True)
    numbers = f"{weeks[0]:,} weeks without a change and {weeks[-1]:,} of each change"
    lines = [
        f"Noticed at a level of {LEVEL:.0%}, of {numbers}; in brackets the 95% interval of the false alarms.\n",
        f"| what changed | against | {' | '.join(f'{size:,} pictures' for size in SIZES)} |",
        f"| --- | --- |{' ---: |' * len(SIZES)}",
    ]
    for change, against in itertools.product(CHANGES, AGAINST):
        cells = [share(row) for row in rows if (row["change"], row["against"]) == (change, against)]
        lines.append(f"| {change} | {against} | {' | '.join(cells)} |")
    return "\n".join(lines)


def share(row: Mapping[str, Any]) -> str:
    """Return the share of weeks in which something was noticed."""
    found = f"{row['noticed'] / row['weeks']:.1%}"
    low, high = scoring.wilson(row["noticed"], row["weeks"])
    return f"{found} ({low:.1%} to {high:.1%})" if row["change"] == NOTHING else found


if __name__ == "__main__":
    console.run(main)

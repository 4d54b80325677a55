"""Read a thousand rendered photographs of test digits, and pairs of test digits that touch.

    python -m benchmarks.rendered [--count 1000] [--pairs 300] [--seed 7]

The photographs are those of ``benchmarks.render_photos``, drawn with another seed than the shipped ones. The pairs are
two digits on clean paper, slid together until they touch. Prints shares with their 95% Wilson intervals.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from benchmarks import photos, render_photos
from pipeline import console, files, scoring
from pipeline.learning.classifier import Classifier
from pipeline.photos import photo, reading

HEIGHT = 90  # pixels of a digit of a pair
WANTED = (  # of the measures of `benchmarks.photos`
    "single: --one",
    "single: right number of digits without --one",
    "single: accepted as a digit (--one)",
    "multi: whole string right",
    "multi: right number of digits",
    "none: refused",
)
Row = tuple[str, int, int]  # what, how many are right, of how many


def main(arguments: Sequence[str]) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rendered", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--count", type=int, default=1000, help="photographs")
    parser.add_argument("--pairs", type=int, default=300, help="of digits that touch")
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args(arguments)
    images, labels = (np.load(files.PREPARED / f"test-{kind}.npy") for kind in ("images", "labels"))
    classifier = Classifier.load(files.MODELS)
    with tempfile.TemporaryDirectory() as folder:
        render_photos.render(images, labels, given.count, given.seed, Path(folder))
        rows = [row for row in photos.table(list(photos.answers(Path(folder), classifier))) if row[0] in WANTED]
    rows += read_pairs(images, labels, given.pairs, given.seed, classifier)
    print("| | n | share | 95% interval |\n| --- | ---: | ---: | ---: |")
    for what, right, of in rows:
        low, high = scoring.wilson(right, of)
        print(f"| {what} | {of} | {right / of:.1%} | {low:.1%} to {high:.1%} |")


def read_pairs(images: np.ndarray, labels: np.ndarray, count: int, seed: int, classifier: Classifier) -> list[Row]:
    """Read ``count`` pairs of digits that touch."""
    said, written = [], []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        chosen = rng.integers(0, len(images), 2)
        picture = photo.open_picture(cv2.imencode(".png", draw_pair(images[chosen], rng))[1].tobytes())
        said.append(reading.read(picture, classifier))
        written.append("".join(str(label) for label in labels[chosen]))
    right = [found.text == label for found, label in zip(said, written, strict=True)]
    wrong_and_sure = [found.verdict == "digit" and not good for found, good in zip(said, right, strict=True)]
    return [
        ("touching pairs: both right", sum(right), count),
        ("touching pairs: two digits found", sum(len(found.text) == 2 for found in said), count),
        ("touching pairs: misread and called sure", sum(wrong_and_sure), count),
    ]


def draw_pair(digits: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw two digits (uint8 [2, 28, 28]) in dark ink on paper, slid together until they touch: uint8 [h, w]."""
    thickness = float(rng.uniform(-0.4, 0.6))
    left, right = (render_photos.stroke(digit, rng, HEIGHT, thickness) for digit in digits)
    height = max(left.shape[0], right.shape[0]) + HEIGHT // 6
    tops = [int(rng.integers(0, height - ink.shape[0] + 1)) for ink in (left, right)]
    both = np.zeros((2, height, left.shape[1] + right.shape[1]), np.float32)
    both[0, tops[0] : tops[0] + left.shape[0], : left.shape[1]] = left
    for x in range(left.shape[1], 0, -1):
        both[1] = 0
        both[1, tops[1] : tops[1] + right.shape[0], x : x + right.shape[1]] = right
        if (both.min(0) > 0.5).any():
            break
    ink = np.pad(both.max(0), HEIGHT // 3)
    seen = cv2.GaussianBlur((225 * (1 - 0.8 * ink)).astype(np.float32), (0, 0), 1.0)
    return np.clip(seen + rng.normal(0, 2, ink.shape), 0, 255).astype(np.uint8)


if __name__ == "__main__":
    console.run(main)

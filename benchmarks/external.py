"""Read digit sets by other hands with networks that MNIST alone made: nothing is tuned on them.

    python -m benchmarks.external DIR [--recipe article]

DIR holds a folder a set, with one .npz of ``images`` (uint8 [n, h, w], ink bright on 0) and ``labels`` (uint8 [n]).
Three columns: the images resized to 28 x 28 as they are; prepared as MNIST was, the ink in a box of 20 pixels and
placed by its centre of mass; and read as a photograph of dark ink on white paper (``--one``). The network is the one in
models/; ``--recipe`` adds that of benchmarks/recipes.yaml, trained with seed 1 or taken from .checkpoints/. Prints a
Markdown table with 95% Wilson intervals.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from benchmarks import recipes
from pipeline import console, files, scoring
from pipeline.config import Train
from pipeline.console import UserError
from pipeline.learning import model
from pipeline.learning.classifier import Classifier
from pipeline.photos import photo, reading

MARGIN = 0.3  # of an image's longer side: paper around the digit in its photograph


def main(arguments: Sequence[str]) -> None:
    """Read every set with every network and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.external", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--recipe", action="append", default=[], help="also with this recipe's network")
    options = parser.parse_args(arguments)
    sets = {path.parent.name: load(path) for path in sorted(options.folder.glob("*/*.npz"))}
    if not sets:
        raise UserError(f"{options.folder}: expected folders with an .npz of images and labels, found none")
    ladder = recipes.ladder()
    if unknown := set(options.recipe) - set(ladder):
        raise UserError(f"{', '.join(sorted(unknown))}: expected one of {', '.join(ladder)}")
    networks = {"ours": Classifier.load(files.MODELS)} | {name: network_of(ladder[name]) for name in options.recipe}
    print("| set | n | network | as they are | prepared as MNIST was | as a photograph |")
    print("|---|---:|---|---:|---:|---:|")
    for name, (images, labels) in sets.items():
        for network, classifier in networks.items():
            shares = (share(answer == labels) for answer in answers(images, classifier))
            print(f"| {name} | {len(labels):,} | {network} | {' | '.join(shares)} |", flush=True)


def load(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return images uint8 [n, h, w] and labels uint8 [n]."""
    with np.load(path) as arrays:
        return arrays["images"], arrays["labels"]


def network_of(recipe: Train) -> Classifier:
    """Return a recipe's network with its calibration."""
    content = recipes.trained(recipe, seed=1)[-1]
    with tempfile.TemporaryDirectory() as folder:
        model.write(content, Path(folder))
        return Classifier.load(Path(folder))


def answers(images: np.ndarray, classifier: Classifier) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the answers int64 [n] in each of the three ways; 10 where a photograph shows no digit."""
    side = (photo.FIELD, photo.FIELD)
    plain = [cv2.resize(image, side, interpolation=_smooth(image)) for image in images]
    prepared = [photo.prepare_field(image.astype(np.float32) / 255) for image in images]
    one = (reading.read_one(_photograph(image), classifier) for image in images)
    seen = np.array([read.digits[0].digit if read.digits else len(classifier.classes) for read in one])
    by_field = (classifier.raw(np.stack(fields)).argmax(1) for fields in (plain, prepared))
    return (*by_field, seen)


def _smooth(image: np.ndarray) -> int:
    return cv2.INTER_AREA if image.shape[0] > photo.FIELD else cv2.INTER_LINEAR


def _photograph(image: np.ndarray) -> photo.Picture:
    """Return an image as dark ink on white paper, with a margin."""
    paper = np.pad(255 - image, round(MARGIN * max(image.shape)), constant_values=255)
    return photo.open_picture(cv2.imencode(".png", paper)[1].tobytes())


def share(right: np.ndarray) -> str:
    """Return the share of right answers in percent, with its interval."""
    low, high = scoring.wilson(int(right.sum()), len(right))
    return f"{100 * right.mean():.1f} [{100 * low:.1f}, {100 * high:.1f}]"


if __name__ == "__main__":
    console.run(main)

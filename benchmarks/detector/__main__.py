"""Teach a detector of digits on drawn pages, and read photographs with it beside the rules.

    python -m benchmarks.detector teach OUT.tflite [--pages 6000] [--steps 3000] [--bfloat16]
    python -m benchmarks.detector read OUT.tflite DIR... [--failures OUT.png]
    python -m benchmarks.detector show OUT.png

``teach`` draws pages with training digits, trains the network (no photograph is seen) and writes it for LiteRT.
``read`` reads labelled pictures (labels.csv as in benchmarks.photos) by the rules, by the rules on the ink that the
detector calls a digit's, and by the detector alone. ``show`` draws some of the crops that teach it, with their truth.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from benchmarks.detector import network
from benchmarks.detector.network import SIDE, Crop
from benchmarks.detector.reading import Detector, read
from pipeline import console, files, scoring
from pipeline.learning import environment
from pipeline.learning.classifier import Classifier
from pipeline.photos import photo, reading
from pipeline.photos.photo import Picture
from pipeline.photos.reading import Reading
from pipeline.photos.sheet import is_right

Reader = Callable[[Picture, bool], Reading]


def main(arguments: Sequence[str]) -> None:
    """Do what the first word says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.detector", description=(__doc__ or "").split("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    teaching = verbs.add_parser("teach")
    teaching.add_argument("out", type=Path)
    teaching.add_argument("--pages", type=int, default=6000)
    teaching.add_argument("--steps", type=int, default=3000)
    teaching.add_argument("--seed", type=int, default=1)
    teaching.add_argument("--bfloat16", action="store_true", help="faster where /proc/cpuinfo has amx_bf16")
    reads = verbs.add_parser("read")
    reads.add_argument("detector", type=Path)
    reads.add_argument("folders", type=Path, nargs="+")
    reads.add_argument("--failures", type=Path, metavar="OUT.png", help="draw what is misread on cleaned ink")
    showing = verbs.add_parser("show")
    showing.add_argument("out", type=Path)
    showing.add_argument("--seed", type=int, default=2)
    options = parser.parse_args(arguments)
    {"teach": teach, "read": compare, "show": show}[options.verb](options)


def _crops(pages: int, seed: int) -> Crop:
    images, labels = (np.load(files.PREPARED / f"train-{kind}.npy") for kind in ("images", "labels"))
    with console.progress(pages, "draw", "page") as bar:
        found = list(network.crops(images, labels, pages_wanted=pages, seed=seed, on_page=bar.update))
    return Crop(*map(np.stack, zip(*found, strict=True)))


def teach(options: argparse.Namespace) -> None:
    """Draw pages, train, export; print the losses now and then."""
    data = _crops(options.pages, options.seed)
    environment.isolate("native")
    start, seen = time.monotonic(), []

    def on_step(number: int, losses: np.ndarray) -> None:
        seen.append(losses)
        if number % 100 == 0:
            means = " ".join(
                f"{name} {value:.3f}"
                for name, value in zip(("digit", "way", "middle", "size"), np.mean(seen[-100:], 0), strict=True)
            )
            print(f"step {number}: {means}; {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)

    trained = network.train(
        data, steps=options.steps, batch=16, rate=4e-3, seed=options.seed, bfloat16=options.bfloat16, on_step=on_step
    )
    network.export(trained, options.out)
    print(f"{options.out}: {options.out.stat().st_size} bytes, {len(data.ink)} crops of {options.pages} pages")


def compare(options: argparse.Namespace) -> None:
    """Read folders in three ways and print how much is right."""
    classifier, detector = Classifier.load(files.MODELS), Detector(options.detector)
    readers: dict[str, Reader] = {
        "rules": lambda picture, one: (reading.read_one if one else reading.read)(picture, classifier),
        "rules on the detector's ink": lambda picture, one: read(picture, detector, classifier, one=one),
        "detector alone": lambda picture, one: read(picture, detector, classifier, one=one, alone=True),
    }
    tiles = []
    for folder in options.folders:
        rows = files.read_csv(folder / "labels.csv")
        pictures = [photo.open_picture(folder / row["file"]) for row in rows]
        for name, reader in readers.items():
            results = [measured(row, picture, reader) for row, picture in zip(rows, pictures, strict=True)]
            for kind in sorted({kind for kind, _, _ in results}):
                right = [is_good for each, is_good, _ in results if each == kind]
                low, high = scoring.wilson(sum(right), len(right))
                interval = f"[{100 * low:.1f}, {100 * high:.1f}]"
                share = f"{sum(right):4} / {len(right):<4} {100 * sum(right) / len(right):6.2f}%  {interval}"
                print(f"{folder.name:8} {name:28} {kind:20} {share}", flush=True)
            if name == "rules on the detector's ink":
                tiles += [
                    _tile(row, picture, said)
                    for row, picture, (_, good, said) in zip(rows, pictures, results, strict=True)
                    if not good
                ]
    if options.failures and tiles:
        tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % 8)
        sheet = np.vstack([np.hstack(tiles[start : start + 8]) for start in range(0, len(tiles), 8)])
        files.write_bytes(options.failures, cv2.imencode(".png", sheet)[1].tobytes())


def measured(row: dict[str, str], picture: Picture, reader: Reader) -> tuple[str, bool, Reading]:
    """Return a picture's kind, whether it is read as it should be, and how it is read."""
    label = row["label"]
    if len(label) == 1:
        said = reader(picture, True)
        return "one digit, --one", said.text == label, said
    said = reader(picture, False)
    return ("no digit, refused", is_right(said, ""), said) if not label else ("string, whole", said.text == label, said)


def _tile(row: dict[str, str], picture: Picture, said: Reading) -> np.ndarray:
    tile = np.full((220, 190), 255, np.uint8)
    scale = 186 / max(picture.grey.shape)
    small = cv2.resize(picture.grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    tile[: small.shape[0], : small.shape[1]] = small
    cv2.putText(
        tile, f"{row['label'] or 'none'} > {said.text or said.verdict}"[:28], (0, 205), 0, 0.4, 0, 1, cv2.LINE_AA
    )
    return tile


def show(options: argparse.Namespace) -> None:
    """Draw forty crops: digits green, what is none red, what may be either blue, and their middles dark."""
    data, tiles = _crops(30, options.seed), []
    for number in np.random.default_rng(1).choice(len(data.ink), 40, replace=False):
        colours = np.array([(60, 60, 220), (30, 150, 30), (220, 60, 60)], np.uint8)  # BGR
        truth = cv2.resize(colours[data.digit[number]], (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)
        inked = (data.ink[number] > SIDE // 2)[..., None]
        middle = cv2.resize(data.middle[number], (SIDE, SIDE))[..., None]
        tile = np.where(inked, truth, 255 - data.ink[number][..., None]) * (1 - middle / 500)
        tiles.append(np.pad(tile.astype(np.uint8), ((2, 2), (2, 2), (0, 0)), constant_values=128))
    sheet = np.vstack([np.hstack(tiles[start : start + 10]) for start in range(0, 40, 10)])
    files.write_bytes(options.out, cv2.imencode(".png", sheet)[1].tobytes())


if __name__ == "__main__":
    console.run(main)

"""Count the digits that are refused, and the fields without a digit that are: drawn otherwise than in training.

    python -m benchmarks.refusals

Letters come from fonts that training does not use, those that are somebody's digit left out; scribbles are splines and
textures sine waves and clouds, where training has polygons and noise between knots. Refused means: not called `digit`.
"""

from __future__ import annotations

import argparse
import string
from collections.abc import Sequence
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.interpolate import CubicSpline

from pipeline import console, files, scoring
from pipeline.learning.classifier import Classifier
from pipeline.photos import photo

FONTS = ("cmr10", "cmss10", "cmtt10", "cmb10", "STIXGeneral", "STIXGeneralBol")  # Computer Modern and STIX
HERSHEY = range(8)  # OpenCV's fonts of strokes
TAKEN = set("oOiIlLsSzZbBgqDQGJTj")  # letters that are somebody's digit
EACH = 600
SIDE = photo.FIELD


def main(arguments: Sequence[str]) -> None:
    """Print the table."""
    argparse.ArgumentParser(
        prog="python -m benchmarks.refusals", description=(__doc__ or "").split("\n")[0]
    ).parse_args(arguments)
    classifier, rng = Classifier.load(files.MODELS), np.random.default_rng(99)
    kinds = {
        "test digits": np.load(files.PREPARED / "test-images.npy"),
        "letters": letters(),
        "scribbles": scribbles(rng),
        "textures": textures(rng),
        "blank fields, black to white": np.array([np.full((SIDE, SIDE), value, np.uint8) for value in range(256)]),
        "noise": noise(rng),
    }
    refused = {
        name: [classifier.verdict(each) != "digit" for each in classifier.probabilities(fields)]
        for name, fields in kinds.items()
    }
    refused["all that is no digit"] = [each for name in list(kinds)[1:] for each in refused[name]]
    print("| | n | refused | 95% interval |\n| --- | ---: | ---: | ---: |")
    for name, found in refused.items():
        low, high = scoring.wilson(sum(found), len(found))
        print(f"| {name} | {len(found)} | {sum(found) / len(found):.1%} | {low:.1%} to {high:.1%} |")


def letters() -> np.ndarray:
    """Return fields of letters, uint8 [n, 28, 28]."""
    folder = Path(matplotlib.get_data_path(), "fonts/ttf")
    wanted = [letter for letter in string.ascii_letters if letter not in TAKEN]
    found = []
    for name in FONTS:
        font = ImageFont.truetype(str(folder / f"{name}.ttf"), 64)
        for letter in wanted:
            canvas = Image.new("L", (160, 160))
            ImageDraw.Draw(canvas).text((40, 40), letter, fill=255, font=font)
            found.append(field(np.asarray(canvas)))
    for number in HERSHEY:
        for letter in wanted:
            found.append(field(cv2.putText(np.zeros((160, 160), np.uint8), letter, (40, 110), number, 2.5, 255, 8)))
    return np.array(found)


def scribbles(rng: np.random.Generator) -> np.ndarray:
    """Return fields with one smooth line through six to thirteen random points."""
    found = []
    for _ in range(EACH):
        points = rng.integers(72, 168, (rng.integers(6, 14), 2)).astype(float)
        steps = np.linspace(0, len(points) - 1, 40 * len(points))
        line = CubicSpline(np.arange(len(points)), points)(steps).astype(np.int32)
        found.append(field(cv2.polylines(np.zeros((240, 240), np.uint8), [line], False, 255, int(rng.integers(3, 10)))))
    return np.array(found)


def textures(rng: np.random.Generator) -> np.ndarray:
    """Return fields of sine waves, single or crossed, and of smooth clouds."""
    found, steps = [], np.arange(SIDE)
    for _ in range(EACH // 2):
        angle, pace = rng.random() * np.pi, rng.uniform(0.3, 2)
        along = np.cos(angle) * steps[:, None] + np.sin(angle) * steps
        across = -np.sin(angle) * steps[:, None] + np.cos(angle) * steps
        waves = np.sin(pace * along + 6 * rng.random())
        waves *= np.sin(pace * rng.uniform(0.7, 1.3) * across) if rng.random() < 0.5 else 1
        clouds = cv2.GaussianBlur(rng.normal(size=(SIDE, SIDE)), (0, 0), rng.uniform(0.6, 4))
        found.append(waves * rng.choice([1, 8]) + rng.uniform(-0.8, 0.5))
        found.append(clouds / clouds.std() * rng.choice([0.5, 3]) - rng.uniform(-0.3, 1))
    return np.clip(255 * np.array(found), 0, 255).astype(np.uint8)


def noise(rng: np.random.Generator) -> np.ndarray:
    """Return fields of grey noise, and of white dots on black."""
    grey = rng.integers(0, 256, (EACH // 2, SIDE, SIDE), dtype=np.uint8)
    dots = 255 * (rng.random(grey.shape) < rng.uniform(0.02, 0.5, (len(grey), 1, 1))).astype(np.uint8)
    return np.concatenate([grey, dots])


def field(canvas: np.ndarray) -> np.ndarray:
    """Prepare white ink on black as photographs of digits are."""
    return photo.prepare_field(canvas.astype(np.float32) / 255)


if __name__ == "__main__":
    console.run(main)

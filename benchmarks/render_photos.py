"""Draw photographs of handwritten digits from MNIST test digits: labelled, seeded, and of every kind that people take.

    python -m benchmarks.render_photos DIR --count 1000 --seed 7

writes pictures and ``labels.csv`` (file, label, kind, paper) to DIR; without arguments it draws the 60 of data/photos
anew. They are rendered, not taken: what is read in real photographs is measured by ``benchmarks.photos`` on real ones.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from pipeline import console, files

SHIPPED, SEED = 60, 2026
KINDS = {"single": 0.6, "multi": 0.24, "none": 0.16}  # shares of the pictures that are drawn
PAPERS = ("plain", "ruled", "grid", "cell", "newspaper", "board")
INKS = ((30, 30, 35), (35, 45, 120), (60, 60, 65), (150, 35, 40), (25, 95, 60), (85, 85, 90))  # pens and a pencil, RGB
COLUMNS = ("file", "label", "kind", "paper")


@dataclass(frozen=True)
class Scene:
    """A picture to write: uint8 [h, w, 3] upright, its label, what it shows, its EXIF orientation and JPEG quality."""

    pixels: np.ndarray
    label: str
    kind: str
    paper: str
    orientation: int
    quality: int


def draw(images: np.ndarray, labels: np.ndarray, rng: np.random.Generator, kind: str) -> Scene:
    """Draw one picture of ``kind`` (single, multi or none) with digits from ``images`` uint8 [n, 28, 28]."""
    paper = str(rng.choice(PAPERS))
    height = int(rng.integers(50, 120))
    if kind == "none":
        ink, label = _no_digit(rng, height), ""
    else:
        ink, label = _write(images, labels, rng, height, 1 if kind == "single" else int(rng.integers(2, 7)))
    ink = _tilt(ink, float(rng.uniform(-10, 10) if kind == "multi" else rng.normal(0, 4)))
    ground = _paper(rng, paper, ink.shape, height)
    picture = _lit(rng, _inked(rng, ground, ink, paper))
    picture = _seen(rng, picture)
    orientation = int(rng.choice([1, 1, 1, 1, 3, 6, 8]))
    return Scene(picture, label, kind, paper, orientation, int(rng.integers(35, 92)))


def _write(
    images: np.ndarray, labels: np.ndarray, rng: np.random.Generator, height: int, count: int
) -> tuple[np.ndarray, str]:
    """Write ``count`` digits in one or two rows: ink float32 [h, w] in 0..1 with a margin, and the label."""
    rows = 2 if count > 3 and rng.random() < 0.4 else 1
    chosen = rng.integers(0, len(images), count)
    parts = np.array_split(chosen, rows)
    thickness = float(rng.uniform(-0.6, 1.0))
    gap = float(rng.uniform(0.02, 0.5))
    drawn = [
        _row([stroke(images[index], rng, height, thickness) for index in part], rng, gap * height) for part in parts
    ]
    width = max(row.shape[1] for row in drawn)
    drawn = [cv2.copyMakeBorder(row, 0, round(0.3 * height), 0, width - row.shape[1], 0) for row in drawn]
    edges = [round(float(rng.uniform(0.2, 0.9)) * height) for _ in range(4)]
    return np.pad(np.vstack(drawn), (edges[:2], edges[2:])), "".join(str(label) for label in labels[chosen])


def stroke(image: np.ndarray, rng: np.random.Generator, height: int, thickness: float) -> np.ndarray:
    """Enlarge a digit to ``height`` with crisp edges, its stroke ``thickness`` MNIST pixels wider."""
    scale = height / 20 * float(rng.uniform(0.85, 1.1))
    large = cv2.resize(image.astype(np.float32) / 255, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    large = cv2.GaussianBlur(large, (0, 0), 0.35 * scale)
    ink = 1 / (1 + np.exp(-14 * (large - (0.45 - 0.22 * thickness))))
    rows, columns = np.flatnonzero((ink > 0.5).any(1)), np.flatnonzero((ink > 0.5).any(0))
    if len(rows) == 0:
        return stroke(image, rng, height, thickness + 0.5)
    return np.where(ink > 0.02, ink, 0)[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float32)


def _row(digits: list[np.ndarray], rng: np.random.Generator, gap: float) -> np.ndarray:
    top = max(digit.shape[0] for digit in digits) + 4
    row = np.zeros((top, sum(digit.shape[1] for digit in digits) + round(len(digits) * (gap + 12))), np.float32)
    x = 0
    for digit in digits:
        y = int(rng.integers(0, top - digit.shape[0] + 1))
        place = row[y : y + digit.shape[0], x : x + digit.shape[1]]
        np.maximum(place, digit, out=place)
        x += digit.shape[1] + round(gap * float(rng.uniform(0.6, 1.4))) + 1
    return row[:, : max(1, np.flatnonzero(row.any(0))[-1] + 1)]


def _no_digit(rng: np.random.Generator, height: int) -> np.ndarray:
    """Draw what is not a digit: nothing, a scribble, letters, strokes, blots."""
    ink = np.zeros((height * 2, height * 2), np.uint8)
    middle, width = height, max(2, height // 14)
    kind = int(rng.integers(0, 5))
    if kind == 1:
        steps = np.cumsum(rng.normal(0, height / 7, (40, 2)), 0)
        path = cv2.GaussianBlur(steps.astype(np.float32), (1, 7), 2)
        cv2.polylines(ink, [(path - path.mean(0) + middle).astype(np.int32)], False, 255, width, cv2.LINE_AA)
    elif kind == 2:
        letter = str(rng.choice(list("ABEFGHKMNPRTWXYaefhkmrwx?&@#")))
        cv2.putText(
            ink, letter, (middle // 2, middle * 3 // 2), int(rng.integers(0, 4)), height / 26, 255, width, cv2.LINE_AA
        )
    elif kind == 3:
        for _ in range(int(rng.integers(4, 9))):
            ends = rng.integers(middle // 2, middle * 3 // 2, (2, 2))
            cv2.line(ink, tuple(map(int, ends[0])), tuple(map(int, ends[1])), 255, width, cv2.LINE_AA)
    elif kind == 4:
        for _ in range(int(rng.integers(3, 12))):
            x, y = (int(value) for value in rng.integers(middle // 2, middle * 3 // 2, 2))
            cv2.circle(ink, (x, y), int(rng.integers(1, max(2, height // 12))), 255, -1, cv2.LINE_AA)
    return ink.astype(np.float32) / 255


def _tilt(ink: np.ndarray, degrees: float) -> np.ndarray:
    height, width = ink.shape
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1)
    drop = round(abs(np.sin(np.deg2rad(degrees))) * max(width, height) / 2)
    turn[:, 2] += drop
    return cv2.warpAffine(ink, turn, (width + 2 * drop, height + 2 * drop), flags=cv2.INTER_LINEAR)


def _paper(rng: np.random.Generator, paper: str, shape: tuple[int, ...], height: int) -> np.ndarray:
    """Make bare paper of a kind: float32 [h, w, 3] in 0..255."""
    base = {"newspaper": (196, 190, 178), "board": (38, 62, 52)}.get(paper, (232, 230, 224))
    ground = np.array(base, np.float32) + rng.normal(0, 8, 3).astype(np.float32)
    ground = np.ones((*shape, 3), np.float32) * ground
    for grain, strength in ((1, 2.0), (3, 2.0), (12, 3.0)):
        coarse = rng.normal(0, strength, (shape[0] // grain + 2, shape[1] // grain + 2)).astype(np.float32)
        ground += cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC)[..., None]
    line = np.array((120, 140, 190) if rng.random() < 0.6 else (150, 150, 150), np.float32)
    pitch, start = round(height * float(rng.uniform(0.5, 1.6))), int(rng.integers(0, height))
    if paper in ("ruled", "grid"):
        ground[start::pitch] = line
    if paper == "grid":
        ground[:, start::pitch] = line
    if paper == "cell":
        inset, width = max(2, height // 12), int(rng.integers(1, max(2, height // 20) + 1))
        cv2.rectangle(ground, (inset, inset), (shape[1] - inset, shape[0] - inset), (60, 60, 60), width, cv2.LINE_AA)
    return ground


def _inked(rng: np.random.Generator, ground: np.ndarray, ink: np.ndarray, paper: str) -> np.ndarray:
    colour = np.array((225, 225, 215) if paper == "board" else INKS[int(rng.integers(len(INKS)))], np.float32)
    uneven = cv2.resize(rng.uniform(0.7, 1, (6, 6)).astype(np.float32), ink.shape[::-1], interpolation=cv2.INTER_CUBIC)
    cover = (ink * np.clip(uneven, 0, 1) * float(rng.uniform(0.75, 1)))[..., None]
    return ground * (1 - cover) + colour * cover


def _lit(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    """Light a picture from one side, and let a soft shadow fall on some."""
    height, width = picture.shape[:2]
    down, along = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j].astype(np.float32)
    slope = rng.uniform(-0.3, 0.3, 2)
    light = 0.9 + slope[0] * (down - 0.5) + slope[1] * (along - 0.5)
    if rng.random() < 0.3:
        angle, offset = rng.uniform(0, 2 * np.pi), rng.uniform(-0.3, 0.3)
        side = (down - 0.5) * np.sin(angle) + (along - 0.5) * np.cos(angle) - offset
        light *= 1 - float(rng.uniform(0.2, 0.5)) / (1 + np.exp(-side * float(rng.uniform(12, 60))))
    return picture * light[..., None].astype(np.float32)


def _seen(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    """See a picture through a camera: a slight perspective, blur and noise; uint8."""
    height, width = picture.shape[:2]
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    moved = corners + rng.uniform(-0.03, 0.03, (4, 2)).astype(np.float32) * min(height, width)
    view = cv2.getPerspectiveTransform(corners, moved)
    picture = cv2.warpPerspective(picture, view, (width, height), borderMode=cv2.BORDER_REPLICATE)
    picture = cv2.GaussianBlur(picture, (0, 0), float(rng.uniform(0.4, 1.6)))
    return np.clip(picture + rng.normal(0, rng.uniform(0.5, 4), picture.shape), 0, 255).astype(np.uint8)


def encode(scene: Scene) -> bytes:
    """Return the scene as a JPEG file, turned as its EXIF orientation says that it was held."""
    turns = {1: 0, 3: 2, 6: 1, 8: 3}[scene.orientation]  # quarter turns counter-clockwise that EXIF asks to undo
    image = Image.fromarray(np.ascontiguousarray(np.rot90(scene.pixels, turns)))
    exif = Image.Exif()
    exif[0x0112] = scene.orientation
    content = io.BytesIO()
    image.save(content, "JPEG", quality=scene.quality, exif=exif if scene.orientation > 1 else b"")
    return content.getvalue()


def render(images: np.ndarray, labels: np.ndarray, count: int, seed: int, folder: Path) -> list[dict[str, object]]:
    """Write ``count`` pictures and ``labels.csv`` to ``folder``; return the rows."""
    rows: list[dict[str, object]] = []
    bounds = np.cumsum([round(count * share) for share in KINDS.values()])
    with console.progress(count, "render", "picture") as bar:
        for number in range(count):
            kind = list(KINDS)[min(2, int(np.searchsorted(bounds, number, side="right")))]
            scene = draw(images, labels, np.random.default_rng([seed, number]), kind)
            name = f"{kind}_{number + 1:0{len(str(count))}d}.jpg"
            files.write_bytes(folder / name, encode(scene))
            rows.append({"file": name, "label": scene.label, "kind": kind, "paper": scene.paper})
            bar.update()
    files.write_csv(folder / "labels.csv", rows, COLUMNS)
    return rows


def main(arguments: Sequence[str]) -> None:
    """Draw the pictures."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.render_photos", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("folder", nargs="?", type=Path, default=files.PHOTOS, help="where to write (data/photos)")
    parser.add_argument("--count", type=int, default=SHIPPED, help="how many pictures (60)")
    parser.add_argument("--seed", type=int, default=SEED, help="of all chance in them")
    options = parser.parse_args(arguments)
    images, labels = np.load(files.PREPARED / "test-images.npy"), np.load(files.PREPARED / "test-labels.npy")
    rows = render(images, labels, options.count, options.seed, options.folder)
    print(f"{len(rows)} pictures in {console.display_path(options.folder)}")


if __name__ == "__main__":
    console.run(main)

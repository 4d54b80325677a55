"""Fields that hold no digit, to be unsure of: letters, scribbles, textures; seeded, the same bits on every machine."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.config import Augment
from pipeline.learning import augmentation
from pipeline.learning.augmentation import SIDE, clipped, smooth

BOX = 20  # LeCun: the longer side of the ink
LETTERS = "ACEFHKMNPRUVWXYadefhkmnprtuvwxy?&#%@+=*<>"  # none that is somebody's digit: no b, B, D, g, I...

Kind = Callable[[np.random.Generator, np.ndarray], np.ndarray]


def draw(n: int, *, seed: int, epoch: int, images: np.ndarray) -> np.ndarray:
    """Return ``n`` fields (uint8 [n, 28, 28]) that hold no digit, in equal parts of each kind, in a mixed order.

    ``images`` (digits, uint8 [m, 28, 28]) lend the pairs of digits that were read as one.
    """
    rng = np.random.default_rng([seed, epoch, 2])
    kinds = rng.permutation(np.arange(n) % len(KINDS))
    fields = np.array([KINDS[kind](rng, images) for kind in kinds], np.uint8).reshape(n, SIDE, SIDE)
    varied = augmentation.choose(rng, n, HANDS.share)
    fields[varied] = augmentation.photograph(fields[varied], rng, HANDS)
    return fields


def letter(rng: np.random.Generator, images: np.ndarray) -> np.ndarray:  # noqa: ARG001 (one signature for all kinds)
    """Return a letter or a sign from a font that nobody would take for a digit."""
    glyphs = _glyphs()
    return glyphs[rng.integers(len(glyphs))]


def scribble(rng: np.random.Generator, images: np.ndarray) -> np.ndarray:  # noqa: ARG001
    """Return one line through six to thirteen random points, angular or round."""
    return _placed(_pen(np.zeros((4 * SIDE, 4 * SIDE), np.uint8), rng, int(rng.integers(6, 14))))


def strokes(rng: np.random.Generator, images: np.ndarray) -> np.ndarray:  # noqa: ARG001
    """Return three to six separate strokes, straight or bent, as a crossed-out word or a sign has them."""
    canvas = np.zeros((4 * SIDE, 4 * SIDE), np.uint8)
    for _ in range(rng.integers(3, 7)):
        _pen(canvas, rng, int(rng.integers(2, 4)))
    return _placed(canvas)


def _pen(canvas: np.ndarray, rng: np.random.Generator, points: int) -> np.ndarray:
    path = rng.integers(0, 8 * len(canvas), (points, 1, 2)).astype(np.float32)  # an eighth of a pixel
    for _ in range(3 * rng.integers(2)):  # cutting the corners makes a polygon round (Chaikin 1974)
        path = np.stack([path[:-1] * 0.75 + path[1:] * 0.25, path[:-1] * 0.25 + path[1:] * 0.75], axis=1).reshape(
            -1, 1, 2
        )
    cv2.polylines(
        canvas, [path.astype(np.int32)], False, int(rng.integers(100, 256)), int(rng.integers(4, 14)), shift=3
    )
    return canvas


def texture(rng: np.random.Generator, images: np.ndarray) -> np.ndarray:  # noqa: ARG001
    """Return cloth, shadow, grain or blots: smooth and rough noise, grey or cut at a level."""
    spacings = rng.permutation((1, 3, 9))[: rng.integers(1, 3)]
    field = sum(smooth(rng, 1, int(spacing))[0] * np.float32(rng.random()) for spacing in spacings)
    hard = np.float32(rng.choice((1, 4, 32)))
    return clipped((field + np.float32(rng.random() - 0.6)) * hard * 255)


def stripes(rng: np.random.Generator, images: np.ndarray) -> np.ndarray:  # noqa: ARG001
    """Return parallel or crossed stripes, 2 to 14 pixels apart, as cloth, blinds and squared paper have them."""
    steps = np.arange(SIDE)
    period, across, down = (int(value) for value in rng.integers((64, -32, -32), (448, 33, 33)))
    rows = (steps * across + steps[:, None] * down) * 32 % period
    columns = (steps[:, None] * across - steps * down) * 32 % period
    seen = (rows < period * rng.uniform(0.3, 0.7)) & (columns < period * rng.choice((0.5, 1, 1)))
    return clipped(seen * rng.uniform(60, 255))


def speck(rng: np.random.Generator, images: np.ndarray) -> np.ndarray:  # noqa: ARG001
    """Return an empty field, or one to five dots and dashes on it."""
    field = np.zeros((SIDE, SIDE), np.uint8)
    for x, y, wide, high in rng.integers((0, 0, 1, 1), (SIDE, SIDE, 8, 8), (rng.integers(0, 6), 4)):
        field[y : y + high, x : x + wide] = rng.integers(60, 256)
    return cv2.GaussianBlur(field, (3, 3), 0)


def pair(rng: np.random.Generator, images: np.ndarray) -> np.ndarray:
    """Return two digits that were taken for one, side by side."""
    left, right = images[rng.integers(len(images), size=2)]
    return _placed(np.hstack([left[:, 3 : SIDE - 4], right[:, 4 : SIDE - 3]]))


KINDS: tuple[Kind, ...] = (
    letter, letter, letter, scribble, scribble, scribble, strokes, texture, stripes, speck, pair,
)  # fmt: skip
HANDS = Augment(  # how hands and cameras vary most of them
    share=0.7, moved=0, european=0, rotation=0.3, shear=0.3, scale=0.2, narrow=0.2, shift=1, ripple=1, stroke=0.8,
    uneven=0.3, grain=0.2, gaps=0, blur=0.5, contrast=0.3, lines=0, neighbours=0,
)  # fmt: skip


@lru_cache(maxsize=1)
def _glyphs() -> tuple[np.ndarray, ...]:
    """Return every letter in every DejaVu font (they come with matplotlib), as fields."""
    package = importlib.util.find_spec("matplotlib")
    folder = Path(str(package and package.origin)).parent / "mpl-data" / "fonts" / "ttf"
    return tuple(
        _drawn(character, ImageFont.truetype(str(path), 64))
        for path in sorted(folder.glob("DejaVu*[!y].ttf"))
        for character in LETTERS
    )


def _drawn(character: str, font: ImageFont.FreeTypeFont) -> np.ndarray:
    canvas = Image.new("L", (128, 128))
    ImageDraw.Draw(canvas).text((24, 16), character, fill=255, font=font)
    return _placed(np.asarray(canvas))


def _placed(canvas: np.ndarray) -> np.ndarray:
    """Shrink the ink to a longer side of 20 pixels and put it into the middle of a field."""
    rows, columns = np.flatnonzero(canvas.any(axis=1)), np.flatnonzero(canvas.any(axis=0))
    ink = canvas[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    high, wide = (max(1, side * BOX // max(ink.shape)) for side in ink.shape)
    top, left = (SIDE - high) // 2, (SIDE - wide) // 2
    field = np.zeros((SIDE, SIDE), np.uint8)
    small = Image.fromarray(ink).resize((wide, high), Image.Resampling.BOX)
    field[top : top + high, left : left + wide] = np.asarray(small)
    return field

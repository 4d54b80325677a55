"""What photographs do to a digit, and fields that hold no digit: seeded, and the same bits on every machine.

Everything is integers, or single operations on float32 that IEEE 754 rounds alike everywhere: no trigonometry, no
logarithm, no sum whose order matters. OpenCV is used where its arithmetic on uint8 is fixed-point.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.config import Augment

SIDE = 28
BOX = 20  # LeCun: the longer side of the ink
CELL = SIDE + 2  # a field with a margin of one pixel, so that stacked fields do not touch
CHUNK = 1000  # fields at a time: few enough for the cache, and 30,000 rows fit OpenCV's 16-bit coordinates
LETTERS = "ACEFHKMNPRUVWXYadefhkmnprtuvwxy?&#%@+=*<>"  # none that is somebody's digit: no b, B, D, g, I...

Effect = Callable[[np.ndarray, np.random.Generator, Augment], np.ndarray]
Kind = Callable[[np.random.Generator, np.ndarray], np.ndarray]


def augment(images: np.ndarray, labels: np.ndarray, *, seed: int, epoch: int, settings: Augment) -> np.ndarray:
    """Return ``images`` (uint8 [n, 28, 28], ink bright) with a share of them changed as hands and photographs do.

    ``labels`` (uint8 [n]) say which are ones, sevens and nines. The result is a function of the arguments: the same
    seed and epoch change the same digits in the same way.
    """
    rng = np.random.default_rng([seed, epoch, 1])
    changed = _chosen(rng, len(images), settings.share)
    result = images.copy()
    written = write_european(images[changed], labels[changed], rng, settings)
    result[changed] = _photograph(written, rng, settings)
    return result


def degrade(images: np.ndarray, labels: np.ndarray, *, seed: int, settings: Augment) -> np.ndarray:
    """Return ``images`` all changed as photographs change digits, to fit the temperature and the threshold on."""
    return augment(images, labels, seed=seed, epoch=0, settings=settings.model_copy(update={"share": 1.0}))


def write_european(images: np.ndarray, labels: np.ndarray, rng: np.random.Generator, settings: Augment) -> np.ndarray:
    """Write a share of ones, sevens and nines as other countries teach them, which the Americans of MNIST seldom did.

    Ones get an upstroke; sevens a bar through the stem, a tick at the top, or the stem of a one under a hook; nines a
    curled foot. ``images`` uint8 [n, 28, 28], ``labels`` [n].
    """
    result, stems = images.copy(), images[labels == 1]
    for i in _chosen(rng, len(images), settings.european):
        if labels[i] == 1:
            result[i] = _one(images[i], rng)
        elif labels[i] == 7:
            result[i] = _seven(images[i], stems, rng)
        elif labels[i] == 9:
            result[i] = _nine(images[i], rng)
    return result


def _one(field: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw an upstroke, and now and then a foot: the top is sharp and the upstroke falls steeply."""
    pen = _pen_width(rng)
    x, y = _top(field)
    wide = rng.uniform(4, 12)
    field = _drawn_over(field, (x, y), (x - wide, y + wide * rng.uniform(0.45, 1.3)), pen)
    if rng.random() < 0.1:
        x, y = _bottom(field)
        left, right = rng.uniform(3, 7, 2)
        field = _drawn_over(field, (x - left, y), (x + right, y), pen)
    return _centred(field)


def _seven(field: np.ndarray, stems: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a bar through a seven, or hang a hook on a one's stem, with a bar wherever it could be a one."""
    pen, barred = _pen_width(rng), rng.random() < 0.7
    if len(stems) and rng.random() < 0.5:
        field = stems[rng.integers(len(stems))]
        x, y = _top(field)
        wide, drop = rng.uniform(4, 11), rng.uniform(-0.1, 0.9 if barred else 0.2)
        left = x - wide, max(1.0, y + wide * drop)
        middle = (x + left[0]) / 2, max(1.0, (y + left[1]) / 2 - rng.uniform(0, 0.25) * wide)  # a round top
        field = _drawn_over(_drawn_over(field, (x, y), middle, pen), middle, left, pen)
    else:
        left = _left(field)
    if not barred or rng.random() < 0.3:
        field = _drawn_over(field, left, (left[0] - rng.uniform(-1, 1), left[1] + rng.uniform(2, 7)), pen)
    if barred:
        y = int(rng.integers(11, 20))
        x, (before, after, rise) = _column(field, y), rng.uniform((2, 3, -1.5), (9, 11, 2.5))
        field = _drawn_over(field, (x - before, y + rise), (x + after, y - rise), pen)
    return _centred(field)


def _nine(field: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Curl the tail to the left, and mostly draw a foot at its end."""
    pen, curl, start = _pen_width(rng), rng.uniform(0, 9), int(rng.integers(12, 18))
    field = field.copy()
    for y in range(start, SIDE):
        down = (y - start) / (SIDE - start)
        field[y] = np.roll(field[y], -min(int(curl * down * down), int(np.argmax(field[y] > 0))))
    if rng.random() < 0.7:
        x, y = _bottom(field)
        wide, rise = rng.uniform((3, -2), (10, 3))
        field = _drawn_over(field, (x, y), (x - wide, y - rise), pen)
    return _centred(field)


def _pen_width(rng: np.random.Generator) -> float:
    return rng.uniform(0.6, 1.7)


def _top(field: np.ndarray) -> tuple[int, int]:
    y = int(np.argmax((field > 127).any(axis=1)))
    return _column(field, y), y


def _bottom(field: np.ndarray) -> tuple[int, int]:
    y = SIDE - 1 - int(np.argmax((field[::-1] > 127).any(axis=1)))
    return _column(field, y), y


def _left(field: np.ndarray) -> tuple[int, int]:
    """Return where the top stroke of a seven begins."""
    upper = field[:14] > 127
    x = int(np.argmax(upper.any(axis=0)))
    return x, int(np.argmax(upper[:, x]))


def _drawn_over(field: np.ndarray, start: tuple[float, float], end: tuple[float, float], pen: float) -> np.ndarray:
    """Return ``field`` with a straight stroke from ``start`` to ``end`` (column, row), ``pen`` pixels either way."""
    x, y = np.arange(SIDE) - start[0], np.arange(SIDE)[:, None] - start[1]
    across, down = end[0] - start[0], end[1] - start[1]
    along = np.clip((x * across + y * down) / max(across * across + down * down, 1e-6), 0, 1)
    away = np.sqrt((x - along * across) ** 2 + (y - along * down) ** 2)
    return np.maximum(field, _clipped(255 * np.clip(pen + 0.5 - away, 0, 1)))


def _column(field: np.ndarray, row: int) -> int:
    """Return the middle of the ink in a row, or of the field where that row has none."""
    ink = field[row].astype(np.int64)
    return int(ink @ np.arange(SIDE) // ink.sum()) if ink.any() else SIDE // 2


def _centred(field: np.ndarray) -> np.ndarray:
    """Put the ink's centre of mass back on the middle pixel, as far as nothing is pushed out."""
    for axis in (0, 1):
        ink = field.sum(axis=1 - axis, dtype=np.int64)
        seen = np.flatnonzero(ink)
        shift = SIDE // 2 - int((2 * ink @ np.arange(SIDE) + ink.sum()) // (2 * ink.sum()))
        field = np.roll(field, int(np.clip(shift, -seen[0], SIDE - 1 - seen[-1])), axis=axis)
    return field


def _photograph(images: np.ndarray, rng: np.random.Generator, settings: Augment) -> np.ndarray:
    """Apply every effect in the order in which pen, paper, camera and cropping bring them about."""
    result = np.empty_like(images)
    for first in range(0, len(images), CHUNK):
        part = images[first : first + CHUNK]
        for effect in EFFECTS:
            part = effect(part, rng, settings)
        result[first : first + CHUNK] = part
    return result


def bend(images: np.ndarray, rng: np.random.Generator, settings: Augment) -> np.ndarray:
    """Rotate, shear, scale, narrow, shift and ripple each digit by its own amounts, with linear interpolation.

    Coordinates are integers, 2048 a pixel, rounded to the 32 a pixel of OpenCV's fixed-point ``remap``.
    """
    n = len(images)
    turn = _between(rng, n, settings.rotation)
    slant = _between(rng, n, settings.shear)
    wide, high = 1 + _between(rng, n, settings.scale), 1 + _between(rng, n, settings.scale)
    wide = wide / (1 - _upto(rng, n, settings.narrow))
    steps = 2 * np.arange(SIDE, dtype=np.int32) - (SIDE - 1)  # half pixels from the middle of the field
    across, down = steps[None, None, :], steps[None, :, None]
    x = _fixed(wide, 1024) * across + _fixed(slant - turn, 1024) * down + _fixed(_between(rng, n, settings.shift), 2048)
    y = _fixed(turn, 1024) * across + _fixed(high, 1024) * down + _fixed(_between(rng, n, settings.shift), 2048)
    if settings.ripple:
        x += (_smooth(rng, n, 9) * np.float32(4096 * settings.ripple)).astype(np.int32)
        y += (_smooth(rng, n, 9) * np.float32(4096 * settings.ripple)).astype(np.int32)
    return _sample(images, x, y)


def _sample(images: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Read each field at ``x`` and ``y`` (2048 a pixel, from its middle); outside it there is no ink."""
    middle, last = (CELL - 1) * 16, (CELL - 1) * 32 - 1
    x = np.clip((x + 32 >> 6) + middle, 0, last)
    y = np.clip((y + 32 >> 6) + middle, 0, last)
    fraction = ((y & 31) << 5 | x & 31).astype(np.uint16)
    y += (np.arange(len(images), dtype=np.int32) * (CELL * 32))[:, None, None]
    whole = np.stack([x >> 5, y >> 5], axis=-1).astype(np.int16)
    rows = len(images) * SIDE
    read = cv2.remap(_stack(images), whole.reshape(rows, SIDE, 2), fraction.reshape(rows, SIDE), cv2.INTER_LINEAR)
    return read.reshape(images.shape)


def change_stroke(images: np.ndarray, rng: np.random.Generator, settings: Augment) -> np.ndarray:
    """Mix each digit with itself drawn by a broader or a finer pen."""
    amount = _between(rng, len(images), settings.stroke)
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    stacked = _stack(images)
    broad, fine = _unstack(cv2.dilate(stacked, cross)), _unstack(cv2.erode(stacked, cross))
    return _mix(images, np.where(amount > 0, broad, fine), np.abs(amount))


def spread_ink(images: np.ndarray, rng: np.random.Generator, settings: Augment) -> np.ndarray:
    """Let the pen's pressure vary over each digit, and the paper's grain show through."""
    pressure = (_smooth(rng, len(images), 9) + np.float32(0.5)) * _upto(rng, len(images), settings.uneven)
    grain = rng.integers(0, 256, images.shape, dtype=np.uint8) * _upto(rng, len(images), settings.grain / 255)
    return _clipped(images * ((1 - pressure) * (1 - grain)))


def break_strokes(images: np.ndarray, rng: np.random.Generator, settings: Augment) -> np.ndarray:
    """Take a narrow streak of ink out of a share of the digits, as an overwritten or removed line does."""
    result, chosen = images.copy(), _chosen(rng, len(images), settings.gaps)
    n = len(chosen)
    streak = _streak(_between(rng, n, 1), _between(rng, n, 1), _between(rng, n, 8), 0.3 + _upto(rng, n, 0.7))
    result[chosen] = _clipped(images[chosen] * (1 - streak * (0.5 + _upto(rng, n, 0.5))))
    return result


def blur(images: np.ndarray, rng: np.random.Generator, settings: Augment) -> np.ndarray:
    """Mix each digit with a blurred copy, as an unsteady or unfocused camera does."""
    blurred = _unstack(cv2.GaussianBlur(_stack(images), (3, 3), 0))
    return _mix(images, blurred, _upto(rng, len(images), settings.blur))


def fade(images: np.ndarray, rng: np.random.Generator, settings: Augment) -> np.ndarray:
    """Weaken or saturate each digit's ink: a pencil at one end, an overexposed marker at the other."""
    amount = _between(rng, len(images), settings.contrast)
    return _clipped(images * (1 + amount + np.maximum(amount, 0)))


def add_lines(images: np.ndarray, rng: np.random.Generator, settings: Augment) -> np.ndarray:
    """Leave a ruled line or a cell's border, upright or level and mostly near the edge, on a share of the digits."""
    result, chosen = images.copy(), _chosen(rng, len(images), settings.lines)
    n = len(chosen)
    along, across = np.ones((n, 1, 1), np.float32), _between(rng, n, 0.08)
    upright = rng.random((n, 1, 1)) < 0.5
    offset = np.sign(_between(rng, n, 1)) * (14 - 14 * _upto(rng, n, 1) ** 2)
    width, ink = 0.3 + _upto(rng, n, 0.9), 255 * (0.3 + _upto(rng, n, 0.7))
    streak = _streak(np.where(upright, along, across), np.where(upright, across, along), offset, width)
    seen = np.where(upright, np.arange(SIDE)[:, None], np.arange(SIDE)) > _between(rng, n, SIDE)
    result[chosen] = np.maximum(images[chosen], _clipped(streak * seen * ink))
    return result


def add_neighbours(images: np.ndarray, rng: np.random.Generator, settings: Augment) -> np.ndarray:
    """Let a sliver of another digit show at one side of a share of the digits."""
    result = images.copy()
    for i in _chosen(rng, len(images), settings.neighbours):
        other, width, gap, turns = (int(value) for value in rng.integers((0, 1, 0, 0), (len(images), 5, 5, 4)))
        first = int(np.argmax(images[other].any(axis=0)))
        sliver = images[other, :, first : first + width]
        edge = np.rot90(result[i], turns)[:, SIDE - gap - sliver.shape[1] : SIDE - gap]
        np.maximum(edge, sliver, out=edge)
    return result


EFFECTS: tuple[Effect, ...] = (bend, change_stroke, spread_ink, break_strokes, blur, fade, add_lines, add_neighbours)


def non_digits(n: int, *, seed: int, epoch: int, images: np.ndarray) -> np.ndarray:
    """Return ``n`` fields (uint8 [n, 28, 28]) that hold no digit, in equal parts of each kind, in a mixed order.

    ``images`` (digits, uint8 [m, 28, 28]) lend the pairs of digits that were read as one.
    """
    rng = np.random.default_rng([seed, epoch, 2])
    kinds = rng.permutation(np.arange(n) % len(KINDS))
    fields = np.array([KINDS[kind](rng, images) for kind in kinds], np.uint8).reshape(n, SIDE, SIDE)
    varied = _chosen(rng, n, HANDS.share)
    fields[varied] = _photograph(fields[varied], rng, HANDS)
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
    field = sum(_smooth(rng, 1, int(spacing))[0] * np.float32(rng.random()) for spacing in spacings)
    hard = np.float32(rng.choice((1, 4, 32)))
    return _clipped((field + np.float32(rng.random() - 0.6)) * hard * 255)


def stripes(rng: np.random.Generator, images: np.ndarray) -> np.ndarray:  # noqa: ARG001
    """Return parallel or crossed stripes, 2 to 14 pixels apart, as cloth, blinds and squared paper have them."""
    steps = np.arange(SIDE)
    period, across, down = (int(value) for value in rng.integers((64, -32, -32), (448, 33, 33)))
    rows = (steps * across + steps[:, None] * down) * 32 % period
    columns = (steps[:, None] * across - steps * down) * 32 % period
    seen = (rows < period * rng.uniform(0.3, 0.7)) & (columns < period * rng.choice((0.5, 1, 1)))
    return _clipped(seen * rng.uniform(60, 255))


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
    share=0.7, european=0, rotation=0.3, shear=0.3, scale=0.2, narrow=0.2, shift=1, ripple=1, stroke=0.8, uneven=0.3,
    grain=0.2, gaps=0, blur=0.5, contrast=0.3, lines=0, neighbours=0,
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


def _between(rng: np.random.Generator, n: int, limit: float) -> np.ndarray:
    return (rng.random(n, dtype=np.float32) * np.float32(2 * limit) - np.float32(limit))[:, None, None]


def _upto(rng: np.random.Generator, n: int, limit: float) -> np.ndarray:
    return (rng.random(n, dtype=np.float32) * np.float32(limit))[:, None, None]


def _chosen(rng: np.random.Generator, n: int, share: float) -> np.ndarray:
    return np.flatnonzero(rng.random(n) < share)


def _fixed(values: np.ndarray, one: int) -> np.ndarray:
    return np.rint(values * one).astype(np.int32)


def _smooth(rng: np.random.Generator, n: int, spacing: int) -> np.ndarray:
    """Return fields (float32 [n, 28, 28] in [-0.5, 0.5]) that run straight between random knots, ``spacing`` apart.

    The weights and the knots are integers whose sums float32 holds exactly, in whatever order they are added.
    """
    knots = np.arange(0, SIDE, spacing)
    weights = np.maximum(spacing - np.abs(np.arange(SIDE)[:, None] - knots), 0).astype(np.float32)
    heights = rng.integers(-128, 128, (n, len(knots), len(knots))).astype(np.float32)
    return weights @ heights @ weights.T / np.float32(256 * spacing**2)


def _streak(a: np.ndarray, b: np.ndarray, offset: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Return how much of each pixel, 0 to 1, lies within ``width`` of the line a x + b y = offset; all [n, 1, 1]."""
    steps = np.arange(SIDE, dtype=np.float32) - np.float32(SIDE / 2)
    length = np.sqrt(a * a + b * b) + np.float32(1e-6)
    away = np.abs((a / length) * steps + (b / length) * steps[:, None] - offset)
    return np.clip(width + np.float32(0.5) - away, 0, 1)


def _mix(images: np.ndarray, others: np.ndarray, amount: np.ndarray) -> np.ndarray:
    return _clipped(images + (others.astype(np.float32) - images) * amount)


def _clipped(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _stack(images: np.ndarray) -> np.ndarray:
    """Put the fields below one another, each with an empty margin of one pixel."""
    return np.pad(images, ((0, 0), (1, 1), (1, 1))).reshape(-1, CELL)


def _unstack(stacked: np.ndarray) -> np.ndarray:
    return stacked.reshape(-1, CELL, CELL)[:, 1:-1, 1:-1]

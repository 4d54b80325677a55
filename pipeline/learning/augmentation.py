"""What hands and photographs do to a digit: seeded, and the same bits on every machine.

Everything is integers, or single operations on float32 that IEEE 754 rounds alike everywhere: no trigonometry, no
logarithm, no sum whose order matters. OpenCV is used where its arithmetic on uint8 is fixed-point.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from pipeline.config import Augment
from pipeline.learning.handwriting import SIDE, write_european

CELL = SIDE + 2  # a field with a margin of one pixel, so that stacked fields do not touch
CHUNK = 1000  # fields at a time: few enough for the cache, and 30,000 rows fit OpenCV's 16-bit coordinates

Effect = Callable[[np.ndarray, np.random.Generator, Augment], np.ndarray]


def augment(images: np.ndarray, labels: np.ndarray, *, seed: int, epoch: int, settings: Augment) -> np.ndarray:
    """Return ``images`` (uint8 [n, 28, 28], ink bright), a share changed as hands and photographs do, others moved.

    ``labels`` (uint8 [n]) say which are ones, sevens and nines. The result is a function of the arguments: the same
    seed and epoch change the same digits in the same way.
    """
    rng = np.random.default_rng([seed, epoch, 1])
    changed = choose(rng, len(images), settings.share)
    result = images.copy()
    written = write_european(images[changed], labels[changed], rng, settings.european)
    result[changed] = photograph(written, rng, settings)
    others = np.setdiff1d(np.arange(len(images)), changed)
    moved = others[choose(rng, len(others), settings.moved)]
    plainly = settings.model_copy(update={"narrow": 0.0, "ripple": 0.0})
    result[moved] = _in_parts(images[moved], lambda part: warp(part, rng, plainly))
    return result


def degrade(images: np.ndarray, labels: np.ndarray, *, seed: int, settings: Augment) -> np.ndarray:
    """Return ``images`` all changed as photographs change digits, to fit the temperature and the threshold on."""
    return augment(images, labels, seed=seed, epoch=0, settings=settings.model_copy(update={"share": 1.0}))


def photograph(images: np.ndarray, rng: np.random.Generator, settings: Augment) -> np.ndarray:
    """Apply every effect in the order in which pen, paper, camera and cropping bring them about."""

    def change(part: np.ndarray) -> np.ndarray:
        for effect in EFFECTS:
            part = effect(part, rng, settings)
        return part

    return _in_parts(images, change)


def _in_parts(images: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Change so many images at a time that they stay in the processor's cache."""
    result = np.empty_like(images)
    for first in range(0, len(images), CHUNK):
        result[first : first + CHUNK] = change(images[first : first + CHUNK])
    return result


def warp(images: np.ndarray, rng: np.random.Generator, settings: Augment) -> np.ndarray:
    """Rotate, shear, scale, narrow, shift and ripple each digit by its own amounts, with linear interpolation.

    Coordinates are integers, 2048 a pixel, rounded to the 32 a pixel of OpenCV's fixed-point ``remap``.
    """
    n = len(images)
    turn = _symmetric(rng, n, settings.rotation)
    slant = _symmetric(rng, n, settings.shear)
    wide, high = 1 + _symmetric(rng, n, settings.scale), 1 + _symmetric(rng, n, settings.scale)
    wide = wide / (1 - _positive(rng, n, settings.narrow))
    steps = 2 * np.arange(SIDE, dtype=np.int32) - (SIDE - 1)  # half pixels from the middle of the field
    across, down = steps[None, None, :], steps[None, :, None]
    x = (
        _fixed(wide, 1024) * across
        + _fixed(slant - turn, 1024) * down
        + _fixed(_symmetric(rng, n, settings.shift), 2048)
    )
    y = _fixed(turn, 1024) * across + _fixed(high, 1024) * down + _fixed(_symmetric(rng, n, settings.shift), 2048)
    if settings.ripple:
        x += (smooth(rng, n, 9) * np.float32(4096 * settings.ripple)).astype(np.int32)
        y += (smooth(rng, n, 9) * np.float32(4096 * settings.ripple)).astype(np.int32)
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
    amount = _symmetric(rng, len(images), settings.stroke)
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    stacked = _stack(images)
    broad, fine = _unstack(cv2.dilate(stacked, cross)), _unstack(cv2.erode(stacked, cross))
    return _mix(images, np.where(amount > 0, broad, fine), np.abs(amount))


def spread_ink(images: np.ndarray, rng: np.random.Generator, settings: Augment) -> np.ndarray:
    """Let the pen's pressure vary over each digit, and the paper's grain show through."""
    pressure = (smooth(rng, len(images), 9) + np.float32(0.5)) * _positive(rng, len(images), settings.uneven)
    grain = rng.integers(0, 256, images.shape, dtype=np.uint8) * _positive(rng, len(images), settings.grain / 255)
    return clipped(images * ((1 - pressure) * (1 - grain)))


def break_strokes(images: np.ndarray, rng: np.random.Generator, settings: Augment) -> np.ndarray:
    """Take a narrow streak of ink out of a share of the digits, as an overwritten or removed line does."""
    result, chosen = images.copy(), choose(rng, len(images), settings.gaps)
    n = len(chosen)
    streak = _streak(_symmetric(rng, n, 1), _symmetric(rng, n, 1), _symmetric(rng, n, 8), 0.3 + _positive(rng, n, 0.7))
    result[chosen] = clipped(images[chosen] * (1 - streak * (0.5 + _positive(rng, n, 0.5))))
    return result


def blur(images: np.ndarray, rng: np.random.Generator, settings: Augment) -> np.ndarray:
    """Mix each digit with a blurred copy, as an unsteady or unfocused camera does."""
    blurred = _unstack(cv2.GaussianBlur(_stack(images), (3, 3), 0))
    return _mix(images, blurred, _positive(rng, len(images), settings.blur))


def fade(images: np.ndarray, rng: np.random.Generator, settings: Augment) -> np.ndarray:
    """Weaken or saturate each digit's ink: a pencil at one end, an overexposed marker at the other."""
    amount = _symmetric(rng, len(images), settings.contrast)
    return clipped(images * (1 + amount + np.maximum(amount, 0)))


def add_lines(images: np.ndarray, rng: np.random.Generator, settings: Augment) -> np.ndarray:
    """Leave a ruled line or a cell's border, upright or level and mostly near the edge, on a share of the digits."""
    result, chosen = images.copy(), choose(rng, len(images), settings.lines)
    n = len(chosen)
    along, across = np.ones((n, 1, 1), np.float32), _symmetric(rng, n, 0.08)
    upright = rng.random((n, 1, 1)) < 0.5
    offset = np.sign(_symmetric(rng, n, 1)) * (14 - 14 * _positive(rng, n, 1) ** 2)
    width, ink = 0.3 + _positive(rng, n, 0.9), 255 * (0.3 + _positive(rng, n, 0.7))
    streak = _streak(np.where(upright, along, across), np.where(upright, across, along), offset, width)
    seen = np.where(upright, np.arange(SIDE)[:, None], np.arange(SIDE)) > _symmetric(rng, n, SIDE)
    result[chosen] = np.maximum(images[chosen], clipped(streak * seen * ink))
    return result


def add_neighbours(images: np.ndarray, rng: np.random.Generator, settings: Augment) -> np.ndarray:
    """Let a sliver of another digit show at one side of a share of the digits."""
    result = images.copy()
    for i in choose(rng, len(images), settings.neighbours):
        other, width, gap, turns = (int(value) for value in rng.integers((0, 1, 0, 0), (len(images), 5, 5, 4)))
        first = int(np.argmax(images[other].any(axis=0)))
        sliver = images[other, :, first : first + width]
        edge = np.rot90(result[i], turns)[:, SIDE - gap - sliver.shape[1] : SIDE - gap]
        np.maximum(edge, sliver, out=edge)
    return result


EFFECTS: tuple[Effect, ...] = (warp, change_stroke, spread_ink, break_strokes, blur, fade, add_lines, add_neighbours)


def _symmetric(rng: np.random.Generator, n: int, limit: float) -> np.ndarray:
    return (rng.random(n, dtype=np.float32) * np.float32(2 * limit) - np.float32(limit))[:, None, None]


def _positive(rng: np.random.Generator, n: int, limit: float) -> np.ndarray:
    return (rng.random(n, dtype=np.float32) * np.float32(limit))[:, None, None]


def choose(rng: np.random.Generator, n: int, share: float) -> np.ndarray:
    """Return the numbers of a share of ``n`` things, each chosen by itself."""
    return np.flatnonzero(rng.random(n) < share)


def _fixed(values: np.ndarray, one: int) -> np.ndarray:
    return np.rint(values * one).astype(np.int32)


def smooth(rng: np.random.Generator, n: int, spacing: int) -> np.ndarray:
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
    return clipped(images + (others.astype(np.float32) - images) * amount)


def clipped(values: np.ndarray) -> np.ndarray:
    """Return ``values`` as ink, uint8."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _stack(images: np.ndarray) -> np.ndarray:
    """Put the fields below one another, each with an empty margin of one pixel."""
    return np.pad(images, ((0, 0), (1, 1), (1, 1))).reshape(-1, CELL)


def _unstack(stacked: np.ndarray) -> np.ndarray:
    return stacked.reshape(-1, CELL, CELL)[:, 1:-1, 1:-1]

"""How other countries write ones, sevens and nines, which the Americans of MNIST seldom did: strokes that are drawn on.

Single operations on float32 and float64 that IEEE 754 rounds alike everywhere: the same bits on every machine.
"""

from __future__ import annotations

import cv2
import numpy as np

SIDE = 28


def write_european(images: np.ndarray, labels: np.ndarray, rng: np.random.Generator, share: float) -> np.ndarray:
    """Write a share of the ones, sevens and nines as other countries teach them.

    Ones get an upstroke; sevens a bar through the stem, a tick at the top, or the stem of a one under a hook; nines a
    curled foot. ``images`` uint8 [n, 28, 28], ``labels`` [n].
    """
    result, stems = images.copy(), images[labels == 1]
    for i in np.flatnonzero(rng.random(len(images)) < share):
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
    """Draw a bar through a seven, or hang a hook on a one's stem, with a bar wherever it could be a one.

    A seven in which that would close a loop, as in a nine or a four, stays as it is.
    """
    drawn, pen, barred = field, _pen_width(rng), rng.random() < 0.7
    if len(stems) and rng.random() < 0.5:
        drawn = stems[rng.integers(len(stems))]
        x, y = _top(drawn)
        wide, drop = rng.uniform(4, 11), rng.uniform(-0.1, 0.9 if barred else 0.2)
        left = x - wide, max(1.0, y + wide * drop)
        middle = (x + left[0]) / 2, max(1.0, (y + left[1]) / 2 - rng.uniform(0, 0.25) * wide)  # a round top
        drawn = _drawn_over(_drawn_over(drawn, (x, y), middle, pen), middle, left, pen)
    else:
        left = _left(drawn)
    if not barred or rng.random() < 0.3:
        drawn = _drawn_over(drawn, left, (left[0] - rng.uniform(-1, 1), left[1] + rng.uniform(2, 7)), pen)
    if barred:
        y = int(rng.integers(11, 18))
        x, (before, after, rise) = _column(drawn, y), rng.uniform((2, 3, -1.5), (9, 11, 2.5))
        drawn = _drawn_over(drawn, (x - before, y + rise), (x + after, y - rise), pen)
    return field if _places(drawn) > _places(field) else _centred(drawn)


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


def _places(field: np.ndarray) -> int:
    """Return how many places without ink there are: the one around the digit, and its loops."""
    return cv2.connectedComponents((np.pad(field, 1) < 128).astype(np.uint8), connectivity=4)[0] - 1


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
    return np.maximum(field, np.rint(255 * np.clip(pen + 0.5 - away, 0, 1)).astype(np.uint8))


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

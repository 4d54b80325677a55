"""Thin straight ink in a mask: the lines of the paper, found, and taken out without eating what crosses them."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np


def stroke_width(mask: np.ndarray) -> float:
    """Return the mean stroke width in pixels: twice the area over the length of the outline."""
    inner = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=0)
    outline = int(mask.sum()) - int(inner.sum())
    return 2 * float(mask.sum()) / max(1, outline)


@dataclass(frozen=True)
class Runs:
    """The vertical runs of ink in a mask, from left to right, each from the top, and the mask's ``shape`` (h, w).

    ``column``, first row ``top`` and ``length`` of each are int64 [n].
    """

    column: np.ndarray
    top: np.ndarray
    length: np.ndarray
    shape: tuple[int, int]

    def paint(self, chosen: np.ndarray) -> np.ndarray:
        """Return the mask of the ``chosen`` runs."""
        height, width = self.shape
        marks = np.zeros((width, height + 1), np.int8)
        marks[self.column[chosen], self.top[chosen]] = 1
        marks[self.column[chosen], self.top[chosen] + self.length[chosen]] = -1
        return np.cumsum(marks, axis=1, dtype=np.int8)[:, :-1].T > 0


def find_runs(mask: np.ndarray) -> Runs:
    """Find the vertical runs of ink."""
    padded = np.zeros((mask.shape[1], mask.shape[0] + 2), np.int8)
    padded[:, 1:-1] = mask.T
    change = np.diff(padded, axis=1)
    column, top = np.nonzero(change == 1)
    return Runs(column, top, np.nonzero(change == -1)[1] - top, mask.shape)


THICK = 0.12  # of the picture's shorter side: no printed line is thicker
STEEP = 0.2  # rows a column: no line of the paper lies steeper than 11 degrees
COVER = 0.5  # of its columns that a line must show in
BLANK = 0.15  # of the side over which a line may have no ink at all
EDGE = 0.04  # of the side: as near as this to its end, a line has reached it
APART = 0.1  # of the shorter side: ink away from a line that makes it one, not the digit's own stroke
# Of the shorter side: where the border of a cell may lie. With 0.25 one more of 317 photographed digits is misread,
# with 0.15 a border is read as a 1.
OUTER = 0.2


def find_lines(mask: np.ndarray) -> np.ndarray:
    """Return the pixels of ``mask`` that belong to lines of the paper or borders of a cell, either direction.

    A line is thin across and straight along, and it ends at the picture's edge or at another line. Ink that crosses it
    is left: there the run across is longer than the line is thick (the classic rule for staff lines in music).
    """
    horizontal = _horizontal_lines(mask, np.zeros_like(mask))
    vertical = _horizontal_lines(mask.T, horizontal.T).T
    if vertical.any():
        horizontal |= _horizontal_lines(mask, vertical)
    reach = 3 * round(stroke_width(horizontal | vertical)) | 1
    across, along = (
        cv2.morphologyEx(lines.astype(np.uint8), cv2.MORPH_CLOSE, np.ones(shape, np.uint8)) > 0
        for lines, shape in ((horizontal, (1, reach)), (vertical, (reach, 1)))
    )
    return horizontal | vertical | (mask & across & along)  # where they cross, neither is thin


def _horizontal_lines(mask: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Find lines along the rows; ``others`` are those that cross them.

    In the inner part, across the shorter side, a single line as thick as the ink may be a stroke of a lone digit, if
    there is none apart from it.
    """
    height, width = mask.shape
    runs = find_runs(mask)
    remaining = runs.length <= max(3, THICK * min(height, width))
    found = np.zeros(len(remaining), bool)
    inner: list[np.ndarray] = []
    outer = OUTER * min(width, height)
    for _ in range(40):
        line = _longest_line(runs, remaining)
        if line is None:
            break
        remaining &= ~line
        rows, (start, end) = runs.top[line], _extent(runs.column[line])
        place = _ends_at_border(others, ((rows[0], start), (rows[-1], end)))
        is_outer = rows.max() <= outer or rows.min() >= height - outer
        if is_outer and any(place) and (all(place) or end - start > 0.75 * width):
            found |= line
        elif not is_outer and all(place):
            inner.append(line)
    if len(inner) == 1 and width <= 1.5 * height and not _has_ink_apart(runs, inner[0]):
        ink = weighted_median(runs.length[remaining], runs.length[remaining])  # by themselves: specks weigh little
        inner = [line for line in inner if np.median(runs.length[line]) <= 0.5 * ink]
    return runs.paint(np.logical_or.reduce([found, *inner]))


def _has_ink_apart(runs: Runs, line: np.ndarray) -> bool:
    """Tell whether there is ink as large as a digit that meets neither the line nor the picture's edge."""
    everything, alone = (runs.paint(chosen) for chosen in (np.ones(len(line), bool), line))
    _, labels, stats, _ = cv2.connectedComponentsWithStats(everything.astype(np.uint8), connectivity=8)
    large = np.flatnonzero(stats[:, 2:4].max(1) >= APART * min(everything.shape))
    met = np.concatenate([[0], labels[alone], labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    return len(np.setdiff1d(large, met)) > 0


def weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    """Return the median of ``values`` [n] by their ``weights`` [n], 0 where there are none."""
    return float(np.quantile(values, 0.5, weights=weights, method="inverted_cdf")) if len(values) else 0.0


def _extent(columns: np.ndarray) -> tuple[int, int]:
    """Return where a line starts and ends, without the specks that happen to lie in its direction beyond them."""
    seen = np.zeros(int(columns.max()) + 1, np.float32)
    seen[columns] = 1
    window = max(4, len(seen) // 16)
    dense = np.flatnonzero(np.convolve(seen, np.ones(window), "valid") >= 0.5 * window)
    return (int(dense[0]), int(dense[-1]) + window) if len(dense) else (0, 0)


def _ends_at_border(others: np.ndarray, ends: tuple[tuple[int, int], tuple[int, int]]) -> list[bool]:
    """Tell of either of the ``ends`` (row, column) of a line whether it is near another line or the picture's edge."""
    stops, near = others.copy(), max(3, round(EDGE * others.shape[1]))
    stops[[0, -1]] = stops[:, [0, -1]] = True
    return [
        bool(stops[max(0, row - near) : row + near + 1, max(0, column - near) : column + near + 1].any())
        for row, column in ends
    ]


def _longest_line(runs: Runs, remaining: np.ndarray) -> np.ndarray | None:
    """Return which of the runs that are ``remaining`` lie on the line of most columns, or None where there is no line.

    A Hough transform of the runs' middles over small slopes, then a parabola, since paper curls.
    """
    height, width = runs.shape
    x, middle = runs.column[remaining], (runs.top + (runs.length - 1) / 2)[remaining]
    if len(x) < COVER * width:
        return None
    slopes, lowest, three = np.linspace(-STEEP, STEEP, 41), int(STEEP * width) + 2, np.ones(3, int)
    rows = ((middle - slope * x + lowest).astype(np.int64) for slope in slopes)
    votes = [np.convolve(np.bincount(row, minlength=height + 2 * lowest), three, "valid") for row in rows]
    best = int(np.argmax([each.max() for each in votes]))
    if votes[best].max() < 0.6 * COVER * width:
        return None
    return _on_curve(runs, remaining, np.array([0.0, slopes[best] * width, votes[best].argmax() + 1.5 - lowest]))


def _on_curve(runs: Runs, remaining: np.ndarray, curve: np.ndarray) -> np.ndarray | None:
    """Return which of the runs that are ``remaining`` lie on a line near a ``curve``, a polynomial over the width."""
    width = runs.shape[1]
    across, middle = runs.column / width, runs.top + (runs.length - 1) / 2
    on = remaining & (np.abs(np.polyval(curve, across) - middle) <= max(2.0, 0.02 * width))
    for _ in range(3):
        thickness = float(np.median(runs.length[on])) if on.any() else 0.0
        thin = remaining & (runs.length <= 1.7 * thickness + 1)
        on &= thin
        if on.sum() < 0.3 * width or len(np.unique(across[on])) < 3:
            return None
        curve = np.polyfit(across[on], middle[on], 2)
        on = thin & (np.abs(np.polyval(curve, across) - middle) <= max(1.5, 0.5 * thickness))
    columns = np.unique(runs.column[on])
    if len(columns) < 2 or len(columns) < COVER * (np.ptp(columns) + 1) or np.ptp(columns) < COVER * width:
        return None
    return on if _longest_gap(runs, curve, columns) <= BLANK * width else None


def _longest_gap(runs: Runs, curve: np.ndarray, columns: np.ndarray) -> int:
    """Return the longest stretch of a line, seen in ``columns``, that has no ink."""
    row = np.polyval(curve, runs.column / runs.shape[1])
    crossed = runs.column[(runs.top - 1 <= row) & (row <= runs.top + runs.length)]
    inked = np.union1d(columns, crossed[(crossed > columns[0]) & (crossed < columns[-1])])
    return int(np.diff(inked).max())


LONG = 1.6  # times the usual height of a digit: no stroke of one is longer
# Of the usual height: no stroke of a pen is thicker. Of 45 drawn underlined strings and open tables 36 are read with
# 0.2, 33 with 0.15.
PEN = 0.2


def find_long_lines(mask: np.ndarray, usual: float) -> np.ndarray:
    """Return the lines, either direction, that are longer than any stroke of digits of the ``usual`` height."""
    return _long_horizontal_lines(mask, usual) | _long_horizontal_lines(mask.T, usual).T


def _long_horizontal_lines(mask: np.ndarray, usual: float) -> np.ndarray:
    runs = find_runs(mask)
    remaining = runs.length <= PEN * usual
    found = np.zeros(len(remaining), bool)
    while (line := _longest_line(runs, remaining)) is not None:
        remaining &= ~line
        start, end = _extent(runs.column[line])
        if end - start > LONG * usual:
            found |= line
    return runs.paint(found)


BRIDGE = 3.5  # times the thickness of lines: the parts of a stroke that crosses one at a slant are no farther apart


def remove_lines(mask: np.ndarray, lines: np.ndarray) -> np.ndarray:
    """Return ``mask`` without ``lines``, but with what lies between ink on both sides of a line."""
    lines, kept = mask & lines, mask & ~lines
    if not lines.any():
        return kept
    reach = BRIDGE / 2 * stroke_width(lines)
    closed = _distance_inside(_distance_inside(~kept) <= reach) > reach  # a morphological closing, whatever its width
    return kept | (lines & closed)


def _distance_inside(mask: np.ndarray) -> np.ndarray:
    """Return how far each pixel of ``mask`` is from what is not in it."""
    return cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5)

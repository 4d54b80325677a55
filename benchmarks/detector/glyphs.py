"""What is written on a page, as covers of ink: digits in many hands and pens, letters, and the marks between digits.

A cover is uint8 [h, w], 255 where ink covers the paper. Everything is drawn by integer operations or by single float
operations that IEEE 754 rounds alike: the same random numbers give the same bits on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from pipeline.learning.handwriting import write_european

CLEAR = 60  # of 255: ink that an outline is measured by
SKELETON = 56  # pixels of the side at which a digit is thinned: twice MNIST's
STEPS = 8  # of a pixel, in which distances to a skeleton are kept
LETTERS = (
    "ABCDEFGHKLMNPQRTUVWXYZabcdefghkmnpqrtuvwxyz?&#%@=<>:;()[]{}$"  # nobody's digits: no I, J, O, S, i, j, l, o, s
)
WORDS = "aabcdeeefghiijklmnnooprrsssttuuvwyzABCDEFGIJLMNOPRSTUVW"  # in words any letter: those beside it tell
SCRIPTS = tuple(range(8))  # OpenCV's Hershey fonts: drawn by a pen
MARKS = {  # what stands between digits, and how often
    "comma": 26, "dot": 16, "dash": 10, "plus": 6, "slash": 8, "equals": 6, "bracket": 8, "colon": 6, "tick": 6,
    "cross": 8, "quote": 6,
}  # fmt: skip


@dataclass(frozen=True)
class Hand:
    """How one person writes: width by height, pixels sideways a pixel up, and the pen.

    ``pen`` is half its width as a share of a digit's height; 0 writes with the pens of the digits themselves, each
    stroke of which begins where MNIST's ink is stronger than ``edge`` of 255.
    """

    aspect: float
    slant: float
    pen: float
    edge: int


def draw_hand(rng: np.random.Generator, height: float) -> Hand:
    """Return a random hand that writes digits of ``height`` pixels."""
    pen = 0.0 if rng.random() < 0.4 else max(0.012 * 11 ** rng.random(), 0.7 / height)  # pencil to brush
    return Hand(rng.uniform(0.7, 1.25), rng.normal(0.02, 0.15), pen, int(rng.integers(45, 121)))


class Writer:
    """Writes digits as many people would: images uint8 [n, 28, 28] with their labels, half of the n European."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, rng: np.random.Generator, *, european: float) -> None:
        self.images = write_european(images, labels, rng, european)
        self.labels = labels
        self._lines = distances(self.images)
        self._of = [np.flatnonzero(labels == label) for label in range(int(labels.max()) + 1)]

    def draw(self, rng: np.random.Generator, height: float, hand: Hand, label: int) -> np.ndarray | None:
        """Return the cover of a digit about ``height`` pixels high, cut to its ink; None where nothing is left."""
        number = int(rng.choice(self._of[label]))
        image = self.images[number]
        rows, columns = inked(image, CLEAR)
        if len(rows) < 4 or len(columns) < 1:
            return None
        tall, wide = np.ptp(rows) + 1, np.ptp(columns) + 1
        scale = height / max(tall, 0.75 * wide) * rng.uniform(0.88, 1.12)
        across, turn = scale * hand.aspect * rng.uniform(0.9, 1.1), rng.normal(0, 0.06)
        slant = hand.slant + rng.normal(0, 0.06)
        matrix = np.array([[1, -turn], [turn, 1]]) @ np.array([[across, -slant * scale], [0, scale]])
        x, y = np.array([columns[0] - 1, columns[-1] + 2]), np.array([rows[0] - 1, rows[-1] + 2])
        corners = np.array([[x[0], y[0]], [x[1], y[0]], [x[0], y[1]], [x[1], y[1]]]) @ matrix.T
        low, size = corners.min(0), np.ceil(np.ptp(corners, axis=0)).astype(int).clip(2)
        if hand.pen:
            return cut(_with_pen(self._lines[number], matrix, low, size, hand.pen * height))
        view = np.c_[matrix, -low].astype(np.float32)
        shape = (int(size[0]), int(size[1]))
        cover = cv2.warpAffine(image, view, shape, flags=cv2.INTER_CUBIC if scale > 1 else cv2.INTER_LINEAR)
        if scale > 1.5:  # crisp, as a pen leaves it
            width = round(0.3 * scale) * 2 + 1
            cover = cv2.GaussianBlur(cover, (width, width), 0)
            cover = cv2.LUT(cover, np.clip((np.arange(256) - hand.edge) * 4 + 128, 0, 255).astype(np.uint8))
        return cut(cover)


def _with_pen(lines: np.ndarray, matrix: np.ndarray, low: np.ndarray, size: np.ndarray, radius: float) -> np.ndarray:
    """Draw a skeleton with a round pen of ``radius`` pixels."""
    margin = int(radius) + 2
    view = np.c_[matrix / 2, margin - low - matrix @ [0.25, 0.25]].astype(np.float32)
    shape = (int(size[0]) + 2 * margin, int(size[1]) + 2 * margin)
    far = cv2.warpAffine(lines, view, shape, flags=cv2.INTER_LINEAR, borderValue=255)
    pixels = (matrix[0, 0] + matrix[1, 1]) / 4 / STEPS  # of the page, for a step of the distance
    return np.clip(255 * (radius + 0.5 - far * pixels), 0, 255).astype(np.uint8)


def _thinning() -> Iterator[np.ndarray]:
    """Yield for both steps of Zhang and Suen 1984 whether a pixel with these neighbours stays: uint8 [256]."""
    near = np.arange(256)[:, None] >> np.arange(8) & 1
    count, begins = near.sum(1), ((near == 0) & (np.roll(near, -1, 1) == 1)).sum(1)
    for first, second in (((0, 2, 4), (2, 4, 6)), ((0, 2, 6), (0, 4, 6))):
        ends = (near[:, first].min(1) == 0) & (near[:, second].min(1) == 0)
        yield (~((count >= 2) & (count <= 6) & (begins == 1) & ends)).astype(np.uint8)


_AROUND = np.array([[128, 1, 2], [64, 0, 4], [32, 16, 8]], np.float32)  # the bit of each neighbour, from the one above
_STAYS = tuple(_thinning())


def distances(images: np.ndarray) -> np.ndarray:
    """Return how far each place is from a digit's skeleton, in eighths of a pixel: uint8 [n, 56, 56].

    The skeleton is that of Zhang and Suen 1984, of all digits at once.
    """
    sides = (SKELETON, SKELETON)
    large = np.stack([cv2.resize(image, sides, interpolation=cv2.INTER_LINEAR) for image in images])
    lines = np.pad((large > 110).astype(np.uint8), ((0, 0), (1, 1), (1, 1)))
    whole = lines.reshape(-1, SKELETON + 2)  # one picture: the empty margins keep digits apart
    for _ in range(SKELETON):
        before = int(whole.sum())
        for stays in _STAYS:
            near = cv2.filter2D(whole, -1, _AROUND, borderType=cv2.BORDER_CONSTANT)
            np.multiply(whole, cv2.LUT(near, stays), out=whole, casting="unsafe")
        if int(whole.sum()) == before:
            break
    far = [cv2.distanceTransform(1 - line, cv2.DIST_L2, cv2.DIST_MASK_5) for line in lines[:, 1:-1, 1:-1]]
    return np.clip(STEPS * np.stack(far), 0, 255).astype(np.uint8)


def inked(cover: np.ndarray, least: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows and the columns in which ink is stronger than ``least``."""
    return np.flatnonzero(cover.max(1) > least), np.flatnonzero(cover.max(0) > least)


def cut(cover: np.ndarray) -> np.ndarray | None:
    """Return a cover without the empty rows and columns around its ink; None where it has no ink."""
    rows, columns = inked(cover, 100)
    if not len(rows) or not len(columns):
        return None
    return cover[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def draw_letter(rng: np.random.Generator, height: float, pen: float, letters: str = LETTERS) -> np.ndarray | None:
    """Return the cover of one of ``letters`` about ``height`` pixels high, slanted at random, by a pen of ``pen``."""
    side = int(2.4 * height) + 4
    cover = np.zeros((side, side), np.uint8)
    start = int(0.5 * height), int(1.6 * height)
    text, font = letters[rng.integers(len(letters))], int(rng.integers(len(SCRIPTS)))
    cv2.putText(cover, text, start, font, height / 22, 255, max(1, round(pen)), cv2.LINE_AA)
    lean, turn = rng.normal(-0.1, 0.2), rng.normal(0, 0.1)
    view = np.array([[1, lean, -lean * side / 2], [turn, 1, -turn * side / 2]], np.float32)
    return cut(cv2.warpAffine(cover, view, (side, side)))


def draw_cursive(rng: np.random.Generator, height: float, pen: float) -> np.ndarray | None:
    """Return the cover of joined writing about ``height`` pixels high: loops and waves of changing size."""
    waves = int(rng.integers(3, 14))
    steps = np.arange(16 * waves + 1) / 16
    high = np.repeat(rng.choice((0.5, 0.55, 1.0), waves + 1, p=(0.5, 0.3, 0.2)), 16)[: len(steps)]
    loop = np.repeat(rng.uniform(-0.05, 0.3, waves + 1), 16)[: len(steps)]
    around, low = _wave(steps + 0.25), high * (0.5 + 0.5 * _wave(steps))
    x = steps * rng.uniform(0.3, 0.6) + loop * around + rng.normal(0.1, 0.15) * low
    points = np.stack([x, 1 - low], 1) * height + rng.normal(0, 0.01 * height, (len(steps), 2)) + 2 * pen + 2
    shape = int(np.ptp(points[:, 0]) + 4 * pen + 8), int(1.1 * height + 4 * pen + 8)
    points[:, 0] -= points[:, 0].min() - 2 * pen - 2
    cover = np.zeros(shape[::-1], np.uint8)
    draw_line(cover, points, pen)
    return cut(cover)


def _wave(turns: np.ndarray) -> np.ndarray:
    """Return a wave like a sine of 0 at whole ``turns``, from parabolas: the same bits on every processor."""
    part = turns % 1
    return np.where(part < 0.5, 16 * part * (0.5 - part), -16 * (part - 0.5) * (1 - part))


def draw_mark(rng: np.random.Generator, height: float, pen: float) -> tuple[np.ndarray | None, float]:
    """Return the cover of a mark beside digits of ``height`` pixels, and how many heights above the line it lies."""
    kind = str(rng.choice(list(MARKS), p=np.array(list(MARKS.values())) / sum(MARKS.values())))
    side = int(1.6 * height) + 6
    cover, middle, above = np.zeros((side, side), np.uint8), side / 2, 0.5
    length, width = rng.uniform(0.15, 0.45) * height, rng.uniform(0.1, 0.5) * height

    def stroke(*points: tuple[float, float]) -> None:
        places = np.array(points) + middle + rng.normal(0, 0.02 * height, (len(points), 2))
        draw_line(cover, places, pen)

    match kind:
        case "comma":
            above = rng.uniform(-0.25, 0.12)
            length = rng.uniform(0.15, 0.65) * height
            width = rng.uniform(0.02, 0.6) * length
            stroke((0, -length / 2), (-0.05 * length, 0), (-width * 0.6, length / 2))
        case "dot" | "colon":
            above = rng.uniform(0, 0.15) if kind == "dot" else rng.uniform(0.3, 0.6)
            for y in (0,) if kind == "dot" else (-0.2, 0.2):
                place = int(middle), int(middle + y * height)
                cv2.circle(cover, place, max(1, int(rng.uniform(0.5, 1.4) * pen)), 255, -1, cv2.LINE_AA)
        case "dash":
            stroke((-length, 0), (length, 0))
        case "plus":
            stroke((-length, 0), (length, 0))
            stroke((0, -length), (0, length))
        case "cross":
            stroke((-length, -length), (length, length))
            stroke((-length, length), (length, -length))
        case "slash":
            stroke((width * 0.8, -0.6 * height), (-width * 0.8, 0.6 * height))
        case "equals":
            for y in (-0.12, 0.12):
                stroke((-length, y * height), (length, y * height))
        case "bracket":
            side_of = float(rng.choice((-0.5, 0.5))) * width
            stroke((side_of, -0.6 * height), (0, -0.3 * height), (-0.2 * side_of, 0), (0, 0.3 * height))
            stroke((0, 0.3 * height), (side_of, 0.6 * height))
        case "tick":
            stroke((-0.3 * height, 0), (-0.1 * height, 0.25 * height), (0.4 * height, -0.4 * height))
        case _:
            above = rng.uniform(0.9, 1.2)
            for x in (0,) if rng.random() < 0.5 else (-0.1, 0.1):
                stroke((x * height, -length / 3), (x * height - length / 8, length / 3))
    return cut(cover), above


def draw_line(cover: np.ndarray, points: np.ndarray, pen: float) -> None:
    """Draw a line through ``points`` float [n, 2] with a pen of ``pen`` pixels."""
    path = np.round(8 * points).astype(np.int32).reshape(-1, 1, 2)
    cv2.polylines(cover, [path], False, 255, max(1, round(pen)), cv2.LINE_AA, 3)


def draw_curve(rng: np.random.Generator, points: int) -> np.ndarray:
    """Return a line through random points in the unit square, angular or round (Chaikin 1974): float [n, 2]."""
    path = rng.random((points, 2))
    for _ in range(3 * int(rng.integers(2))):
        path = np.stack([path[:-1] * 0.75 + path[1:] * 0.25, path[:-1] * 0.25 + path[1:] * 0.75], 1).reshape(-1, 2)
    return path

"""Pages of handwritten digits among all that people write and photograph, with the truth of every pixel."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import cv2
import numpy as np

from benchmarks.detector import glyphs
from benchmarks.detector.glyphs import Hand, Writer

KINDS = {"single": 0.24, "row": 0.32, "page": 0.22, "table": 0.1, "none": 0.12}  # of pages, with their shares
LINES = {  # what is printed on the paper, with its share
    "nothing": 0.4, "ruled": 0.13, "squared": 0.12, "dotted": 0.04, "underlines": 0.08, "box": 0.07, "comb": 0.05,
    "cells": 0.06, "columns": 0.05,
}  # fmt: skip
OTHERS = ("scribble", "signature", "word", "cursive", "marks", "arrow", "circle", "letter")  # that is no digit
MOST = 250  # digits on a page: their numbers are uint8
COVERED = 40  # of 255: ink as strong as this belongs to its digit


@dataclass(frozen=True)
class Page:
    """A photograph and what is in it.

    ``grey`` is uint8 [h, w]; ``owner`` uint8 [h, w] has the number of the digit, from 1, that a pixel's ink belongs to,
    and 0 elsewhere; ``boxes`` float32 [n, 4] are x, y, width and height of the digits, also where the picture cuts
    them; ``labels`` their values.
    """

    grey: np.ndarray
    owner: np.ndarray
    boxes: np.ndarray
    labels: tuple[int, ...]


@dataclass(frozen=True)
class Style:
    """How a page is written: the digits' ``height``, the hand, its pen in pixels, and what happens how often."""

    height: float
    hand: Hand
    pen: float
    tilt: float  # pixels down a pixel across
    jitter: float  # of the base line, in heights
    gap: float  # between digits, in heights
    touching: bool  # whether digits touch and overlap
    zeros: float  # share of digits that are zeros: 1000
    joined: bool  # whether strokes join digits
    ruled: bool  # whether a line is printed under each row
    crossed: float  # share of digits that are crossed out
    marks: float  # share of digits that a mark follows
    spaces: float  # share of digits that a space follows
    uneven: float  # how unlike the digits' heights are
    sizes: tuple[
        tuple[float, float], ...
    ]  # of each digit: times the height, and how much of the rest is above the line


@dataclass
class Canvas:
    """The layers of a page that is being written: covers of digits and of all else, and whose ink a pixel is."""

    shape: tuple[int, int]
    digits: np.ndarray = field(init=False)
    others: np.ndarray = field(init=False)
    owner: np.ndarray = field(init=False)
    boxes: list[tuple[int, int, int, int]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.digits, self.others, self.owner = (np.zeros(self.shape, np.uint8) for _ in range(3))

    def write(self, cover: np.ndarray, x: int, y: int, label: int) -> None:
        """Write a digit with its top left at x, y."""
        place, part = self._overlap(cover, x, y)
        if part.size == 0 or len(self.boxes) == MOST:
            return
        self.boxes.append((x, y, cover.shape[1], cover.shape[0]))
        self.labels.append(label)
        self.owner[place][(part > COVERED) & (part >= self.digits[place])] = len(self.boxes)
        self.digits[place] = np.maximum(self.digits[place], part)

    def stamp(self, cover: np.ndarray | None, x: float, y: float) -> None:
        """Write what is no digit with its top left at x, y."""
        if cover is not None:
            place, part = self._overlap(cover, int(x), int(y))
            self.others[place] = np.maximum(self.others[place], part)

    def cross_out(self, rng: np.random.Generator, pen: float) -> None:
        """Cross the last digit out: it is none any more."""
        (x, y, w, h), number = self.boxes[-1], len(self.boxes)
        for _ in range(int(rng.integers(1, 5))):
            ends = np.array([(x - 0.1 * w, y + h * rng.random()), (x + 1.1 * w, y + h * rng.random())])
            glyphs.draw_line(self.others, ends, pen)
        own = self.owner == number
        self.others[own] = np.maximum(self.others[own], self.digits[own])
        self.digits[own] = self.owner[own] = 0

    def _overlap(self, cover: np.ndarray, x: int, y: int) -> tuple[tuple[slice, slice], np.ndarray]:
        rows = slice(min(max(y, 0), self.shape[0]), min(max(y + cover.shape[0], 0), self.shape[0]))
        columns = slice(min(max(x, 0), self.shape[1]), min(max(x + cover.shape[1], 0), self.shape[1]))
        return (rows, columns), cover[rows.start - y : rows.stop - y, columns.start - x : columns.stop - x]


def draw(rng: np.random.Generator, writer: Writer) -> Page:
    """Draw one page: 150 to 850 pixels a side, of any kind, as a camera, a scanner or a screen shows it."""
    kind = _pick(rng, KINDS)
    far = kind in ("row", "page") and rng.random() < 0.14  # a sheet seen from far
    low, high = (450, 850) if far else (150, 420)
    shape = int(rng.integers(low, high)), int(rng.integers(low, high))
    least, most = {"single": (0.25, 0.95), "row": (0.1, 0.7)}.get(kind, (0.06, 0.3))
    least, most = (0.02, 0.06) if far else (least, most)
    height = max(12.0, min(shape) * least * (most / least) ** rng.random())
    style, canvas = _style(rng, height), Canvas(shape)
    {"single": _single, "row": _one_row, "page": _rows, "table": _table, "none": _nothing}[kind](
        canvas, rng, writer, style
    )
    for _ in range(int(rng.poisson(1.6 if kind == "none" else 0.5))):
        _add_other(canvas, rng, style, beside=kind in ("single", "row"))
    paper = _lines(rng, shape, height)
    return _seen(rng, canvas, _inked(rng, canvas, paper, style, far=far), style)


def _pick(rng: np.random.Generator, shares: dict[str, float]) -> str:
    return str(rng.choice(list(shares), p=list(shares.values())))


def _style(rng: np.random.Generator, height: float) -> Style:
    hand = glyphs.draw_hand(rng, height)
    pen = height * (2 * hand.pen * rng.uniform(0.8, 1.2) if hand.pen else rng.uniform(0.07, 0.16))
    near = rng.random() < 0.7
    sizes = [(1.0, 1.0)] * 10
    if rng.random() < 0.45:  # a hand whose digits are not equally high
        for value in range(10):
            if value in (4, 7, 9, 1, 6) and rng.random() < 0.5:
                sizes[value] = rng.uniform(1.1, 1.9), (rng.random() if value == 6 else rng.uniform(0, 0.5))
            elif value in (0, 2, 3, 5, 8) and rng.random() < (0.5 if value == 0 else 0.2):
                sizes[value] = rng.uniform(0.45, 0.9), rng.uniform(0.4, 1)
    return Style(
        height=height,
        hand=hand,
        pen=max(1.0, pen),
        tilt=rng.normal(0, 0.04),
        jitter=float(rng.choice((0.02, 0.06, 0.12))),
        gap=rng.uniform(0.03, 0.5) if near else rng.uniform(0.5, 1.6),
        touching=bool(rng.random() < 0.25),
        zeros=float(rng.choice((0.0, 0.5), p=(0.8, 0.2))),
        joined=bool(rng.random() < 0.08),
        ruled=bool(rng.random() < 0.15),
        crossed=float(rng.choice((0.0, 0.03), p=(0.7, 0.3))),
        marks=float(rng.choice((0.0, 0.15, 0.5, 0.9), p=(0.5, 0.2, 0.15, 0.15))),
        spaces=float(rng.choice((0.0, 0.15, 0.4))),
        uneven=float(rng.choice((0.02, 0.08, 0.16), p=(0.5, 0.3, 0.2))),
        sizes=tuple(sizes),
    )


def _label(rng: np.random.Generator, writer: Writer, zeros: float, ones: float) -> int:
    """Draw a value: more ones than others, since what is only a stroke is the hardest to tell from a line."""
    chance = rng.random()
    return 0 if chance < zeros else 1 if chance < zeros + ones else int(rng.integers(int(writer.labels.max()) + 1))


def _single(canvas: Canvas, rng: np.random.Generator, writer: Writer, style: Style) -> None:
    label = _label(rng, writer, 0, 0.15)
    cover = writer.draw(rng, style.height, style.hand, label)
    if cover is not None:
        (height, width), (h, w) = canvas.shape, cover.shape
        x, y = (width - w) / 2 + rng.normal(0, 0.12) * width, (height - h) / 2 + rng.normal(0, 0.1) * height
        canvas.write(cover, int(x), int(y), label)


def _one_row(canvas: Canvas, rng: np.random.Generator, writer: Writer, style: Style) -> None:
    height, width = canvas.shape
    x = width * (rng.uniform(-0.2, 0.5) if rng.random() < 0.3 else rng.uniform(0.02, 0.3))
    y = (height - style.height) / 2 + height * (rng.uniform(-0.5, 0.5) if rng.random() < 0.3 else rng.normal(0, 0.1))
    _row(canvas, rng, writer, style, (x, y), int(rng.integers(1, 9)))


def _rows(canvas: Canvas, rng: np.random.Generator, writer: Writer, style: Style) -> None:
    pitch, y = rng.uniform(1.15, 2.6) * style.height, rng.uniform(-0.5, 1) * style.height
    while y < canvas.shape[0]:
        x = rng.uniform(-0.3, 1) * style.height
        if rng.random() < 0.25:
            x = _word(canvas, rng, (x, y), style.height * rng.uniform(0.7, 1.2), style.pen) + 0.5 * style.height
        x = _row(canvas, rng, writer, style, (x, y), int(rng.integers(1, 14)))
        if rng.random() < 0.15:
            _word(canvas, rng, (x + 0.5 * style.height, y), style.height * rng.uniform(0.7, 1.2), style.pen)
        y += pitch * rng.uniform(0.9, 1.15)


def _table(canvas: Canvas, rng: np.random.Generator, writer: Writer, style: Style) -> None:
    """Write into the cells of a table that is drawn by hand or printed, or into rows and columns without lines."""
    height, width = canvas.shape
    wide, high = style.height * rng.uniform(1.1, 2.4), style.height * rng.uniform(1.1, 2.2)
    rows, columns = (
        np.arange(rng.uniform(-0.5, 0.5) * step, side + step, step) for step, side in ((high, height), (wide, width))
    )
    border = round(style.height * float(rng.choice((0, 0.03, 0.06, 0.12, 0.16), p=(0.3, 0.2, 0.2, 0.15, 0.15))))
    value = int(rng.integers(120, 256))
    if rng.random() < 0.75:
        for y in rows:
            cv2.line(canvas.others, (0, int(y)), (width, int(y)), value, max(1, border), cv2.LINE_AA)
        for x in columns if rng.random() < 0.8 else ():
            cv2.line(canvas.others, (int(x), 0), (int(x), height), value, max(1, border), cv2.LINE_AA)
    filled, many = rng.uniform(0.3, 1), int(rng.integers(1, 3))
    inside = replace(style, marks=0, spaces=0, gap=0.08)
    for y in rows:
        for x in columns[rng.random(len(columns)) < filled]:
            left = x + wide / 2 - 0.35 * style.height * many + rng.normal(0, 0.12) * wide
            _row(canvas, rng, writer, inside, (left, y + (high - style.height) / 2 + rng.normal(0, 0.1) * high), many)


def _nothing(canvas: Canvas, rng: np.random.Generator, writer: Writer, style: Style) -> None:  # noqa: ARG001
    """Write no digit: words on half of these pages."""
    if rng.random() < 0.5:
        place = rng.uniform(-0.1, 0.4) * canvas.shape[1], rng.uniform(0, 0.8) * canvas.shape[0]
        _word(canvas, rng, place, style.height, style.pen)


def _row(
    canvas: Canvas, rng: np.random.Generator, writer: Writer, style: Style, start: tuple[float, float], count: int
) -> float:
    """Write ``count`` digits from the top left ``start``; return where the row ends."""
    x, height = start[0], style.height
    for number in range(count):
        if x > canvas.shape[1] + height:
            break
        label = _label(rng, writer, style.zeros, 0.08)
        times, above_line = style.sizes[label] if label < 10 else (1.0, 1.0)
        cover = writer.draw(rng, height * times * np.exp(rng.normal(0, style.uneven)), style.hand, label)
        if cover is None:
            continue
        base = (
            start[1]
            + (1 - above_line) * (times - 1) * height
            + height
            + style.tilt * (x - start[0])
            + rng.normal(0, style.jitter) * height
        )
        raised = int(rng.uniform(0, 0.5) * (height - cover.shape[0])) if cover.shape[0] < 0.6 * height else 0
        x += rng.uniform(-0.28, 0.05) * height if style.touching and number else 0
        before = len(canvas.boxes)
        if style.joined and number and canvas.boxes and rng.random() < 0.7:
            _join(canvas, rng, style, (x, base))
        canvas.write(cover, round(x), round(base - cover.shape[0]) - raised, label)
        if len(canvas.boxes) > before and rng.random() < style.crossed:
            canvas.cross_out(rng, style.pen)
        x += cover.shape[1] + max(0.02, rng.normal(style.gap, 0.3 * style.gap)) * height
        if rng.random() < style.marks:
            mark, above = glyphs.draw_mark(rng, height, style.pen)
            if mark is not None:
                canvas.stamp(mark, x, base - above * height - mark.shape[0] / 2)
                x += mark.shape[1] + abs(rng.normal(0.1, 0.1)) * height
        x += rng.uniform(0.5, 2.5) * height if rng.random() < style.spaces else 0
    if style.ruled:
        y, width = start[1] + height * rng.uniform(0.94, 1.08), canvas.shape[1]
        ends = np.array([(start[0] - 9 * height, y), (x + 9 * height, y + style.tilt * (x - start[0]))])
        line = np.zeros(canvas.shape, np.uint8)
        glyphs.draw_line(line, ends if rng.random() < 0.5 else np.array([(0, y), (width, y)]), 0.35 * style.pen + 0.7)
        canvas.others = np.maximum(canvas.others, (line * np.float32(rng.uniform(0.4, 1))).astype(np.uint8))
    return x


def _join(canvas: Canvas, rng: np.random.Generator, style: Style, place: tuple[float, float]) -> None:
    """Draw a stroke from the last digit to the next one at ``place``, x and base line: it belongs to neither."""
    x, base = place
    before, y = canvas.boxes[-1], base - rng.uniform(0.5, 1) * style.height
    ends = np.array([(before[0] + rng.uniform(0.5, 1) * before[2], y), (x + 0.3 * style.height, y)])
    ends[:, 1] += rng.normal(0, 0.06, 2) * style.height
    line = np.zeros(canvas.shape, np.uint8)
    glyphs.draw_line(line, ends, 0.8 * style.pen)
    canvas.digits = np.maximum(canvas.digits, line)


def _word(canvas: Canvas, rng: np.random.Generator, start: tuple[float, float], height: float, pen: float) -> float:
    x, joined = start[0], rng.uniform(0.7, 1.1)
    cursive, letters = rng.random() < 0.25, glyphs.WORDS if rng.random() < 0.7 else glyphs.LETTERS
    for _ in range(1 if cursive else int(rng.integers(3, 10))):
        own = height * rng.uniform(0.55, 1)
        cover = glyphs.draw_cursive(rng, own, pen) if cursive else glyphs.draw_letter(rng, own, pen, letters)
        if cover is not None:
            canvas.stamp(cover, x, start[1] + height - cover.shape[0] + rng.normal(0, 0.04) * height)
            x += cover.shape[1] * joined + 0.04 * height
    return x


def _add_other(canvas: Canvas, rng: np.random.Generator, style: Style, *, beside: bool) -> None:
    """Write something that is no digit, unless it would lie on digits."""
    height, width = canvas.shape
    size, x, y = style.height * rng.uniform(0.6, 1.6), rng.random() * width, rng.random() * height
    if beside and rng.random() < 0.6:
        y = float(rng.choice((-0.2, 1.0))) * height + rng.normal(0, 0.15) * height
    own = Canvas(canvas.shape)
    match OTHERS[rng.integers(len(OTHERS))]:
        case "scribble":
            curve = glyphs.draw_curve(rng, int(rng.integers(5, 14)))
            glyphs.draw_line(own.others, (x, y) + 1.4 * size * curve - size, style.pen)
        case "signature":
            steps = np.arange(60) / 59
            waves = np.abs(steps * rng.uniform(6, 20) % 2 - 1) * rng.uniform(0.3, 1, 60)
            path = np.stack([steps * rng.uniform(1.5, 4), waves - 0.5], 1) + rng.normal(0, 0.04, (60, 2))
            glyphs.draw_line(own.others, (x, y) + size * path, style.pen)
        case "word":
            _word(own, rng, (x, y), 0.8 * size, style.pen)
        case "cursive":
            own.stamp(glyphs.draw_cursive(rng, size, style.pen), x, y)
        case "letter":
            own.stamp(glyphs.draw_letter(rng, size, style.pen), x, y)
        case "marks":
            for dx, dy in rng.normal(0, (2, 1), (int(rng.integers(1, 6)), 2)) * size:
                own.stamp(glyphs.draw_mark(rng, size, style.pen)[0], x + dx, y + dy)
        case "circle":
            axes, pen = (int(size * rng.uniform(1, 2.5)), int(size * rng.uniform(0.8, 1.5))), max(1, int(style.pen))
            cv2.ellipse(own.others, (int(x), int(y)), axes, rng.uniform(0, 30), 0, 360, 255, pen, cv2.LINE_AA)
        case _:
            end = (int(x + rng.normal(0, 2) * size), int(y + rng.normal(0, 2) * size))
            cv2.arrowedLine(own.others, (int(x), int(y)), end, 255, max(1, int(style.pen)), cv2.LINE_AA)
    written = int((canvas.owner > 0).sum())
    hidden = int(((own.others > 60) & (canvas.owner > 0)).sum())
    if hidden <= (0.15 if rng.random() < 0.3 else 0.02) * max(1, written):
        canvas.others = np.maximum(canvas.others, own.others)


def _lines(rng: np.random.Generator, shape: tuple[int, int], height: float) -> np.ndarray:
    """Print lines on the paper: their cover."""
    cover, kind = np.zeros(shape, np.uint8), _pick(rng, LINES)
    h, w = shape
    width = max(1, round(height * float(rng.choice((0.015, 0.03, 0.06, 0.1), p=(0.4, 0.3, 0.2, 0.1)))))
    pitch, slope, ink = height * rng.uniform(0.45, 2.2), rng.normal(0, 0.01), int(rng.integers(90, 256))
    first = rng.random() * pitch

    def line(x: float, y: float, right: float, bottom: float) -> None:
        cv2.line(cover, (int(x), int(y)), (int(right), int(bottom)), ink, width, cv2.LINE_AA)

    if kind in ("ruled", "squared"):
        for y in np.arange(first, h, pitch):
            line(0, y, w, y + slope * w)
    if kind in ("squared", "columns"):
        step = pitch if kind == "squared" else pitch * rng.uniform(1.5, 4)
        for x in np.arange(rng.random() * step, w, step):
            line(x, 0, x - slope * h, h)
    if kind == "dotted":
        for y in np.arange(first, h, 0.6 * pitch):
            for x in np.arange(first, w, 0.6 * pitch):
                cv2.circle(cover, (int(x), int(y)), width, ink, -1, cv2.LINE_AA)
    if kind == "underlines":
        for x, y in rng.random((int(rng.integers(1, 4)), 2)) * (w, h):
            length = rng.uniform(1, 8) * height
            across, down = (length, rng.normal(0, 0.04) * length)[:: int(rng.choice((-1, 1)))]
            line(x, y, x + across, y + down)
    if kind == "box":
        x, y = rng.uniform(-0.2, 0.5, 2) * (w, h)
        right, bottom = (x, y) + rng.uniform(0.4, 1.2, 2) * (w, h)
        cv2.rectangle(cover, (int(x), int(y)), (int(right), int(bottom)), ink, width, cv2.LINE_AA)
    if kind in ("comb", "cells"):
        x, y, cell, cells = (
            rng.uniform(-0.1, 0.4) * w,
            rng.uniform(0.1, 0.8) * h,
            height * rng.uniform(0.8, 1.6),
            int(rng.integers(2, 9)),
        )
        top = y - height * (rng.uniform(1.1, 1.6) if kind == "cells" else rng.uniform(0.1, 0.4))
        for level in (y, top) if kind == "cells" else (y,):
            line(x, level, x + cells * cell, level)
        for number in range(cells + 1):
            line(x + number * cell, top, x + number * cell, y)
    return cover


def _cloud(rng: np.random.Generator, shape: tuple[int, int], cells: int) -> np.ndarray:
    """Return smooth noise in 0..1, float32 [h, w], of ``cells`` waves a side."""
    small = rng.integers(0, 256, (cells, cells)).astype(np.uint8)
    return cv2.resize(small, shape[::-1], interpolation=cv2.INTER_CUBIC).astype(np.float32) / 255


def _texture(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Return what is no paper: wood, cloth, foliage, keys, a room: float32 [h, w] around 0, most within 1."""
    total = np.zeros(shape, np.float32)
    for _ in range(int(rng.integers(1, 4))):
        down, across = (int(4 * 40 ** rng.random()) for _ in range(2))
        small = rng.integers(0, 256, (min(down, shape[0]), min(across, shape[1]))).astype(np.uint8)
        way = cv2.INTER_CUBIC if rng.random() < 0.7 else cv2.INTER_NEAREST
        total += (cv2.resize(small, shape[::-1], interpolation=way).astype(np.float32) / 127.5 - 1) * rng.uniform(
            0.1, 0.7
        )
    for _ in range(int(rng.poisson(3))):
        value, (x, y) = float(rng.uniform(-1, 1)), rng.random(2) * shape[::-1]
        size = min(shape) * 0.5 * rng.random(2) ** 2 + 2
        if rng.random() < 0.5:
            cv2.ellipse(
                total,
                (int(x), int(y)),
                (int(size[0]), int(size[1])),
                rng.uniform(0, 180),
                0,
                360,
                value,
                int(rng.choice((-1, 2, 4))),
            )
        else:
            box = cv2.boxPoints(((x, y), (2 * size[0], 2 * size[1]), float(rng.choice((0, rng.uniform(0, 90))))))
            if rng.random() < 0.6:
                cv2.fillPoly(total, [box.astype(np.int32)], value)
            else:
                cv2.polylines(total, [box.astype(np.int32)], True, value, int(rng.integers(1, 6)))
    return total


def _inked(rng: np.random.Generator, canvas: Canvas, lines: np.ndarray, style: Style, *, far: bool) -> np.ndarray:
    """Put all layers on paper and light it: uint8 [h, w]. What a table's edge hides belongs to no digit any more."""
    shape = canvas.shape
    paper = rng.uniform(150, 250)
    dark = rng.uniform(0.6, 0.86) * paper if rng.random() < 0.25 else rng.uniform(5, 0.62 * paper)
    if rng.random() < 0.06:  # drawn on a screen
        share = np.maximum(canvas.digits, np.maximum(canvas.others, lines)).astype(np.float32) / 255
        back, front = ((255.0, 0.0), (250.0, 30.0), (255.0, 120.0))[rng.integers(3)]
        page = back + (front - back) * share
        return np.clip(255 - page if rng.random() < 0.5 else page, 0, 255).astype(np.uint8)
    page = np.full(shape, paper, np.float32)
    page += (_cloud(rng, shape, int(rng.integers(3, 30))) - 0.5) * np.float32(rng.choice((0, 6, 14)))
    if rng.random() < 0.08:  # the other side shows through
        page -= _soft(canvas.digits[:, ::-1], 0.04 * style.height) * np.float32(rng.uniform(0.03, 0.12) * paper)
    for _ in range(int(rng.integers(1, 3)) if rng.random() < 0.06 else 0):  # folds
        page[:, int(rng.uniform(0, shape[1])) :] *= np.float32(rng.uniform(0.85, 0.97))
    other = dark if rng.random() < 0.75 else rng.uniform(5, 0.8 * paper)
    layers = (lines, rng.uniform(0.4, 0.93) * paper, 0), (canvas.others, other, 0.3), (canvas.digits, dark, 0.55)
    for cover, level, most in layers:
        uneven = np.float32(rng.uniform(0, most)) * _cloud(rng, shape, int(rng.integers(4, 24)))
        share = cover.astype(np.float32) / 255 * (1 - uneven)
        page = (page * (1 - share) + np.minimum(page, np.float32(level)) * share).astype(np.float32)
    if rng.random() < 0.1:  # pencil on rough paper
        page += (
            (rng.random(shape, np.float32) - 0.5) * (canvas.digits > glyphs.CLEAR) * np.float32((paper - dark) * 0.6)
        )
    page = _lit(rng, page)
    if not canvas.boxes and rng.random() < 0.4:  # no paper at all
        page = np.float32(rng.uniform(60, 200)) + np.float32(rng.uniform(20, 110)) * _texture(rng, shape)
    if rng.random() < (0.6 if far else 0.15):
        page = _on_table(rng, page, canvas, paper)
    page = 255 - page if rng.random() < 0.22 else page  # chalk, or ink on a screen
    return np.clip(page, 0, 255).astype(np.uint8)


def _soft(cover: np.ndarray, sigma: float) -> np.ndarray:
    width = max(1, round(2 * sigma)) * 2 + 1
    return cv2.GaussianBlur(cover, (width, width), 0).astype(np.float32) / 255


def _grid(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    down, across = (np.arange(side, dtype=np.float32) / np.float32(side) for side in shape)
    return down[:, None], across[None]


def _lit(rng: np.random.Generator, page: np.ndarray) -> np.ndarray:
    """Light a page: unevenly, darker at its corners, with the edge of a shadow, with a lamp in it."""
    y, x = _grid(page.shape)
    slopes = rng.normal(0, 0.12, 2).astype(np.float32)
    light = 1 + slopes[0] * (y - np.float32(0.5)) + slopes[1] * (x - np.float32(0.5))
    if rng.random() < 0.25:
        down, across = (np.float32(value) for value in rng.uniform(0.3, 0.7, 2))
        light = light * (1 - np.float32(rng.uniform(0.2, 1.2)) * ((y - down) ** 2 + (x - across) ** 2))
    if rng.random() < 0.25:
        a, b, c = (np.float32(value) for value in rng.uniform((-1, -1, -0.4), (1, 1, 0.4)))
        side = ((y - np.float32(0.5)) * a + (x - np.float32(0.5)) * b - c) * np.float32(6 * 40 ** rng.random())
        light = light * (1 - np.float32(rng.uniform(0.1, 0.55)) * (0.5 + 0.5 * side / (1 + np.abs(side))))
    if rng.random() < 0.08:
        down, across = (np.float32(value) for value in rng.random(2))
        glow = 1 / (1 + ((y - down) ** 2 + (x - across) ** 2) * np.float32(rng.uniform(10, 100))) ** 2
        page = page + (250 - page) * np.float32(rng.uniform(0.2, 0.8)) * glow
    return page * light


def _on_table(rng: np.random.Generator, page: np.ndarray, canvas: Canvas, paper: float) -> np.ndarray:
    """Show the table, or a hand, beside the sheet: at one to four of its sides."""
    y, x = _grid(page.shape)
    level = np.float32(rng.uniform(20, 0.75 * paper))
    texture = (_cloud(rng, canvas.shape, int(rng.integers(5, 40))) - 0.5) * np.float32(rng.choice((4, 20)))
    if rng.random() < 0.4:
        texture = np.float32(rng.uniform(5, 50)) * _texture(rng, canvas.shape)
    for side in rng.permutation(4)[: rng.integers(1, 5)]:
        deep = 0.14 if rng.random() < 0.7 else 0.33
        depth, slope = np.float32(rng.uniform(0.01, deep)), np.float32(rng.normal(0, 0.06))
        along, into = ((x, y), (x, 1 - y), (y, x), (y, 1 - x))[side]
        beside = into < depth + slope * (along - np.float32(0.5))
        page = np.where(beside, level + texture, page)
        canvas.owner[np.broadcast_to(beside, canvas.shape)] = 0
    return page


def _seen(rng: np.random.Generator, canvas: Canvas, grey: np.ndarray, style: Style) -> Page:
    """See a page through a camera: perspective, blur, noise, JPEG."""
    (h, w), owner = canvas.shape, canvas.owner
    boxes = np.array(canvas.boxes, np.float32).reshape(-1, 4)
    if rng.random() < 0.6:
        corners = np.array([[0, 0], [w, 0], [w, h], [0, h]], np.float32)
        tangent = rng.normal(0, 0.07)
        turn = np.array([[1, -tangent], [tangent, 1]])
        moved = (corners - (w / 2, h / 2)) @ turn.T + (w / 2, h / 2) + rng.uniform(-0.05, 0.05, (4, 2)) * min(h, w)
        view = cv2.getPerspectiveTransform(corners, moved.astype(np.float32))
        grey = cv2.warpPerspective(grey, view, (w, h), borderMode=cv2.BORDER_REPLICATE)
        owner = cv2.warpPerspective(owner, view, (w, h), flags=cv2.INTER_NEAREST)
        boxes = np.array([_moved(box, view) for box in boxes], np.float32).reshape(-1, 4)
    sigma = (rng.uniform(0, 0.05) if rng.random() < 0.85 else rng.uniform(0.05, 0.09)) * min(style.height, 40)
    if rng.random() < 0.06:  # the camera moved
        length, angle = int(rng.uniform(2, 0.2 * min(style.height, 60) + 3)), rng.uniform(0, np.pi)
        kernel = np.zeros((2 * length + 1,) * 2, np.float32)
        dx, dy = length / 2 * np.cos(angle), length / 2 * np.sin(angle)
        cv2.line(kernel, (round(length - dx), round(length - dy)), (round(length + dx), round(length + dy)), 1.0, 1)
        grey = cv2.filter2D(grey, -1, kernel / kernel.sum())
    if sigma > 0.3:
        width = round(2 * sigma) * 2 + 1
        grey = cv2.GaussianBlur(grey, (width, width), 0)
    noise = rng.normal(0, rng.choice((0.0, 0.5, 2, 5, 9), p=(0.14, 0.22, 0.36, 0.18, 0.1)), (h, w))
    grey = np.clip(np.rint(grey + noise), 0, 255).astype(np.uint8)
    if rng.random() < 0.6:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(25, 92))]
        grey = np.asarray(cv2.imdecode(cv2.imencode(".jpg", grey, quality)[1], cv2.IMREAD_GRAYSCALE))
    return Page(grey, owner, boxes, tuple(canvas.labels))


def _moved(box: np.ndarray, view: np.ndarray) -> np.ndarray:
    """Return where a box lies in perspective: the upright box of the same middle and mean sides."""
    x, y, w, h = box
    corners = np.array([[[x, y], [x + w, y], [x + w, y + h], [x, y + h]]], np.float32)
    corners = cv2.perspectiveTransform(corners, view)[0]
    middle = corners.mean(0)
    size = 2 * np.abs(corners - middle).mean(0)
    return np.r_[middle - size / 2, size]

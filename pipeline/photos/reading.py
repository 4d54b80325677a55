"""What is written in a photograph: pieces of ink joined to digits, touching digits split, and all of them read."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import cv2
import numpy as np

from pipeline.learning.classifier import DIGITS, FLOOR, Classifier, Verdict, evidence, is_torn, softmax
from pipeline.photos import photo
from pipeline.photos.lines import LONG
from pipeline.photos.photo import Box, Page, Picture, Piece

# Of the ink's darkness where ink begins; `read_one` prepares a digit with each and averages the answers.
SHARES = (0.4, 0.25, 0.15)
REACHES = ((0.0, 0.005), (0.25, 0.03))  # how far from the main piece its parts may lie, and how small they may be
NEAR = 2  # working pixels: as near as this to the picture's edge, ink is cut by it
RIM = 0.12  # of the picture's shorter side: at its edge, ink as flat as this is no digit,
FLAT = 0.3  # nor as flat as this, of the height of the digits that are not cut by it
# Of its height: a line between digits is no wider where it is the only one, and one of several. Of 30 drawn dates 7 are
# misread and sure; with 0.25 for both 12 are, and 4 of 285 photographed strings that are right are not unsure (five
# trainings). With 0.5 for both 19 dates are read, not 16, and a one that leans is lost.
UPRIGHT, LEANING = 0.25, 0.5
# How far a line leads past the digits at each end, of its height. Of 120 rendered strings of ones beside smaller zeros
# 0 lose a one with 0.08, 2 with 0.05 and 12 with 0; of 60 with lines between digits 38, 40 and 41 lose every line.
OUT = 0.08
NARROW = 0.7  # of its height: a comma is no wider; those of one board are 0.43 to 0.62
BESIDE = 0.75  # of the usual height: a comma is no farther from a digit
# Of a plus sign's side: as near to its middle its strokes cross, and half of their width at most. With what `_is_plus`
# asks besides, 399 of 400 drawn plus signs have this shape, and 4 of 400 drawn fours.
PLUS = 0.15
WEAK = 0.06  # darkness relative to the paper below which an unsure answer is blamed on faint ink


@dataclass(frozen=True)
class Digit:
    """A digit that was found: calibrated ``probabilities`` [classes], ``box`` in own pixels, and the ``field`` read.

    ``classes`` are the names of the answers; ``digit`` is the number of the best one.
    """

    digit: int
    probability: float
    verdict: Verdict
    box: Box
    field: np.ndarray
    probabilities: np.ndarray
    classes: tuple[str, ...] = DIGITS

    @property
    def name(self) -> str:
        """The name of the class."""
        return self.classes[self.digit]

    def as_json(self, *, whole: bool = False) -> dict[str, Any]:
        """Return what JSON can say, ``whole`` with all probabilities; the box is [x, y, width, height]."""
        found: dict[str, Any] = {"digit": self.digit, "name": self.name, "probability": round(self.probability, 4)}
        found |= {"verdict": self.verdict, "box": list(self.box)}
        return found | ({"probabilities": [round(each, 4) for each in self.probabilities.tolist()]} if whole else {})


@dataclass(frozen=True)
class Reading:
    """What a picture says: its digits in reading order, and a verdict on the whole with a reason in words.

    ``seen`` uint8 [h, w] is what was read of the picture: all of it, or a sheet of paper without the table beside it.
    """

    digits: tuple[Digit, ...]
    verdict: Literal["digit", "unsure", "no digit", "unreadable"]
    reason: str
    seen: np.ndarray | None = field(default=None, compare=False, repr=False)

    @property
    def text(self) -> str:
        """The digits in reading order: names of one character together, longer ones with spaces between."""
        names = [found.name for found in self.digits]
        return (" " if any(len(name) > 1 for name in names) else "").join(names)

    def as_json(self, *, whole: bool = False) -> dict[str, Any]:
        """Return what JSON can say, ``whole`` with all probabilities of each digit."""
        digits = [digit.as_json(whole=whole) for digit in self.digits]
        return {"text": self.text, "verdict": self.verdict, "reason": self.reason, "digits": digits}


@dataclass(frozen=True)
class Group:
    """Pieces taken for one digit, the field that they make, and the labels of their connected ``components``."""

    box: Box
    field: np.ndarray
    touches: bool
    components: frozenset[int]


def read(picture: Picture, classifier: Classifier) -> Reading:
    """Read every digit of a picture, rows from the top, each from left to right.

    Where the answer is not sure and an edge parts the picture, either part is also read alone: the lighter one may be
    a sheet that lies on a table.
    """
    found, sheet = _read_all(picture, picture.paper, classifier), picture.sheet
    if found.verdict != "digit" and sheet is not None and sheet.sides < 3:
        parts = (photo.keep_part(picture.grey, sheet, beyond=beyond) for beyond in (False, True))
        found = _choose(found, (_read_all(picture, part, classifier) for part in parts))
    return _with_note(picture, found)


def _choose(whole: Reading, parts: Iterator[Reading]) -> Reading:
    """Return the reading of the sheet alone where it is surer, but unsure where digits may lie beyond its edge.

    The table, the second of the ``parts``, is read only where the sheet is surer.
    """
    sheet = next(parts)
    sure, surer = ([digit for digit in found.digits if digit.verdict == "digit"] for found in (whole, sheet))
    if sheet.verdict != "digit" and len(surer) <= len(sure):
        return whole
    low, high = (share * float(np.median([digit.box[3] for digit in sheet.digits])) for share in (LOST, LONG))
    is_beyond = any(digit.verdict == "digit" or low < digit.box[3] < high for digit in next(parts).digits)
    if not is_beyond and Counter(digit.digit for digit in sure) <= Counter(digit.digit for digit in sheet.digits):
        return sheet
    doubtful = replace(sheet, verdict="unsure", reason="digits may lie beyond the edge of the paper")
    return doubtful if len(surer) > len(sure) else whole


def _read_all(picture: Picture, grey: np.ndarray, classifier: Classifier) -> Reading:
    """Read every digit of what is left in ``grey`` of a picture."""
    page = _remove_slivers(photo.segment_ink(photo.extract_ink(grey), SHARES[1:2])[0])
    dividers, doubtful = _find_dividers(page)
    signs = {*dividers, *(piece for piece in page.pieces if _is_plus(page, piece))}
    page = replace(page, pieces=tuple(piece for piece in page.pieces if piece not in signs))
    rows = find_rows(page)
    read = [_segment_row(page, row, classifier) for row in rows]
    digits = [(group, _read_digit(picture, [group], classifier)) for groups, _ in read for group in groups]
    unread = [part for _, parts in read for part in parts]
    unread += {*page.pieces}.difference(*rows)
    high = LOST * photo.median_height(page.pieces)
    is_lost = bool(doubtful) or _is_full(page, high) or any(piece.box[3] > high for piece in unread)
    is_lost |= _is_at_edge(page, [group.box for group, _ in digits])
    return replace(_judge(page, digits, is_lost=is_lost), seen=grey)


def read_one(picture: Picture, classifier: Classifier) -> Reading:
    """Read the one digit that a picture is about, prepared in several ways whose answers are averaged.

    Who asks for one digit knows that there is one: ink that is like none is an unsure answer here.
    """
    pages = photo.segment_ink(photo.extract_ink(picture.paper), SHARES)
    mains = [(page, main) for page in pages if (main := main_piece(_remove_slivers(page)) or main_piece(page))]
    groups = [_make_group(page, near_pieces(page, main, *reach)) for page, main in mains for reach in REACHES]
    found = []
    if groups:
        digit = _read_digit(picture, groups, classifier)
        found = [(groups[0], replace(digit, verdict="unsure") if digit.verdict == "no digit" else digit)]
    return _with_note(picture, replace(_judge(pages[1], found), seen=picture.paper))


def _is_full(page: Page, high: float) -> bool:
    """Tell whether a page has more pieces of ink than are looked at, and all of these are larger than ``high``."""
    return bool(page.labels.max() > photo.MANY) and all(max(piece.box[2:]) > high for piece in page.pieces)


def _is_at_edge(page: Page, boxes: list[Box]) -> bool:
    """Tell whether the picture's edge cuts all that is read, in ``boxes``, and other ink lies inside.

    It may be the rim of a table then, and the ink inside digits, however small beside it.
    """
    inside = [piece for piece in page.pieces if not _is_cut_by_edge(page, piece.box)]
    is_inked = any(max(piece.box[2:]) >= photo.LEAST for piece in inside)
    return is_inked and all(_is_cut_by_edge(page, box) for box in boxes)


def _with_note(picture: Picture, found: Reading) -> Reading:
    return replace(found, reason="; ".join(filter(None, (found.reason, picture.note))))


def _remove_slivers(page: Page) -> Page:
    """Leave out the rims of what lies beside the picture: flat pieces along one of its edges, cut by it."""
    inner = tuple(piece for piece in page.pieces if not piece.touches)
    flat = min(RIM * min(page.labels.shape), FLAT * photo.median_height(inner) if inner else np.inf)
    return replace(page, pieces=tuple(piece for piece in page.pieces if not _is_sliver(page, piece, flat)))


def _is_sliver(page: Page, piece: Piece, flat: float) -> bool:
    """Tell whether a piece is ``flat`` at the picture's edge, or twice that and cut by it along half of its length."""
    (height, width), (x, y, w, h) = page.labels.shape, piece.box
    if not piece.touches:
        return False
    if (min(x, width - x - w) <= NEAR and w <= flat) or (min(y, height - y - h) <= NEAR and h <= flat):
        return True
    edges = page.labels[:NEAR], page.labels[-NEAR:], page.labels[:, :NEAR].T, page.labels[:, -NEAR:].T
    contact = max(int((edge == piece.label).any(axis=0).sum()) for edge in edges)
    return min(w, h) <= 2 * flat and contact >= 0.5 * max(w, h)


def _find_dividers(page: Page) -> tuple[list[Piece], list[Piece]]:
    """Return the lines that stand out above and below the digits beside them, and those lines that might be ones.

    They are one upright line between digits, or several, as in a date. Where there are such, others need only be as
    high as what is beside them.
    """
    lines = [piece for piece in page.pieces if _is_line(page, piece)]
    usual = photo.median_height(tuple(piece for piece in page.pieces if piece not in lines))
    tall = [line for line in lines if (1 - OUT) * line.box[3] > usual > 0]
    digits = [piece for piece in page.pieces if piece not in tall and piece.box[3] > 0.5 * usual]
    past = {line: _stands_out(line, digits) for line in tall}
    sure = [line for line, sides in past.items() if sides and min(sides) > OUT]
    between = [line for line in sure if len(past[line]) == 2]
    if len(sure) < 2 and not any(line.box[2] <= UPRIGHT * line.box[3] for line in between):
        return [], between
    found = [line for line, sides in past.items() if sides and min(sides) > 0]
    return found, [line for line in found if line.box[3] < LONG * usual]


def _is_plus(page: Page, piece: Piece) -> bool:
    """Tell a plus sign: two strokes alone that cross near its middle, about as wide as high, lower than digits here."""
    x, y, w, h = piece.box
    if not 0.8 <= w / h <= 1.25 or h >= 0.8 * photo.median_height(page.pieces):
        return False
    own, pen = page.labels[y : y + h, x : x + w] == piece.label, piece.area / (w + h)
    row, column = int(own.sum(1).argmax()), int(own.sum(0).argmax())
    rows, columns = np.nonzero(own)
    on = np.minimum(abs(rows - row), abs(columns - column)) <= pen
    return bool(max(abs(row / h - 0.5), abs(column / w - 0.5), pen / min(w, h) / 2) <= PLUS and on.mean() > 0.99)


def _is_line(page: Page, piece: Piece) -> bool:
    _, _, w, h = piece.box
    straightened = max(1.5, min(0.8 * piece.area / h, UPRIGHT / 2 * h))
    return w <= LEANING * h and _off_line(page, piece) <= straightened


def _off_line(page: Page, piece: Piece) -> float:
    """Return how far the ink of a piece lies at most beside the straight line through it."""
    x, y, w, h = piece.box
    rows, columns = (each - each.mean() for each in np.nonzero(page.labels[y : y + h, x : x + w] == piece.label))
    return float(np.abs(columns - (rows * columns).sum() / max(1.0, (rows**2).sum()) * rows).max())


def _stands_out(line: Piece, digits: list[Piece]) -> list[float]:
    """Return how far a line leads past the next of the ``digits`` on each side that has one, of the line's height."""
    _, y, _, h = line.box
    beside = [
        (digit.middle[0] - line.middle[0], min(digit.box[1] - y, y + h - digit.box[1] - digit.box[3]) / h)
        for digit in digits
        if _overlap_vertically(line, digit)
    ]
    next_left = max((each for each in beside if each[0] < 0), default=None)
    next_right = min((each for each in beside if each[0] > 0), default=None)
    return [each[1] for each in (next_left, next_right) if each]


def _read_digit(picture: Picture, groups: list[Group], classifier: Classifier) -> Digit:
    """Read one digit from several preparations of it: the mean of their logits."""
    logs = np.log(np.maximum(classifier.probabilities(np.stack([group.field for group in groups])), FLOOR))
    probabilities = softmax(logs.mean(0)[None])[0]
    best = int(probabilities.argmax())
    box = _picture_box(groups[0].box, picture)
    verdict = classifier.verdict(probabilities)
    return Digit(best, float(probabilities[best]), verdict, box, groups[0].field, probabilities, classifier.classes)


def _judge(page: Page, found: list[tuple[Group, Digit]], *, is_lost: bool = False) -> Reading:
    if not page.pieces:
        return Reading((), "no digit", "no ink")
    read = [(group, digit) for group, digit in found if digit.verdict != "no digit"]
    if not read:
        return Reading((), "no digit", "the ink is not like a digit")
    digits = tuple(digit for _, digit in read)
    for group, digit in read:
        if digit.verdict == "unsure":
            return Reading(digits, "unsure", _reason_for_doubt(digit, page, group))
    if is_lost or len(read) < len(found):
        return Reading(digits, "unsure", "some of the ink is not like a digit")
    components = [component for group, _ in read for component in group.components]
    if len(components) > len(set(components)):
        return Reading(digits, "unsure", "ink that hangs together was cut into digits")
    return Reading(digits, "digit", "")


def _reason_for_doubt(digit: Digit, page: Page, group: Group) -> str:
    first, second = (digit.classes[number] for number in np.argsort(digit.probabilities)[:-3:-1])
    if is_torn(digit.probabilities):
        return f"{first} and {second} are about equally likely"
    if page.peak < WEAK:
        return "the ink is too faint"
    return "the ink touches the edge" if group.touches else f"a {first} at most, and not like one"


def _picture_box(box: Box, picture: Picture) -> Box:
    x, y, w, h = (value * picture.factor for value in box)
    left, top = max(0, round(x)), max(0, round(y))
    right, bottom = min(picture.size[0], round(x + w)), min(picture.size[1], round(y + h))
    return left, top, max(1, right - left), max(1, bottom - top)


def _make_group(page: Page, pieces: list[Piece]) -> Group:
    box = photo.bounding_box([piece.box for piece in pieces])
    field = photo.prepare_field(photo.crop_ink(page, pieces))
    return Group(box, field, any(piece.touches for piece in pieces), frozenset(piece.component for piece in pieces))


def main_piece(page: Page) -> Piece | None:
    """Return the piece that the picture is about: large, central, and not cut by the edge."""
    height, width = page.labels.shape

    def weight(piece: Piece) -> float:
        away = float(np.hypot(piece.middle[0] / width - 0.5, piece.middle[1] / height - 0.5)) / 0.7071
        size = float(np.sqrt(max(piece.box[2:]) * np.sqrt(piece.area)))
        return size * (1 - 0.8 * away) * (0.7 if piece.touches else 1.0)

    return max(page.pieces, key=weight, default=None)


def near_pieces(page: Page, main: Piece, reach: float, least: float) -> list[Piece]:
    """Return ``main`` with the pieces that may be its parts: near, not specks, not cut by the edge."""
    x, y, w, h = main.box
    found = [main]
    for piece in page.pieces:
        if piece is main or piece.area < least * main.area:
            continue
        px, py, pw, ph = piece.box
        overlaps = px < x + w and x < px + pw and py < y + h and y < py + ph
        margin = (reach + (0.3 if overlaps else 0)) * max(w, h)
        inside = px >= x - margin and px + pw <= x + w + margin and py >= y - margin and py + ph <= y + h + margin
        if inside and (not piece.touches or main.touches):
            found.append(piece)
    return found


def find_rows(page: Page) -> list[list[Piece]]:
    """Sort the pieces into rows from the top, each from left to right, along the tilt of the writing."""
    usual = photo.median_height(page.pieces)
    high = [piece for piece in page.pieces if _is_large(page, piece, usual)]
    large = [piece for piece in high if not _is_comma(piece, high, usual)]
    small = [piece for piece in page.pieces if piece not in large and not _is_cut_by_edge(page, piece.box)]
    tilt = _estimate_tilt(large, usual)
    down = {piece: piece.middle[1] - tilt * piece.middle[0] for piece in page.pieces}
    rows: list[list[Piece]] = []
    for piece in sorted(large, key=down.__getitem__):
        if rows and down[piece] - np.mean([down[other] for other in rows[-1]]) < 0.6 * usual:
            rows[-1].append(piece)
        else:
            rows.append([piece])
    centres = np.array([np.mean([down[piece] for piece in row]) for row in rows])
    for piece in small if rows else []:
        nearest = int(np.abs(centres - down[piece]).argmin())
        if max(piece.box[2:]) > 0.12 * usual and abs(centres[nearest] - down[piece]) < 0.75 * usual:
            rows[nearest].append(piece)
    return [sorted(row, key=lambda piece: piece.middle[0]) for row in rows]


def _is_comma(piece: Piece, pieces: list[Piece], usual: float) -> bool:
    """Tell a large comma: narrow, and it begins below the middle of the pieces beside it, not below their feet."""
    x, y, w, h = piece.box
    near = [other for other in pieces if max(other.box[0] - x - w, x - other.box[0] - other.box[2]) < BESIDE * usual]
    middles = sorted(other.middle for other in near if other.box[1] < y < other.box[1] + other.box[3])
    return w < NARROW * h and bool(middles) and y > float(np.interp(piece.middle[0], *np.transpose(middles)))


def _is_cut_by_edge(page: Page, box: Box) -> bool:
    """Tell whether the picture's edge cuts what is in a box."""
    (height, width), (x, y, w, h) = page.labels.shape, box
    return min(x, y, width - x - w, height - y - h) <= NEAR


def _is_large(page: Page, piece: Piece, usual: float) -> bool:
    """Tell whether a piece is as high as digits are here: what the picture's edge cuts off seldom is one."""
    return piece.box[3] >= (0.8 if _is_cut_by_edge(page, piece.box) else 0.5) * usual


def _estimate_tilt(pieces: list[Piece], usual: float) -> float:
    """Return the median slope from each piece to its next one on the right, 0 where there are few."""
    slopes = []
    for piece in pieces:
        near = [each for each in pieces if 0 < each.box[0] - piece.box[0] < 4 * usual]
        beside = [each for each in near if _overlap_vertically(piece, each)]
        if beside:
            across, down = np.subtract(min(beside, key=lambda each: each.box[0]).middle, piece.middle)
            slopes.append(down / max(1.0, across))
    return float(np.clip(np.median(slopes), -0.25, 0.25)) if len(slopes) >= 3 else 0.0


def _overlap_vertically(one: Piece, other: Piece) -> bool:
    top, bottom = max(one.box[1], other.box[1]), min(one.box[1] + one.box[3], other.box[1] + other.box[3])
    return bottom - top > 0.3 * min(one.box[3], other.box[3])


WIDE = 0.8  # of the usual height: ink wider than this may be two digits that touch
LOW = 0.35  # of the usual height: ink lower than this is a minus or an underline, not digits that touch
LIKE, UNLIKE = 2.0, 1.0  # of the evidence of a certain digit: what a lack of it costs
BROAD = 1.0  # what a digit costs that is broader than high, a height of breadth
CUT, CUT_STROKE = 0.09, 0.06  # what a cut costs, and each stroke that it goes through
MARK = 0.05  # of the usual height from the middle of the row: ink that does not come so near is a mark, no digit
# What it costs to read two components as one digit, and a gap between them as wide as the usual height. Without, 61.0
# of 71 photographed and 356.0 of 506 rendered strings are right (mean of four trainings), with it 62.8 and 359.5; with
# 0.3 to 1.0 and 2 to 4 instead at least 62.5 and 359.3.
JOIN, JOIN_GAP = 0.6, 2.0
# Of the usual height: where ink higher than this stays unread, the answer is unsure, and no mark but a straight one is
# higher. With 0.45 one more of 71 photographed strings that are right is unsure.
LOST = 0.5
JOINED = 4  # pieces that one digit can be in
TOUCHING = 8  # digits in a row that may all touch
ASIDE = 0.8  # what a step to the left or right costs a cut, in pixels of ink crossed
DISTINCT = 0.05  # of the usual height: cuts that lie nearer than this, in the mean, are one
# Cuts that are looked at, and as many again for each usual height of breadth. With 5, and cuts through a quarter and
# three quarters of the height too, more of the pairs that touch are read, and fewer of the other rendered strings.
CUTS = 3


@dataclass(frozen=True, eq=False)
class Cut:
    """A path between two digits that touch: the strokes of ink that it ``crossed``, and its column in each row [h]."""

    crossed: float
    path: np.ndarray


def _segment_row(page: Page, row: list[Piece], classifier: Classifier) -> tuple[list[Group], list[Piece]]:
    """Choose what belongs together in a row by the classifier's confidence (Casey & Lecolinet 1996, section 4).

    Returns also the parts that are left unread.
    """
    usual = photo.median_height(page.pieces)
    page, parts, costs = _split_row(page, row, usual, classifier)
    middles = _middle_line(row, parts, usual)
    marks = [_is_mark(page, part, middle, usual) for part, middle in zip(parts, middles, strict=True)]
    losses = [_skip_cost(part, usual, is_mark=is_mark) for part, is_mark in zip(parts, marks, strict=True)]
    spans = [
        (start, end)
        for start in range(len(parts))
        for end in range(start + 1, min(len(parts), start + 2 * JOINED) + 1)
        if end == start + 1 or _may_join(parts[start:end], usual, page)
    ]
    groups = [_make_group(page, parts[start:end]) for start, end in spans]
    probabilities = classifier.probabilities(np.stack([group.field for group in groups]))
    doubt = -np.log(probabilities.max(1))
    unlike = np.maximum(0, LIKE - evidence(probabilities) / max(classifier.calibration.certain, 1e-6))
    # the root: to be a little unsure is already suspicious, digits alone never are
    confidence = -np.sqrt(doubt) - UNLIKE * unlike
    best: list[tuple[float, list[int]]] = [(0.0, []), *((-np.inf, []) for _ in parts)]  # a score, and the groups read
    for index in np.argsort([end for _, end in spans], kind="stable"):
        start, end = spans[index]
        score, read = best[start]
        price = _size_cost(groups[index], usual) + _join_cost(parts[start:end], usual) + costs[end]
        if score + confidence[index] - price > best[end][0] and not all(marks[start:end]):
            best[end] = score + confidence[index] - price, [*read, int(index)]
        if end == start + 1 and score - losses[start] > best[end][0]:
            best[end] = score - losses[start], read
    _, read = best[-1]
    unread = {*range(len(parts))}.difference(*(range(*spans[index]) for index in read))
    return [groups[index] for index in read], [parts[index] for index in unread if losses[index] > 0]


def _middle_line(row: list[Piece], parts: list[Piece], usual: float) -> np.ndarray:
    """Return where the middle of the row's digits lies at each part: float [n], NaN where there are no digits."""
    high = [piece for piece in row if 0.7 * usual < piece.box[3] < 1.5 * usual]
    middles = sorted(piece.middle for piece in high if not _is_comma(piece, high, usual))
    if not middles:
        return np.full(len(parts), np.nan)
    return np.interp([part.middle[0] for part in parts], *np.transpose(middles))


def _is_mark(page: Page, part: Piece, middle: float, usual: float) -> bool:
    """Tell a comma, a dot or a quotation mark: below the middle of the row or above it, and low or straight."""
    _, y, _, h = part.box
    is_off = y > middle + MARK * usual or y + h < middle - MARK * usual
    return bool(is_off and (h <= LOST * usual or _off_line(page, part) <= UPRIGHT * h))


def _size_cost(group: Group, usual: float) -> float:
    """Return how unlikely the size of a group is for a digit of this page, in units of log probability."""
    _, _, w, h = group.box
    return 4 * max(0.0, 0.6 - h / usual) + 4 * max(0.0, h / usual - 1.6) + BROAD * max(0.0, w / h - 0.9)


def _join_cost(parts: list[Piece], usual: float) -> float:
    """Return what it costs to read parts of different components as one digit: most digits are in one piece."""
    joined = [part.component != after.component for part, after in itertools.pairwise(parts)]
    return float((JOIN + JOIN_GAP * _gaps(parts) / usual)[joined].sum())


def _gaps(parts: list[Piece]) -> np.ndarray:
    """Return how far each of the ``parts`` but the first begins to the right of all before it: float [n - 1]."""
    left, right = np.transpose([(part.box[0], part.box[0] + part.box[2]) for part in parts])
    return np.maximum(0.0, left[1:] - np.maximum.accumulate(right)[:-1])


def _skip_cost(piece: Piece, usual: float, *, is_mark: bool) -> float:
    """Return what leaving a piece unread costs: nothing for a speck or mark, more than any doubt for a whole digit."""
    is_cut = piece.label != piece.component  # what was cut off is no speck
    size = (max(piece.box[2:]) if is_cut else piece.box[3]) / usual  # no digit is as flat as a minus
    price = 12 if is_cut else 0 if is_mark else 3 if piece.touches else 6
    return price * max(0.0, size - 0.15)


def _may_join(pieces: list[Piece], usual: float, page: Page) -> bool:
    _, _, w, h = photo.bounding_box([piece.box for piece in pieces])
    is_near = _gaps(pieces).max() <= max(0.25 * usual, 1.5 * page.stroke)
    return bool(w <= 1.5 * usual and h <= 1.7 * usual and is_near)


def _split_row(
    page: Page, row: list[Piece], usual: float, classifier: Classifier
) -> tuple[Page, list[Piece], list[float]]:
    """Cut wide or doubtful pieces where digits may touch: the page with the parts, the parts, the cost of each end.

    Where the ink is as wide as more digits than a page has, it is hatching or cloth: to cut it all would take too long.
    """
    fields = np.stack([_make_group(page, [piece]).field for piece in row])
    confidence = classifier.probabilities(fields).max(1)
    is_full = sum(min(TOUCHING, piece.box[2] / usual) for piece in page.pieces) > photo.MANY
    labels, parts, costs = page.labels.copy(), [], [0.0]
    for piece, sure in zip(row, confidence, strict=True):
        x, y, w, h = piece.box
        may_be_two = h >= LOW * usual and (w >= WIDE * usual or (sure <= 0.8 and w >= 0.35 * usual)) and not is_full
        cuts = _find_cuts(labels[y : y + h, x : x + w] == piece.label, usual, page.stroke) if may_be_two else []
        split = _split_piece(labels, piece, cuts) if cuts else [piece]
        parts.extend(split)
        costs.extend(CUT + CUT_STROKE * cut.crossed for cut in cuts[: len(split) - 1])
        costs.append(0.0)
    return replace(page, labels=labels), parts, costs


def _find_cuts(mask: np.ndarray, usual: float, stroke: float) -> list[Cut]:
    """Return paths from top to bottom that cross little of ``mask`` [h, w], from left to right (cf. Congedo 1995)."""
    cuts = _curved_cuts(mask, usual, stroke) + _straight_cuts(mask, usual, stroke)
    chosen: list[Cut] = []
    for cut in sorted(cuts, key=lambda cut: cut.crossed):
        if all(np.abs(cut.path - other.path).mean() > DISTINCT * usual for other in chosen):
            chosen.append(cut)
    chosen = chosen[: round(CUTS * (1 + min(TOUCHING, mask.shape[1] / usual)))]
    chosen.sort(key=lambda cut: float(cut.path.mean()))
    ordered = np.sort([cut.path for cut in chosen], axis=0)  # where two would cross, each goes on as the other
    return [replace(cut, path=path) for cut, path in zip(chosen, ordered, strict=True)]


def _curved_cuts(mask: np.ndarray, usual: float, stroke: float) -> list[Cut]:
    """Return the cheapest paths through those pixels of the middle row whose neighbours have no cheaper ones."""
    ink, middle = mask.astype(np.float32), len(mask) // 2
    above, from_above = _cheapest_paths(ink[: middle + 1])
    below, from_below = _cheapest_paths(ink[middle:][::-1])
    crossed = (above + below - ink[middle]) / max(1.0, stroke)
    return [
        Cut(float(crossed[column]), np.r_[_trace_path(from_above, column), _trace_path(from_below, column)[-2::-1]])
        for column in _least(crossed, round(0.15 * usual), usual)
    ]


def _straight_cuts(mask: np.ndarray, usual: float, stroke: float) -> list[Cut]:
    """Return the columns whose neighbours have no less ink.

    They part digits that lie along each other, as zeros do, which are broad, unlike the rest of a border.
    """
    crossed = mask.sum(0, dtype=np.float32) / max(1.0, stroke)
    return [
        Cut(float(crossed[column]), np.full(len(mask), column))
        for column in _least(crossed, round(0.35 * usual), usual)
    ]


def _least(crossed: np.ndarray, margin: int, usual: float) -> list[int]:
    """Return the columns that cross less than those around them, least first, ``margin`` or more from the ends."""
    chosen: list[int] = []
    for column in margin + np.argsort(crossed[margin : len(crossed) - margin], kind="stable"):
        apart = all(abs(column - other) > 0.12 * usual for other in chosen)
        if apart and crossed[column] == crossed[max(0, column - 2) : column + 3].min():
            chosen.append(int(column))
    return chosen


def _cheapest_paths(ink: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what the cheapest path from the first row to each pixel of the last costs, and the steps [h - 1, w]."""
    total, steps = ink[0], np.zeros((len(ink) - 1, ink.shape[1]), np.int8)
    for row, step in zip(ink[1:], steps, strict=True):
        beside = np.pad(total + ASIDE, 1, constant_values=np.inf)
        options = np.stack([total, beside[:-2], beside[2:]])
        step[:] = np.array([0, -1, 1])[options.argmin(0)]
        total = row + options.min(0)
    return total, steps


def _trace_path(steps: np.ndarray, column: int) -> np.ndarray:
    """Return the column in each row of the path that ends at ``column`` of the last row."""
    path = [column]
    for step in steps[::-1]:
        path.append(path[-1] + int(step[path[-1]]))
    return np.array(path[::-1])


def _split_piece(labels: np.ndarray, piece: Piece, cuts: list[Cut]) -> list[Piece]:
    """Rename the parts of ``piece`` in ``labels`` and return them as pieces, from left to right."""
    x, y, w, h = piece.box
    place = labels[y : y + h, x : x + w]
    own = place == piece.label
    part = np.sum([np.arange(w) >= cut.path[:, None] for cut in cuts], axis=0)
    first, parts = int(labels.max()) + 1, []
    for number in np.unique(part[own]).tolist():
        mask = own & (part == number)
        place[mask] = first + number
        left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
        box = x + left, y + top, width, height
        parts.append(Piece(first + number, box, int(mask.sum()), piece.touches, piece.component))
    return parts

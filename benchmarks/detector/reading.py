"""Read pictures with the detector: by its digits alone, or by the rules on the ink that it calls a digit's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from ai_edge_litert.interpreter import Interpreter

from benchmarks.detector.network import REACH, UNIT, WEAK, normal_ink, resized
from pipeline.learning.classifier import Classifier
from pipeline.photos import lines, photo, reading
from pipeline.photos.photo import Page, Picture, Piece
from pipeline.photos.reading import Group, Reading

SIDES = (1131, 800, 565, 400, 283, 200, 141, 100, 71, 50, 36, 28)  # pixels of the longer side, in which is looked
FOUND = 0.25  # least probability of a digit's middle
SURE = 0.35  # of one that is read alone
ALMOST = 0.9  # of the most ink that is taken for digits' in one size: the first of such sizes shows strokes best
APART = 0.38  # of digits' sizes: middles nearer than this are one
AROUND = 0.72, 0.7  # of a digit's sides from its middle: as far its ink lies, and as far from it its votes may lie
WHOLE = 0.85  # share of a piece of ink that is a digit's: then all of it is
SPECK = 0.12  # of a digit's height: smaller pieces are left out


@dataclass(frozen=True)
class Found:
    """What the detector finds: the ``scale`` in which, ``digits`` float64 [n, 5] and the maps ``pixels`` [h, w, 3].

    Digits are probability, x and y of the middle, width and height, in pixels of that scale; ``pixels`` are in the
    picture's own size: the logit of a digit's ink, and the offset to the digit's middle in units of 16 such pixels.
    """

    scale: float
    digits: np.ndarray
    pixels: np.ndarray


class Detector:
    """The exported network; pictures of any size."""

    def __init__(self, path: Path, threads: int = 1) -> None:
        self._network = Interpreter(model_path=str(path), num_threads=threads)
        self._input = self._network.get_input_details()[0]["index"]
        self._outputs = [output["index"] for output in self._network.get_output_details()]

    def find(self, ink: np.ndarray) -> Found | None:
        """Look at ink uint8 [h, w] in several sizes and return what is found in the best, or None."""
        looks = []
        for side in SIDES:
            scale = side / max(ink.shape)
            if scale <= 1.26:
                seen = resized(ink, scale)
                pixels, middles = self._maps(seen)
                looks.append((_explained(seen, pixels) / scale**2, scale, digits_of(middles), pixels))
        most = max((evidence for evidence, *_ in looks), default=0.0)
        for evidence, scale, digits, pixels in looks:
            if evidence >= ALMOST * most and len(digits):
                return Found(scale, digits, _in_own_size(pixels, scale, ink.shape))
        return None

    def _maps(self, ink: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        (height, width), (high, wide) = ink.shape, (-(-side // 4) * 4 for side in ink.shape)
        seen = np.zeros((1, high, wide, 1), np.float32)
        seen[0, :height, :width, 0] = ink.astype(np.float32) / 255
        self._network.resize_tensor_input(self._input, seen.shape)
        self._network.allocate_tensors()
        self._network.set_tensor(self._input, seen)
        self._network.invoke()
        maps = [self._network.get_tensor(output)[0] for output in self._outputs]
        pixels, middles = sorted(maps, key=lambda each: -len(each))
        return pixels, middles


def digits_of(middles: np.ndarray) -> np.ndarray:
    """Return the digits whose middles a map [h, w, 3] has, best first: float64 [n, 5], as in ``Found``."""
    likely = 1 / (1 + np.exp(-np.clip(middles[..., 0], -30, 30)))
    peaks = (likely >= cv2.dilate(likely, np.ones((3, 3), np.uint8))) & (likely > FOUND)
    kept: list[np.ndarray] = []
    for y, x in sorted(zip(*np.nonzero(peaks), strict=True), key=lambda place: -likely[place]):
        near = likely[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
        rows, columns = (
            np.arange(max(0, start - 1), max(0, start - 1) + side)
            for start, side in zip((y, x), near.shape, strict=True)
        )
        middle = 4 * np.array([(near.sum(0) * columns).sum(), (near.sum(1) * rows).sum()]) / near.sum() + 2
        size = UNIT * np.exp(np.clip(middles[y, x, 1:], -2.5, 2.5))
        if all(np.hypot(*((middle - other[1:3]) / ((size + other[3:]) / 2))) > APART for other in kept):
            kept.append(np.r_[likely[y, x], middle, size])
    return np.array(kept).reshape(-1, 5)


def _explained(ink: np.ndarray, pixels: np.ndarray) -> float:
    """Return how much ink is taken for digits', in pixels of the map: boxes that are guessed over paper add nothing."""
    height, width = pixels.shape[:2]
    whole = np.pad(ink, ((0, 2 * height - ink.shape[0]), (0, 2 * width - ink.shape[1])))
    inked = whole.reshape(height, 2, width, 2).max((1, 3)) > 255 * np.sqrt(WEAK)
    return float((1 / (1 + np.exp(-pixels[..., 0])))[inked].sum())


def _in_own_size(pixels: np.ndarray, scale: float, shape: tuple[int, ...]) -> np.ndarray:
    size = tuple(max(1, round(2 * side / scale)) for side in pixels.shape[1::-1])
    large = cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR)[: shape[0], : shape[1]]
    missing = [max(0, side - have) for side, have in zip(shape, large.shape, strict=False)]
    return cv2.copyMakeBorder(large, 0, missing[0], 0, missing[1], cv2.BORDER_REPLICATE)


def read(
    picture: Picture, detector: Detector, classifier: Classifier, *, one: bool = False, alone: bool = False
) -> Reading:
    """Read a picture; ``one``: the digit that it is about; ``alone``: by the detector's digits, without the rules."""
    ink = photo.extract_ink(picture.grey)
    found = detector.find(normal_ink(ink))
    page = None if found is None else own_page(ink, found) if alone else cleaned_page(ink, found)
    if page is None or not page.pieces:
        return Reading((), "no digit", "no digit was found")
    if one:
        groups = _main(page) if alone else list(reading._main_groups(page))
        digit = reading._read_digit(picture, groups, classifier)
        digit = replace(digit, verdict="unsure") if digit.verdict == "no digit" else digit
        return reading._judge(page, [(groups[0], digit)])
    rows = reading.find_rows(page)
    if alone:
        groups = [reading._make_group(page, [piece]) for row in rows for piece in row]
    else:
        groups = [group for row in rows for group in reading._segment_row(page, row, classifier)]
    return reading._judge(page, [(group, reading._read_digit(picture, [group], classifier)) for group in groups])


def _main(page: Page) -> list[Group]:
    main = reading.main_piece(page)
    return [reading._make_group(page, [main or page.pieces[0]])]


def cleaned_page(ink: photo.Ink, found: Found) -> Page:
    """Return the pieces of the ink that the detector calls a digit's, for the rules to group and cut."""
    mask = photo.ink_mask(ink, photo.peak_darkness(ink), reading.SHARES[1])
    kept = mask & (found.pixels[..., 0] > -0.5)
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    share = np.bincount(labels[kept], minlength=count) / np.maximum(1, np.bincount(labels.ravel(), minlength=count))
    kept |= mask & (share[labels] > WHOLE)
    pieces, labels = photo._find_pieces(kept, mask & ~kept)
    usual = float(np.median(found.digits[:, 4])) / found.scale
    strength = photo._stretch_levels(ink, photo.peak_darkness(ink, kept) or photo.peak_darkness(ink))
    strength[photo._dilate(mask & ~kept) & ~photo._dilate(kept)] = 0
    pieces = tuple(piece for piece in pieces if max(piece.box[2:]) > SPECK * usual)
    return Page(strength, labels, pieces, lines.stroke_width(kept), photo.peak_darkness(ink))


def own_page(ink: photo.Ink, found: Found) -> Page:
    """Return a piece for each digit that the detector found: the ink that votes for its middle."""
    digits = found.digits[found.digits[:, 0] > SURE]
    mask = photo.ink_mask(ink, photo.peak_darkness(ink), reading.SHARES[1])
    rows, columns = np.nonzero(mask & (found.pixels[..., 0] > 0))
    labels = np.zeros(mask.shape, np.int32)
    if len(digits) and len(rows):
        places = found.scale * np.stack([columns, rows], 1)
        size = np.maximum(digits[:, 3:], 8)
        ends = places + REACH * found.pixels[rows, columns, 1:]
        away = np.hypot(*np.moveaxis((ends[:, None] - digits[:, 1:3]) / size, -1, 0))
        inside = (np.abs(places[:, None] - digits[:, 1:3]) < AROUND[0] * size + 2).all(-1)
        away = np.where(inside, away, np.inf)
        near = away.min(1) < AROUND[1]
        labels[rows[near], columns[near]] = away.argmin(1)[near] + 1
    pieces = tuple(_piece(labels, number) for number in range(1, len(digits) + 1) if (labels == number).sum() > 5)
    strength = photo._stretch_levels(ink, photo.peak_darkness(ink, labels > 0) or photo.peak_darkness(ink))
    return Page(
        strength,
        np.where(mask & (labels == 0), -1, labels),
        pieces,
        lines.stroke_width(labels > 0),
        photo.peak_darkness(ink),
    )


def _piece(labels: np.ndarray, number: int) -> Piece:
    rows, columns = np.nonzero(labels == number)
    box = int(columns.min()), int(rows.min()), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1
    return Piece(number, box, len(rows), False, number)

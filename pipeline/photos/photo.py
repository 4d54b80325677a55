"""Photographs to 28x28 fields: upright, paper divided away, ink of either polarity, lines and borders taken out."""

from __future__ import annotations

import io
import warnings
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from PIL import Image, JpegImagePlugin

from pipeline.photos.lines import (
    LONG,
    find_lines,
    find_long_lines,
    find_runs,
    remove_lines,
    stroke_width,
    weighted_median,
)

FIELD = 28  # MNIST's field
BOX = 20  # LeCun: the longer side of the ink
CENTRE = 14  # index of the pixel that holds the centre of mass: in all 10,000 test digits it lies in [13.5, 14.5]

PIXELS = 60_000_000  # that are decoded at once; beyond it a picture is taken for a decompression bomb
SHRUNK = 250_000_000  # of a JPEG that is decoded at a half or less: phones have 200 million, A4 at 1200 dpi 139
LONGEST = 1600  # working pixels of the longer side: enough for a page of twelve rows
SHORTEST = 64  # below, a picture is enlarged, so that strokes are wide enough for morphology
NOISY = 7  # times the noise of bare paper: ink less dark is smoothed by a pixel
BACKGROUND = 320  # pixels of the longer side at which the paper is estimated

Box = tuple[int, int, int, int]  # x, y, width, height


class UnreadableError(Exception):
    """The bytes are not a picture that can be read; the message says why in words."""


@dataclass(frozen=True)
class Sheet:
    """A sheet of paper on a darker table that is seen on so many of its ``sides``.

    ``mask`` and ``paper``, the picture without ink, are uint8 [h, w] of the size at which the paper is estimated.
    """

    mask: np.ndarray
    sides: int
    paper: np.ndarray


@dataclass(frozen=True)
class Picture:
    """A picture upright and grey: ``grey`` uint8 [h, w], ``factor`` own pixels a working pixel, ``size`` own (w, h).

    ``note`` says in words what was left out of it, a file's other pages.
    """

    grey: np.ndarray
    factor: float
    size: tuple[int, int]
    note: str = ""

    @cached_property
    def sheet(self) -> Sheet | None:
        """The sheet of paper in the picture, where a darker table is seen beside it."""
        return find_sheet(self.grey)

    @cached_property
    def paper(self) -> np.ndarray:
        """What is to be read, uint8 [h, w]: the sheet alone where the table is seen on three sides or four."""
        return keep_part(self.grey, self.sheet) if self.sheet and self.sheet.sides >= 3 else self.grey


def open_picture(source: Path | bytes, longest: int = LONGEST) -> Picture:
    """Decode a picture, upright and grey, at a workable size; raise ``UnreadableError`` with the reason.

    Here, and nowhere else, whatever Pillow raises becomes one line.
    """
    try:
        with warnings.catch_warnings(), io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
            warnings.simplefilter("ignore")
            grey, size, note = _decode(file, longest)
    except UnreadableError:
        raise
    except Exception as error:  # noqa: BLE001  # Pillow's parsers let through what damaged bytes make Python raise
        raise UnreadableError(_reason(error)) from None
    enlarged = -(-SHORTEST // max(1, min(size)))
    if max(size) > longest:
        factor, smooth = max(size) / longest, cv2.INTER_AREA
    else:
        factor, smooth = 1 / enlarged if max(size) * enlarged <= longest else 1.0, cv2.INTER_CUBIC
    return Picture(cv2.resize(grey, _shape(size, factor), interpolation=smooth), factor, size, note)


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, OSError) and error.errno and error.strerror:
        return error.strerror.lower()  # the file system's own
    words = " ".join(str(error).split())[:80] if isinstance(error, OSError) else type(error).__name__
    return f"damaged picture ({words})"


FORMATS = ("BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")  # EPS runs a program
HEIF = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}  # brands of pictures
NOT_PICTURES = {  # how files begin that are taken for pictures, in lower case, and what to do with them
    b"": "the file is empty",
    b"%pdf": "a PDF; save its page as PNG or JPEG",
    b"<svg": "an SVG drawing; save it as PNG",
    b"<!doctype html": "a web page; save the picture itself",
    b"<html": "a web page; save the picture itself",
    b"\0\5\x16\7": "what a Mac keeps beside a file; take the file without ._ before its name",
    b"version https://git-lfs": "a pointer of Git LFS; `git lfs pull` fetches the picture",
}


def _decode(file: BinaryIO, longest: int) -> tuple[np.ndarray, tuple[int, int], str]:
    """Return the pixels uint8 [h, w], shrunk where that saves memory, the size (w, h) when upright, and a note."""
    with _open(file) as image:
        note, size = _frames_note(image), image.size
        image.draft("L" if image.mode == "L" else "RGB", (longest, longest))  # JPEG: decode at 1/2, 1/4 or 1/8
        _check_size(image, size)
        shrink = max(image.size) // (2 * longest)
        grey = _to_grey(image.reduce(shrink) if shrink > 1 and image.mode in ("L", "RGB") else image)
        orientation = _orientation(image)  # 1 where Pillow has turned the picture while decoding
    return _turn(np.asarray(grey), orientation), size[::-1] if orientation >= 5 else size, note


def _open(file: BinaryIO) -> Image.Image:
    head = file.read(1024)
    file.seek(0)
    if head.startswith(b"\xff\xd8\xff"):
        return _open_jpeg(file.read())
    if head.startswith(PNG):
        file = io.BytesIO(_remove_damaged_chunks(file.read()))
    is_heif = head[4:8] == b"ftyp" and head[8:12] in HEIF
    if is_heif:
        _register_heif()
    try:
        return Image.open(file, formats=["HEIF"] if is_heif else FORMATS)
    except Image.DecompressionBombError:
        raise UnreadableError(f"more than {PIXELS // 10**6} million pixels; save it smaller, or as JPEG") from None
    except Image.UnidentifiedImageError:
        raise UnreadableError("damaged picture (HEIC)" if is_heif else _not_a_picture(head)) from None


def _register_heif() -> None:
    try:
        import pillow_heif
    except ImportError:  # a model that is served from another environment
        raise UnreadableError("HEIC needs the package pillow-heif; install it, or save the picture as JPEG") from None
    pillow_heif.register_heif_opener()


def _not_a_picture(head: bytes) -> str:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    start = start[start.find(b"<svg") :] if start.startswith(b"<?xml") and b"<svg" in start else start
    for beginning, name in NOT_PICTURES.items():
        if start.startswith(beginning) if beginning else not head:
            return f"not a picture: {name}"
    return "not a picture"


METADATA = {b"Exif\0\0": "exif", b"http://ns.adobe.com/xap/1.0/\0": "xmp"}  # what may hold the orientation


def _open_jpeg(content: bytes) -> Image.Image:
    """Open a JPEG without the segments that say nothing of its pixels: Pillow refuses it where one of them is odd."""
    kept, place, found = [content[:2]], 2, dict[str, bytes]()
    while content[place : place + 1] == b"\xff" and 0xC0 <= content[place + 1] < 0xFF and content[place + 1] != 0xDA:
        end = place + 2 + int.from_bytes(content[place + 2 : place + 4], "big")
        segment = content[place:end]
        if 0xE1 <= content[place + 1] <= 0xED:  # APP1 to APP13; APP0 and APP14 say how colours are coded
            found |= {name: segment[4:] for start, name in METADATA.items() if segment[4:].startswith(start)}
        else:
            kept.append(segment)
        place = end
    # Not by Image.open, which refuses 180 million pixels before it can be told to decode an eighth of them.
    image = JpegImagePlugin.JpegImageFile(io.BytesIO(b"".join(kept) + content[place:]))
    image.info.update(found)
    return image


PNG = b"\x89PNG\r\n\x1a\n"


def _remove_damaged_chunks(content: bytes) -> bytes:
    """Return a PNG without the chunks that are not needed and whose check sum is wrong: Pillow refuses it for one.

    A chunk is not needed where the first letter of its name is small (PNG, section 5.4); tRNS, which says what is
    transparent, is.
    """
    kept, place = [content[: len(PNG)]], len(PNG)
    while place < len(content):
        end = place + 12 + int.from_bytes(content[place : place + 4], "big")
        chunk = content[place:end]
        is_needed = chunk[4:8] == b"tRNS" or not chunk[4:5].islower()
        if is_needed or zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big"):
            kept.append(chunk)
        place = end
    return b"".join(kept)


def _check_size(image: Image.Image, size: tuple[int, int]) -> None:
    """Refuse what would take more memory than a picture of ``PIXELS``, once the part to be decoded is known."""
    is_whole = image.size == size or "progressive" in image.info  # whose coefficients are all kept
    limit = PIXELS if is_whole else SHRUNK
    if size[0] * size[1] > limit:
        words = "save it smaller" if image.format == "JPEG" else "save it smaller, or as JPEG"
        raise UnreadableError(f"{size[0]} x {size[1]}: more than {limit // 10**6} million pixels; {words}")


def _orientation(image: Image.Image) -> int:
    """Return how the picture is to be turned, 1 where that cannot be read: its pixels may be well all the same."""
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # noqa: BLE001  # as in open_picture
        return 1
    return orientation if orientation in range(1, 9) else 1


def _turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn pixels [h, w] as EXIF's ``orientation`` says: rows for columns, left for right, top for bottom."""
    pixels = pixels.T if orientation >= 5 else pixels
    pixels = pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels
    return np.ascontiguousarray(pixels[::-1] if orientation in (3, 4, 7, 8) else pixels)


def _frames_note(image: Image.Image) -> str:
    if not getattr(image, "is_animated", False):
        return ""
    return "page 1 of several was read" if image.format == "TIFF" else "the first of several pictures was read"


def _shape(size: tuple[int, int], factor: float) -> tuple[int, int]:
    return max(1, round(size[0] / factor)), max(1, round(size[1] / factor))


WHITES = (1, 255, 1023, 4095, 16383, 65535)  # of scales with 0..1, 8, 10, 12, 14 and 16 bits


def _to_grey(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        values = np.nan_to_num(np.asarray(image, np.float64))
        white = next((white for white in WHITES if values.max(initial=0) <= white), WHITES[-1])
        return Image.fromarray((np.clip(values / white, 0, 1) * 255).round().astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        return _composite(image.convert("RGBA"))
    return image.getchannel("L") if image.mode == "LAB" else image.convert("L")


def _composite(image: Image.Image) -> Image.Image:
    """Lay a transparent picture on white, or on black where what it shows is white."""
    grey, alpha = image.convert("L"), image.getchannel("A")
    seen = np.asarray(grey)[np.asarray(alpha) > 127]
    paper = 0 if seen.size and np.asarray(alpha).min() < 128 and seen.mean() > 160 else 255
    return Image.composite(grey, Image.new("L", image.size, paper), alpha)


@dataclass(frozen=True)
class Ink:
    """What is written: ``strength`` float32 [h, w] in 0..1 relative to the paper, and the ``noise`` of bare paper."""

    strength: np.ndarray
    noise: float
    white: bool


def extract_ink(grey: np.ndarray) -> Ink:
    """Divide the paper away, after smoothing a picture in whose noise the ink would drown."""
    ink = _divide_by_paper(grey)
    return _divide_by_paper(cv2.GaussianBlur(grey, (0, 0), 1.0)) if peak_darkness(ink) < NOISY * ink.noise else ink


STROKE = 0.06  # of the picture's shorter side: strokes on a sheet are narrower
NARROW = 0.3  # of the picture's shorter side: a sheet of paper on a table is wider,
FILLED = 0.85  # and fills so much of its convex hull;
EDGE = 5  # levels of 255 a pixel: paper in a shadow changes less from one pixel to the next, its edge more
# Pixels: the edge of paper on a table is no wider. That of 60 drawn and 5 photographed sheets is 6 at most, that of a
# telephone's shadow 52.
SHARP = 10
SMALL = 0.3  # of the picture: a light area that covers less is a sheet where it holds ink,
INKED = 0.003  # this share of it; without, it is a stroke of white ink


def keep_part(grey: np.ndarray, sheet: Sheet, *, beyond: bool = False) -> np.ndarray:
    """Return ``grey`` with more of the ``sheet``'s paper all around it, or of what lies ``beyond`` it in its place."""
    shape, part = sheet.mask.shape, 1 - sheet.mask if beyond else sheet.mask
    inside = cv2.erode(part, _ellipse(STROKE * min(shape)), borderValue=1).astype(np.float32)
    near, paper = (cv2.GaussianBlur(each, (0, 0), 0.1 * max(shape)) for each in (inside, inside * sheet.paper))
    more = np.where(near > 0.01, paper / np.maximum(near, 0.01), np.median(sheet.paper[inside > 0]))
    on, beside = (cv2.resize(each.astype(np.float32), grey.shape[::-1]) for each in (inside, more))
    _, noise = _level_and_noise((grey - cv2.GaussianBlur(grey.astype(np.float32), (0, 0), 2.0))[on > 0.5])
    grain = np.random.default_rng(0).normal(0, noise, grey.shape)  # or the paper's noise would be underestimated
    return np.where(on > 0.5, grey, np.clip(beside + grain, 0, 255)).astype(np.uint8)


def find_sheet(grey: np.ndarray) -> Sheet | None:
    """Return the sheet of paper that a darker table surrounds, or None.

    Where a lamp shines on the table, no level of light divides the two; then it is the edge all around the sheet.
    """
    small = _small(grey)
    disc = _ellipse(STROKE * min(small.shape))
    smooth = cv2.morphologyEx(cv2.morphologyEx(small, cv2.MORPH_CLOSE, disc), cv2.MORPH_OPEN, disc)
    light, bright = cv2.threshold(smooth, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    within = np.zeros((small.shape[0] + 2, small.shape[1] + 2), np.uint8)
    _, _, _, lightest = cv2.minMaxLoc(cv2.GaussianBlur(smooth, (0, 0), 2.0))
    cv2.floodFill(smooth, within, lightest, 0, EDGE, EDGE, cv2.FLOODFILL_MASK_ONLY | 4)
    found = [_accept_sheet(small, smooth, area, light) for area in (bright, within[1:-1, 1:-1])]
    return max(filter(None, found), key=lambda sheet: (sheet.sides, sheet.mask.sum()), default=None)


def _accept_sheet(small: np.ndarray, smooth: np.ndarray, bright: np.ndarray, light: float) -> Sheet | None:
    """Return the sheet that the largest ``bright`` area is, ``light`` or lighter, or None."""
    outlines, _ = cv2.findContours(bright, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    outline = max(outlines, key=cv2.contourArea, default=None)
    if outline is None or not _is_square(outline, min(small.shape)):
        return None
    mask = cv2.fillConvexPoly(np.zeros_like(bright), cv2.convexHull(outline), 1)
    inside, outside = mask > 0, mask == 0
    rim = round(0.05 * min(small.shape))  # a table is wider than the border of a cell
    sides = sum(edge.mean() > 0.7 for edge in (outside[rim], outside[-1 - rim], outside[:, rim], outside[:, -1 - rim]))
    level = float(np.median(small[inside]))
    if sides == 0 or level < light or (small > 0.85 * level)[outside].mean() > 0.1:
        return None  # the whole picture, a ring of white ink, or a cell with more paper beyond its border
    if sides < 3 and level > SHARP * np.median(_slope(smooth.astype(np.float32))[_outline(mask)]):
        return None  # a shadow beside the light
    is_stroke = inside.mean() < SMALL and (small < 0.88 * smooth)[inside].mean() < INKED
    return None if is_stroke else Sheet(mask, sides, smooth)


def _is_square(outline: np.ndarray, side: int) -> bool:
    """Tell whether an outline has four corners and is not too narrow for a picture of this shorter ``side``."""
    hull, (_, (width, height), _) = cv2.convexHull(outline), cv2.minAreaRect(outline)
    corners = cv2.approxPolyDP(hull, 0.03 * cv2.arcLength(hull, True), True)
    filled = cv2.contourArea(outline) > FILLED * cv2.contourArea(hull)
    return bool(len(corners) == 4 and filled and min(width, height) > NARROW * side)


def _divide_by_paper(grey: np.ndarray) -> Ink:
    """Return darkness relative to the paper around it, whichever of the two is the darker.

    The paper is a morphological closing, wider than any stroke, at a reduced size.
    """
    small = _small(grey)
    white = _is_ink_white(small)
    dark = 255 - small if white else small
    paper = _estimate_paper(dark, 0.3 * min(small.shape))
    stroke = _median_stroke(1 - np.minimum(dark / np.maximum(paper, 1), 1))
    paper = _estimate_paper(dark, float(np.clip(4 * stroke, 0.1 * min(small.shape), 0.3 * min(small.shape))))
    paper = np.maximum(cv2.resize(paper, grey.shape[::-1], interpolation=cv2.INTER_LINEAR), 1)
    strength = np.clip(1 - (255 - grey if white else grey) / paper, 0, 1).astype(np.float32)
    level, noise = _level_and_noise(strength)
    strength = np.maximum(strength - level, 0)
    grain = CLEAR * noise * np.maximum(np.median(paper) / paper - 1, 0)  # where it is dark, noise is more of the light
    return Ink(np.where(strength < grain, 0, strength), noise, white)


def _estimate_paper(dark: np.ndarray, width: float) -> np.ndarray:
    """Return the paper under ink whose strokes are narrower than ``width``."""
    paper = cv2.morphologyEx(dark, cv2.MORPH_CLOSE, _ellipse(width))
    return cv2.GaussianBlur(paper.astype(np.float32), (0, 0), 1.0)


def _median_stroke(strength: np.ndarray) -> float:
    """Return the median width of strokes, horizontal or vertical, in ink that is not yet free of shadows."""
    mask = strength > max(FAINT, 0.5 * float(np.quantile(strength, 0.99)))
    return min(weighted_median(runs.length, runs.length) for runs in (find_runs(mask), find_runs(mask.T)))


def _is_ink_white(small: np.ndarray) -> bool:
    """Tell white ink: what departs from the local median, which is paper, by more than grain is mostly brighter.

    Each pixel counts by its slope: a window's reflection departs as far, over an area, and is steep at its edge alone.
    """
    window = min(255, max(3, min(small.shape) // 2 | 1))
    half = window // 2
    wide = cv2.copyMakeBorder(small, half, half, half, half, cv2.BORDER_REFLECT_101)  # or a frame would be the paper
    off = small.astype(np.int32) - cv2.medianBlur(wide, window)[half:-half, half:-half]
    grain = 4 * round(1.4826 * float(np.median(np.abs(off))))
    slope = _smooth_slope(small)
    return _ink_mass(off, grain, slope) > _ink_mass(-off, grain, slope)


GLOW = (0.1, 0.12)  # of the shorter side: a gap in a digit, and a stroke, are narrower than a lamp's glow or a shadow
RISE = 0.12  # of the shorter side, over which light rises: lamps 0.13 to 0.22; of 504 pictures 3 are misread at 0.10


def _ink_mass(off: np.ndarray, grain: int, slope: np.ndarray) -> float:
    """Return the sum of what is more than ``grain`` ``off`` the paper int32 [h, w], by its ``slope`` [h, w].

    Wide areas that rise slowly to their height, a lamp's glow or a shadow, are left out.
    """
    side, ink = min(off.shape), np.maximum(off - grain, 0)
    gap, stroke = (np.ones((max(3, round(width * side) | 1),) * 2, np.uint8) for width in GLOW)
    wide = cv2.morphologyEx(np.maximum(off, 0).astype(np.uint8), cv2.MORPH_CLOSE, gap)
    wide = cv2.morphologyEx(wide, cv2.MORPH_OPEN, stroke)
    rise = _smooth_slope(wide)
    count, labels = cv2.connectedComponents((wide > grain).astype(np.uint8), connectivity=8)
    for own in (labels == label for label in range(1, count)):
        if _edge_width(wide, rise, own) > RISE * side:
            ink[own] = 0
    return float((ink * slope).sum())


def _small(grey: np.ndarray) -> np.ndarray:
    factor = max(grey.shape) / BACKGROUND
    if factor <= 1:
        return grey
    return cv2.resize(grey, _shape(grey.shape[::-1], factor), interpolation=cv2.INTER_AREA)


def _level_and_noise(strength: np.ndarray) -> tuple[float, float]:
    """Return level and robust deviation of bare paper, which is more than half of nearly every picture."""
    level = float(np.median(strength))
    return level, 1.4826 * float(np.median(np.abs(strength - level)))


def _ellipse(width: float) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (max(3, round(width) | 1),) * 2)


def prepare_field(strength: np.ndarray) -> np.ndarray:
    """Prepare ink float32 [h, w] in 0..1 as MNIST was: longer side 20, centre of mass on pixel 14; uint8 [28, 28].

    LeCun et al. 1998, section III.A; the area filter and the rounding were measured on MNIST itself (design.md).
    """
    field = np.zeros((FIELD, FIELD), np.uint8)
    x, y, w, h = cv2.boundingRect((strength > 0).astype(np.uint8))
    if w == 0:
        return field
    ink = strength[y : y + h, x : x + w]
    factor = BOX / max(ink.shape)
    shape = max(1, round(ink.shape[1] * factor)), max(1, round(ink.shape[0] * factor))
    ink = cv2.resize(ink, shape, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)
    ink = np.clip(np.round(255 * ink), 0, 255).astype(np.uint8)
    top, left = (_start_of_centred(ink.sum(1 - axis, dtype=np.int64)) for axis in (0, 1))
    field[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return field


def _start_of_centred(profile: np.ndarray) -> int:
    """Return where ``profile`` starts so that its centre of mass falls on ``CENTRE``, within the field."""
    centre = float((profile * np.arange(len(profile))).sum() / max(1, profile.sum()))
    return int(np.clip(round(CENTRE - centre), 0, FIELD - len(profile)))


FAINT = 0.02  # least darkness relative to the paper that can be ink: fainter is paper


def peak_darkness(ink: Ink, mask: np.ndarray | None = None) -> float:
    """Return how dark the ink is: between its half-dark pixels and its darkest, 0 where there is none."""
    values = ink.strength[ink.strength > max(FAINT, 4 * ink.noise)] if mask is None else ink.strength[mask]
    if values.size < 4:
        return 0.0
    top = float(np.quantile(values, 0.98))
    return float(np.quantile(values[values >= top / 2], 0.75))


def ink_mask(ink: Ink, peak: float, share: float) -> np.ndarray:
    """Return where ink is darker than ``share`` of ``peak``, with what is connected to it at two thirds of that."""
    low = max(FAINT, 3 * ink.noise, share * peak * 2 / 3)
    high = max(low, share * peak)
    _, labels = cv2.connectedComponents((ink.strength > low).astype(np.uint8), connectivity=8)
    return np.isin(labels, np.unique(labels[ink.strength > high]))


PALE = (0.15, 0.25)  # of the ink's darkness: how dark a printed line may be


@dataclass(frozen=True)
class Piece:
    """A piece of ink: its ``label`` in ``Page.labels``, box, area, and whether it meets a line or the edge.

    ``component`` is the label of the connected component that it is a part of: its own, until it is cut.
    """

    label: int
    box: Box
    area: int
    touches: bool
    component: int

    @property
    def middle(self) -> tuple[float, float]:
        """The middle (x, y) of the box."""
        x, y, w, h = self.box
        return x + w / 2, y + h / 2


@dataclass(frozen=True)
class Page:
    """Ink without lines: ``strength`` float32 [h, w] with 1 for full ink, ``labels`` int32 [h, w] of the pieces."""

    strength: np.ndarray
    labels: np.ndarray
    pieces: tuple[Piece, ...]
    stroke: float
    peak: float


CLEAR = 4.5  # times the noise of bare paper that ink must be darker than it; measured on digits: 4.9 and more
LEAST = 8  # working pixels: what is smaller cannot be told from dirt


def segment_ink(ink: Ink, shares: tuple[float, ...]) -> list[Page]:
    """Find the pieces of ink in a picture, once for each share of the ink's darkness at which ink may begin."""
    peak = peak_darkness(ink)
    lines = _all_lines(ink, peak)
    paler = peak_darkness(ink, ink_mask(ink, peak, PALE[-1]) & ~lines)
    if 0 < paler < 0.7 * peak:
        peak = paler
        lines |= _all_lines(ink, peak)
    return [_segment_mask(ink, lines, ink_mask(ink, peak, share)) for share in shares]


def _all_lines(ink: Ink, peak: float) -> np.ndarray:
    return np.logical_or.reduce([find_lines(ink_mask(ink, peak, share)) for share in PALE])


def _segment_mask(ink: Ink, lines: np.ndarray, mask: np.ndarray) -> Page:
    kept = remove_lines(mask, lines)
    pieces, labels = _find_pieces(kept, mask & ~kept)
    every, pieces = pieces, _remove_frames(pieces, labels)
    usual = median_height(pieces)
    drawn = _drawn_lines(every, labels, usual)
    if drawn.any():
        apart = np.isin(labels, [piece.label for piece in pieces])
        lines, kept = lines | drawn, remove_lines(kept, drawn)
        pieces, labels = _find_pieces(kept, mask & ~kept)
        framed = {*np.unique(labels[~apart])}  # what hung together with a frame: what is left of it, digits that met it
        pieces = tuple(piece for piece in pieces if not (piece.label in framed and _is_around(piece, pieces, usual)))
        pieces = _remove_ticks(pieces, labels, drawn)
    pieces = _remove_sides(pieces, labels, lines)
    if shadows := _find_shadows(pieces, labels, ink.strength):
        pieces = tuple(piece for piece in pieces if piece not in shadows)
        kept &= ~np.isin(labels, [piece.label for piece in shadows])
    if not pieces:
        every, labels = _find_pieces(mask, np.zeros_like(mask))
        pieces = _remove_frames(every, labels)
        kept, pieces = mask, pieces if len(pieces) == 1 else ()  # a lone 1, not the lines of a bare page
    peak = peak_darkness(ink, kept)
    if peak < CLEAR * ink.noise or max((max(piece.box[2:]) for piece in pieces), default=0) < LEAST:
        pieces = ()
    strength = _stretch_levels(ink, peak)
    strength[_dilate(lines & ~kept) & ~_dilate(kept)] = 0
    return Page(strength, labels, pieces, stroke_width(kept), peak)


TALL, BAR = 2.7, 0.15  # times the usual height of such a digit; share of its ink that is not its longest stroke
# Of the usual height: nothing that divides cells is thicker; of 40 rendered boxes 36 are read, without it 29.
SIDE = 0.2
TICK = 0.75  # of the usual height: what is lower, where it meets a drawn line, belongs to that line


def _is_around(piece: Piece, pieces: tuple[Piece, ...], usual: float) -> bool:
    """Tell a part of a frame: longer than a digit, and around the middles of two or more of the ``pieces``."""
    x, y, w, h = piece.box
    inside = [x < across < x + w and y < down < y + h for across, down in (other.middle for other in pieces)]
    return max(w, h) > LONG * usual and sum(inside) > 1


def _drawn_lines(pieces: tuple[Piece, ...], labels: np.ndarray, usual: float) -> np.ndarray:
    """Return the lines in ink that is larger than a digit of ``usual`` height: an underline, a table, boxes, a comb."""
    lines = np.zeros(labels.shape, bool)
    for piece in pieces:
        x, y, w, h = piece.box
        if max(w, h) > LONG * usual:
            own = labels[y : y + h, x : x + w] == piece.label
            found = find_long_lines(own, usual)
            may_be_tall = not piece.touches and w <= LONG * usual and h <= TALL * usual  # as the sevens of some hands
            if not may_be_tall or (own & ~found).sum() <= BAR * own.sum():
                lines[y : y + h, x : x + w] |= found
    return lines


def _remove_ticks(pieces: tuple[Piece, ...], labels: np.ndarray, drawn: np.ndarray) -> tuple[Piece, ...]:
    """Leave out what is low and meets a ``drawn`` line: the ticks of a comb, frayed ends of the line itself."""
    low = TICK * median_height(pieces)
    met = np.unique(labels[_dilate(drawn)])
    return tuple(piece for piece in pieces if piece.box[3] >= low or piece.label not in met)


def _remove_sides(pieces: tuple[Piece, ...], labels: np.ndarray, lines: np.ndarray) -> tuple[Piece, ...]:
    """Leave out the thin pieces that lead from one of the ``lines`` to another: sides of a box, what divides cells."""
    near = cv2.dilate(lines.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    usual = median_height(pieces)

    def leads_across(piece: Piece) -> bool:
        x, y, w, h = piece.box
        if max(w, h) < TICK * usual or min(w, h) > SIDE * max(usual, max(w, h)):
            return False
        meets = (labels[y : y + h, x : x + w] == piece.label) & near[y : y + h, x : x + w]
        ends, end = meets.any(1 if h >= w else 0), 2 + max(w, h) // 10
        return bool(ends[:end].any() and ends[-end:].any())

    return tuple(piece for piece in pieces if not leads_across(piece))


def _outline(mask: np.ndarray) -> np.ndarray:
    """Return the pixels of ``mask`` uint8 [h, w] beside what is not in it; the picture's edge is no end of it."""
    return mask > cv2.erode(mask, np.ones((3, 3), np.uint8), borderValue=1)


def _slope(image: np.ndarray) -> np.ndarray:
    """Return how much float32 [h, w] changes from a pixel to the next; a row of pixels has no slope."""
    return np.hypot(*np.gradient(image)) if min(image.shape) > 1 else np.zeros_like(image)


def _smooth_slope(image: np.ndarray) -> np.ndarray:
    """Return the slope of an image uint8 [h, w] without its grain."""
    return _slope(cv2.GaussianBlur(image.astype(np.float32), (0, 0), max(1.0, 0.01 * min(image.shape))))


SOFT = 3.0  # times as wide as other ink's is a shadow's edge: on photographed sheets 5.2 to 8.0, a digit's 0.7 to 1.6


def _find_shadows(pieces: tuple[Piece, ...], labels: np.ndarray, strength: np.ndarray) -> list[Piece]:
    """Return the pieces whose edge is far wider than that of the others: the shadow of a hand on the paper."""
    smooth = cv2.GaussianBlur(strength, (0, 0), 2.0)
    slope = _slope(smooth)
    widths = {}
    for piece in pieces:
        x, y, w, h = piece.box
        place = slice(max(0, y - 1), y + h + 1), slice(max(0, x - 1), x + w + 1)
        if max(w, h) >= LEAST:
            widths[piece] = _edge_width(smooth[place], slope[place], labels[place] == piece.label)
    whole = [width for piece, width in widths.items() if not piece.touches]  # of what is cut, the edge is not its own
    usual = float(np.median(whole)) if whole else float("inf")
    return [piece for piece, width in widths.items() if width > SOFT * usual]


def _edge_width(height: np.ndarray, slope: np.ndarray, own: np.ndarray) -> float:
    """Return how many pixels wide the edge of ``own`` is: its greatest ``height`` by the slope at half of that."""
    top = float(height[own].max())
    outline = _outline((own & (height > top / 2)).astype(np.uint8))
    return top / max(1e-6, float(np.median(slope[outline]))) if outline.any() else 0.0


SPARSE = 0.25  # of its box that a piece of ink fills: most digits do, a grid of lines does not


def median_height(pieces: tuple[Piece, ...]) -> float:
    """Return the usual height of a digit: the median height of ink, so that specks, flat lines and grids weigh little.

    It is 0 where there are no pieces.
    """
    if not pieces:
        return 0.0
    heights, widths = (np.array([piece.box[side] for piece in pieces], float) for side in (3, 2))
    areas = np.array([piece.area for piece in pieces])
    weights = areas * np.array([0.3 if piece.touches else 1.0 for piece in pieces])
    weights *= np.minimum(1, heights / widths) * np.minimum(1, areas / (SPARSE * heights * widths))
    return weighted_median(heights, weights)


def _dilate(mask: np.ndarray) -> np.ndarray:
    return cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0


GAMMA = 0.6  # a camera blurs strokes: what is thin comes out pale, and is full ink in MNIST all the same


def _stretch_levels(ink: Ink, peak: float) -> np.ndarray:
    """Stretch ink to 0..1 between the noise of the paper and full ink, and lift what is pale.

    Clean black on white stays as it is.
    """
    low = min(3 * ink.noise, 0.3 * peak)
    clean = peak > 0.95
    stretched = np.clip((ink.strength - low) / ((1 if clean else max(peak, low + 1e-3)) - low), 0, 1)
    return stretched if clean else stretched**GAMMA


MANY = 250  # pieces of ink: a page of so many digits is full; of more, the largest are looked at


def _find_pieces(mask: np.ndarray, lines: np.ndarray) -> tuple[tuple[Piece, ...], np.ndarray]:
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    edge = cv2.dilate(lines.astype(np.uint8), np.ones((5, 5), np.uint8))
    edge[[0, -1]] = edge[:, [0, -1]] = 1
    touching = {*np.unique(labels[edge > 0]).tolist()}
    boxes = enumerate(stats[1:].tolist(), 1)
    pieces = (Piece(label, (x, y, w, h), area, label in touching, label) for label, (x, y, w, h, area) in boxes)
    largest = sorted(pieces, key=lambda piece: -max(piece.box[2:]))[:MANY]
    return tuple(sorted(largest, key=lambda piece: piece.label)), labels


INSIDE = 0.35  # of the height of the paper that a frame encloses: ink as high as this is what it was drawn around


def _remove_frames(pieces: tuple[Piece, ...], labels: np.ndarray) -> tuple[Piece, ...]:
    """Leave out the pieces that were drawn around others: a circle, a box, a table away from the edge."""
    _, paper, stats, _ = cv2.connectedComponentsWithStats((labels == 0).astype(np.uint8), connectivity=4)
    frames = set()
    for piece in pieces:
        x, y, w, h = piece.box
        if h < LEAST or y == 0:
            continue
        enclosed = paper[y - 1, x + int(np.argmax(labels[y, x : x + w] == piece.label))]
        px, py, pw, ph, _ = stats[enclosed]
        if px > 0 and py > 0 and px + pw < labels.shape[1] and py + ph < labels.shape[0] and h >= INSIDE * ph:
            frames.add(int(labels[py - 1, px + int(np.argmax(paper[py, px : px + pw] == enclosed))]))
    return tuple(piece for piece in pieces if piece.label not in frames)


def bounding_box(boxes: list[Box]) -> Box:
    """Return the smallest box around ``boxes``."""
    x, y = min(box[0] for box in boxes), min(box[1] for box in boxes)
    right, bottom = max(box[0] + box[2] for box in boxes), max(box[1] + box[3] for box in boxes)
    return x, y, right - x, bottom - y


def crop_ink(page: Page, chosen: list[Piece]) -> np.ndarray:
    """Return the ink of the ``chosen`` pieces with their soft edges, float32, without what is near but not theirs."""
    margin = round(0.8 * page.stroke) + 2
    x, y, w, h = bounding_box([piece.box for piece in chosen])
    rows, columns = slice(max(0, y - margin), y + h + margin), slice(max(0, x - margin), x + w + margin)
    labels = page.labels[rows, columns]
    own = np.isin(labels, [piece.label for piece in chosen])
    near = cv2.distanceTransform(1 - own.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_3) < margin
    return np.where(near & (own | (labels == 0)), page.strength[rows, columns], 0)

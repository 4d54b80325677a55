"""Corrections: pictures with the digits that they show, kept in data/corrections on this machine.

``labels.csv`` names the file, the label and, where it is known, the writer of each picture. Half of the pictures are
learned from; the others are only measured on.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import hashlib
import io
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from filelock import FileLock

from pipeline import files
from pipeline.console import UserError
from pipeline.learning.classifier import Classifier
from pipeline.photos import photo, reading

VARIABLE = "DIGITS_CORRECTIONS"  # names the folder in which a service keeps corrections; without it, it keeps none
LIMIT = 20_000_000  # bytes of a picture that others send: more than a phone's camera makes
LABELS = "labels.csv"
COLUMNS = ("file", "label", "writer")
MOST = 300  # names in a label: the fullest page among 444 photographs has 110
WRITER = re.compile(r"[\w .'-]{1,40}")
SUFFIXES = {  # by how the content begins, or what stands at byte 4 or 8 of it
    b"\x89PNG": ".png",
    b"\xff\xd8": ".jpg",
    b"GIF8": ".gif",
    b"BM": ".bmp",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
    b"ftyp": ".heic",
    b"WEBP": ".webp",
    b"jP  ": ".jp2",
}
SIDE = 16  # pixels of the small picture by which pictures are compared
# Of `distance`. Of 504 photographs, saved in other sizes and formats, 2,542 of 2,553 are nearer to the original; of the
# 126,756 pairs of different ones none is: the least distance is 0.24. Of 1,000 digits of ARDIS in fields of one size,
# 142 of 499,500 pairs are, at least 109 of them the same digit twice.
SAME = 0.15


@dataclass(frozen=True)
class Correction:
    """A picture's file in data/corrections, the digits that it shows, and who wrote them, where that is known."""

    file: str
    label: str
    writer: str = ""


def keep(
    content: bytes, label: str, classes: Sequence[str], *, writer: str = "", folder: Path = files.CORRECTIONS
) -> Correction:
    """Keep a picture with its label, written in names of ``classes``; a picture that is kept already is relabelled.

    Raises ``UserError`` for a label or a writer that cannot be, for what is no picture, and for a labels.csv that was
    edited badly; then, and where the disk is full, nothing has changed.
    """
    new = Correction(name_of(content), check_label(label, classes), check_writer(writer))
    try:
        photo.open_picture(content)
    except photo.UnreadableError as error:
        raise UserError(f"not kept: {error}") from None
    with locked(folder):
        kept = load(folder, classes)
        known = next((each for each in kept if each.file == new.file), None)
        if known:  # its writer stays, which may decide the half that it is in
            new = replace(known, label=new.label)
            write([new if each is known else each for each in kept], folder)
            return new
        files.write_bytes(folder / new.file, content)
        try:
            write([*kept, new], folder)
        except BaseException:
            (folder / new.file).unlink()
            raise
    return new


def delete(file: str, classes: Sequence[str], folder: Path = files.CORRECTIONS) -> None:
    """Delete a picture and its row; raise ``UserError`` where labels.csv does not name it."""
    with locked(folder):
        kept = load(folder, classes)
        if file not in {each.file for each in kept}:
            raise UserError(f"{file}: expected a file that {folder / LABELS} names")
        write([each for each in kept if each.file != file], folder)
        (folder / file).unlink()


def locked(folder: Path) -> FileLock:
    """Return the lock of a folder: one process at a time changes what is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / ".lock")


def name_of(content: bytes) -> str:
    """Return the file name of a picture: the beginning of its sha256, and what its format is called."""
    starts = content[:4], content[:2], content[4:8], content[8:12]
    known = (suffix for start, suffix in SUFFIXES.items() if start in starts)
    return f"{hashlib.sha256(content).hexdigest()[:16]}{next(known, '.img')}"


def check_label(label: str, classes: Sequence[str]) -> str:
    """Return a label as labels.csv holds it; raise ``UserError`` unless it is one to ``MOST`` names of ``classes``."""
    names = names_of(label, classes)
    if not names or not set(names) <= set(classes):
        raise UserError(f"label {label[:40]!r}: expected what the picture shows, in names of {', '.join(classes)}")
    if len(names) > MOST:
        raise UserError(f"label of {len(names)} digits: expected at most {MOST}, more than a page has")
    return (" " if len(classes[0]) > 1 else "").join(names)


def names_of(label: str, classes: Sequence[str]) -> list[str]:
    """Return the names that a label is written in: its words, or its characters where names have one character."""
    return label.split() if len(classes[0]) > 1 else list("".join(label.split()))


def check_writer(writer: str) -> str:
    """Return a writer's name; raise ``UserError`` unless it is empty or short and of letters and digits."""
    name = unicodedata.normalize("NFC", writer.strip())
    if name and not WRITER.fullmatch(name):
        raise UserError(f"writer {writer[:40]!r}: expected at most 40 letters, digits, spaces, dots and hyphens")
    return name


def load(folder: Path, classes: Sequence[str]) -> list[Correction]:
    """Return what is kept, in the order of labels.csv; nothing where there is none.

    Raises ``UserError`` that names the row of labels.csv that is wrong.
    """
    path = folder / LABELS
    if not path.exists():
        return []
    header, *rows = _rows(path) or [[]]
    if not {"file", "label"} <= set(header) <= set(COLUMNS) or len(set(header)) < len(header):
        found = _in_line(header) or "nothing"
        raise UserError(f"{path}, row 1: expected the columns {','.join(COLUMNS)}, found {found}")
    kept: dict[str, Correction] = {}
    for number, cells in enumerate(rows, 2):
        if not cells:  # an empty line
            continue
        try:
            correction = _correction(header, cells, folder, classes)
            if correction.file in kept:
                raise UserError(f"{correction.file} is named above already")  # noqa: TRY301
        except UserError as error:
            raise UserError(f"{path}, row {number}: {error}") from None
        kept[correction.file] = correction
    return list(kept.values())


def _rows(path: Path) -> list[list[str]]:
    rows: list[list[str]] = []
    try:
        for cells in csv.reader(io.StringIO(path.read_bytes().decode("utf-8-sig")), strict=True):
            rows.append([cell.strip() for cell in cells])
    except (UnicodeDecodeError, csv.Error) as error:
        before = error.object.count(b"\n", 0, error.start) if isinstance(error, UnicodeDecodeError) else len(rows)
        raise UserError(f"{path}, row {before + 1}: expected comma-separated values in UTF-8 ({error})") from None
    return rows


def _in_line(cells: Sequence[str]) -> str:
    return " ".join(",".join(cells).split())[:80]


def _correction(header: list[str], cells: list[str], folder: Path, classes: Sequence[str]) -> Correction:
    if len(cells) != len(header):
        raise UserError(f"expected {len(header)} cells, found {len(cells)}: {_in_line(cells)}")
    row = dict(zip(header, cells, strict=True))
    file = row["file"]
    is_name = file not in ("", LABELS) and not file.startswith(".") and Path(file).name == file
    if not is_name or not os.path.isfile(folder / file):  # noqa: PTH113  # `is_file` fails for a name that is too long
        raise UserError(f"expected the name of a picture beside {LABELS}, found {file[:80]!r}")
    return Correction(file, check_label(row["label"], classes), check_writer(row.get("writer", "")))


def write(kept: Sequence[Correction], folder: Path) -> None:
    """Write labels.csv."""
    files.write_csv(folder / LABELS, [vars(each) for each in kept], COLUMNS)


@dataclass(frozen=True)
class Halves:
    """The corrections that are learned from and those that are measured on; no picture and no writer is in both."""

    learned: list[Correction]
    measured: list[Correction]


def split(kept: Sequence[Correction], folder: Path = files.CORRECTIONS) -> Halves:
    """Split what is kept in halves, by a digest of the writer or of the picture.

    What belongs together follows its first row of labels.csv: pictures of one writer, and a picture that was saved in
    another size or format too, which counts once where its label is the same. So a picture that is added changes the
    half of no other one, unless it shows that two belong together.
    """
    pictures = np.array([thumbnail(folder / each.file) for each in kept]).reshape(-1, SIDE * SIDE)
    firsts: list[int] = []  # of what each belongs to
    repeats: list[bool] = []
    learned, measured = list[Correction](), list[Correction]()
    for number, correction in enumerate(kept):
        alike = np.flatnonzero(distance(pictures[:number], pictures[number]) < SAME).tolist()
        by_writer = [other for other in range(number) if correction.writer and kept[other].writer == correction.writer]
        joined = {firsts[other] for other in (*alike, *by_writer)} | {number}
        firsts = [min(joined) if first in joined else first for first in (*firsts, number)]
        repeats.append(any(kept[other].label == correction.label for other in alike))
    for first, repeated, correction in zip(firsts, repeats, kept, strict=True):
        if not repeated:
            (measured if is_measured(kept[first]) else learned).append(correction)
    return Halves(learned, measured)


def is_measured(correction: Correction) -> bool:
    """Tell by a digest of the writer, or of the picture where no writer is known, which half a correction is in."""
    name = correction.writer or Path(correction.file).stem
    return hashlib.sha256(name.encode()).digest()[0] % 2 == 1


def thumbnail(path: Path) -> np.ndarray:
    """Return a picture upright in 16 x 16 greys of mean 0 and deviation 1, float32 [256]."""
    return _thumbnail(path, path.stat().st_mtime_ns)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file of a picture that cannot be read."""
    try:
        yield
    except photo.UnreadableError as error:
        raise UserError(f"{path}: {error}; delete it and its row of {path.with_name(LABELS)}") from None


@functools.lru_cache(4096)
def _thumbnail(path: Path, _: int) -> np.ndarray:
    with naming(path):
        grey = photo.open_picture(path, longest=8 * SIDE).grey
    small = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32).ravel()
    return (small - small.mean()) / max(float(small.std()), 2.0)  # of less than 2 greys: an empty sheet


def distance(pictures: np.ndarray, picture: np.ndarray) -> np.ndarray:
    """Return how far thumbnails [n, 256] are from one, float [n]: the root of the mean squared difference."""
    return np.sqrt(((pictures - picture) ** 2).mean(axis=1))


def read_right(
    corrections: Sequence[Correction], classifier: Classifier, folder: Path = files.CORRECTIONS
) -> np.ndarray:
    """Return which pictures are read as their labels say, every digit of them, bool [n]."""
    return np.array([_text_of(folder / each.file, each.label, classifier) == each.label for each in corrections], bool)


def _text_of(path: Path, label: str, classifier: Classifier) -> str:
    with naming(path):
        picture = photo.open_picture(path)
    is_one = len(names_of(label, classifier.classes)) == 1
    return (reading.read_one if is_one else reading.read)(picture, classifier).text

"""Check the raw images, split the training images with equal shares of each class, and draw samples.

Reads   data/raw, params.yaml's `preprocess` and `data.classes`
Writes  data/prepared/{train,validation,test}-{images,labels}.npy (uint8 [n, 28, 28] and [n]) and classes.json (their
        names), reports/data.json, reports/digits.png
Expect  of MNIST: first label 5, and a first image with mean 35.108418, or 0.13768007 when scaled to [0, 1].

Pixel values are not scaled: the model does that.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline import config, console, files
from pipeline.console import UserError

SIDE = 28
AXES = {"images": (SIDE, SIDE), "labels": ()}
COLUMNS, CELL, MARGIN = 24, 32, 20  # of the sheet: digits a row, pixels a digit, pixels around

Split = tuple[np.ndarray, np.ndarray]


def read_idx(path: Path, kind: str, classes: int = 256) -> np.ndarray:
    """Return the ``images`` (uint8 [n, 28, 28]) or the ``labels`` (uint8 [n], below ``classes``) of an IDX file.

    Raises ``UserError`` for any other content; it names the file, what was found and what was expected.
    """
    if not path.is_file():
        raise UserError(f"{path}: expected the {kind} here; run `dvc repro fetch`")
    content = path.read_bytes()
    count = _count(path, content, kind)
    array = np.frombuffer(content, np.uint8, offset=8 + 4 * len(AXES[kind])).reshape(count, *AXES[kind])
    if kind == "labels" and array.max() >= classes:
        place = int(np.argmax(array >= classes))
        found = f"label {array[place]} at position {place}, expected 0 to {classes - 1}"
        raise UserError(f"{path}: holds {found}; data.classes of params.yaml names {classes} classes")
    return array


def _count(path: Path, content: bytes, kind: str) -> int:
    """Check an IDX file's header and length, and return its number of images or labels."""
    axes = AXES[kind]
    magic, expected = content[:4], bytes([0, 0, 8, 1 + len(axes)])
    if magic != expected:
        raise _wrong(path, f"{_what(magic)}, expected {kind} (it begins with {expected.hex()})")
    header = struct.Struct(f">4x{1 + len(axes)}I")
    if len(content) < header.size:
        raise _wrong(path, f"{len(content)} bytes, fewer than the {header.size} of a header: it is truncated")
    count, *shape = header.unpack_from(content)
    if tuple(shape) != axes:
        raise _wrong(path, f"images of {' x '.join(map(str, shape))} pixels, expected {SIDE} x {SIDE}")
    size = header.size + count * math.prod(axes)
    if len(content) != size:
        problem = "it is truncated" if len(content) < size else "something was added"
        raise _wrong(path, f"{len(content):,} bytes, expected {size:,} for {count:,} {kind}: {problem}")
    if count == 0:
        raise _wrong(path, f"no {kind}")
    return int(count)


def _what(magic: bytes) -> str:
    known = {
        b"": "nothing",
        b"\0\0\x08\x01": "labels: are two files swapped?",
        b"\0\0\x08\x03": "images: are two files swapped?",
        b"\x1f\x8b": "a gzip file: unpack it first",
    }
    return known.get(magic) or known.get(magic[:2]) or f"something that is not IDX (it begins with {magic.hex()})"


def _wrong(path: Path, found: str) -> UserError:
    return UserError(f"{path}: holds {found}; run `dvc repro --force fetch` for a good one")


def read_pair(folder: Path, part: str, classes: int = 256) -> Split:
    """Return the images and the labels of one part, ``train`` or ``t10k``: as many of one as of the other."""
    paths = {"images": folder / f"{part}-images-idx3-ubyte", "labels": folder / f"{part}-labels-idx1-ubyte"}
    images, labels = (read_idx(path, kind, classes) for kind, path in paths.items())
    if len(images) != len(labels):
        raise _wrong(paths["labels"], f"{len(labels):,} labels, expected one for each of {len(images):,} images")
    return images, labels


def check_sums(folder: Path) -> None:
    """Compare the files with the SHA256SUMS that `fetch` wrote beside them; other data may come without it."""
    sums = folder / "SHA256SUMS"
    for line in sums.read_text("utf-8").splitlines() if sums.is_file() else []:
        expected, name = line.split()
        found = files.sha256(folder / name)
        if found != expected:
            raise _wrong(folder / name, f"other bytes than {sums} says ({found[:12]}..., not {expected[:12]}...)")


def stratify(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return a seeded order, int [n], in which the first k labels have each class's share of k, to within one label.

    Each class is shuffled, and its members are spread evenly over [0, 1). Only the raw output of PCG64 is used: NumPy
    guarantees that it stays the same in all versions and on all machines, which it does not for its shuffles.
    """
    words = np.random.PCG64(seed).random_raw(len(labels))
    shuffled = np.argsort(words, kind="stable")
    places = np.empty(len(labels))
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        places[members] = (np.arange(len(members)) + 0.5) / len(members)
    return shuffled[np.argsort(places[shuffled], kind="stable")]


def split(raw: Split, test: Split, params: config.Preprocess) -> dict[str, Split]:
    """Return the parts ``train``, ``validation`` and ``test``; no image is in two of them.

    The validation images come first in the stratified order, so that they stay the same when ``train`` is made smaller.
    """
    order = stratify(raw[1], params.seed)
    chosen = {
        "validation": np.sort(order[: params.validation]),
        "train": np.sort(order[params.validation : params.validation + params.train]),
    }
    parts = {part: (raw[0][indices], raw[1][indices]) for part, indices in chosen.items()}
    return {"train": parts["train"], "validation": parts["validation"], "test": tuple(a[: params.test] for a in test)}


def check_sizes(params: config.Preprocess, raw: int, test: int) -> None:
    """Raise ``UserError`` when more images are asked for than there are."""
    if params.train + params.validation > raw:
        raise UserError(
            f"preprocess.train + preprocess.validation is {params.train + params.validation:,};"
            f" expected at most the {raw:,} images of train-images-idx3-ubyte"
        )
    if params.test > test:
        raise UserError(f"preprocess.test is {params.test:,}; expected at most the {test:,} of t10k-images-idx3-ubyte")


def describe(parts: Mapping[str, Split], first: Split, classes: Sequence[str]) -> dict[str, object]:
    """Return the data report: sizes, counts of classes, brightness, and images that occur twice.

    ``first`` holds the raw training images and labels, of which the first one is reported.
    """
    report: dict[str, object] = {
        "first_label": int(first[1][0]),
        "first_mean": round(float(first[0][0].mean()), 6),
        "first_mean_scaled": round(float(np.mean(first[0][0] / 255)), 8),
        "train_mean": round(float(parts["train"][0].mean()), 3),
        "train_sd": round(float(parts["train"][0].std()), 3),
    }
    seen: set[bytes] = set()
    for part, (images, labels) in parts.items():
        pictures = {image.tobytes() for image in images}
        report[f"{part}_images"] = len(labels)
        report[f"{part}_repeated"] = len(labels) - len(pictures - seen)
        report |= {f"{part}_images_{name}": int(np.sum(labels == label)) for label, name in enumerate(classes)}
        seen |= pictures
    return report


def draw(images: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> bytes:
    """Return samples as a PNG, dark ink on white: one row for each class, which begins with its mean image."""
    font = ImageFont.load_default(18)
    wide = max(CELL, *(math.ceil(font.getlength(name)) for name in classes))
    width, height = MARGIN * 4 + wide + CELL * (COLUMNS + 1), MARGIN * 2 + CELL * len(classes)
    sheet = Image.new("L", (width, height), 255)
    pen = ImageDraw.Draw(sheet)
    for label, name in enumerate(classes):
        members = images[labels == label]
        top = MARGIN + CELL * label
        pen.text((MARGIN + wide // 2, top + CELL // 2), name, 150, font, anchor="mm")
        mean = [members.mean(axis=0).round().astype(np.uint8)] if len(members) else []
        for column, image in enumerate([*mean, *members[:COLUMNS]]):
            left = MARGIN * (2 if column == 0 else 3) + wide + CELL * column
            sheet.paste(Image.fromarray(255 - image), (left, top + (CELL - SIDE) // 2))
    content = io.BytesIO()
    sheet.save(content, "PNG", compress_level=9)
    return content.getvalue()


def main(arguments: Sequence[str]) -> None:
    """Make data/prepared and its two reports."""
    console.no_arguments(arguments)
    loaded = config.load()
    params, classes = loaded.preprocess, loaded.data.classes
    raw, test = (read_pair(files.RAW, part, len(classes)) for part in ("train", "t10k"))
    check_sums(files.RAW)
    check_sizes(params, len(raw[1]), len(test[1]))
    parts = split(raw, test, params)
    report = describe(parts, raw, classes)
    for part, (images, labels) in parts.items():
        paths = [files.PREPARED / f"{part}-{kind}.npy" for kind in AXES]
        for path, array in zip(paths, (images, labels), strict=True):
            files.write_array(path, array)
        report[f"{part}_sha256"] = files.digest_files(paths)
    files.write_json(files.PREPARED / "classes.json", classes)
    files.write_json(files.REPORTS / "data.json", report)
    files.write_bytes(files.REPORTS / "digits.png", draw(*parts["train"], classes))
    sizes = [f"{len(labels):,}" for _, labels in parts.values()]
    print("preprocess: {} training, {} validation and {} test images".format(*sizes))


if __name__ == "__main__":
    console.run(main)

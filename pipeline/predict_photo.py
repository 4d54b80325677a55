"""Stage predict-photo: read the photographs in data/photos, each prepared as MNIST was, and score those with a label.

Reads   data/photos/ with labels.csv (file, label, kind), models/digits.tflite, models/calibration.json
Writes  reports/photos.json, photos.csv (a picture a row), contact_sheet.png
Expect  a photo accuracy of 0.95 or so on the 60 rendered pictures.

As a command, ``python -m pipeline.predict_photo PATH...`` reads files, folders and standard input (``-``): a table, or
with ``--json`` one list with an object a picture. ``--one`` takes each picture for one digit; ``--explain OUT.png``
draws the steps from a photograph to its answer. ``--correct DIGITS`` keeps the picture with the digits that it shows.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline import console, corrections, files, model_card, scoring
from pipeline.console import UserError
from pipeline.learning.classifier import Classifier
from pipeline.photos import photo, reading, sheet
from pipeline.photos.photo import Picture
from pipeline.photos.reading import Reading
from pipeline.photos.sheet import Card

LABELS = "labels.csv"
SUFFIXES = {".bmp", ".gif", ".heic", ".heif", ".hif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pdf"} | {
    *(".pgm", ".png", ".pnm", ".ppm", ".svg", ".tif", ".tiff", ".webp")
}  # of what people take for pictures: a PDF or SVG is counted, and its reason says what to do
COLUMNS = ("file", "label", "text", "verdict", "reason", "probability", "right")


def main(arguments: Sequence[str]) -> int:
    """Read the pictures named on the command line, or without any be the stage."""
    options = parse(arguments)
    if options.paths:
        return answer(options)
    from pipeline import tracking  # the command does not wait for MLflow

    cards = list(read_folder(files.PHOTOS, Classifier.load(files.MODELS)))
    metrics = score(cards) | {"model_sha256": files.sha256(files.MODELS / "digits.keras")}
    files.write_json(files.REPORTS / "photos.json", metrics)
    files.write_csv(files.REPORTS / "photos.csv", [row_of(card) for card in cards], COLUMNS)
    files.write_bytes(files.REPORTS / "contact_sheet.png", sheet.png(sheet.few_colours(sheet.contact_sheet(cards))))
    tracking.log_results("photos.json")
    print(describe(metrics))
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.predict_photo",
        description=(__doc__ or "").splitlines()[0],
        epilog="example: python -m pipeline.predict_photo --json five.jpg letters/",
    )
    parser.add_argument("paths", nargs="*", metavar="PATH", help="pictures, folders, or - for standard input")
    parser.add_argument("--json", action="store_true", help="print one JSON list, an object a picture")
    parser.add_argument(
        "--one", action="store_true", help="each picture holds exactly one digit: take the one it is about"
    )
    parser.add_argument("--explain", type=Path, metavar="OUT.png", help="draw how the (only) picture is read")
    parser.add_argument("--correct", metavar="DIGITS", help="keep the (only) picture with the digits that it shows")
    parser.add_argument("--writer", metavar="NAME", default="", help="who wrote the picture that is kept")
    options = parser.parse_args(arguments)
    expect_one(options, len(options.paths))
    if options.writer and options.correct is None:
        raise UserError("--writer: expected --correct DIGITS, which keeps a picture")
    if (options.json or options.one) and not options.paths:
        raise UserError("--json and --one: expected pictures to read; name a file, a folder or - for standard input")
    return options


def expect_one(options: argparse.Namespace, count: int) -> None:
    """Raise ``UserError`` where an option is about the only picture, and there are ``count``."""
    for name in ("explain", "correct"):
        if getattr(options, name) is not None and count != 1:
            raise UserError(f"--{name}: expected one picture, found {count}")


def answer(options: argparse.Namespace) -> int:
    """Read what the command line names and print it; the exit status is 1 when a picture was unreadable."""
    classifier = Classifier.load(files.MODELS)
    print(model_card.line(), file=sys.stderr)
    pictures = list(sources(options.paths))
    expect_one(options, len(pictures))
    cards = [read_file(name, source, classifier, options.one) for name, source in pictures]
    if options.explain:
        picture, found = readable(cards[0], "--explain")
        files.write_bytes(options.explain, sheet.png(sheet.explain(picture, found, classifier)))
    rows = [object_of(card) for card in cards]
    print(json.dumps(rows, indent=2, ensure_ascii=False) if options.json else table(rows))
    if options.correct is not None:
        readable(cards[0], "--correct")
        print(f"kept: {correct(pictures[0][1], options, classifier.classes)}", file=sys.stderr)
    return int(any(card.picture is None for card in cards))


def readable(card: Card, option: str) -> tuple[Picture, Reading]:
    """Return a picture with its reading; raise ``UserError`` where it is unreadable."""
    if card.picture is None:
        raise UserError(f"{option}: {card.file}: {card.reading.reason}")
    return card.picture, card.reading


def correct(source: Path | bytes, options: argparse.Namespace, classes: Sequence[str]) -> Path:
    """Keep a picture with its label and return its file."""
    content = source if isinstance(source, bytes) else source.read_bytes()
    return files.CORRECTIONS / corrections.keep(content, options.correct, classes, writer=options.writer).file


def sources(names: Sequence[str]) -> Iterator[tuple[str, Path | bytes]]:
    """Yield a name and a file or its bytes for each picture, folders in name order."""
    for name in names:
        if name == "-":
            yield name, sys.stdin.buffer.read()
        elif Path(name).is_dir():
            yield from ((printable(str(path)), path) for path in pictures_in(Path(name)))
        else:
            yield printable(name), Path(name)


def pictures_in(folder: Path) -> list[Path]:
    """Return the picture files of a folder in name order."""
    found = pictures_of(folder)
    if not found:
        raise UserError(f"{console.display_path(folder)}: expected pictures in this folder, found none")
    return found


def pictures_of(folder: Path) -> list[Path]:
    """Return the picture files of a folder in name order, without hidden ones: a Mac's ._five.jpg is no picture."""
    paths = (path for path in folder.iterdir() if not path.name.startswith("."))
    return sorted(path for path in paths if path.suffix.lower() in SUFFIXES and path.is_file())


def printable(name: str) -> str:
    """Return a file name as text that can be printed and compared: composed (NFC), with � for what is not UTF-8."""
    return unicodedata.normalize("NFC", os.fsencode(name).decode("utf-8", "replace"))


def read_file(name: str, source: Path | bytes, classifier: Classifier, one: bool, label: str | None = None) -> Card:
    """Read one picture; what cannot be decoded becomes a card with the verdict ``unreadable`` and the reason."""
    try:
        picture = photo.open_picture(source)
    except photo.UnreadableError as error:
        return Card(name, None, Reading((), "unreadable", str(error)), label)
    return Card(name, picture, (reading.read_one if one else reading.read)(picture, classifier), label)


def read_folder(folder: Path, classifier: Classifier) -> Iterator[Card]:
    """Read every picture of a folder, with its label where labels.csv has one."""
    labels = load_labels(folder / LABELS, classifier.classes)
    paths = pictures_of(folder)
    missing = sorted(set(labels) - {printable(path.name) for path in paths})
    if missing:
        raise UserError(f"{folder / LABELS}: names {missing[0]}, which is not in the folder")
    with console.progress(len(paths), "read", "picture") as bar:
        for path in paths:
            name = printable(path.name)
            yield read_file(name, path, classifier, False, labels.get(name))
            bar.update()


def load_labels(path: Path, classes: Sequence[str]) -> dict[str, str]:
    """Return the labels by file, of ``classes``, as a person or a spreadsheet saved them; none without labels.csv.

    Separated by comma, semicolon or tab, in UTF-8 or UTF-16. Raises ``UserError`` that names the line that is wrong.
    """
    if not path.exists():
        return {}
    lines = list(enumerate(_cells(path), 1))
    rows = [(number, cells) for number, cells in lines if any(cells)]
    header = [cell.lower() for cell in rows[0][1]] if rows else []
    if not {"file", "label"} <= set(header):
        raise UserError(f"{path}: expected the columns file and label, found {', '.join(header) or 'nothing'}")
    labels: dict[str, str] = {}
    for number, cells in rows[1:]:
        if len(cells) != len(header):
            raise UserError(
                f"{path}, row {number}: expected {len(header)} cells, found {len(cells)}: {', '.join(cells)}"
            )
        row = dict(zip(header, cells, strict=True))
        name, label = unicodedata.normalize("NFC", row["file"]), row["label"]
        if not _is_written_in(label, classes):
            names = f"names of data.classes ({', '.join(classes[:3])}...)"
            raise UserError(f"{path}, row {number}: {name}: expected {names} as its label or nothing, found {label!r}")
        if labels.setdefault(name, label) != label:
            raise UserError(f"{path}, row {number}: {name} is labelled {labels[name]!r} above, and {label!r} here")
    return labels


def _cells(path: Path) -> list[list[str]]:
    """Return the cells of each row of a CSV file, without the spaces around them."""
    content = path.read_bytes()
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        lines = content.decode(encoding).splitlines()
        if lines and lines[0].strip().lower().startswith("sep="):  # a spreadsheet's own first line
            lines[0] = ""
        header = next((line for line in lines if line.strip()), "")
        separator = max(",;\t", key=header.count)
        return [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=separator, skipinitialspace=True)]
    except UnicodeDecodeError:
        raise UserError(f"{path}: expected text in UTF-8 or UTF-16; save it as CSV UTF-8") from None
    except csv.Error as error:
        raise UserError(f"{path}: not a table of comma-separated values ({error})") from None


def _is_written_in(label: str, classes: Sequence[str]) -> bool:
    names = label.split() if len(classes[0]) > 1 else label
    return set(names) <= set(classes)


def object_of(card: Card) -> dict[str, Any]:
    """Return a reading as ``--json`` prints it."""
    return {"file": card.file, **card.reading.as_json()}


def table(found: Sequence[dict[str, Any]]) -> str:
    """Return the readings as a table for people."""
    width = max([4, *(len(one["file"]) for one in found)])
    length = max([4, *(len(one["text"]) for one in found)])
    lines = [f"{'file':{width}}  {'text':{length}}  {'least p':>7}  verdict"]
    for one in found:
        least = min((digit["probability"] for digit in one["digits"]), default=None)
        sure = "" if least is None else f"{least:.3f}"
        reason = f": {one['reason']}" if one["reason"] else ""
        lines.append(f"{one['file']:{width}}  {one['text'] or '-':{length}}  {sure:>7}  {one['verdict']}{reason}")
    return "\n".join(lines)


def row_of(card: Card) -> dict[str, object]:
    """Return a picture's row of photos.csv; its probability is that of the least sure digit."""
    least = min((digit.probability for digit in card.reading.digits), default=None)
    right = "" if card.label is None else int(sheet.is_right(card.reading, card.label))
    return {
        "file": card.file,
        "label": "" if card.label is None else card.label,
        "text": card.reading.text,
        "verdict": card.reading.verdict,
        "reason": card.reading.reason,
        "probability": "" if least is None else round(least, 4),
        "right": right,
    }


def score(cards: Sequence[Card]) -> dict[str, Any]:
    """Return the metrics: how many pictures were read and scored, and how often all of a picture was right."""
    scored = [card for card in cards if card.label is not None]
    right = sum(sheet.is_right(card.reading, card.label or "") for card in scored)
    metrics: dict[str, float] = {
        "photos_read": sum(card.picture is not None for card in cards),
        "photos_scored": len(scored),
        "photos_unreadable": sum(card.picture is None for card in cards),
        "photos_unsure": sum(card.reading.verdict == "unsure" for card in cards),
    }
    if scored:
        low, high = scoring.wilson(right, len(scored))
        shares = {"photo_accuracy": right / len(scored), "photo_accuracy_low": low, "photo_accuracy_high": high}
        metrics |= {name: round(share, 4) for name, share in shares.items()}
    return metrics


def describe(metrics: dict[str, Any]) -> str:
    """Return the result in a line."""
    if "photo_accuracy" not in metrics:
        return f"{metrics['photos_read']} photographs read, none has a label; see {files.REPORTS / 'contact_sheet.png'}"
    return (
        "photo accuracy {photo_accuracy:.4f} ({photo_accuracy_low:.4f} to {photo_accuracy_high:.4f}) on "
        "{photos_scored} of {photos_read} photographs; see reports/contact_sheet.png"
    ).format(**metrics)


if __name__ == "__main__":
    console.run(main)

"""Write files atomically, read them back, and digest them by sha256; knows no stage."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import math
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pipeline.console import UserError

ROOT = Path(__file__).resolve().parent.parent
PARAMS, RAW, PREPARED, MODELS, REPORTS, PHOTOS = (
    Path(name) for name in ("params.yaml", "data/raw", "data/prepared", "models", "reports", "data/photos")
)
CORRECTIONS, PREPARED_CORRECTIONS = Path("data/corrections"), Path("data/prepared-corrections")


def workspace() -> Path:
    """Return the folder of the main workspace, which holds what must outlive a run: mlruns/ and .checkpoints/.

    DVC sets ``DVC_ROOT`` to it, also for a stage that runs in a temporary copy (``dvc exp run --temp``, the queue).
    """
    return Path(os.environ.get("DVC_ROOT") or ROOT).resolve()


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path`` that replaces it if the block succeeds, and is removed if not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as stream:
            yield stream
        part.replace(path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and not error.filename:  # a full disk's error names no file
            error.filename = str(path)
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` atomically."""
    with atomic_write(path) as stream:
        stream.write(content)


def write_text(path: Path, content: str) -> None:
    """Write ``content`` to ``path`` as UTF-8, its line ends unchanged, atomically."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as JSON with sorted keys; NaN and infinity raise ``ValueError``, since JSON has neither."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text("utf-8"))


class UnreadableError(UserError, ValueError):
    """A file is not as a stage wrote it: truncated, of another type, or with git's conflict markers in it."""

    def __init__(self, path: Path, reason: object) -> None:
        words = " ".join(str(reason).split())
        super().__init__(f"{path}: not as a stage wrote it ({words}); remove it, and `dvc repro` makes it anew")


def read_report(path: Path, *texts: str, numbers: Iterable[str] = ()) -> dict[str, Any]:
    """Read a JSON object that a stage wrote; raise ``UnreadableError`` for anything else.

    Under the keys ``texts`` it must hold strings, under ``numbers`` finite numbers: a report of an older version, or
    one that was edited by hand, may lack them.
    """
    try:
        content = read_json(path)
    except ValueError as error:
        raise UnreadableError(path, error) from None
    if not isinstance(content, dict):
        raise UnreadableError(path, f"expected an object, found {type(content).__name__}")
    missing = [name for name in texts if not isinstance(content.get(name), str)]
    missing += [name for name in numbers if not _is_number(content.get(name))]
    if missing:
        raise UnreadableError(path, f"expected {', '.join(missing)}")
    return content


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_table(path: Path, *numbers: str) -> list[dict[str, str]]:
    """Read a CSV file that a stage wrote; raise ``UnreadableError`` for anything else.

    Each row must have a value for every column of the header, and finite numbers in the columns ``numbers``.
    """
    try:
        rows = read_csv(path)
    except (ValueError, csv.Error) as error:
        raise UnreadableError(path, error) from None
    for number, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise UnreadableError(path, f"row {number} has not the columns of the header")
        for name in numbers:
            _number(path, row, name)
    return rows


def read_numbers(path: Path, *needed: str) -> list[dict[str, float]]:
    """Read a CSV file as `read_table` does, with the columns ``needed`` and finite numbers in all columns."""
    rows = read_table(path, *needed)
    return [{name: _number(path, row, name) for name in row} for row in rows]


def _number(path: Path, row: Mapping[str, str], name: str) -> float:
    try:
        value = float(row[name])
    except (KeyError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise UnreadableError(path, f"expected a number as {name}, found {row.get(name)!r}")
    return value


def write_csv(path: Path, rows: Iterable[Mapping[str, object]], columns: Sequence[str]) -> None:
    """Write ``rows`` as CSV under a header of ``columns``."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def read_csv(path: Path) -> list[dict[str, str]]:
    """Read a CSV file with a header into one dictionary of strings for each row."""
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def write_array(path: Path, array: np.ndarray) -> None:
    """Write ``array`` as an ``.npy`` file: the same array gives the same bytes."""
    with atomic_write(path) as stream:
        np.save(stream, np.ascontiguousarray(array), allow_pickle=False)


def sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest(*contents: Any) -> str:
    """Return the sha256 of ``contents`` written as one canonical JSON list, in hexadecimal."""
    text = json.dumps(contents, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def digest_files(paths: Iterable[Path]) -> str:
    """Return one sha256 for the names and bytes of several files, whatever order they come in."""
    return digest(*sorted((path.name, sha256(path)) for path in paths))

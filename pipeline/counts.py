"""What a service has read, counted by day in a SQLite file: how many pictures, how sure, how much ink; no pictures.

SQLite and not Prometheus: MLflow's scoring server starts several processes and lets a model add no page to it, and the
comparison of two weeks needs counts that outlive all of them. A count is added to one row for each day, model,
quantity and bin, so a year of service takes a few hundred kB.
"""

from __future__ import annotations

import logging
import math
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from pipeline import files
from pipeline.console import UserError
from pipeline.learning.classifier import evidence
from pipeline.photos.reading import Reading

VARIABLE = "DIGITS_COUNTS"  # names the file; without it nothing is counted
SURENESS = 0.5  # width of a bin of the evidence, which is 5 to 20 for digits
MANY = 20  # digits of a picture that are told apart; more count as so many
BUSY = 0.5  # seconds that a request may wait for another process, which writes for a millisecond
PAUSE = 10  # seconds until the next attempt after a failed one: a full disk must not slow every request
TABLE = """CREATE TABLE IF NOT EXISTS counts (
    day TEXT, model TEXT, quantity TEXT, bin, pictures INTEGER, PRIMARY KEY (day, model, quantity, bin)
) WITHOUT ROWID"""
ADD = """INSERT INTO counts VALUES (?, ?, ?, ?, ?)
    ON CONFLICT DO UPDATE SET pictures = pictures + excluded.pictures"""

SCALES: Mapping[str, str] = {  # quantities whose bins are in order: what a bin is
    "sureness": "evidence for the first digit",
    "ink": "per cent of the first digit's field",
    "digits": "digits in a picture",
    "milliseconds": "milliseconds, at least",
}

Bin = str | float
Observed = tuple[str, Bin]  # a quantity and the bin of it that a picture falls into


def model_of(models: Path) -> str:
    """Return the name under which a model's pictures are counted: the digest of what answers, 12 characters."""
    return files.digest_files(models / name for name in ("digits.tflite", "calibration.json"))[:12]


def observed(found: Reading) -> list[Observed]:
    """Return what is counted of one reading.

    Sureness (the evidence for the answer) and ink (per cent of the field's white) are those of the first digit alone:
    the digits of a picture are of one hand, and a test must not take them for several pictures.
    """
    counted: list[Observed] = [("verdict", found.verdict), ("digits", min(len(found.digits), MANY))]
    if not found.digits:
        return counted
    first = found.digits[0]
    sureness = math.floor(float(evidence(first.probabilities)) / SURENESS) * SURENESS
    return [*counted, ("sureness", sureness), ("ink", int(first.field.mean() / 2.55))]


def refused(reason: str) -> list[Observed]:
    """Return what is counted of a refused picture: its reason without the details, of which there are any number."""
    return [("refused", reason.partition(" (")[0].partition(";")[0][:80])]


def milliseconds(seconds: float) -> Observed:
    """Return the bin of a duration: the power of two milliseconds below it."""
    return "milliseconds", 2 ** math.floor(math.log2(max(seconds * 1000, 1)))


class Counts:
    """The file that a service counts in; several threads and processes may add at once, and adding never fails.

    What cannot be written, since the disk is full or the folder is read-only, is kept in memory and tried again with a
    later picture; the log says so once.
    """

    def __init__(self, path: Path, model: str) -> None:
        self._path, self._model = path.absolute(), model
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._waiting: Counter[tuple[str, str, Bin]] = Counter()
        self._next_attempt = 0.0
        self._has_failed = False
        self.add(())  # a folder that cannot be written is said when the service starts

    def add(self, counted: Iterable[Observed]) -> None:
        """Count one picture in each of these bins, today (UTC)."""
        today = datetime.now(UTC).date().isoformat()
        with self._lock:
            self._waiting.update((today, quantity, bin_) for quantity, bin_ in counted)
            if time.monotonic() < self._next_attempt:
                return
            try:
                self._write()
            except (sqlite3.Error, OSError) as error:
                self._note(error)

    def _write(self) -> None:
        if self._connection and not self._path.exists():  # removed while the service runs: begin a new file
            self._close()
        if not self._connection:
            self._connection = sqlite3.connect(self._path, timeout=BUSY, check_same_thread=False)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")  # no wait for the disk at each picture
            self._connection.execute(TABLE)
        with self._connection:
            rows = [(day, self._model, *bin_, pictures) for (day, *bin_), pictures in self._waiting.items()]
            self._connection.executemany(ADD, rows)
        self._waiting.clear()
        self._has_failed = False

    def _note(self, error: Exception) -> None:
        self._close()
        self._next_attempt = time.monotonic() + PAUSE
        if not self._has_failed:
            self._has_failed = True
            remedy = f"pictures are read on, and counted as soon as it can be written; {VARIABLE} names the file"
            logging.getLogger(__name__).warning("%s: nothing is counted now (%s); %s", self._path, error, remedy)

    def _close(self) -> None:
        if self._connection:
            self._connection.close()
        self._connection = None


@dataclass(frozen=True)
class Row:
    """How many pictures of a day fell into a bin of a quantity, read by one model."""

    day: date
    model: str
    quantity: str
    bin: Bin
    pictures: int


def read(path: Path) -> list[Row]:
    """Read all counts; raise ``UserError`` where the file is missing, or is not what a service wrote."""
    if not path.is_file():
        raise UserError(f"{path}: expected the counts of a service; serve the model with {VARIABLE}={path}")
    address = f"{path.absolute().as_uri()}?mode=ro"
    try:
        with closing(sqlite3.connect(address, timeout=5, uri=True)) as connection:
            found = connection.execute("SELECT day, model, quantity, bin, pictures FROM counts").fetchall()
        return [_checked(*row) for row in found]
    except (sqlite3.Error, TypeError, ValueError) as error:
        raise UserError(f"{path}: expected the counts of a service, found something else ({error})") from None


def _checked(day: str, model: str, quantity: str, bin_: Bin, pictures: int) -> Row:
    expected = int | float if quantity in SCALES else str
    if not isinstance(pictures, int) or pictures < 0 or not isinstance(bin_, expected):
        raise ValueError(f"{pictures!r} pictures with {quantity} {bin_!r} on {day}")
    return Row(date.fromisoformat(day), model, quantity, bin_, pictures)

"""What a service reads is counted by day, by several processes at once, and counting never costs an answer."""

import io
import logging
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import environment
from PIL import Image

from pipeline import counts, files, serving
from pipeline.console import UserError
from pipeline.counts import Counts
from pipeline.learning.classifier import Classifier
from pipeline.serving import BadImageError, Service

COUNT = """
import sys
from pathlib import Path
from pipeline.counts import Counts
counted = Counts(Path(sys.argv[1]), "m")
for _ in range(int(sys.argv[2])):
    counted.add([("verdict", "digit"), ("ink", 12)])
assert not counted._waiting
"""


def totals(path: Path) -> dict[tuple[str, object], int]:
    found: Counter[tuple[str, object]] = Counter()
    for row in counts.read(path):
        found[row.quantity, row.bin] += row.pictures
    return found


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(Classifier.load(files.ROOT / "models"), Counts(tmp_path / "counts.db", "m"))


ONE = np.zeros((28, 28), int)
ONE[4:24, 13:16] = 255


def test_a_reading_is_counted_by_kind_verdict_number_of_digits_sureness_ink_and_time(
    service: Service, tmp_path: Path
) -> None:
    (answer,) = service.predict(pd.DataFrame({"image": [ONE]}))
    assert answer["text"] == "1"
    found = counts.read(tmp_path / "counts.db")
    assert {row.day for row in found} == {datetime.now(UTC).date()}
    bins = {row.quantity: row.bin for row in found}
    assert sorted(bins) == ["digits", "ink", "kind", "milliseconds", "sureness", "verdict"]
    assert bins["kind"] == "field"
    assert (bins["verdict"], bins["digits"]) == (answer["verdict"], 1)
    assert bins["ink"] == int(100 * ONE.mean() / 255)
    assert 3 < bins["sureness"] < 25
    assert bins["sureness"] % counts.SURENESS == 0


def test_a_picture_without_a_digit_has_no_sureness_and_no_ink(service: Service, tmp_path: Path) -> None:
    service.predict(pd.DataFrame({"image": [np.zeros((28, 28), int)] * 3}))
    found = totals(tmp_path / "counts.db")
    assert {quantity for quantity, _ in found} == {"kind", "verdict", "digits", "milliseconds"}
    assert found["verdict", "no digit"] == found["digits", 0] == 3


def cut_png() -> bytes:
    stream = io.BytesIO()
    Image.new("L", (50, 50)).save(stream, "PNG")
    return stream.getvalue()[:-30]


@pytest.mark.parametrize(
    ("image", "kind", "reason"),
    [
        ("%%%", "photograph", "not base64"),
        (b"", "photograph", "not a picture: the file is empty"),
        (cut_png(), "photograph", "damaged picture"),
        ([[0.5] * 28] * 28, "field", "expected whole numbers from 0"),
    ],
)
def test_a_refused_picture_is_counted_with_its_reason_and_without_details(
    service: Service, tmp_path: Path, image: object, kind: str, reason: str
) -> None:
    with pytest.raises(BadImageError):
        service.predict(pd.DataFrame({"image": [image]}))
    found = totals(tmp_path / "counts.db")
    assert found == {("kind", kind): 1, ("verdict", "refused"): 1, ("refused", reason): 1}


def test_no_more_than_a_row_a_bin_is_kept_and_nothing_of_the_picture(service: Service, tmp_path: Path) -> None:
    service.predict(pd.DataFrame({"image": [ONE]}))
    before = len(counts.read(tmp_path / "counts.db"))
    service.predict(pd.DataFrame({"image": [ONE] * 50}))
    rows = [row for row in counts.read(tmp_path / "counts.db") if row.quantity != "milliseconds"]
    assert len(rows) <= before
    assert {row.pictures for row in rows} == {51}


def test_processes_that_count_at_once_lose_nothing(tmp_path: Path) -> None:
    path, processes, each = tmp_path / "counts.db", 4, 150
    command = [sys.executable, "-c", COUNT, str(path), str(each)]
    running = [subprocess.Popen(command, cwd=files.ROOT, env=environment()) for _ in range(processes)]
    assert [process.wait() for process in running] == [0] * processes
    assert totals(path) == {("verdict", "digit"): processes * each, ("ink", 12): processes * each}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again at once, and wait for nobody."""
    monkeypatch.setattr(counts, "PAUSE", 0)
    monkeypatch.setattr(counts, "BUSY", 0.01)


def no_folder(path: Path) -> Iterator[None]:
    yield
    path.parent.mkdir()


def no_database(path: Path) -> Iterator[None]:
    path.parent.mkdir()
    path.write_bytes(b"something else" * 100)
    yield
    path.unlink()


def locked(path: Path) -> Iterator[None]:
    path.parent.mkdir()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute(counts.TABLE)
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.execute("ROLLBACK")


def full(path: Path) -> Iterator[None]:
    path.parent.mkdir()
    path.symlink_to("/dev/full")
    yield
    path.unlink()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("fault", [no_folder, no_database, locked, full])
def test_a_file_that_cannot_be_written_is_said_once_and_costs_no_answer_and_no_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: object
) -> None:
    path = tmp_path / "folder" / "counts.db"
    state = fault(path)  # type: ignore[operator]
    next(state)
    service = Service(Classifier.load(files.ROOT / "models"), Counts(path, "m"))
    for _ in range(3):
        assert service.predict(pd.DataFrame({"image": [ONE]}))[0]["text"] == "1"
    said = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == 1
    assert f"{path}: nothing is counted now" in said[0].getMessage()
    next(state, None)
    service.predict(pd.DataFrame({"image": [ONE]}))
    assert totals(path)["digits", 1] == 4
    assert len(caplog.records) == 1


def test_a_service_that_cannot_count_tries_again_later_and_not_at_each_picture(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "counts.db"
    counted = Counts(path, "m")
    path.parent.mkdir()
    counted.add([("verdict", "digit")])
    assert not path.exists()
    counted._next_attempt = 0
    counted.add([("verdict", "digit")])
    assert totals(path) == {("verdict", "digit"): 2}


def test_a_file_that_is_removed_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "counts.db"
    counted = Counts(path, "m")
    counted.add([("verdict", "digit")])
    for each in tmp_path.iterdir():
        each.unlink()
    counted.add([("verdict", "unsure")])
    assert totals(path) == {("verdict", "unsure"): 1}


@pytest.mark.parametrize("content", [None, b"", b"no database at all" * 50])
def test_what_is_no_counts_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "counts.db"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"counts\.db: expected the counts of a service") as error:
        counts.read(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "row",
    [
        ("yesterday", "m", "verdict", "digit", 1),
        (None, "m", "verdict", "digit", 1),
        ("2026-01-01", "m", "verdict", "digit", -1),
        ("2026-01-01", "m", "verdict", "digit", "many"),
        ("2026-01-01", "m", "ink", "black", 1),
        ("2026-01-01", "m", "verdict", 3.0, 1),
    ],
)
def test_a_row_that_no_service_wrote_is_one_line(tmp_path: Path, row: tuple[object, ...]) -> None:
    with closing(sqlite3.connect(tmp_path / "counts.db")) as other, other:
        other.execute(counts.TABLE.replace(" WITHOUT ROWID", ""))
        other.execute("INSERT INTO counts VALUES (?, ?, ?, ?, ?)", row)
    with pytest.raises(UserError, match=r"counts\.db: expected the counts of a service, found something else"):
        counts.read(tmp_path / "counts.db")


def test_without_the_variable_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path, left in ((None, []), ("counts.db", [0])):
        monkeypatch.delenv(counts.VARIABLE, raising=False)
        if path:
            monkeypatch.setenv(counts.VARIABLE, path)
        serving._load_pyfunc(str(files.ROOT / "models")).predict(pd.DataFrame({"image": [ONE]}))
        assert [totals(each)["digits", 1] - 1 for each in tmp_path.glob("*.db")] == left

"""Corrections are kept whole or not at all, and no picture is in both halves."""

import errno
import io
import os
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pipeline import corrections, files
from pipeline.config import DIGITS
from pipeline.console import UserError
from pipeline.corrections import Correction

TITLE = "file,label,writer"


def picture(seed: int = 0, *, side: int = 160, form: str = "PNG", size: int = 160) -> bytes:
    """Return strokes at random places: another picture for every seed, the same one in every size."""
    rng, sheet = np.random.default_rng(seed), Image.new("L", (side, side), 245)
    points = [tuple(point) for point in rng.integers(20, 140, (5, 2)).tolist()]
    ImageDraw.Draw(sheet).line(points, fill=20, width=9)
    content = io.BytesIO()
    sheet.resize((size, size), Image.Resampling.BICUBIC).save(content, form)
    return content.getvalue()


def keep(content: bytes, label: str, folder: Path, writer: str = "") -> Correction:
    return corrections.keep(content, label, DIGITS, writer=writer, folder=folder)


def load(folder: Path) -> list[Correction]:
    return corrections.load(folder, DIGITS)


def content_of(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder but the lock."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != ".lock"}


def test_a_picture_is_kept_as_it_is_under_a_name_of_its_content(tmp_path: Path) -> None:
    kept = keep(picture(), " 10 00 ", tmp_path, writer="Ada")
    assert (tmp_path / kept.file).read_bytes() == picture()
    assert kept.file == f"{files.sha256(tmp_path / kept.file)[:16]}.png"
    assert (tmp_path / "labels.csv").read_text() == f"{TITLE}\n{kept.file},1000,Ada\n"
    assert load(tmp_path) == [kept]


@pytest.mark.parametrize(("form", "suffix"), [("JPEG", ".jpg"), ("WEBP", ".webp"), ("TIFF", ".tif"), ("BMP", ".bmp")])
def test_a_name_ends_as_the_content_begins(form: str, suffix: str) -> None:
    assert corrections.name_of(picture(form=form)).endswith(suffix)


def test_a_picture_that_is_kept_again_has_its_new_label_and_its_first_writer(tmp_path: Path) -> None:
    keep(picture(1), "1", tmp_path, writer="Ada")
    keep(picture(2), "2", tmp_path)
    keep(picture(1), "7", tmp_path, writer="Bob")
    assert [(each.label, each.writer) for each in load(tmp_path)] == [("7", "Ada"), ("2", "")]
    assert len(content_of(tmp_path)) == 3


def test_what_is_deleted_is_gone_with_its_row(tmp_path: Path) -> None:
    first, second = keep(picture(1), "1", tmp_path), keep(picture(2), "2", tmp_path)
    corrections.delete(first.file, DIGITS, tmp_path)
    assert load(tmp_path) == [second]
    assert set(content_of(tmp_path)) == {second.file, "labels.csv"}


@pytest.mark.parametrize("name", ["none.png", "", "labels.csv", "../secret.png", "/etc/passwd", ".lock"])
def test_nothing_but_a_picture_that_is_kept_is_deleted(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "kept"
    keep(picture(), "1", folder)
    (tmp_path / "secret.png").write_bytes(b"")
    before = content_of(folder)
    with pytest.raises(UserError, match=r"expected a file that .*labels\.csv names"):
        corrections.delete(name, DIGITS, folder)
    assert content_of(folder) == before
    assert (tmp_path / "secret.png").exists()


@pytest.mark.parametrize("label", ["", "  ", "five", "1a", "1,2", "-1", "1\0", "\u0661", "\uff11", '"1'])
def test_a_label_that_is_no_digits_is_one_line_and_nothing_is_kept(tmp_path: Path, label: str) -> None:
    with pytest.raises(UserError, match=r"^label .*: expected what the picture shows, in names of 0, 1, 2") as error:
        keep(picture(), label, tmp_path)
    assert "\n" not in str(error.value)
    assert content_of(tmp_path) == {}


def test_a_label_of_more_than_a_page_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="label of 301 digits: expected at most 300"):
        keep(picture(), "1" * 301, tmp_path)
    keep(picture(), "1" * 300, tmp_path)


def test_classes_with_longer_names_are_written_with_spaces(tmp_path: Path) -> None:
    kept = corrections.keep(picture(), " star  heart", ("heart", "star"), folder=tmp_path)
    assert kept.label == "star heart"
    with pytest.raises(UserError, match="in names of heart, star"):
        corrections.keep(picture(), "starheart", ("heart", "star"), folder=tmp_path)


@pytest.mark.parametrize("writer", ["=1+1", "a,b", "a\nb", "x" * 41, "<b>"])
def test_a_writer_is_a_name(tmp_path: Path, writer: str) -> None:
    with pytest.raises(UserError, match=r"^writer .*: expected at most 40 letters"):
        keep(picture(), "1", tmp_path, writer)
    assert content_of(tmp_path) == {}


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "the file is empty"), (b"five", "not a picture"), (picture()[:-40], "damaged picture")],
    ids=["empty", "text", "cut off"],
)
def test_what_is_no_picture_is_not_kept(tmp_path: Path, content: bytes, reason: str) -> None:
    with pytest.raises(UserError, match=f"^not kept: .*{reason}"):
        keep(content, "1", tmp_path)
    assert content_of(tmp_path) == {}


BAD = {
    "another header": ("name,label\n", "row 1: expected the columns file,label,writer, found name,label"),
    "semicolons": ("file;label\n{file};1\n", "row 1: expected the columns file,label,writer, found file;label"),
    "nothing": ("\n", "row 1: expected the columns file,label,writer, found nothing"),
    "a cell too many": (TITLE + "\n{file},1,,\n", "row 2: expected 3 cells, found 4"),
    "no digits": (TITLE + "\n{file},l0,\n", "row 2: label 'l0': expected what the picture shows"),
    "no label": (TITLE + "\n\n{file},,\n", "row 3: label '': expected what the picture shows"),
    "no picture": (
        TITLE + "\n{file},1,\nnone.png,1,\n",
        "row 3: expected the name of a picture beside labels.csv, found 'none.png'",
    ),
    "another folder": (
        TITLE + "\n../up.png,1,\n",
        "row 2: expected the name of a picture beside labels.csv, found '../up.png'",
    ),
    "twice": (TITLE + "\n{file},1,\n{file},1,\n", "row 3: .* is named above already"),
    "a writer": (TITLE + "\n{file},1,=cmd()\n", "row 2: writer '=cmd\\(\\)'"),
    "no file": (TITLE + "\n,1,\n", "row 2: expected the name of a picture beside labels.csv, found ''"),
    "its own name": (TITLE + "\nlabels.csv,1,\n", "row 2: expected the name of a picture"),
    "a hidden file": (TITLE + "\n.lock,1,\n", "row 2: expected the name of a picture beside labels.csv, found '.lock'"),
    "a long name": (TITLE + "\n" + "x" * 5000 + ",1,\n", "row 2: expected the name of a picture .*'x{80}'$"),
    "git's marks": (TITLE + "\n<<<<<<< HEAD\n{file},1,\n", "row 2: expected 3 cells, found 1: <<<<<<< HEAD"),
    "lines in a cell": (TITLE + '\n"{file}\n1",\n', "row 2: expected 3 cells, found 2: [^\n]*$"),
    "an open quote": (TITLE + '\n{file},1,\n"{file},2,\n', "row 3: expected comma-separated values in UTF-8"),
    "another encoding": (TITLE + "\n{file},1,\n{file},1,J\udce9r\n", "row 3: expected comma-separated values in UTF-8"),
    "another alphabet": (TITLE.encode("utf-16").decode("utf-8", "surrogateescape"), "row 1: expected comma-separated"),
}


@pytest.mark.parametrize(("text", "reason"), BAD.values(), ids=BAD.keys())
def test_a_labels_csv_that_was_edited_badly_is_named_with_its_row_and_stays_as_it_is(
    tmp_path: Path, text: str, reason: str
) -> None:
    folder = tmp_path / "kept"
    kept = keep(picture(), "1", folder)
    (tmp_path / "up.png").write_bytes(picture())
    (folder / "labels.csv").write_bytes(text.format(file=kept.file).encode("utf-8", "surrogateescape"))
    before = content_of(folder)
    for change in (
        lambda: keep(picture(2), "2", folder),
        lambda: corrections.delete(kept.file, DIGITS, folder),
        lambda: load(folder),
    ):
        with pytest.raises(UserError, match=rf"labels\.csv, {reason}") as error:
            change()
        assert "\n" not in str(error.value)
        assert content_of(folder) == before


def test_a_labels_csv_that_a_person_wrote_is_read(tmp_path: Path) -> None:
    (tmp_path / "five.png").write_bytes(picture())
    (tmp_path / "labels.csv").write_bytes(b"\xef\xbb\xbflabel, file\r\n 5 , five.png \r\n\r\n")
    assert load(tmp_path) == [Correction("five.png", "5")]
    keep(picture(2), "2", tmp_path)
    assert [each.label for each in load(tmp_path)] == ["5", "2"]


def test_a_folder_that_is_missing_or_empty_holds_no_corrections(tmp_path: Path) -> None:
    assert load(tmp_path) == load(tmp_path / "none") == []
    assert corrections.split([], tmp_path) == corrections.Halves([], [])


def test_pages_that_keep_at_once_lose_nothing(tmp_path: Path) -> None:
    pictures = [picture(seed) for seed in range(24)]
    with ThreadPoolExecutor(8) as pages:
        list(pages.map(lambda content: keep(content, "1", tmp_path), pictures))
    assert sorted(each.file for each in load(tmp_path)) == sorted(map(corrections.name_of, pictures))


def test_processes_that_keep_at_once_lose_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path[:0] = ['tests']; from pathlib import Path; from test_corrections import keep, picture\n"
        "for seed in range(int(sys.argv[2]), 20, 2): keep(picture(seed), '1', Path(sys.argv[1]))"
    )
    both = [subprocess.Popen([sys.executable, "-c", code, tmp_path, str(first)], cwd=files.ROOT) for first in (0, 1)]
    assert [each.wait() for each in both] == [0, 0]
    assert len(load(tmp_path)) == 20


@pytest.mark.parametrize("room", [20, 500], ids=["no room for the picture", "no room for its row"])
def test_a_full_disk_leaves_what_was_kept_as_it_was(tmp_path: Path, room: int) -> None:
    for seed in range(20):
        keep(picture(seed), "1" * 20, tmp_path)
    before = content_of(tmp_path)
    small = picture(99, size=12)
    assert 20 < len(small) < 500 < len(before["labels.csv"])
    full = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, full[1]))  # Python ignores SIGXFSZ: a write fails
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            keep(small, "1", tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, full)
    assert content_of(tmp_path) == before


# Halves


def kept(folder: Path, *writers: str) -> list[Correction]:
    """Keep pictures that are all different, by these writers."""
    return [keep(picture(seed), "1", folder, writer) for seed, writer in enumerate(writers)]


def halves(folder: Path) -> tuple[set[str], set[str]]:
    found = corrections.split(load(folder), folder)
    return {each.file for each in found.learned}, {each.file for each in found.measured}


def test_about_half_of_the_pictures_are_learned_from_and_all_others_measured(tmp_path: Path) -> None:
    every = {each.file for each in kept(tmp_path, *[""] * 60)}
    learned, measured = halves(tmp_path)
    assert not learned & measured
    assert learned | measured == every
    assert 20 <= len(learned) <= 40


def test_the_half_of_a_picture_is_a_function_of_its_content(tmp_path: Path) -> None:
    kept(tmp_path / "one", *[""] * 12)
    for seed in reversed(range(12)):
        keep(picture(seed), "1", tmp_path / "other")
    assert halves(tmp_path / "one") == halves(tmp_path / "other")


def test_a_picture_that_is_added_changes_the_half_of_no_other(tmp_path: Path) -> None:
    before = (set(), set())
    for seed in range(20):
        keep(picture(seed), "1", tmp_path)
        now = halves(tmp_path)
        assert before[0] <= now[0]
        assert before[1] <= now[1]
        before = now


def test_a_writer_is_in_one_half(tmp_path: Path) -> None:
    every = kept(tmp_path, *["Ada", "Bob", "Cy", "Di", "Ed", "Flo"] * 4)
    learned, measured = halves(tmp_path)
    sides = {writer: {each.file in learned for each in every if each.writer == writer} for writer in ["Ada", "Bob"]}
    assert all(len(side) == 1 for side in sides.values())
    assert learned
    assert measured


def test_the_half_of_a_writer_is_a_function_of_the_name(tmp_path: Path) -> None:
    for writer in ("Ada", "Bob", "Cy", "Di", "Ed", "Flo"):
        every = kept(tmp_path / writer, *[writer] * 6)
        before = halves(tmp_path / writer)
        corrections.delete(every[0].file, DIGITS, tmp_path / writer)
        assert halves(tmp_path / writer) == tuple(side - {every[0].file} for side in before)


@pytest.mark.parametrize(("size", "form"), [(160, "JPEG"), (320, "PNG"), (80, "PNG"), (97, "JPEG"), (600, "WEBP")])
def test_a_picture_in_another_size_or_format_is_in_the_same_half_and_counts_once(
    tmp_path: Path, size: int, form: str
) -> None:
    kept(tmp_path, *[""] * 12)
    before = halves(tmp_path)
    for seed in range(12):
        keep(picture(seed, size=size, form=form), "1", tmp_path)
    assert len(load(tmp_path)) == 24
    assert halves(tmp_path) == before


def test_a_picture_in_another_size_with_another_label_is_in_the_same_half(tmp_path: Path) -> None:
    first = kept(tmp_path, *[""] * 12)
    second = [keep(picture(seed, size=320), "7", tmp_path) for seed in range(12)]
    learned, measured = halves(tmp_path)
    assert len(learned | measured) == 24
    for one, other in zip(first, second, strict=True):
        assert (one.file in learned) == (other.file in learned)


def test_a_picture_by_one_writer_that_was_kept_without_one_follows_it(tmp_path: Path) -> None:
    first = kept(tmp_path, *[""] * 12)
    for seed in range(12):
        keep(picture(seed, size=320), "7", tmp_path, "Ada")
    learned, measured = halves(tmp_path)
    assert not (learned and measured)
    assert {each.file for each in first} <= learned | measured


def test_a_picture_that_was_damaged_is_named(tmp_path: Path) -> None:
    first = keep(picture(), "1", tmp_path)
    (tmp_path / first.file).write_bytes(b"")
    with pytest.raises(UserError, match=rf"{first.file}: not a picture: the file is empty; delete it and its row"):
        corrections.split(load(tmp_path), tmp_path)

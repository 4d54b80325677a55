import io
import itertools
import json
import os
import re
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline import files, predict_photo
from pipeline.console import UserError
from pipeline.learning.classifier import DIGITS, Classifier
from pipeline.photos import photo, reading, sheet

READER = Path(__file__).parent / "reader"
SHIPPED = files.ROOT / files.PHOTOS


@pytest.fixture(scope="module")
def classifier():
    return Classifier.load(READER)


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """Return a folder with a model in it, as the current one."""
    (tmp_path / "models").symlink_to(READER)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def answers(capsys, *arguments):
    status = predict_photo.main(["--json", *map(str, arguments)])
    return status, json.loads(capsys.readouterr().out)


def encode(pixels, format="PNG", **options):  # noqa: A002
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format, **options)
    return content.getvalue()


def ink_of_shipped(name):
    """Return the ink of a shipped single digit, float32 0..1, cut out tightly."""
    page = photo.segment_ink(photo.extract_ink(photo.open_picture(SHIPPED / name).grey), reading.SHARES)[1]
    ink = photo.crop_ink(page, [reading.main_piece(page)])
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def on_paper(ink, left=40, top=40, right=40, bottom=40, paper=225, dark=40):
    return np.pad(paper - (paper - dark) * ink, ((top, bottom), (left, right)), constant_values=paper).astype(np.uint8)


CLEAR = {"single_02.jpg": "3", "single_06.jpg": "6", "single_12.jpg": "4", "single_27.jpg": "5", "single_30.jpg": "9"}


NAMES = st.sampled_from(sorted(CLEAR))


@pytest.fixture(scope="module")
def inks():
    return {name: ink_of_shipped(name) for name in CLEAR}


def text(classifier, pixels, read=reading.read_one, **options):
    return read(photo.open_picture(encode(pixels, **options)), classifier).text


@pytest.mark.usefixtures("workplace")
def test_the_contract_of_json(capsys):
    status, found = answers(capsys, "--one", SHIPPED / "single_06.jpg", SHIPPED / "none_54.jpg")
    assert status == 0
    assert [set(one) for one in found] == [{"file", "text", "verdict", "reason", "digits"}] * 2
    first = found[0]
    assert (first["text"], first["verdict"], first["reason"]) == ("6", "digit", "")
    assert set(first["digits"][0]) == {"digit", "name", "probability", "verdict", "box"}
    x, y, width, height = first["digits"][0]["box"]
    size = photo.open_picture(SHIPPED / "single_06.jpg").size
    assert 0 <= x < x + width <= size[0]
    assert 0 <= y < y + height <= size[1]


def test_labels_are_names_of_classes_one_after_the_other(tmp_path):
    path = tmp_path / "labels.csv"
    for classes, good, bad in (
        (DIGITS, ["37", ""], ["3 7", "3x"]),
        (("heart", "star"), ["star heart", ""], ["starheart"]),
    ):
        for label in good:
            path.write_text(f"file,label\na.jpg,{label}\n")
            assert predict_photo.load_labels(path, classes) == {"a.jpg": label}
        for label in bad:
            path.write_text(f"file,label\na.jpg,{label}\n")
            with pytest.raises(UserError, match=f"a.jpg: expected names of data.classes .*'{label}'"):
                predict_photo.load_labels(path, classes)


@pytest.mark.usefixtures("workplace")
def test_a_bad_picture_among_good_ones_is_unreadable_and_the_others_are_read(capsys):
    Path("empty.png").touch()
    Path("words.jpg").write_text("no picture")
    whole = (SHIPPED / "single_06.jpg").read_bytes()
    Path("half.jpg").write_bytes(whole[: len(whole) // 2])
    bad = ["empty.png", "words.jpg", "half.jpg", "missing.png"]
    status, found = answers(capsys, "--one", *bad, SHIPPED / "single_06.jpg")
    assert status == 1
    assert [one["verdict"] for one in found] == ["unreadable"] * 4 + ["digit"]
    assert all(one["reason"] and "\n" not in one["reason"] for one in found[:4])
    assert [one["file"] for one in found[:4]] == bad


@pytest.mark.usefixtures("workplace")
def test_a_folder_is_read_in_name_order(capsys):
    Path("folder").mkdir()
    for name in ("b.jpg", "a.jpg", "C.JPG", "notes.txt"):
        Path("folder", name).write_bytes((SHIPPED / "single_06.jpg").read_bytes())
    _, found = answers(capsys, "folder")
    assert [Path(one["file"]).name for one in found] == ["C.JPG", "a.jpg", "b.jpg"]


@pytest.mark.usefixtures("workplace")
def test_an_empty_folder_is_an_error_that_names_it():
    Path("folder").mkdir()
    with pytest.raises(UserError, match="folder: expected pictures"):
        predict_photo.main(["folder"])


def test_a_missing_model_names_the_command_that_makes_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="dvc repro"):
        predict_photo.main([str(SHIPPED)])


@pytest.mark.usefixtures("workplace")
def test_standard_input_is_read_and_only_the_answer_is_printed():
    command = [sys.executable, "-m", "pipeline.predict_photo", "--one", "--json", "-"]
    content = (SHIPPED / "single_06.jpg").read_bytes()
    done = subprocess.run(command, input=content, capture_output=True, env={"PYTHONPATH": str(files.ROOT)})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["text"] == "6"


def test_the_command_loads_neither_tensorflow_nor_mlflow_nor_pandas():
    code = "import sys; from pipeline import predict_photo; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=files.ROOT).split()
    assert not {"tensorflow", "mlflow", "pandas", "matplotlib", "scipy"} & set(loaded)


@pytest.mark.usefixtures("workplace")
def test_an_explanation_is_a_picture(capsys):
    assert predict_photo.main([str(SHIPPED / "multi_50.jpg"), "--explain", "steps.png"]) == 0
    assert "137" in capsys.readouterr().out
    with Image.open("steps.png") as image:
        assert image.width > 1000


def test_an_explanation_of_two_pictures_is_refused():
    with pytest.raises(UserError, match="expected one picture"):
        predict_photo.main(["a.png", "b.png", "--explain", "steps.png"])


@pytest.mark.slow
def correct(*arguments):
    return predict_photo.main(["--correct", *map(str, arguments)])


def kept(folder):
    path = folder / files.CORRECTIONS / "labels.csv"
    return [(row["label"], row["writer"]) for row in files.read_csv(path)] if path.exists() else []


def test_a_picture_is_kept_with_the_digits_that_it_shows(workplace, capsys):
    assert correct("1000", SHIPPED / "single_06.jpg", "--writer", "Ada") == 0
    name = f"{files.sha256(SHIPPED / 'single_06.jpg')[:16]}.jpg"
    assert capsys.readouterr().err.endswith(f"\nkept: data/corrections/{name}\n")
    assert (workplace / "data/corrections" / name).read_bytes() == (SHIPPED / "single_06.jpg").read_bytes()
    assert kept(workplace) == [("1000", "Ada")]


def test_a_picture_from_standard_input_is_kept(workplace):
    command = [sys.executable, "-m", "pipeline.predict_photo", "--correct", "7", "-"]
    content = (SHIPPED / "single_06.jpg").read_bytes()
    subprocess.run(command, input=content, env=os.environ | {"PYTHONPATH": str(files.ROOT)}, check=True)
    assert kept(workplace) == [("7", "")]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("five", SHIPPED / "single_06.jpg"), "^label 'five': expected what the picture shows, in names of 0, 1"),
        (("", SHIPPED / "single_06.jpg"), "^label '': expected"),
        (("5", SHIPPED), "^--correct: expected one picture, found 60$"),
        (("5", SHIPPED / "single_06.jpg", SHIPPED / "single_01.jpg"), "^--correct: expected one picture, found 2$"),
        (("5", "none.jpg"), "^--correct: none.jpg: no such file$"),
        (("5",), "^--correct: expected one picture, found 0$"),
    ],
)
def test_what_cannot_be_kept_is_one_line_and_nothing_is_kept(workplace, arguments, reason):
    with pytest.raises(UserError, match=reason):
        correct(*arguments)
    assert kept(workplace) == []


@pytest.mark.usefixtures("workplace")
def test_a_writer_without_a_correction_is_refused():
    with pytest.raises(UserError, match="--writer: expected --correct"):
        predict_photo.main(["--writer", "Ada", str(SHIPPED / "single_06.jpg")])


@pytest.mark.slow
def test_the_shipped_pictures_are_read(classifier):
    cards = list(predict_photo.read_folder(SHIPPED, classifier))
    metrics = predict_photo.score(cards)
    assert metrics["photos_scored"] == 60
    assert metrics["photo_accuracy"] >= 0.85
    assert sheet.png(sheet.contact_sheet(cards)) == sheet.png(sheet.contact_sheet(cards))


def test_pictures_without_a_label_are_read_and_not_scored(tmp_path, classifier):
    (tmp_path / "own.jpg").write_bytes((SHIPPED / "single_06.jpg").read_bytes())
    metrics = predict_photo.score(list(predict_photo.read_folder(tmp_path, classifier)))
    assert (metrics["photos_read"], metrics["photos_scored"]) == (1, 0)
    assert "photo_accuracy" not in metrics


@pytest.mark.parametrize(("row", "words"), [("a.jpg,5x", "expected names of"), ("b.jpg,5", "not in the folder")])
def test_wrong_labels_are_errors_that_name_the_picture(tmp_path, classifier, row, words):
    (tmp_path / "a.jpg").write_bytes((SHIPPED / "single_06.jpg").read_bytes())
    (tmp_path / "labels.csv").write_text(f"file,label\n{row}\n")
    with pytest.raises(UserError, match=words):
        list(predict_photo.read_folder(tmp_path, classifier))


TABLE = 'file,label,kind\r\n"a.jpg",6,single\r\nb.jpg,,none\r\n'


@pytest.mark.parametrize(
    "content",
    [
        TABLE.encode("utf-8-sig"),
        TABLE.encode("utf-16"),
        TABLE.replace(",", ";").encode("utf-8-sig"),
        TABLE.replace(",", "\t").encode("utf-16"),
        TABLE.replace(",", " , ").replace("file", "File").encode() + b"\r\n,,\r\n\r\n",
        b"sep=;\r\n" + TABLE.replace(",", ";").encode(),
        (TABLE + "a.jpg,6,single").encode(),
    ],
)
def test_labels_are_read_as_spreadsheets_save_them(tmp_path, content):
    (tmp_path / "labels.csv").write_bytes(content)
    assert predict_photo.load_labels(tmp_path / "labels.csv", DIGITS) == {"a.jpg": "6", "b.jpg": ""}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "expected the columns file and label, found nothing"),
        (b"a.jpg,6", "expected the columns file and label, found a.jpg, 6"),
        (b"file,label\na.jpg,6\na.jpg,7", "row 3: a.jpg is labelled '6' above, and '7' here"),
        (b"file,label\na.jpg", "row 2: expected 2 cells, found 1"),
        (b"file,label\na,b.jpg,6", "row 2: expected 2 cells, found 3"),
        (b"file,label\na.jpg,1.2E+11", "row 2: a.jpg: expected names of data.classes"),
        ("file,label\nä.jpg,6".encode("latin-1"), "expected text in UTF-8 or UTF-16"),
        (b"\xff\xfef", "expected text in UTF-8 or UTF-16"),
    ],
)
def test_what_is_wrong_with_labels_is_said_in_a_line(tmp_path, content, words):
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(UserError, match=re.escape(words)):
        predict_photo.load_labels(tmp_path / "labels.csv", DIGITS)


@pytest.mark.parametrize(("stored", "listed"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_an_umlaut_is_the_same_composed_and_decomposed(tmp_path, classifier, stored, listed):
    name = "fünf.jpg"
    (tmp_path / unicodedata.normalize(stored, name)).write_bytes((SHIPPED / "single_06.jpg").read_bytes())
    (tmp_path / "labels.csv").write_text(f"file,label\n{unicodedata.normalize(listed, name)},6\n")
    [card] = predict_photo.read_folder(tmp_path, classifier)
    assert (card.file, card.label) == (name, "6")


@pytest.mark.usefixtures("workplace")
def test_a_name_that_is_not_utf_8_is_printed_and_its_picture_read(capsys):
    Path("folder").mkdir()
    Path(os.fsdecode(b"folder/f\xfcnf.jpg")).write_bytes((SHIPPED / "single_06.jpg").read_bytes())
    status, found = answers(capsys, "folder")
    assert (status, found[0]["file"], found[0]["text"]) == (0, "folder/f\ufffdnf.jpg", "6")


@pytest.mark.usefixtures("workplace")
def test_what_systems_leave_in_folders_is_no_picture_and_what_people_take_for_one_is_counted(capsys):
    Path("folder").mkdir()
    for name in ("._five.jpg", ".DS_Store", "Thumbs.db", "labels.csv"):
        Path("folder", name).write_bytes(b"\0\5\x16\7")
    for name in ("scan.pdf", "IMG_1.HEIC"):
        Path("folder", name).write_bytes(b"%PDF-1.7")
    _, found = answers(capsys, "folder")
    assert [(one["file"], one["verdict"]) for one in found] == [
        ("folder/IMG_1.HEIC", "unreadable"),
        ("folder/scan.pdf", "unreadable"),
    ]


@settings(max_examples=50, deadline=None)
@given(
    name=NAMES,
    left=st.integers(20, 300),
    top=st.integers(20, 200),
    right=st.integers(20, 300),
    bottom=st.integers(20, 200),
)
def test_a_moved_digit_is_the_same_digit(classifier, inks, name, left, top, right, bottom):
    assert text(classifier, on_paper(inks[name], left, top, right, bottom)) == CLEAR[name]


@settings(max_examples=50, deadline=None)
@given(name=NAMES, factor=st.floats(0.5, 4))
def test_a_scaled_digit_is_the_same_digit(classifier, inks, name, factor):
    page = on_paper(inks[name])
    smooth = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    assert text(classifier, cv2.resize(page, None, fx=factor, fy=factor, interpolation=smooth)) == CLEAR[name]


@settings(max_examples=60, deadline=None)
@given(
    name=NAMES,
    paper=st.integers(150, 255),
    contrast=st.floats(0.25, 0.9),
    tint=st.tuples(*[st.floats(0.6, 1)] * 3),
    invert=st.booleans(),
)
def test_a_brightened_tinted_or_inverted_digit_is_the_same_digit(classifier, inks, name, paper, contrast, tint, invert):
    page = on_paper(inks[name], paper=paper, dark=round(paper * (1 - contrast)))
    colour = (page[..., None] * np.array(tint)).astype(np.uint8)
    assert text(classifier, 255 - colour if invert else colour) == CLEAR[name]


@settings(max_examples=50, deadline=None)
@given(name=NAMES, low=st.floats(0.4, 1), quality=st.integers(30, 95), across=st.booleans())
def test_a_gradient_and_a_poor_jpeg_change_nothing(classifier, inks, name, low, quality, across):
    page = on_paper(inks[name])
    light = np.linspace(low, 1, page.shape[1])[None] if across else np.linspace(low, 1, page.shape[0])[:, None]
    assert text(classifier, (page * light).astype(np.uint8), format="JPEG", quality=quality) == CLEAR[name]


def test_two_digits_side_by_side_read_as_the_two_alone(classifier, inks):
    for first, one in inks.items():
        for second, other in inks.items():
            pages = [on_paper(ink, top=20, bottom=20 + 160 - ink.shape[0], left=15, right=15) for ink in (one, other)]
            assert text(classifier, np.hstack(pages), reading.read) == CLEAR[first] + CLEAR[second]


def touching(one, other):
    """Return two inks that overlap by a few pixels at one place at least."""
    one, other = (cv2.resize(ink, (round(120 * ink.shape[1] / ink.shape[0]), 120)) for ink in (one, other))
    for first in range(one.shape[1], 0, -1):
        both = np.zeros((2, 120, max(one.shape[1], first + other.shape[1])))
        both[0, :, : one.shape[1]], both[1, :, first : first + other.shape[1]] = one, other
        if (both.min(0) > 0.5).sum() > 20:
            break
    return both.max(0)


def test_most_digits_that_touch_are_read_as_the_two_alone(classifier, inks):
    pairs = [(first, second) for first in inks for second in inks]
    pages = (np.pad(touching(inks[first], inks[second]), 40) for first, second in pairs)
    said = [text(classifier, 230 - (180 * page).astype(np.uint8), reading.read) for page in pages]
    right = [found == CLEAR[first] + CLEAR[second] for found, (first, second) in zip(said, pairs, strict=True)]
    assert sum(right) >= 0.8 * len(right)


def test_a_digit_on_a_ruled_line_is_read_though_it_is_lower_than_its_neighbours(classifier):
    high, low = ink_of_shipped("single_06.jpg"), cv2.resize(ink_of_shipped("single_27.jpg"), (50, 66))
    row = np.zeros((200, 400), np.float32)
    row[60:160, 60:120], row[60:160, 260:320] = (cv2.resize(high, (60, 100)),) * 2
    row[94:160, 165:215] = low
    page = 230 - (180 * row).astype(np.uint8)
    page[150:153] = np.minimum(page[150:153], 130)
    assert text(classifier, page, reading.read) == "656"


@pytest.mark.parametrize("width", [30, 50])
def test_the_rim_of_a_tilted_cell_is_no_digit(classifier, width):
    page = on_paper(ink_of_shipped("single_06.jpg"), 60, 60, 60, 60)
    bottom, right = page.shape
    cv2.fillPoly(page, [np.array([[right, 0], [right, bottom], [right - width, bottom]], np.int32)], 30)
    assert text(classifier, page, reading.read) == "6"


def test_a_digit_that_only_just_meets_the_edge_of_a_page_of_small_digits_is_read(classifier):
    inks = [cv2.resize(ink_of_shipped(name), (40, 60)) for name in ("single_06.jpg", "single_27.jpg")]
    page = np.zeros((700, 700), np.float32)
    page[300:360, :34], page[300:360, 80:120] = inks[0][:, 6:], inks[1]
    assert text(classifier, 230 - (180 * page).astype(np.uint8), reading.read) == "65"


def test_the_edge_of_the_paper_on_a_table_is_no_digit(classifier):
    page = np.full((300, 405), 60.0)
    page[:, :300] = 250
    cv2.polylines(page, [np.array([[135, 135], [163, 137], [149, 175]], np.int32)], False, 120, 2, cv2.LINE_AA)
    grain = np.random.default_rng(0).normal(0, 3, page.shape)
    picture = photo.open_picture(encode(np.clip(page + grain, 0, 255).astype(np.uint8)))
    found = [read(picture, classifier) for read in (reading.read, reading.read_one)]
    assert [(each.text, each.verdict, each.digits[0].box) for each in found] == [("7", "digit", (134, 134, 31, 43))] * 2


def row_of_shipped(names=("single_06.jpg", "single_27.jpg", "single_06.jpg"), height=70):
    """Return ink of digits beside each other, with room around them, and where their bottom is."""
    inks = [ink_of_shipped(name) for name in names]
    inks = [cv2.resize(ink, (round(height * ink.shape[1] / ink.shape[0]), height)) for ink in inks]
    return np.pad(np.hstack([np.pad(ink, ((60, 60), (15, 15))) for ink in inks]), ((0, 0), (60, 60))), 60 + height


@pytest.mark.parametrize(("gaps", "thick", "left"), [((12,), 5, 55), ((12, 24), 7, 55), ((-4,), 5, 20)])
def test_an_underline_is_no_digit_be_it_double_or_through_the_feet_of_the_digits(classifier, gaps, thick, left):
    row, bottom = row_of_shipped()
    for gap in gaps:
        cv2.line(row, (left, bottom + gap), (row.shape[1] - left, bottom + gap + 3), 1.0, thick, cv2.LINE_AA)
    assert text(classifier, 230 - (180 * row).astype(np.uint8), reading.read) == "656"


def test_a_comb_to_write_in_is_no_digit(classifier):
    row, bottom = row_of_shipped()
    left, right = 50, row.shape[1] - 50
    cv2.line(row, (left, bottom + 14), (right, bottom + 14), 1.0, 3)
    for x in np.linspace(left, right, 4).round().astype(int):
        cv2.line(row, (x, bottom - 16), (x, bottom + 14), 1.0, 3)
    assert text(classifier, 230 - (180 * row).astype(np.uint8), reading.read) == "656"


MARKS = {  # between the digits of a row: places in heights from its base line, and how long
    "comma": ((0.08, -0.06), (-0.06, 0.22)),
    "long comma": ((0.1, -0.3), (-0.06, 0.25)),
    "full stop": ((0, -0.1), (0, -0.03)),
    "apostrophe": ((0.05, -1.1), (-0.03, -0.8)),
}


@pytest.mark.parametrize("mark", MARKS)
def test_a_mark_between_digits_is_no_digit_however_like_a_one(classifier, mark):
    row, bottom = row_of_shipped(("single_06.jpg", "single_27.jpg", "single_06.jpg", "single_12.jpg"))
    places = np.flatnonzero((row > 0.5).any(0))
    for left, right in itertools.pairwise(places):
        if right - left > 15:
            ends = [(int((left + right) / 2 + 70 * x), int(bottom + 70 * y)) for x, y in MARKS[mark]]
            cv2.line(row, *ends, 1.0, 7, cv2.LINE_AA)
    found = reading.read(photo.open_picture(encode(230 - (180 * row).astype(np.uint8))), classifier)
    assert found.text == "6564"


def test_a_seven_much_higher_than_its_neighbours_is_no_line(classifier):
    row, bottom = row_of_shipped(("single_06.jpg", "single_27.jpg"))
    row = np.pad(row, ((0, 60), (0, 90)))
    left = row.shape[1] - 130
    seven = np.array([[left, bottom - 70], [left + 45, bottom - 75], [left + 10, bottom + 70]], np.int32)
    cv2.polylines(row, [seven], False, 1.0, 8, cv2.LINE_AA)
    assert text(classifier, 230 - (180 * row).astype(np.uint8), reading.read) == "657"


@pytest.mark.parametrize("pitch", [25, 40, 90])
def test_squared_paper_neither_hides_a_thin_digit_nor_is_one(classifier, pitch):
    page = np.full((360, 500), 225, np.uint8)
    for at in range(12, 500, pitch):
        cv2.line(page, (at, 0), (at - 20, 360), 185, 2, cv2.LINE_AA)
        cv2.line(page, (0, at), (500, at + 20), 185, 2, cv2.LINE_AA)
    for x in (130, 360):
        cv2.ellipse(page, (x, 180), (45, 60), 10, 0, 360, 60, 4, cv2.LINE_AA)
    assert text(classifier, page, reading.read) == "00"


def test_of_a_page_full_of_marks_no_more_is_looked_at_than_of_a_full_page_of_digits(classifier):
    rng = np.random.default_rng(2)
    page = np.full((1200, 1200), 225, np.uint8)
    for x, y in rng.integers(0, 1190, (2500, 2)):
        cv2.line(page, (int(x), int(y)), (int(x) + 9, int(y) + int(rng.integers(-5, 5))), 40, 2)
    assert len(photo.segment_ink(photo.extract_ink(page), (0.25,))[0].pieces) == photo.MANY
    assert reading.read(photo.open_picture(encode(page)), classifier).verdict != "digit"


class Counting(Classifier):
    """A classifier that knows how many fields it has read."""

    fields = 0

    def raw(self, fields):
        self.fields += len(fields)
        return super().raw(fields)


def test_hatching_is_not_cut_into_digits():
    counting = Counting.load(READER)
    page, rng = np.full((1600, 1600), 220, np.uint8), np.random.default_rng(0)
    for number in range(290):
        x, y = 60 + 90 * (number % 17), 40 + 90 * (number // 17)
        cv2.line(page, (x, y), (x + 60, y + int(rng.integers(-9, 9))), 40, 4)
    assert reading.read(photo.open_picture(encode(page)), counting).verdict != "digit"
    assert photo.MANY <= counting.fields < 10 * photo.MANY


@pytest.mark.parametrize(("axes", "slant"), [((50, 40), 0), ((62, 40), 0), ((66, 44), 20), ((66, 40), 40)])
def test_a_wide_zero_is_not_cut_in_two(classifier, axes, slant):
    page = np.full((210, 400), 230, np.uint8)
    for x in (110, 290):
        cv2.ellipse(page, (x, 105), axes, -slant, 0, 360, 50, 8, cv2.LINE_AA)
    assert text(classifier, page, reading.read) == "00"


def test_ink_that_was_cut_is_read_and_the_reading_is_unsure(classifier):
    page = np.pad(touching(ink_of_shipped("single_06.jpg"), ink_of_shipped("single_27.jpg")), 40)
    found = reading.read(photo.open_picture(encode(230 - (180 * page).astype(np.uint8))), classifier)
    assert (found.text, found.verdict, found.reason) == ("65", "unsure", "ink that hangs together was cut into digits")


def test_a_letter_beside_a_digit_makes_the_reading_unsure(classifier):
    page = np.pad(on_paper(ink_of_shipped("single_06.jpg")), ((0, 0), (0, 150)), constant_values=225)
    middle = page.shape[0] // 2
    cv2.putText(page, "W", (page.shape[1] - 140, middle + 40), cv2.FONT_HERSHEY_SIMPLEX, 4, 40, 8, cv2.LINE_AA)
    found = reading.read(photo.open_picture(encode(page)), classifier)
    assert (found.text, found.verdict, found.reason) == ("6", "unsure", "some of the ink is not like a digit")


@pytest.mark.parametrize("degrees", [-10, -5, 5, 10])
def test_rows_are_read_from_the_top_and_from_the_left_though_the_page_is_tilted(classifier, degrees):
    inks = [cv2.resize(ink_of_shipped(name), (40, 60)) for name in sorted(CLEAR)]
    row = np.hstack([np.pad(ink, 20) for ink in inks])
    page = 230 - (180 * np.pad(np.vstack([row, row[:, ::-1][:, ::-1], row]), 60)).astype(np.uint8)
    turn = cv2.getRotationMatrix2D((page.shape[1] / 2, page.shape[0] / 2), degrees, 1)
    page = cv2.warpAffine(page, turn, page.shape[::-1], borderValue=230)
    assert text(classifier, page, reading.read) == "".join(CLEAR[name] for name in sorted(CLEAR)) * 3


@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_blank_page_is_no_digit_and_no_guess(classifier, value):
    found = reading.read(photo.open_picture(encode(np.full((80, 90), value, np.uint8))), classifier)
    assert (found.text, found.verdict, found.reason) == ("", "no digit", "no ink")


def mutated(content, rng):
    """Return a picture's bytes cut, flipped, overwritten or with another size in its header."""
    damaged = bytearray(content)
    match int(rng.integers(4)):
        case 0:
            return bytes(damaged[: int(rng.integers(0, len(damaged)))])
        case 1:
            for place in rng.integers(0, len(damaged), int(rng.integers(1, 30))):
                damaged[place] ^= 1 << int(rng.integers(8))
        case 2:
            damaged[: int(rng.integers(1, 40))] = rng.bytes(int(rng.integers(1, 40)))
        case _:
            place = int(rng.integers(4, 40))
            damaged[place : place + 4] = rng.bytes(4)
    return bytes(damaged)


@pytest.mark.slow
def test_two_thousand_damaged_pictures_end_in_a_verdict(classifier):
    rng = np.random.default_rng(8)
    page = on_paper(ink_of_shipped("single_06.jpg"))
    kinds = [encode(page, kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")]
    for number in range(2000):
        content, start = mutated(kinds[number % len(kinds)], rng), time.perf_counter()
        try:
            verdict = reading.read(photo.open_picture(content), classifier).verdict
        except photo.UnreadableError:
            verdict = "unreadable"
        assert verdict in ("digit", "unsure", "no digit", "unreadable"), number
        assert time.perf_counter() - start < 5, number

"""Reading several digits: which pieces of ink are one digit, and which are none."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.learning.classifier import Classifier
from pipeline.photos import photo, reading
from pipeline.photos.photo import Picture, Piece


@pytest.fixture(scope="module")
def classifier():
    return Classifier.load(Path(__file__).parents[1] / "reader")


def drawn(*digits, shape=(300, 400)):
    """Return a page with sevens, ones and zeros: (kind, x, y, height) each."""
    page = np.full(shape, 225, np.uint8)
    for kind, x, y, h in digits:
        if kind == 0:
            cv2.ellipse(page, (x + h // 3, y + h // 2), (h // 3, h // 2), 10, 0, 360, 40, 6, cv2.LINE_AA)
        else:
            corners = {1: [[h // 4, 0], [0, h]], 7: [[0, 0], [h // 2, 0], [h // 5, h]]}[kind]
            cv2.polylines(page, [np.add(corners, (x, y)).astype(np.int32)], False, 40, 6, cv2.LINE_AA)
    return page


def read(page, classifier):
    return reading.read(Picture(page, 1.0, page.shape[::-1]), classifier)


@pytest.mark.parametrize("thick", [2, 5, 8])
@pytest.mark.parametrize("dividers", [(), (205,)])
def test_the_sides_of_a_box_and_what_divides_it_are_no_ones(classifier, thick, dividers):
    page = drawn((7, 120, 120, 60), (0, 250, 120, 60))
    cv2.rectangle(page, (10, 98), (390, 205), 40, thick, cv2.LINE_AA)
    for x in dividers:
        cv2.line(page, (x, 98), (x, 205), 40, thick, cv2.LINE_AA)
    assert read(page, classifier).text == "70"


@pytest.mark.parametrize("places", [(95, 165, 235), (165,), (95, 165)], ids=["all", "one", "two"])
@pytest.mark.parametrize("past", [14, 30])
@pytest.mark.parametrize("tilt", [-20, 0, 20])
def test_lines_between_digits_are_no_ones(classifier, places, past, tilt):
    page = drawn((7, 110, 120, 60), (1, 190, 120, 60), (7, 255, 120, 60))
    for x in {95, 300, *places}:
        cv2.line(page, (x, 120 - past), (x, 180 + past), 40, 4, cv2.LINE_AA)
    turn = cv2.getRotationMatrix2D((200, 150), tilt / 4, 1)
    page = cv2.warpAffine(page, turn, (400, 300), borderMode=cv2.BORDER_REPLICATE)
    assert read(page, classifier).text == "717"


@pytest.mark.parametrize("lean", [-5, 0, 5])
@pytest.mark.parametrize(("past", "verdict"), [(14, "unsure"), (30, "digit")])
def test_a_line_between_two_digits_is_no_one_and_unsure_where_as_low_as_digits_are(classifier, past, verdict, lean):
    page = drawn((7, 110, 120, 60), (0, 190, 120, 60))
    cv2.line(page, (165 - lean, 120 - past), (165 + lean, 180 + past), 40, 4, cv2.LINE_AA)
    found = read(page, classifier)
    assert (found.text, found.verdict) == ("70", verdict)


@pytest.mark.parametrize("ones", [(60, 200), (60, 130, 270)])
def test_ones_that_stand_on_the_line_of_smaller_digits_are_read(classifier, ones):
    page = drawn(*((0, x, 110, 70) for x in {60, 130, 200, 270} - {*ones}))
    for x in ones:
        cv2.line(page, (x + 20, 80), (x + 20, 180), 40, 6, cv2.LINE_AA)
    assert read(page, classifier).text == "".join("01"[x in ones] for x in (60, 130, 200, 270))


def test_the_shadow_of_a_hand_does_not_decide_how_high_digits_are(classifier):
    page = drawn((7, 60, 50, 40), (1, 110, 50, 40), (7, 150, 50, 40), (0, 190, 50, 40))
    shadow = np.zeros(page.shape, np.float32)
    cv2.ellipse(shadow, (230, 200), (90, 30), 5, 0, 360, 1, -1)
    page = (page * (1 - 0.5 * cv2.GaussianBlur(shadow, (0, 0), 9))).astype(np.uint8)
    assert read(page, classifier).text == "7170"


def test_a_digit_between_the_corners_of_a_border_is_no_shadow():
    strength = np.zeros((120, 120), np.float32)
    cv2.rectangle(strength, (0, 0), (119, 119), 1, 23)
    cv2.line(strength, (50, 40), (70, 90), 1, 8)
    labels = np.zeros((120, 120), np.int32)
    labels[:12, :12], labels[:12, -12:], labels[30:100, 40:80] = 1, 2, strength[30:100, 40:80] * 3
    boxes = [(0, 0, 12, 12), (108, 0, 12, 12), (40, 30, 40, 70)]
    pieces = tuple(Piece(label, box, 144, label < 3, label) for label, box in enumerate(boxes, 1))
    assert pieces[2] not in photo._find_shadows(pieces, labels, strength)


@pytest.mark.parametrize("high", [30, 36, 44, 52])
def test_large_commas_are_no_digits(classifier, high):
    digits = [(7, 30, 60, 60), (1, 110, 60, 60), (7, 190, 60, 60), (0, 260, 60, 60)]
    page = drawn(*digits, *((1, x, 114 - high // 6, high) for x in (80, 160, 240)))
    assert read(page, classifier).text == "7170"


@pytest.mark.parametrize("high", [36, 44])
def test_large_commas_between_two_rows_are_no_digits(classifier, high):
    digits = [(kind, x, y, 60) for y in (30, 130) for kind, x in ((7, 30), (0, 110), (7, 190), (0, 270))]
    page = drawn(*digits, *((1, x, y + 54, high) for y in (30, 130) for x in (80, 160, 240)))
    assert read(page, classifier).text == "70707070"


@pytest.mark.parametrize(("thick", "lines", "wide"), [(6, [150], 60), (10, [128, 172], 44), (14, [134, 166], 28)])
def test_a_minus_and_an_equals_sign_are_no_digits(classifier, thick, lines, wide):
    page = drawn((7, 60, 110, 80), (0, 124 + thick + wide, 110, 80), (1, 214 + wide, 110, 80))
    for y in lines:
        cv2.line(page, (112, y), (112 + wide, y), 40, thick, cv2.LINE_AA)
    assert read(page, classifier).text == "701"


@pytest.mark.parametrize("top", [112, 130])
def test_a_row_of_smaller_digits_is_read_too(classifier, top):
    page = drawn((7, 60, 20, 80), (0, 140, 20, 80), (7, 220, 20, 80), (1, 100, top, 60), (7, 180, top, 60))
    assert read(page, classifier).text == "70717"


def test_the_middle_of_a_row_is_the_same_in_any_order_of_its_digits():
    row = [Piece(label, (60 * label, 20 * label, 40, 60), 900, False, label) for label in (1, 2, 3, 4)]
    comma = [Piece(9, (150, 90, 10, 20), 100, False, 9)]
    assert reading._middle_line(row[::-1], comma, 60) == reading._middle_line(row, comma, 60) == pytest.approx([75])


@pytest.mark.parametrize(("height", "gap"), [(34, 12), (40, 8), (46, 6)])
def test_a_one_beside_a_small_zero_is_not_joined_to_a_six(classifier, height, gap):
    page = drawn((7, 60, 100, 90), (1, 140, 100, 90), (0, 162 + gap, 186 - height, height), (7, 260, 100, 90))
    assert read(page, classifier).text == "7107"


@pytest.mark.parametrize("gap", [-8, 0])
def test_zeros_that_lie_along_each_other_are_cut_straight(classifier, gap):
    assert read(drawn((0, 100, 100, 80), (0, 153 + gap, 80, 100)), classifier).text == "00"


def test_no_cut_crosses_another():
    mask = np.fromfunction(lambda y, x: abs(x - 45 - y) > 3, (60, 150))  # a gap at a slant
    paths = [cut.path for cut in reading._find_cuts(mask, 60, 5)]
    assert len(paths) > 3
    assert (np.diff(paths, axis=0) >= 0).all()


@pytest.mark.parametrize("table", [40, 150])
def test_a_sheet_may_be_small_on_its_table(classifier, table):
    page = cv2.copyMakeBorder(
        drawn((7, 60, 90, 90), (1, 150, 90, 90), (0, 230, 90, 90)), 320, 320, 380, 380, 0, value=table
    )
    assert read(page, classifier).text == "710"


def test_a_table_of_thick_lines_without_a_frame_is_taken_out(classifier):
    page = drawn((7, 110, 100, 60), (0, 190, 100, 60), (0, 110, 190, 60), (7, 190, 190, 60))
    cv2.line(page, (80, 175), (260, 173), 40, 10, cv2.LINE_AA)
    cv2.line(page, (170, 90), (168, 260), 40, 10, cv2.LINE_AA)
    assert read(page, classifier).text == "7007"


def test_lines_that_cross_do_not_decide_how_high_digits_are():
    boxes = [(80, 80, 180, 180, 4000), *((x, y, 40, 60, 900) for x in (110, 190) for y in (100, 190))]
    pieces = tuple(Piece(label, box, area, False, label) for label, (*box, area) in enumerate(boxes, 1))
    assert photo.median_height(pieces) == 60


@pytest.mark.parametrize("thick", [3, 6])
def test_a_digit_that_meets_the_frame_of_a_table_is_read(classifier, thick):
    page = drawn((7, 110, 120, 60), (0, 220, 110, 60))
    cv2.rectangle(page, (60, 80), (300, 180), 40, thick, cv2.LINE_AA)
    cv2.line(page, (190, 80), (190, 180), 40, thick, cv2.LINE_AA)
    assert read(page, classifier).text == "70"


@pytest.mark.parametrize("thick", [5, 7])
def test_of_a_box_with_one_bent_side_no_side_is_read(classifier, thick):
    page = drawn((0, 150, 110, 64))
    corners = np.array([[122, 95], [220, 90], [220, 198], [122, 217], [113, 156]])
    cv2.polylines(page, [corners], True, 40, thick, cv2.LINE_AA)
    assert read(page, classifier).text == "0"


@pytest.mark.parametrize(("high", "verdict"), [(24, "digit"), (34, "unsure")])
def test_ink_as_high_as_a_digit_that_stays_unread_makes_the_answer_unsure(classifier, high, verdict):
    page = drawn((7, 60, 120, 60), (0, 130, 120, 60), (7, 300, 120, 60))
    cv2.rectangle(page, (220, 150 - high // 2), (240, 150 + high // 2), 40, -1)
    found = read(page, classifier)
    assert (found.text, found.verdict) == ("707", verdict)


@pytest.mark.parametrize(("places", "text", "verdict"), [((105,), "71070", "unsure"), ((105, 225), "7070", "digit")])
def test_of_leaning_lines_between_digits_two_are_no_ones_and_one_is_unsure(classifier, places, text, verdict):
    page = drawn((7, 50, 120, 60), (0, 130, 120, 60), (7, 180, 120, 60), (0, 250, 120, 60))
    for x in places:
        cv2.line(page, (x + 20, 98), (x - 20, 202), 40, 4, cv2.LINE_AA)
    found = read(page, classifier)
    assert (found.text, found.verdict) == (text, verdict)


@pytest.mark.parametrize("wide", [12, 18])
def test_a_narrow_zero_that_stands_out_is_no_line_between_digits(classifier, wide):
    page = drawn((7, 40, 120, 60), (7, 180, 120, 60), (7, 320, 120, 60))
    for x in (130, 270):
        cv2.ellipse(page, (x, 150), (wide, 37), 0, 0, 360, 40, 12, cv2.LINE_AA)
    found = read(page, classifier)
    assert len(found.digits) == 5 or found.verdict != "digit"
    assert len(found.text) == 5


@pytest.mark.parametrize("shade", [120, 180])
def test_digits_in_a_shaded_row_of_a_table_are_read(classifier, shade):
    page = drawn((7, 60, 140, 60), (0, 160, 140, 60))
    page[:90] = shade
    page = np.minimum(page, drawn((7, 60, 20, 55), (7, 160, 20, 55), (0, 260, 20, 55)))
    assert read(page, classifier).text == "77070"


def test_a_row_that_the_edge_cuts_by_a_third_makes_the_answer_unsure(classifier):
    page = drawn((7, 60, 30, 60), (0, 150, 30, 60), (7, 60, 140, 60), (0, 150, 140, 60), (7, 240, 140, 60))
    found = read(page[50:], classifier)
    assert found.verdict == "unsure"
    assert found.text.endswith("707")


def test_a_small_digit_below_the_middle_of_its_row_makes_the_answer_unsure(classifier):
    found = read(drawn((7, 60, 100, 80), (0, 150, 100, 80), (7, 225, 150, 40)), classifier)
    assert (found.text == "707") or found.verdict == "unsure"


@pytest.mark.parametrize("side", [0, 1, 2, 3])
def test_the_rim_of_a_table_beside_small_digits_is_no_sure_one(classifier, side):
    page = drawn((7, 120, 150, 24), (0, 160, 150, 24), shape=(400, 400))
    rim = np.full((400, 400), 225, np.uint8)
    cv2.line(rim, (330, 90), (399, 330), 40, 14, cv2.LINE_AA)
    found = read(np.minimum(page, np.rot90(rim, side)), classifier)
    assert found.verdict != "digit"


def test_a_page_of_more_digits_than_are_looked_at_is_unsure(classifier):
    places = [(60 * column + 20, 60 * row + 15) for row in range(18) for column in range(17)]
    found = read(drawn(*((7, x, y, 44) for x, y in places), shape=(1110, 1060)), classifier)
    assert len(found.digits) < len(places)
    assert found.verdict == "unsure"


@pytest.mark.parametrize("kind", [7, 0])
@pytest.mark.parametrize("high", [90, 105])
def test_a_tall_digit_that_meets_the_frame_of_smaller_ones_is_not_lost_in_silence(classifier, kind, high):
    page = drawn((7, 110, 150, 50), (0, 170, 150, 50), (kind, 250, 212 - high, high))
    cv2.rectangle(page, (60, 80), (340, 210), 40, 4, cv2.LINE_AA)
    found = read(page, classifier)
    assert found.text == f"70{kind}" or found.verdict != "digit"


def on_the_edge_of(page, sides, dark, wood=0):
    """Return ``page`` with a table on the left of it, or below, or both, the grain of its wood along the rows."""
    rng = np.random.default_rng(4)
    table = dark + cv2.GaussianBlur(rng.normal(0, wood + 1e-6, (380, 480)), (0, 0), 40, sigmaY=1.2)
    table = cv2.GaussianBlur(table, (0, 0), 1).clip(0, 255).astype(np.uint8)
    table[:300, 80:] = page
    return table[: 300 if sides == "left" else 380, 80 if sides == "below" else 0 :]


@pytest.mark.parametrize("sides", ["left", "below", "left and below"])
@pytest.mark.parametrize(("dark", "wood"), [(60, 0), (60, 40), (110, 0)])
def test_the_table_may_be_seen_on_one_side_of_the_paper_or_two(classifier, sides, dark, wood):
    page = drawn((7, 60, 100, 80), (0, 150, 100, 80), (7, 240, 100, 80))
    found = read(on_the_edge_of(page, sides, dark, wood), classifier)
    assert (found.text, found.verdict) == ("707", "digit")


@pytest.mark.parametrize("shade", [80, 140])
def test_digits_beyond_a_sharp_edge_are_not_lost_in_silence(classifier, shade):
    page = drawn((7, 60, 140, 60), (0, 160, 140, 60))
    page[:90] = shade
    page = np.minimum(page, drawn((0, 160, 20, 55), (0, 194, 20, 55)))
    assert read(page, classifier).verdict == "unsure"


@pytest.mark.parametrize("soft", [1, 8, 20])
def test_digits_in_a_shadow_over_half_of_the_paper_are_read(classifier, soft):
    page = drawn((7, 60, 100, 80), (0, 150, 100, 80), (7, 290, 100, 80))
    light = cv2.GaussianBlur(np.repeat([[1.0] * 260 + [0.45] * 140], 300, 0), (0, 0), soft)
    assert read((page * light).astype(np.uint8), classifier).text == "707"


@pytest.mark.parametrize("wide", [30, 44])
@pytest.mark.parametrize("off", [-3, 0, 3])
def test_a_plus_sign_is_no_digit(classifier, wide, off):
    page = drawn((7, 60, 110, 80), (0, 200, 110, 80), (1, 280, 110, 80))
    cv2.line(page, (150 - wide // 2, 150 + off), (150 + wide // 2, 150), 40, 6, cv2.LINE_AA)
    cv2.line(page, (150 + off, 150 - wide // 2), (150, 150 + wide // 2), 40, 6, cv2.LINE_AA)
    found = read(page, classifier)
    assert (found.text, found.verdict) == ("701", "digit")


def test_a_sheet_that_was_read_alone_is_shown_without_the_table(classifier):
    page = on_the_edge_of(drawn((7, 60, 100, 80), (0, 150, 100, 80), (7, 240, 100, 80)), "left and below", 60, 300)
    picture = Picture(page, 1.0, page.shape[::-1])
    found = reading.read(picture, classifier)
    assert picture.grey[-20:].max() < 120
    assert found.seen[-20:].min() > 150

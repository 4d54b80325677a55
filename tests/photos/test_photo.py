"""Preparing a photograph: what must not change the field, and what a file that cannot be read is told."""

import io
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline import files, preprocess
from pipeline.photos import photo, reading
from pipeline.photos.photo import Picture, UnreadableError


@pytest.fixture(scope="module")
def images(raw_mnist):
    return preprocess.read_pair(raw_mnist, "t10k")[0]


def encode(pixels, format="PNG", **options):  # noqa: A002
    content = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(content, format, **options)
    return content.getvalue()


def page_with_a_seven(height=200, width=200, dark=40, bright=220):
    page = np.full((height, width), bright, np.uint8)
    cv2.polylines(page, [np.array([[60, 50], [140, 55], [95, 150]], np.int32)], False, dark, 12, cv2.LINE_AA)
    return page


def prepared(pixels):
    picture = photo.open_picture(encode(pixels))
    [page] = photo.segment_ink(photo.extract_ink(picture.paper), reading.SHARES[-1:])
    return photo.prepare_field(photo.crop_ink(page, [reading.main_piece(page)]))


@pytest.mark.parametrize("factor", [3, 6, 11])
def test_an_enlarged_moved_and_framed_digit_comes_back_to_the_pixel(images, factor):
    rng = np.random.default_rng(factor)
    for image in images[:300]:
        frame = rng.integers(0, 90, 4)
        large = np.pad(np.kron(image, np.ones((factor, factor), np.uint8)), (frame[:2], frame[2:]))
        np.testing.assert_array_equal(photo.prepare_field(large.astype(np.float32) / 255), image)


@pytest.mark.slow
@pytest.mark.parametrize("invert", [False, True])
def test_nearly_every_digit_comes_back_to_the_pixel_from_a_whole_photograph(images, invert):
    """One in thirty is in two pieces, which a photograph of a page cannot know to be one digit."""
    same = 0
    for image in images[:200]:
        large = np.pad(np.kron(image, np.ones((6, 6), np.uint8)), 40)
        same += bool((prepared(255 - large if invert else large) == image).all())
    assert same >= 185


def test_ink_is_found_in_either_polarity():
    page = page_with_a_seven()
    assert not photo.extract_ink(page).white
    assert photo.extract_ink(255 - page).white
    np.testing.assert_allclose(prepared(page).astype(int), prepared(255 - page).astype(int), atol=40)


def test_the_grain_of_a_large_page_does_not_decide_the_polarity_of_a_small_digit():
    page = np.random.default_rng(1).normal(235, 2, (1200, 1200)).clip(0, 255).astype(np.uint8)
    cv2.polylines(page, [np.array([[540, 540], [603, 542], [571, 630]], np.int32)], False, 120, 4, cv2.LINE_AA)
    assert not photo.extract_ink(page).white
    assert photo.extract_ink(255 - page).white


@pytest.mark.parametrize("sigma", [40, 60])
@pytest.mark.parametrize("strength", [0.4, 0.8])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_glow_of_a_lamp_is_not_ink_nor_is_a_shadow_on_a_board(sigma, strength, sign):
    page = np.pad(page_with_a_seven(dark=70, bright=175), 100, constant_values=175).astype(float)
    y, x = np.ogrid[:400, :400]
    glow = strength * np.exp(-((x - 250) ** 2 + (y - 180) ** 2) / (2 * sigma**2))
    lit = page + glow * (240 - page)
    assert photo.extract_ink((lit if sign > 0 else 255 - lit).astype(np.uint8)).white == (sign < 0)


def test_a_light_gradient_is_divided_away():
    light = np.linspace(0.5, 1, 200)[None]
    off = np.abs(prepared(page_with_a_seven()).astype(int) - prepared((page_with_a_seven() * light).astype(np.uint8)))
    assert off.mean() < 4


def test_ruled_lines_and_a_frame_are_found_and_the_digit_is_kept():
    page = page_with_a_seven()
    lined = page.copy()
    lined[::32] = 120
    cv2.rectangle(lined, (3, 3), (196, 196), 30, 5)
    off = np.abs(prepared(page).astype(int) - prepared(lined))
    assert off.mean() < 10


@pytest.mark.parametrize("thick", [4, 8])
def test_a_lone_upright_stroke_is_a_digit_and_no_line(thick):
    page = np.full((120, 60), 230, np.uint8)
    page[2:118, 26 : 26 + thick] = 30
    assert prepared(page).any()


@pytest.mark.parametrize("shape", ["box", "circle"])
def test_a_box_or_circle_drawn_around_a_digit_is_removed(shape):
    page = page_with_a_seven()
    drawn = np.pad(page, 60, constant_values=220)
    if shape == "box":
        cv2.polylines(drawn, [np.array([[90, 85], [225, 95], [220, 240], [85, 230]], np.int32)], True, 60, 5)
    else:
        cv2.circle(drawn, (157, 160), 85, 60, 5)
    assert np.abs(prepared(page).astype(int) - prepared(drawn)).mean() < 4


def on_a_table(page, dark, wood=0):
    """Return ``page`` askew on a table with a grain, on four sides of it."""
    rng = np.random.default_rng(4)
    table = dark + cv2.GaussianBlur(rng.normal(0, wood + 1e-6, (420, 480)), (0, 0), 40, sigmaY=1.2)
    turn = cv2.getRotationMatrix2D((page.shape[1] / 2, page.shape[0] / 2), 4, 1)
    turn[:, 2] += 130, 90
    seen, covered = (cv2.warpAffine(each, turn, (480, 420)) for each in (page, np.ones_like(page)))
    return np.clip(np.where(covered > 0, seen, table) + rng.normal(0, 2, table.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(("dark", "wood"), [(20, 0), (60, 0), (60, 80), (120, 0)])
def test_the_table_under_a_sheet_of_paper_changes_nothing(dark, wood):
    alone = page_with_a_seven()
    turned = cv2.warpAffine(alone, cv2.getRotationMatrix2D((100, 100), 4, 1), (200, 200), borderValue=220)
    assert np.abs(prepared(turned).astype(int) - prepared(on_a_table(alone, dark, wood))).mean() < 5


@pytest.mark.parametrize("place", [(150, 100), (300, 200), (450, 300)])
@pytest.mark.parametrize("spread", [40, 70])
def test_faint_pencil_that_a_lamps_glow_reaches_is_dark_ink(place, spread):
    y, x = np.mgrid[:420, :620]
    glow = np.exp(-((x - place[0]) ** 2 + (y - place[1]) ** 2) / (2 * spread**2))
    pencil = np.zeros((420, 620), np.float32)
    for left in (110, 240, 370, 500):
        cv2.ellipse(pencil, (left, 200), (30, 45), 10, 0, 360, 1.0, 4, cv2.LINE_AA)
    page = np.minimum(140 + 140 * glow, 255) * (1 - 0.2 * pencil)
    assert not photo.extract_ink(page.astype(np.uint8)).white


@pytest.mark.parametrize("wide", [20, 60, 100])
def test_the_light_beside_a_soft_shadow_is_no_sheet(wide):
    light = 0.7 + 0.3 * np.clip((np.arange(300)[:, None] - 120) / wide, 0, 1)
    page = (230 * light * np.ones((1, 400))).astype(np.uint8)
    assert photo.find_sheet(page) is None


@pytest.mark.parametrize(("wide", "high"), [(60, 120), (100, 60), (150, 100)])
def test_a_window_that_a_board_reflects_is_not_ink(wide, high):
    board = np.full((420, 620), 150, np.uint8)
    board[20 : 20 + high, 300 : 300 + wide] = 245
    for place in (110, 240, 370, 500):
        cv2.ellipse(board, (place, 290), (25, 40), 10, 0, 360, 60, 5, cv2.LINE_AA)
    assert not photo.extract_ink(board).white


@pytest.mark.parametrize("shadow", [0, 70])
def test_a_lamp_that_shines_on_the_table_does_not_hide_the_sheet(shadow):
    ends = np.array([[150, 70], [330, 60], [370, 290], [140, 300]], np.float32)
    lens = cv2.getPerspectiveTransform(np.array([[0, 0], [200, 0], [200, 200], [0, 200]], np.float32), ends)
    down, across = np.mgrid[:360, :480]
    table = 30 + 130 * np.exp(-((down - 90) ** 2 + (across - 90) ** 2) / (2 * 70**2))
    seen, covered = (cv2.warpPerspective(each, lens, (480, 360)) for each in (page_with_a_seven(), np.ones((200, 200))))
    seen = seen - shadow * np.exp(-((down - 260) ** 2) / (2 * 25**2))
    picture = np.where(covered > 0, seen, table).astype(np.uint8)
    ink = photo.extract_ink(Picture(picture, 1.0, (480, 360)).paper)
    assert not ink.white
    assert not (photo.ink_mask(ink, photo.peak_darkness(ink), 0.5) & (covered == 0)).any()


def test_a_sheet_may_lie_there_in_perspective():
    ends = np.array([[90, 40], [210, 50], [270, 320], [30, 330]], np.float32)
    lens = cv2.getPerspectiveTransform(np.array([[0, 0], [200, 0], [200, 200], [0, 200]], np.float32), ends)
    seen, covered = (cv2.warpPerspective(each, lens, (300, 380)) for each in (page_with_a_seven(), np.ones((200, 200))))
    picture = Picture(np.where(covered > 0, seen, 60).astype(np.uint8), 1.0, (300, 380))
    assert not photo.extract_ink(picture.paper).white


@pytest.mark.parametrize("stroke", ["bar", "ring"])
def test_white_ink_is_no_sheet_of_paper(stroke):
    page = np.full((200, 200), 30, np.uint8)
    if stroke == "bar":
        page[10:190, 60:125] = 220
    else:
        cv2.rectangle(page, (30, 30), (170, 170), 220, 20)
    assert photo.extract_ink(Picture(page, 1.0, (200, 200)).paper).white


def test_a_dot_in_a_zero_does_not_make_the_zero_a_frame():
    page = np.full((200, 160), 220, np.uint8)
    cv2.ellipse(page, (80, 100), (40, 60), 0, 0, 360, 40, 10)
    cv2.circle(page, (80, 100), 9, 40, -1)
    assert max(piece.box[3] for piece in photo.segment_ink(photo.extract_ink(page), (0.25,))[0].pieces) > 100


def test_the_grain_of_a_dark_photograph_does_not_drown_the_digit():
    grain = np.random.default_rng(3).normal(0, 25, (200, 200))
    page = page_with_a_seven(dark=110, bright=190)
    off = prepared(page).astype(int) - prepared(np.clip(page + grain, 0, 255).astype(np.uint8))
    assert np.abs(off).mean() < 12


@pytest.mark.parametrize("value", [0, 90, 255])
def test_a_blank_page_has_no_pieces(value):
    page = photo.segment_ink(photo.extract_ink(np.full((90, 120), value, np.uint8)), reading.SHARES)
    assert not any(each.pieces for each in page)


@pytest.mark.parametrize(("deviation", "blur"), [(5, 1.2), (5, 0.01), (25, 0.01), (60, 0.01), (25, 1.2)])
def test_bare_textured_paper_has_no_pieces(deviation, blur):
    noise = np.random.default_rng(2).normal(200, deviation, (300, 300))
    paper = cv2.GaussianBlur(noise, (0, 0), blur).clip(0, 255).astype(np.uint8)
    assert not photo.segment_ink(photo.extract_ink(paper), (0.25,))[0].pieces


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])  # the latter is turned by Pillow
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_exif_says(orientation, kind):
    turns = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM}
    turns |= {5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE}
    turns |= {8: Image.Transpose.ROTATE_270}
    page = page_with_a_seven(height=180)
    stored = Image.fromarray(page)
    if orientation in turns:
        stored = stored.transpose(turns[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = photo.open_picture(encode(stored, kind, exif=exif))
    assert picture.size == (200, 180)
    np.testing.assert_array_equal(picture.grey, page)


def exif_of(*entries, head=b"II*\0\x08\0\0\0"):
    """Return EXIF bytes of (tag, type, count, value) entries, little-endian."""
    body = b"".join(struct.pack("<HHI4s", tag, kind, count, value) for tag, kind, count, value in entries)
    return b"Exif\0\0" + head + struct.pack("<H", len(entries)) + body + bytes(4)


ODD = {
    "ascii": exif_of((0x0112, 2, 2, b"6\0\0\0")),
    "out of range": exif_of((0x0112, 3, 1, b"\x63\0\0\0")),
    "offset beyond the end": exif_of((0x0112, 3, 900, b"\xff\xff\xff\x7f")),
    "unknown type": exif_of((0x0112, 99, 1, b"\6\0\0\0")),
    "resolution of the wrong type": exif_of((0x011A, 10, 1, b"\x1a\0\0\0"), (0x0128, 2, 1, b"\2\0\0\0")),
    "short": b"Exif\0\0II*",
    "no TIFF": b"Exif\0\0nonsense",
    "BigTIFF": exif_of(head=b"II+\0\x08\0\0\0"),
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("odd", ODD)
def test_of_a_file_with_odd_exif_only_the_orientation_is_lost(kind, odd):
    exact = {"lossless": True} if kind == "WEBP" else {}
    grey = photo.open_picture(encode(page_with_a_seven(), kind, exif=ODD[odd], **exact)).grey
    np.testing.assert_array_equal(grey, photo.open_picture(encode(page_with_a_seven(), kind, **exact)).grey)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_no_picture_is_refused_for_changed_bytes_in_its_exif(kind):
    exif, rng = Image.Exif(), np.random.default_rng(6)
    exif.update({0x0112: 6, 0x010F: "Maker", 0x011A: 72.0, 0x011B: 72.0, 0x0128: 2, 0x0132: "2026:01:01 00:00:00"})
    whole = encode(page_with_a_seven(height=180), kind, exif=exif)
    entries = exif.tobytes().removeprefix(b"Exif\0\0")
    start, length = whole.index(entries), len(entries)
    for _ in range(200):
        content = bytearray(whole)
        for place in rng.integers(start, start + length, int(rng.integers(1, 5))):
            content[place] = rng.integers(256)
        assert sorted(photo.open_picture(bytes(content)).size) == [180, 200]


def test_a_bigtiff_is_read():
    np.testing.assert_array_equal(
        photo.open_picture(encode(page_with_a_seven(), "TIFF", big_tiff=True)).grey, page_with_a_seven()
    )


def test_every_kind_of_pixels_is_read_as_the_same_grey():
    page = page_with_a_seven()
    grey = Image.fromarray(page)
    clear = Image.merge("LA", [Image.new("L", grey.size, 40), Image.fromarray(255 - page)])
    kinds = {
        "sixteen bits": encode(Image.fromarray(page.astype(np.uint16) * 257)),
        "palette": encode(grey.convert("P")),
        "colour": encode(grey.convert("RGB")),
        "cmyk": encode(grey.convert("RGB").convert("CMYK"), "TIFF"),
        "float": encode(Image.fromarray(page.astype(np.float32)), "TIFF"),
        "float to 1": encode(Image.fromarray(page.astype(np.float32) / 255), "TIFF"),
        "twelve bits": encode(Image.fromarray(page.astype(np.uint16) * 16)),
        "cmyk jpeg": encode(grey.convert("RGB").convert("CMYK"), "JPEG", quality=100),
    }
    for kind, content in kinds.items():
        off = np.abs(photo.open_picture(content).grey.astype(int) - page)
        assert off.max() <= 2, kind
    assert not photo.extract_ink(photo.open_picture(encode(clear)).grey).white


def test_white_ink_on_nothing_is_laid_on_black():
    page = page_with_a_seven()
    content = encode(Image.merge("LA", [Image.new("L", (200, 200), 255), Image.fromarray(255 - page)]))
    assert photo.extract_ink(photo.open_picture(content).grey).white


def test_the_lightness_of_lab_is_read():
    lab = Image.merge("LAB", [Image.fromarray(page_with_a_seven()), *[Image.new("L", (200, 200), 128)] * 2])
    np.testing.assert_array_equal(photo.open_picture(encode(lab, "TIFF")).grey, page_with_a_seven())


@pytest.mark.parametrize(
    ("kind", "note"),
    [
        ("GIF", "the first of several pictures"),
        ("WEBP", "the first of several pictures"),
        ("TIFF", "page 1 of several"),
    ],
)
def test_of_several_pictures_in_a_file_the_first_is_read_and_that_is_said(kind, note):
    frames = [Image.fromarray(page_with_a_seven()), Image.new("L", (200, 200), 220)]
    picture = photo.open_picture(encode(frames[0], kind, save_all=True, append_images=frames[1:]))
    assert (picture.grey.min() < 60, picture.note) == (True, f"{note} was read")
    assert not photo.open_picture(encode(frames[0], kind)).note


@pytest.mark.slow
def test_heic_is_read_upright():
    heif = pytest.importorskip("pillow_heif")
    exif, content = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    stored = Image.fromarray(page_with_a_seven(height=180)).convert("RGB").transpose(Image.Transpose.ROTATE_90)
    heif.from_pillow(stored).save(content, exif=exif.tobytes(), quality=90)
    picture = photo.open_picture(content.getvalue())
    assert picture.size == (200, 180)
    assert np.abs(picture.grey.astype(int) - page_with_a_seven(height=180)).mean() < 5


def test_heic_that_cannot_be_read_says_so():
    with pytest.raises(UnreadableError, match=r"damaged picture \(HEIC\)|HEIC needs the package pillow-heif"):
        photo.open_picture(b"\0\0\0\x18ftypheic" + bytes(200))


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (2, 2), (28, 28), (3000, 5)])
def test_any_shape_of_picture_is_prepared(size):
    picture = photo.open_picture(encode(np.full(size, 200, np.uint8)))
    assert photo.segment_ink(photo.extract_ink(picture.grey), (0.25,))[0].pieces == ()


def test_a_large_photograph_is_read_small_and_its_size_is_kept():
    picture = photo.open_picture(encode(Image.new("RGB", (6000, 4000), (200, 200, 200)), "JPEG"))
    assert picture.size == (6000, 4000)
    assert max(picture.grey.shape) == photo.LONGEST
    assert picture.factor == 6000 / photo.LONGEST


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a picture"),
        (b"no picture at all", "not a picture"),
        (b"%PDF-1.7", "a PDF; save its page"),
        (b"<?xml version='1.0'?><svg/>", "an SVG drawing"),
        (b"\n<!DOCTYPE html>", "a web page"),
        (b"\0\5\x16\7\0\2\0\0", "a Mac keeps"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "not a picture"),
        (encode(page_with_a_seven())[:300], "damaged"),
        (encode(page_with_a_seven(), "JPEG")[:600], "damaged"),
    ],
)
def test_a_file_that_is_no_picture_is_refused_with_the_reason(content, reason):
    with pytest.raises(UnreadableError, match=reason):
        photo.open_picture(content)


def test_a_decompression_bomb_is_refused_before_it_is_decoded():
    content = encode(Image.new("1", (30000, 30000)))
    assert len(content) < 200_000
    with pytest.raises(UnreadableError, match="more than 60 million pixels"):
        photo.open_picture(content)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(12000, 9000), (16320, 12240)])
def test_a_jpeg_of_any_phone_is_read_at_an_eighth(size):
    picture = photo.open_picture(encode(Image.new("L", size, 200), "JPEG"))
    assert (picture.size, max(picture.grey.shape)) == (size, photo.LONGEST)


def test_a_progressive_jpeg_is_refused_where_it_would_take_too_much_memory():
    content = encode(Image.new("L", (9000, 7000), 200), "JPEG", progressive=True)
    with pytest.raises(UnreadableError, match="9000 x 7000: more than 60 million pixels; save it smaller"):
        photo.open_picture(content)


def test_a_missing_file_says_so():
    with pytest.raises(UnreadableError, match="no such file"):
        photo.open_picture(Path("nowhere.png"))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 60))
def test_a_field_always_has_its_longer_side_in_the_box(seed, height, width):
    ink = np.random.default_rng(seed).uniform(0.1, 1, (height, width)).astype(np.float32)
    field = photo.prepare_field(ink)
    rows, columns = np.flatnonzero(field.any(1)), np.flatnonzero(field.any(0))
    assert max(np.ptp(rows), np.ptp(columns)) + 1 <= photo.BOX


def test_the_shipped_pictures_are_small():
    assert sum(path.stat().st_size for path in (files.ROOT / files.PHOTOS).iterdir()) < 1_000_000

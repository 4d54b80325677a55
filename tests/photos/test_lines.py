"""Finding lines of the paper in a mask and removing them without breaking the strokes that cross them."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.photos.lines import find_lines, find_long_lines, find_runs, remove_lines


def test_the_straight_stroke_of_a_nine_is_no_line_where_there_is_no_ink_between_it_and_the_border():
    cell = np.zeros((160, 160), np.uint8)
    cell[:, :3] = cell[:4] = cell[154:156] = 1
    stroke = [[80, 30], [46, 32], [42, 55], [42, 100], [75, 90], [80, 30], [84, 110], [42, 150]]
    cv2.polylines(cell, [np.array(stroke, np.int32)], False, 1, 8)
    found = find_lines(cell > 0)
    assert found[:, 0].mean() > 0.9
    assert not found[10:150, 10:].any()


@pytest.mark.parametrize(
    "ends",
    [((0, 95), (16, 0)), ((126, 0), (139, 95)), ((50, 139), (139, 122))],
    ids=["on the left", "on the right", "below"],
)
def test_a_slanted_border_that_leaves_the_picture_beside_its_corner_is_a_line_and_a_stroke_is_not(ends):
    cell = np.zeros((140, 140), np.uint8)
    cv2.line(cell, *ends, 1, 3)
    border = cell > 0
    cv2.line(cell, (80, 30), (72, 100), 1, 6)
    found = find_lines(cell > 0)
    assert found[border].mean() > 0.9
    assert not found[~border].any()


@settings(max_examples=60, deadline=None)
@given(
    angle=st.floats(-9, 9),
    thickness=st.integers(1, 4),
    dark=st.integers(20, 120),
    pitch=st.integers(24, 40),
)
def test_a_grid_of_several_lines_is_found_whatever_its_angle(angle, thickness, dark, pitch):
    page = np.full((400, 400), 225, np.uint8)
    page[::pitch] = dark
    for shift in range(thickness):
        page[shift::pitch] = dark
        page[:, shift::pitch] = dark
    turn = cv2.getRotationMatrix2D((200, 200), angle, 1)
    mask = cv2.warpAffine(page, turn, (400, 400), borderValue=225)[100:300, 100:300] < 170
    assert find_lines(mask).sum() > 0.7 * mask.sum()


def squared_paper(pitch=30, thickness=3):
    paper = np.zeros((300, 300), bool)
    for shift in range(thickness):
        paper[shift::pitch] = paper[:, shift::pitch] = True
    return paper


def test_lines_are_removed_where_they_cross_too():
    paper = squared_paper()
    assert not (paper & ~find_lines(paper))[5:-5, 5:-5].any()


@pytest.mark.parametrize("slant", [35, 45, 55])
def test_a_stroke_that_crosses_lines_stays_in_one_piece(slant):
    stroke = np.zeros((300, 300), np.uint8)
    across, down = (110 * np.array([np.cos(np.radians(slant)), np.sin(np.radians(slant))])).round().astype(int)
    cv2.line(stroke, (165 - across, 157 - down), (165 + across, 157 + down), 1, 4)
    paper = squared_paper()
    kept = remove_lines(paper | (stroke > 0), find_lines(paper | (stroke > 0)))
    _, labels = cv2.connectedComponents(kept.astype(np.uint8), connectivity=8)
    seen = labels[(stroke > 0) & kept]
    assert seen.size > 0.9 * int(stroke.sum())
    assert (seen == np.bincount(seen).argmax()).mean() > 0.98


def test_a_line_as_long_as_a_stroke_is_kept_and_a_longer_one_is_found():
    mask = np.zeros((120, 200), bool)
    mask[20:80, 20:26] = mask[20:26, 20:70] = mask[90:95, 10:190] = True
    found = find_long_lines(mask, 60)
    assert found[90:95, 12:188].all()
    assert not found[:85].any()


def test_painting_all_runs_gives_the_mask_that_they_were_found_in():
    mask = np.random.default_rng(5).random((40, 30)) > 0.5
    runs = find_runs(mask)
    np.testing.assert_array_equal(runs.paint(np.ones(len(runs.length), bool)), mask)

import cv2
import numpy as np

from benchmarks import tuning
from pipeline.photos import photo

GROUPS = ["one", "one", "two", "two", "three"]


def test_what_helps_one_photograph_alone_does_not_count_for_it():
    committed = [True, False, True, True, True]
    fitted = [True, True, True, False, True]  # right on all of the first photograph, and wrong on another
    assert tuning.left_out(np.array([committed, fitted]), GROUPS).tolist() == [1, 0, 1, 0, 1]


def test_of_equally_good_changes_the_mean_counts():
    ways = np.array([[True, False, True, True, True], [True, True, True, True, True]])
    assert tuning.left_out(ways, GROUPS).tolist() == [1, 0.5, 1, 1, 1]


def test_every_change_is_of_another_constant_or_by_another_factor():
    assert len(set(tuning.CHANGES)) == len(tuning.CHANGES) == 1 + 4 * sum(map(len, tuning.CONSTANTS.values()))


def test_every_constant_that_is_changed_is_one_of_its_module():
    assert all(hasattr(module, name) for module, names in tuning.CONSTANTS.items() for name in names)


def test_pictures_are_read_with_the_changed_constant_and_it_is_as_before_afterwards(tmp_path):
    rng = np.random.default_rng(0)
    page, grain = np.full((120, 120), 200.0), cv2.GaussianBlur(rng.normal(0, 20, (120, 120)), (0, 0), 1.5)
    cv2.line(page, (60, 30), (60, 90), 170, 6)
    cv2.imwrite(str(tmp_path / "faint.png"), (page + grain).astype(np.uint8))
    (tmp_path / "labels.csv").write_text("file,label\nfaint.png,1\n")
    numbers = [0, *(index for index, change in enumerate(tuning.CHANGES) if change[1] == "CLEAR")]
    before = photo.CLEAR
    read = [tuning.read_right(tmp_path, tuning.files.ROOT / "tests/reader", number) for number in numbers]
    assert read == [[True], [True], [True], [True], [False]]  # twice as dark ink is asked for: there is none
    assert before == photo.CLEAR

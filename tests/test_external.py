"""Sets by other hands are read as they are, prepared as MNIST was, and as photographs."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks import external
from pipeline.learning.classifier import Classifier

READER = Path(__file__).parent / "reader"


@pytest.fixture(scope="module")
def sevens() -> np.ndarray:
    """Return eight sevens that fill their fields of 16 x 16, uint8, ink bright."""
    images = np.zeros((8, 16, 16), np.uint8)
    for number, image in enumerate(images):
        points = np.array([[1, 1], [14, 1 + number % 2], [5 + number % 3, 14]], np.int32)
        cv2.polylines(image, [points], False, 255, 2)
    return images


def test_what_fills_its_field_is_read_once_it_is_prepared_as_mnist_was(sevens: np.ndarray) -> None:
    _, prepared, seen = external.answers(sevens, Classifier.load(READER))
    assert (prepared == 7).mean() >= 0.75
    assert (seen == 7).mean() >= 0.75


def test_a_photograph_without_a_digit_counts_as_wrong() -> None:
    _, _, seen = external.answers(np.zeros((1, 16, 16), np.uint8), Classifier.load(READER))
    assert seen.tolist() == [10]


def test_a_share_has_its_interval() -> None:
    assert external.share(np.array([True] * 9 + [False])) == "90.0 [59.6, 98.2]"


def test_a_folder_without_sets_is_said_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(external.UserError, match="expected folders with an"):
        external.main([str(tmp_path)])

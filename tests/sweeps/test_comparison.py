"""The statistics of a race, against figures worked out by hand or known from the literature."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.sweeps import comparison


def test_holm_rejects_the_smallest_p_values_at_levels_that_rise() -> None:
    p = np.array([0.01, 0.04, 0.03, 0.005])  # at 0.05: against 0.0167, -, 0.025, 0.0125
    assert comparison.is_shown(p, 0.05, np.ones(4, bool)).tolist() == [True, False, False, True]
    assert comparison.is_shown(p, 0.05, np.array([False, True, False, False])).tolist() == [False, True, False, False]


def test_a_lone_setting_has_students_interval() -> None:
    found = comparison.estimate(np.array([[1.0, 2.0, 3.0]]), 0)
    assert found.half_width()[0] == pytest.approx(4.302653 / np.sqrt(3))


def test_a_variance_is_drawn_towards_that_of_the_other_settings() -> None:
    found = comparison.estimate(np.array([[1.0, 1.0, 1.0], [0.0, 1.0, 2.0], [0.0, 1.0, 2.0]]), 0)
    assert found.freedom.tolist() == [6, 6, 6]  # two of its own, four of the prior
    assert (3 * found.error**2).tolist() == pytest.approx([4 / 9, 7 / 9, 7 / 9])  # (2 x own + 4 x 2/3) / 6


def test_equal_differences_of_a_digit_are_no_proof_that_there_is_no_noise() -> None:
    scores = np.array([[0.99, 0.99, 0.99], [0.9899, 0.9899, 0.9899]])
    assert not comparison.is_worse(scores, np.ones(2, bool), resolution=1e-4).any()
    assert comparison.is_worse(scores, np.ones(2, bool), resolution=1e-6).tolist() == [False, True]

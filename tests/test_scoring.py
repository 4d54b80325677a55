"""Scores, intervals and paired tests are those of their sources, and keep the error rates that they promise."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pipeline import scoring


def test_wilson_is_scipys_score_interval():
    for successes, trials in ((0, 10), (10, 10), (9922, 10000), (55, 60)):
        expected = stats.binomtest(successes, trials).proportion_ci(0.95, method="wilson")
        assert scoring.wilson(successes, trials) == pytest.approx((expected.low, expected.high))


def test_the_wilson_interval_of_no_trials_is_0_to_1():
    assert scoring.wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("successes", "trials"), [(-1, 10), (11, 10)])
def test_wilson_refuses_impossible_counts(successes, trials):
    with pytest.raises(ValueError, match="expected 0 to 10 successes"):
        scoring.wilson(successes, trials)


def test_scoring_and_wilson_load_no_scipy():
    code = "import sys; from pipeline import scoring; scoring.wilson(9, 10); print('scipy' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


@given(st.integers(0, 400), st.integers(0, 400))
@settings(max_examples=50, deadline=None)
def test_mcnemar_is_the_exact_binomial_test(lost, won):
    p = stats.binomtest(lost, lost + won, 0.5, alternative="greater").pvalue if lost + won else 1.0
    assert scoring.mcnemar(lost, won) == pytest.approx(p, rel=1e-6, abs=1e-300)


def test_mcnemar_of_no_disagreement_is_no_evidence():
    assert scoring.mcnemar(0, 0) == 1.0


@given(st.integers(0, 50), st.integers(0, 50), st.integers(100, 10000), st.sampled_from([0.5, 0.05, 0.01]))
@settings(max_examples=100, deadline=None)
def test_the_difference_bound_lies_where_tangos_statistic_is_the_quantile(lost, won, images, p):
    bound = scoring.difference_bound(lost, won, images, p)
    assert -1 <= bound <= (won - lost) / images
    if p < 0.5:
        assert scoring._tango(lost, won, images, bound) == pytest.approx(stats.norm.isf(p), abs=1e-3)


def test_the_bound_and_the_test_are_those_of_a_published_trial():
    """Cavo et al. 2012, 161 patients, 6 against 16 discordant; Fagerland, Lydersen and Laake 2014: the interval of
    Tango is -0.1240 to -0.0054, the exact conditional McNemar test gives 0.052479 two-sided.
    """
    assert scoring.difference_bound(16, 6, 161, 0.025) == pytest.approx(-0.1240, abs=5e-5)
    assert -scoring.difference_bound(6, 16, 161, 0.025) == pytest.approx(-0.0054, abs=5e-5)
    assert 2 * scoring.mcnemar(16, 6) == pytest.approx(0.052479, abs=5e-7)


def test_more_losses_lower_the_bound_and_more_images_raise_it():
    assert scoring.difference_bound(31, 30, 10000, 0.05) < scoring.difference_bound(30, 30, 10000, 0.05)
    assert scoring.difference_bound(3, 3, 1000, 0.05) < scoring.difference_bound(3, 3, 10000, 0.05)


def test_the_difference_bound_keeps_its_level():
    """Of models that are exactly a margin of 0.3 points worse, 5% may be called not inferior; here of 4,000."""
    draws = np.random.default_rng(1).multinomial(10000, [0.0045, 0.0015, 0.994], size=4000)
    bounds = {pair: scoring.difference_bound(*pair, 10000, 0.05) for pair in {(int(a), int(b)) for a, b, _ in draws}}
    shown = np.mean([bounds[int(lost), int(won)] > -0.003 for lost, won, _ in draws])
    assert shown == pytest.approx(0.05, abs=0.012)


@pytest.mark.parametrize(("lost", "won", "images"), [(-1, 0, 10), (6, 5, 10), (0, 0, 0)])
def test_the_difference_bound_refuses_impossible_counts(lost, won, images):
    with pytest.raises(ValueError, match="expected counts within"):
        scoring.difference_bound(lost, won, images, 0.05)


def test_answers_of_another_length_are_refused():
    with pytest.raises(ValueError, match="expected as many answers as labels"):
        scoring.is_correct(np.array([1, 2]), np.array([1]))


def test_cross_entropy_is_keras_loss_also_of_a_sure_mistake():
    probabilities = np.array([[0.5, 0.5] + [0] * 8, [1] + [0] * 9])
    assert scoring.cross_entropy(probabilities, np.array([0, 1])) == pytest.approx((np.log(2) - np.log(1e-7)) / 2)


def test_calibration_error_weighs_each_bins_gap_by_its_images():
    probabilities = np.array([0.95] * 10 + [0.55] * 10)
    correct = np.array([True] * 10 + [True, False] * 5)
    curve = scoring.reliability(probabilities, correct)
    assert [(bin_.accuracy, bin_.images) for bin_ in curve] == [(0.5, 10), (1.0, 10)]
    assert scoring.calibration_error(curve) == pytest.approx(0.05)


def test_bins_are_half_open_as_in_guo_and_hold_0_and_1():
    curve = scoring.reliability(np.array([0.0, 0.5, 0.50001, 1.0]), np.ones(4, bool), bins=2)
    assert [bin_.images for bin_ in curve] == [2, 2]


def test_honest_probabilities_have_nearly_no_calibration_error():
    draw = np.random.default_rng(2)
    probabilities = draw.uniform(0.1, 1, 100_000)
    curve = scoring.reliability(probabilities, draw.uniform(size=100_000) < probabilities)
    assert scoring.calibration_error(curve) < 0.005


def test_the_calibration_bound_holds_at_least_as_often_as_promised():
    """Answers that are sure by 0.99 and right by 0.97: the error is 0.02, above the bound in at most 5% of 1,000."""
    draw = np.random.default_rng(3)
    sure = np.full(2000, 0.99)
    bounds = [scoring.calibration_bound(sure, draw.uniform(size=2000) < 0.97) for _ in range(1000)]
    assert np.mean(np.array(bounds) < 0.02) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 1000)


def test_the_calibration_bound_exceeds_the_error_by_a_multiple_of_its_standard_error():
    draw = np.random.default_rng(4)
    probabilities = draw.uniform(0.1, 1, 5000)
    correct = draw.uniform(size=5000) < probabilities**2
    error = scoring.calibration_error(scoring.reliability(probabilities, correct))
    assert error < scoring.calibration_bound(probabilities, correct) < error + 1.645 * 0.5 / np.sqrt(5000)


def test_confusion_has_labels_in_rows_and_answers_in_columns():
    counts = scoring.confusion(np.array([3, 3, 5], np.uint8), np.array([3, 5, 5], np.uint8), 10)
    assert counts.shape == (10, 10)
    assert (counts[3, 3], counts[3, 5], counts[5, 3], counts[5, 5], counts.sum()) == (1, 1, 0, 1, 3)


def test_class_scores_are_precision_recall_and_their_harmonic_mean():
    counts = scoring.confusion(np.array([3, 3, 3, 5]), np.array([3, 3, 5, 5]), 10)
    three, five = (scoring.class_scores(counts)[label] for label in (3, 5))
    assert (three.precision, three.recall, three.f1, three.images) == pytest.approx((1, 2 / 3, 0.8, 3))
    assert (five.precision, five.recall, five.f1, five.images) == pytest.approx((0.5, 1, 2 / 3, 1))


def test_a_class_that_is_never_answered_and_never_asked_scores_0():
    assert {(score.precision, score.recall, score.f1) for score in scoring.class_scores(np.zeros((10, 10), int))} == {
        (0.0, 0.0, 0.0)
    }


def test_holms_correction_is_as_he_printed_it():
    ps = np.array([[0.01, 0.04, 0.03], [0.9, 0.8, np.inf]])
    assert scoring.holm(ps) == pytest.approx(np.array([[0.03, 0.06, 0.06], [1, 1, 1]]))
    assert scoring.holm(np.array([])).tolist() == []

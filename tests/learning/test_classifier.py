import numpy as np
import pytest

from pipeline import files
from pipeline.console import UserError
from pipeline.learning.classifier import (
    Calibration,
    Classifier,
    evidence,
    fit_calibration,
    fit_temperature,
    is_torn,
    softmax,
)

READER = files.ROOT / "tests" / "reader"  # a network that an earlier `make` trained


@pytest.fixture(scope="module")
def classifier():
    return Classifier.load(READER)


def fields(count, seed=1):
    return np.random.default_rng(seed).integers(0, 256, (count, 28, 28), dtype=np.uint8)


def test_probabilities_sum_to_one(classifier):
    assert classifier.probabilities(fields(7)).sum(1) == pytest.approx(np.ones(7))


def test_a_field_has_the_same_bits_alone_and_among_others(classifier):
    batch = fields(1203)
    together = classifier.raw(batch)
    alone = np.concatenate([classifier.raw(batch[index : index + 1]) for index in (0, 499, 500, 1202)])
    np.testing.assert_array_equal(together[[0, 499, 500, 1202]], alone)


def test_no_fields_give_no_probabilities(classifier):
    assert classifier.probabilities(np.empty((0, 28, 28), np.uint8)).shape == (0, 10)


def test_temperature_changes_no_answer(classifier):
    batch = fields(50)
    np.testing.assert_array_equal(classifier.raw(batch).argmax(1), classifier.probabilities(batch).argmax(1))


def test_the_temperature_that_made_the_labels_is_found():
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 4, (20000, 10))
    labels = np.array([rng.choice(10, p=row) for row in softmax(logits / 2.5)])
    assert fit_temperature(logits, labels) == pytest.approx(2.5, rel=0.03)


def test_digits_that_are_all_right_give_a_finite_temperature():
    logits = 10.0 * np.eye(10)
    calibration = fit_calibration(logits, logits, np.arange(10))
    assert 0 < calibration.temperature < 1
    assert 0 < calibration.possible <= calibration.certain < 1000


def test_each_threshold_lets_the_wanted_share_of_its_digits_pass():
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 10, 5000)
    clean, degraded = (rng.normal(0, 1, (5000, 10)) + far * np.eye(10)[labels] for far in (9, 5))
    clean[:30, 0] = clean[:30].max(1)  # torn between two, however strong the evidence
    calibration = fit_calibration(clean, degraded, labels)
    answers = softmax(clean / calibration.temperature)
    assert 0.99 <= ((evidence(answers) >= calibration.certain) & ~is_torn(answers)).mean() <= 0.992
    assert 0.99 <= (evidence(softmax(degraded / calibration.temperature)) >= calibration.possible).mean() <= 0.992


def test_evidence_is_the_best_logit_above_the_mean_of_all():
    logits = np.array([[5.0, *[1.0] * 9], [2.0] * 10])
    assert evidence(softmax(logits)) == pytest.approx([3.6, 0.0])


@pytest.mark.parametrize(("logit", "verdict"), [(9.0, "digit"), (6.8, "digit"), (6.6, "unsure"), (2.0, "no digit")])
def test_the_verdict_follows_the_thresholds(logit, verdict):
    reader = Classifier((READER / "digits.tflite").read_bytes(), Calibration(1.0, certain=6.0, possible=3.0))
    assert reader.verdict(softmax(np.array([[logit, *[0.0] * 9]]))[0]) == verdict


@pytest.mark.parametrize(("second", "verdict"), [(0.55, "digit"), (0.65, "unsure")])
def test_a_field_that_is_torn_between_two_digits_is_unsure_whatever_its_evidence(second, verdict):
    reader = Classifier((READER / "digits.tflite").read_bytes(), Calibration(1.0, certain=6.0, possible=3.0))
    logits = np.array([[12.0, 12.0 + np.log(second), *[0.0] * 8]])
    assert reader.verdict(softmax(logits)[0]) == verdict


def test_a_calibration_survives_its_file(tmp_path):
    calibration = Calibration(1.2345, 5.5, 2.5)
    calibration.save(tmp_path / "calibration.json")
    assert Calibration.load(tmp_path / "calibration.json") == calibration


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"temperature": 0, "certain": 2, "possible": 1}',
        '{"temperature": 1, "certain": 1, "possible": 2}',
    ],
)
def test_a_wrong_calibration_is_one_clear_error(tmp_path, content):
    (tmp_path / "calibration.json").write_text(content)
    with pytest.raises(UserError, match="calibration"):
        Calibration.load(tmp_path / "calibration.json")


def test_a_missing_network_names_the_command_that_makes_it(tmp_path):
    with pytest.raises(UserError, match="dvc repro"):
        Classifier.load(tmp_path)


def test_bytes_that_are_no_network_are_one_clear_error():
    with pytest.raises(UserError, match="not a LiteRT model"):
        Classifier(b"not a model", Calibration(1.0, 2, 1))

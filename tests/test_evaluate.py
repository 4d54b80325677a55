"""evaluate says of a model what its answers say, in reports that are the same bytes every time."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from pipeline import evaluate, files
from pipeline.console import UserError
from pipeline.evaluate import Answers
from pipeline.learning import classifier
from pipeline.learning.classifier import DIGITS

RNG = np.random.default_rng(1)


def answers_of(predictions, confidence, network=None):
    """Return answers that give ``confidence`` to each prediction and share the rest."""
    predictions, confidence = np.asarray(predictions), np.asarray(confidence, float)
    calibrated = np.repeat((1 - confidence)[:, None] / 9, 10, axis=1)
    calibrated[np.arange(len(predictions)), predictions] = confidence
    return Answers(calibrated if network is None else network, calibrated)


def digits(count):
    return RNG.integers(0, 256, (count, 28, 28), dtype=np.uint8), (np.arange(count) % 10).astype(np.uint8)


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images, labels = digits(60)
    files.write_array(files.PREPARED / "test-images.npy", images)
    files.write_array(files.PREPARED / "test-labels.npy", labels)
    return tmp_path


EXPORT = """
import sys
from pathlib import Path
from pipeline.learning import network
weights = [variable.numpy() for variable in network.build("article", 0.2).trainable_variables]
for factor in (1, float("nan")):
    exported = network.export("article", [weight * factor for weight in weights], 0.2)
    for name, content in zip(("keras", "tflite"), exported):
        Path(sys.argv[1], f"{factor}.{name}").write_bytes(content)
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Export the article's network untrained, and with NaN for weights; return the folder they are in."""
    folder = tmp_path_factory.mktemp("exported")
    subprocess.run([sys.executable, "-c", EXPORT, str(folder)], check=True, cwd=files.ROOT, capture_output=True)
    return folder


def place_model(folder, factor=1):
    for name in ("keras", "tflite"):
        files.write_bytes(files.MODELS / f"digits.{name}", (folder / f"{factor}.{name}").read_bytes())
    classifier.Calibration(temperature=1.5, certain=2, possible=1).save(files.MODELS / "calibration.json")


def test_evaluate_loads_neither_tensorflow_nor_mlflow_nor_scipy():
    code = "import sys; from pipeline import evaluate; print({'tensorflow', 'mlflow', 'scipy'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_metrics_are_those_of_the_answers():
    labels = np.arange(100, dtype=np.uint8) % 10
    predictions = labels.copy()
    predictions[:4] = 9
    metrics = evaluate.compute_metrics(answers_of(predictions, np.full(100, 0.9)), labels)
    assert metrics["test_accuracy"] == 0.96
    assert (metrics["test_accuracy_low"], metrics["test_accuracy_high"]) == (0.9016, 0.9843)
    assert metrics["calibration_error"] == 0.06
    assert metrics["calibration_error_high"] == pytest.approx(0.06 + 1.645 * np.sqrt(0.96 * 0.04 / 100), abs=1e-4)
    assert metrics["test_images"] == 100


def test_the_loss_is_the_networks_own_and_not_the_calibrated_one():
    labels = np.array([0, 1], np.uint8)
    network = np.full((2, 10), 0.05)
    network[[0, 1], [0, 1]] = 0.55
    assert evaluate.compute_metrics(answers_of(labels, [0.9, 0.9], network), labels)["test_loss"] == 0.5978


def test_predictions_of_10000_images_stay_under_200_kb(workspace):
    labels = RNG.integers(0, 10, 10000, dtype=np.uint8)
    answers = answers_of(labels, RNG.uniform(0.2, 1, 10000))
    evaluate._write_table(workspace / "predictions.csv", evaluate.prediction_rows(answers, labels))
    assert (workspace / "predictions.csv").stat().st_size < 200_000
    assert files.read_csv(workspace / "predictions.csv")[7] == {
        "index": "7",
        "label": str(labels[7]),
        "prediction": str(labels[7]),
        "probability": str(round(answers.confidence[7], 4)),
    }


def test_the_worst_mistake_is_the_one_that_was_most_sure():
    labels = np.array([0, 1, 2, 3], np.uint8)
    answers = answers_of([0, 7, 7, 7], [0.99, 0.6, 0.9, 0.7])
    assert evaluate.worst_mistakes(answers, labels).tolist() == [2, 3, 1]
    assert evaluate.worst_mistakes(answers, labels, 1).tolist() == [2]


def test_the_picture_of_mistakes_shows_each_image_and_carries_no_time_or_software():
    images, labels = digits(40)
    answers = answers_of((labels + 1) % 10, np.linspace(0.2, 0.9, 40))
    content = evaluate.draw_mistakes(images, labels, answers, DIGITS)
    picture = Image.open(io.BytesIO(content))
    first = np.asarray(picture)[evaluate.SPACE :, evaluate.SPACE :][: 28 * evaluate.ZOOM, : 28 * evaluate.ZOOM]
    assert (first[:: evaluate.ZOOM, :: evaluate.ZOOM] == images[39]).all()
    assert picture.info == {}
    assert content == evaluate.draw_mistakes(images, labels, answers, DIGITS)


def test_a_model_without_mistakes_gets_a_picture_too():
    images, labels = digits(3)
    content = evaluate.draw_mistakes(images, labels, answers_of(labels, [0.9] * 3), DIGITS)
    assert Image.open(io.BytesIO(content)).size[1] > 100


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (np.zeros((5, 28, 28)), np.zeros(5, np.uint8), "expected uint8 [n, 28, 28], found float64"),
        (np.zeros((5, 784), np.uint8), np.zeros(5, np.uint8), "found uint8 [5, 784]"),
        (
            np.zeros((5, 28, 28), np.uint8),
            np.zeros(4, np.uint8),
            "expected uint8 [5], a label an image, found uint8",
        ),
        (np.zeros((0, 28, 28), np.uint8), np.zeros(0, np.uint8), "a label an image, found uint8 [0]"),
    ],
)
def test_test_digits_of_another_shape_type_or_count_are_refused(tmp_path, images, labels, said):
    files.write_array(tmp_path / "test-images.npy", images)
    files.write_array(tmp_path / "test-labels.npy", labels)
    with pytest.raises(UserError) as caught:
        evaluate.load_test(tmp_path)
    assert said in str(caught.value)


@pytest.mark.parametrize(("classes", "last"), [(DIGITS, 9), (("heart", "star"), 1)])
def test_a_label_that_is_no_class_of_the_model_is_refused(classes, last):
    evaluate.check_labels(np.array([0, last], np.uint8), classes)
    with pytest.raises(UserError, match=f"expected labels 0 to {last}, found {last + 1}"):
        evaluate.check_labels(np.array([0, last + 1], np.uint8), classes)


def test_missing_and_truncated_test_digits_name_the_file_and_what_makes_it(workspace):
    path = workspace / files.PREPARED / "test-images.npy"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"test-images.npy: not a NumPy array; `dvc repro preprocess`"):
        evaluate.load_test(files.PREPARED)
    path.unlink()
    with pytest.raises(UserError, match=r"test-images.npy: expected the test digits here; `dvc repro preprocess`"):
        evaluate.load_test(files.PREPARED)


@pytest.mark.slow
def test_the_same_model_gives_the_same_five_reports_every_time(workspace, exported):
    place_model(exported)
    images, labels = evaluate.load_test(files.PREPARED)
    contents = []
    for _ in range(2):
        answers = evaluate.predict(classifier.Classifier.load(files.MODELS), images)
        evaluate.write(evaluate.compute_metrics(answers, labels), answers, images, labels, classifier.DIGITS)
        contents.append({path.name: path.read_bytes() for path in (workspace / "reports").iterdir()})
    assert contents[0] == contents[1]
    assert sorted(contents[0]) == ["calibration.csv", "classes.csv", "metrics.json", "mistakes.png", "predictions.csv"]


@pytest.mark.slow
@pytest.mark.usefixtures("workspace")
def test_metrics_name_the_model_and_the_test_digits(exported):
    place_model(exported)
    before = evaluate.identify(files.MODELS, files.PREPARED)
    assert before["model_sha256"] == files.sha256(files.MODELS / "digits.keras")
    labels = np.load(files.PREPARED / "test-labels.npy")
    files.write_array(files.PREPARED / "test-labels.npy", labels[::-1])
    after = evaluate.identify(files.MODELS, files.PREPARED)
    assert {key for key in before if before[key] != after[key]} == {"test_sha256"}


@pytest.mark.slow
def test_the_articles_network_needs_4034176_multiply_adds_an_answer(exported):
    first, second, dense = 24 * 24 * 64 * 3 * 3, 10 * 10 * 64 * 3 * 3 * 64, 1600 * 10
    assert evaluate.multiply_adds((exported / "1.tflite").read_bytes()) == first + second + dense == 4_034_176


@pytest.mark.slow
@pytest.mark.usefixtures("workspace")
def test_a_network_that_answers_nan_is_named(exported):
    place_model(exported, np.nan)
    with pytest.raises(UserError, match=r"answers NaN: its training diverged; lower train.learning_rate"):
        evaluate.predict(classifier.Classifier.load(files.MODELS), digits(5)[0])

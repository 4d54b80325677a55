"""Stage evaluate: measure accuracy, loss and calibration on the test digits, on which nothing was chosen.

Reads   data/prepared/test-images.npy, data/prepared/test-labels.npy
        models/digits.tflite, models/calibration.json, and models/digits.keras for its digest, the model's name
Writes  reports/metrics.json, predictions.csv (an image a row), classes.csv, calibration.csv, mistakes.png
Expect  a test accuracy of 0.993 or so, and five million multiply-adds an answer.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline import console, files, scoring
from pipeline.console import UserError
from pipeline.learning.classifier import Classifier, softmax

IMAGES, LABELS = "test-images.npy", "test-labels.npy"
WORST, COLUMNS = 24, 6  # mistakes in the picture
ZOOM, CAPTION, SPACE = 4, 34, 12  # of a 28 x 28 image; pixels below it; pixels between two
_DENSE = {"CONV_2D", "FULLY_CONNECTED"}


@dataclass(frozen=True)
class Answers:
    """Probabilities of each class: the network's own and the calibrated ones, float [n, classes]."""

    network: np.ndarray
    calibrated: np.ndarray

    @property
    def predictions(self) -> np.ndarray:
        """Return the predicted class of each image, uint8 [n]."""
        return self.calibrated.argmax(axis=1).astype(np.uint8)

    @property
    def confidence(self) -> np.ndarray:
        """Return the calibrated probability of each predicted class, float [n]."""
        return self.calibrated.max(axis=1)


def main(arguments: Sequence[str]) -> None:
    """Evaluate the model in models/ on the test digits."""
    from pipeline import tracking  # imported here, since importing MLflow takes seconds

    console.no_arguments(arguments)
    images, labels = load_test(files.PREPARED)
    classifier = Classifier.load(files.MODELS)
    check_labels(labels, classifier.classes)
    answers = predict(classifier, images)
    metrics = compute_metrics(answers, labels) | identify(files.MODELS, files.PREPARED)
    write(metrics, answers, images, labels, classifier.classes)
    tracking.log_results("metrics.json")
    print(describe(metrics))


def load_test(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the test images, uint8 [n, 28, 28], and labels, uint8 [n]; raise ``UserError`` for other arrays."""
    images, labels = (_load(folder / name) for name in (IMAGES, LABELS))
    if images.ndim != 3 or images.shape[1:] != (28, 28) or images.dtype != np.uint8:
        raise UserError(f"{folder / IMAGES}: expected uint8 [n, 28, 28], found {images.dtype} {list(images.shape)}")
    if labels.shape != images.shape[:1] or labels.dtype != np.uint8 or not len(labels):
        found = f"{labels.dtype} {list(labels.shape)}"
        raise UserError(f"{folder / LABELS}: expected uint8 [{len(images)}], a label an image, found {found}")
    return images, labels


def check_labels(labels: np.ndarray, classes: Sequence[str]) -> None:
    """Raise ``UserError`` if a label is not the number of one of the model's ``classes``."""
    if labels.max() >= len(classes):
        raise UserError(
            f"{files.PREPARED / LABELS}: expected labels 0 to {len(classes) - 1}, found {labels.max()}; `dvc repro`"
        )


def _load(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path}: expected the test digits here; `dvc repro preprocess` makes them") from None
    except (ValueError, EOFError):
        raise UserError(f"{path}: not a NumPy array; `dvc repro preprocess` makes it anew") from None


def predict(classifier: Classifier, images: np.ndarray) -> Answers:
    """Classify images, uint8 [n, 28, 28]; raise ``UserError`` if the network returns NaN or infinity."""
    logs = classifier.log_probabilities(images)
    if not np.isfinite(logs).all():
        raise UserError("models/digits.tflite answers NaN: its training diverged; lower train.learning_rate")
    return Answers(np.exp(logs), softmax(logs / classifier.calibration.temperature))


def compute_metrics(answers: Answers, labels: np.ndarray) -> dict[str, Any]:
    """Compute the metrics of ``answers`` to images with ``labels``, uint8 [n], as one flat mapping."""
    correct = scoring.is_correct(labels, answers.predictions)
    low, high = scoring.wilson(int(correct.sum()), len(correct))
    metrics = {
        "test_accuracy": float(correct.mean()),
        "test_accuracy_low": low,
        "test_accuracy_high": high,
        "test_loss": scoring.cross_entropy(answers.network, labels),
        "calibration_error": scoring.calibration_error(scoring.reliability(answers.confidence, correct)),
        "calibration_error_high": scoring.calibration_bound(answers.confidence, correct),
    }
    return {name: round(value, scoring.PLACES) for name, value in metrics.items()} | {"test_images": len(labels)}


def identify(models: Path, prepared: Path) -> dict[str, Any]:
    """Return the digests of model and test digits, the network's bytes, and its multiply-adds for one image."""
    network = models / "digits.tflite"
    return {
        "model_sha256": files.sha256(models / "digits.keras"),
        "test_sha256": files.digest_files([prepared / IMAGES, prepared / LABELS]),
        "model_bytes": network.stat().st_size,
        "multiply_adds": multiply_adds(network.read_bytes()),
    }


def multiply_adds(network: bytes) -> int:
    """Count the multiply-adds for one image in the convolutions and dense layers of a LiteRT network.

    It stands for the latency: a measured duration would differ from machine to machine.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES  # delegates hide operations behind one of their own
    interpreter = Interpreter(model_content=network, experimental_op_resolver_type=plain)
    interpreter.allocate_tensors()
    shapes = {tensor["index"]: tensor["shape"] for tensor in interpreter.get_tensor_details()}
    dense = (operation for operation in interpreter._get_ops_details() if operation["op_name"] in _DENSE)
    return sum(
        math.prod(map(int, shapes[operation["outputs"][0]])) * math.prod(map(int, shapes[operation["inputs"][1]][1:]))
        for operation in dense
    )


def write(
    metrics: dict[str, Any], answers: Answers, images: np.ndarray, labels: np.ndarray, classes: Sequence[str]
) -> None:
    """Write the five reports."""
    folder, predictions = files.REPORTS, answers.predictions
    correct = scoring.is_correct(labels, predictions)
    files.write_json(folder / "metrics.json", metrics)
    _write_table(folder / "predictions.csv", prediction_rows(answers, labels))
    counts = scoring.confusion(labels, predictions, len(classes))
    _write_table(folder / "classes.csv", map(asdict, scoring.class_scores(counts)))
    _write_table(folder / "calibration.csv", map(asdict, scoring.reliability(answers.confidence, correct)))
    files.write_bytes(folder / "mistakes.png", draw_mistakes(images, labels, answers, classes))


def _write_table(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    rounded = [{name: round(value, scoring.PLACES) for name, value in row.items()} for row in rows]
    files.write_csv(path, rounded, list(rounded[0]))


def prediction_rows(answers: Answers, labels: np.ndarray) -> list[dict[str, Any]]:
    """Return index, label, prediction and probability of each image; paired statistics need all of them."""
    columns = (labels.tolist(), answers.predictions.tolist(), answers.confidence.tolist())
    return [
        {"index": index, "label": label, "prediction": prediction, "probability": probability}
        for index, (label, prediction, probability) in enumerate(zip(*columns, strict=True))
    ]


def worst_mistakes(answers: Answers, labels: np.ndarray, count: int = WORST) -> np.ndarray:
    """Return the indices of the wrong predictions with the highest confidence, the highest first."""
    wrong = np.flatnonzero(answers.predictions != labels)
    return wrong[np.argsort(-answers.confidence[wrong], kind="stable")][:count]


def draw_mistakes(images: np.ndarray, labels: np.ndarray, answers: Answers, classes: Sequence[str]) -> bytes:
    """Return the worst mistakes as a PNG: image, label, answer, its calibrated probability, the image's index."""
    worst = worst_mistakes(answers, labels)
    rows = max(1, math.ceil(len(worst) / COLUMNS))
    width, height = 28 * ZOOM + SPACE, 28 * ZOOM + CAPTION + SPACE
    sheet = Image.new("L", (COLUMNS * width + SPACE, rows * height + SPACE), 255)
    draw = ImageDraw.Draw(sheet)
    large, small = (ImageFont.load_default(size) for size in (16, 12))
    for place, index in enumerate(worst.tolist()):
        x, y = SPACE + place % COLUMNS * width, SPACE + place // COLUMNS * height
        sheet.paste(Image.fromarray(images[index]).resize((28 * ZOOM, 28 * ZOOM), Image.Resampling.NEAREST), (x, y))
        y += 28 * ZOOM + 2
        draw.text((x, y), f"{classes[labels[index]]} read as {classes[answers.predictions[index]]}", 0, large)
        draw.text((x, y + 18), f"{answers.confidence[index]:.3f}  image {index}", 90, small)
    if not len(worst):
        draw.text((SPACE, SPACE), "no mistakes", 0, large)
    return _png(sheet)


def _png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def describe(metrics: dict[str, Any]) -> str:
    """Return the metrics in one line."""
    return (
        "test accuracy {test_accuracy:.4f} ({test_accuracy_low:.4f} to {test_accuracy_high:.4f}) on {test_images:,} "
        "images, loss {test_loss:.4f}, calibration error {calibration_error:.4f}"
    ).format(**metrics)


if __name__ == "__main__":
    console.run(main)

"""The model as a service: photographs or 28x28 fields in, digits with probabilities and verdicts out (no TensorFlow).

MLflow keeps a copy of this module beside the model's files and loads that; `mlflow models serve` offers it over HTTP.
"""

from __future__ import annotations

import base64
import binascii
import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST

from pipeline import counts
from pipeline.counts import Counts
from pipeline.learning.classifier import Classifier
from pipeline.photos import photo, reading
from pipeline.photos.reading import Digit, Reading

FIELD = (photo.FIELD, photo.FIELD)


def _load_pyfunc(models: str) -> Service:
    """Return the service of the model whose files are in the folder ``models``: MLflow asks for this name."""
    classifier, path = Classifier.load(Path(models)), os.environ.get(counts.VARIABLE)
    return Service(classifier, Counts(Path(path), counts.model_of(Path(models))) if path else None)


class BadImageError(MlflowException):
    """An image cannot be read: HTTP status 400, with the reason."""

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(f"image {number}: {reason}", BAD_REQUEST)


class Service:
    """The model that MLflow calls; ``mlflow models serve`` calls it from several threads."""

    def __init__(self, classifier: Classifier, counted: Counts | None = None) -> None:
        self._classifier = classifier
        self._counts = counted
        self._lock = threading.Lock()  # a LiteRT interpreter is not safe for threads

    def predict(self, images: pd.DataFrame, params: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """Answer each row of the column ``image``, in order.

        A photograph is an image file as bytes or base64; a field is 28 rows of 28 values 0 to 255, white ink on black,
        as MNIST prepares them. With ``params`` ``{"one": true}`` each photograph holds one digit: take the one that it
        is about. Raises ``BadImageError`` for the first image that cannot be read.
        """
        one = bool((params or {}).get("one"))
        return [self._answer(number, image, one=one) for number, image in enumerate(_images(images["image"]), 1)]

    def _answer(self, number: int, image: object, *, one: bool) -> dict[str, Any]:
        start = time.perf_counter()
        kind = "field" if not isinstance(image, str | bytes) else "one digit" if one else "photograph"
        try:
            found = self._read(image, one=one)
        except (photo.UnreadableError, ValueError) as error:
            self._count([("kind", kind), ("verdict", "refused"), *counts.refused(str(error))])
            raise BadImageError(number, str(error)) from None
        self._count([("kind", kind), *counts.observed(found), counts.milliseconds(time.perf_counter() - start)])
        return found.as_json(whole=True)

    def _read(self, image: object, *, one: bool) -> Reading:
        if not isinstance(image, str | bytes):
            field = check_field(image)
            with self._lock:
                return read_field(field, self._classifier)
        picture = photo.open_picture(image if isinstance(image, bytes) else decode(image))
        with self._lock:
            return (reading.read_one if one else reading.read)(picture, self._classifier)

    def _count(self, counted: list[counts.Observed]) -> None:
        if self._counts:
            self._counts.add(counted)


def _images(column: pd.Series) -> Iterator[object]:
    """Yield the images: MLflow makes one row of ``{"image": [text, text]}``."""
    for value in column:
        if isinstance(value, list) and value and all(isinstance(each, str | bytes) for each in value):
            yield from value
        else:
            yield value


def decode(text: str) -> bytes:
    """Return the bytes of base64, also of a data URL; raise ``ValueError`` for anything else."""
    try:
        return base64.b64decode(text.rpartition(",")[2], validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("not base64; expected an image file as base64, or 28 x 28 values") from None


def check_field(values: object) -> np.ndarray:
    """Return a field as uint8 [28, 28]; raise ``ValueError`` that says what was expected."""
    try:
        field = np.asarray(values, float)
    except (ValueError, TypeError, OverflowError):
        field = np.empty(0)
    if field.shape != FIELD:
        raise ValueError("expected an image file as bytes or base64, or 28 rows of 28 numbers")
    if not ((field >= 0) & (field <= 255) & (field == field.round())).all():
        raise ValueError("expected whole numbers from 0 (paper) to 255 (ink)")
    return field.astype(np.uint8)


def read_field(field: np.ndarray, classifier: Classifier) -> Reading:
    """Read a field, uint8 [28, 28], as it is."""
    return next(read_fields(field[None], classifier))


def read_fields(fields: np.ndarray, classifier: Classifier) -> Iterator[Reading]:
    """Read fields, uint8 [n, 28, 28], as they are."""
    for field, probabilities in zip(fields, classifier.probabilities(fields), strict=True):
        yield _judge(field, probabilities, classifier)


def _judge(field: np.ndarray, probabilities: np.ndarray, classifier: Classifier) -> Reading:
    if not field.any():
        return Reading((), "no digit", "no ink")
    best, verdict = int(probabilities.argmax()), classifier.verdict(probabilities)
    if verdict == "no digit":
        return Reading((), verdict, "the field is not like a digit")
    digit = Digit(best, float(probabilities[best]), verdict, (0, 0, *FIELD), field, probabilities, classifier.classes)
    return Reading((digit,), verdict, "" if verdict == "digit" else f"a {digit.name} at most, and not like one")

"""The model as a service: photographs or 28x28 fields in, digits with probabilities and verdicts out (no TensorFlow).

MLflow keeps a copy of this module beside the model's files and loads that; `mlflow models serve` offers it over HTTP.
"""

from __future__ import annotations

import base64
import binascii
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST, TEMPORARILY_UNAVAILABLE

from pipeline import corrections, counts
from pipeline.console import UserError
from pipeline.corrections import Correction
from pipeline.counts import Counts
from pipeline.learning.classifier import Classifier
from pipeline.photos import photo, reading
from pipeline.photos.reading import Digit, Reading

FIELD = (photo.FIELD, photo.FIELD)


def _load_pyfunc(models: str) -> Service:
    """Return the service of the model whose files are in the folder ``models``: MLflow asks for this name."""
    classifier = Classifier.load(Path(models))
    counted, kept = (os.environ.get(name) for name in (counts.VARIABLE, corrections.VARIABLE))
    return Service(
        classifier,
        Counts(Path(counted), counts.model_of(Path(models))) if counted else None,
        Path(kept).absolute() if kept else None,
    )


class BadImageError(MlflowException):
    """An image cannot be read, or not be kept with its label: HTTP status 400, with the reason."""

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(f"image {number}: {reason}", BAD_REQUEST)


class NotKeptError(MlflowException):
    """The folder of the corrections takes none: HTTP status 503; the reason is in the log, not for who asks."""

    def __init__(self, number: int) -> None:
        super().__init__(
            f"image {number}: read, but not kept; the log of the service says why", TEMPORARILY_UNAVAILABLE
        )


@dataclass(frozen=True)
class Row:
    """A row of a request: an image, and, where it is to be kept, the digits that it shows and perhaps its writer."""

    image: Any
    label: Any
    writer: Any

    @property
    def content(self) -> bytes:
        """The image file; raises ``ValueError`` for what is not base64."""
        return self.image if isinstance(self.image, bytes) else decode(self.image)

    @property
    def is_field(self) -> bool:
        """Whether the image is 28 rows of values, or should be."""
        return not isinstance(self.image, str | bytes)


class Service:
    """The model that MLflow calls; ``mlflow models serve`` calls it from several threads."""

    def __init__(self, classifier: Classifier, counted: Counts | None = None, kept: Path | None = None) -> None:
        self._classifier = classifier
        self._counts = counted
        self._kept = kept
        # MLflow calls from cores + 4 threads, but one thread reads, one picture at a time: a LiteRT interpreter is not
        # safe for threads, to decode 60 million pixels takes up to 1.6 GB (PNG of 16 bits), and malloc keeps for every
        # thread what it held once: 375 MB for six threads, each with a picture of 4 million pixels, and 2 MB for one.
        self._thread = ThreadPoolExecutor(1)

    def predict(self, images: pd.DataFrame, params: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """Answer each row of the column ``image``, in order.

        A photograph is an image file as bytes or base64; a field is 28 rows of 28 values 0 to 255, white ink on black,
        as MNIST prepares them. With ``params`` ``{"one": true}`` each photograph holds one digit: take the one that it
        is about. A photograph with a ``label``, the digits that it shows, is kept, by its ``writer`` where it has one;
        its answer names the file as ``kept``. Raises ``BadImageError`` for the first image that cannot be read or label
        that cannot be, and then keeps none; ``NotKeptError`` where the folder takes no picture.
        """
        one = bool((params or {}).get("one"))
        rows = list(enumerate(_rows(images), 1))
        answers = [self._answer(number, row, one=one) for number, row in rows]
        corrected = [(number, row) for number, row in rows if row.label is not None or row.writer is not None]
        for number, keep in [(number, self._keeper(number, row)) for number, row in corrected]:
            try:
                answers[number - 1]["kept"] = self._thread.submit(keep).result().file
            except (UserError, OSError) as error:
                logging.getLogger(__name__).warning("%s: a correction is not kept: %s", self._kept, error)
                raise NotKeptError(number) from None
        return answers

    def _keeper(self, number: int, row: Row) -> Callable[[], Correction]:
        """Return what keeps the picture of a row; raise ``BadImageError`` where it cannot be kept with its label."""
        if not self._kept:
            raise BadImageError(number, f"this service keeps no label; {corrections.VARIABLE} names a folder for them")
        if row.is_field or len(row.content) > corrections.LIMIT:
            raise BadImageError(number, f"a label needs an image file of at most {corrections.LIMIT // 10**6} MB")
        writer = "" if row.writer is None else row.writer
        if not isinstance(row.label, str) or not isinstance(writer, str):
            raise BadImageError(number, 'expected a label as text, such as "07", and a writer as text or none')
        classes = self._classifier.classes
        try:
            corrections.check_label(row.label, classes)
            corrections.check_writer(writer)
        except UserError as error:
            raise BadImageError(number, str(error)) from None
        return partial(corrections.keep, row.content, row.label, classes, writer=writer, folder=self._kept)

    def _answer(self, number: int, row: Row, *, one: bool) -> dict[str, Any]:
        start = time.perf_counter()
        kind = "field" if row.is_field else "one digit" if one else "photograph"
        try:
            found = self._thread.submit(self._read, row, one=one).result()
        except (photo.UnreadableError, ValueError) as error:
            self._count([("kind", kind), ("verdict", "refused"), *counts.refused(str(error))])
            raise BadImageError(number, str(error)) from None
        self._count([("kind", kind), *counts.observed(found), counts.milliseconds(time.perf_counter() - start)])
        return found.as_json(whole=True)

    def _read(self, row: Row, *, one: bool) -> Reading:
        if row.is_field:
            return read_field(check_field(row.image), self._classifier)
        picture = photo.open_picture(row.content)
        return (reading.read_one if one else reading.read)(picture, self._classifier)

    def _count(self, counted: list[counts.Observed]) -> None:
        if self._counts:
            self._counts.add(counted)


def _rows(table: pd.DataFrame) -> Iterator[Row]:
    """Yield the rows: MLflow makes one row of ``{"image": [text, text]}``."""
    for image, *optional in table.reindex(columns=["image", "label", "writer"]).itertuples(index=False):
        label, writer = (None if isinstance(value, float) and math.isnan(value) else value for value in optional)
        several = isinstance(image, list) and image and all(isinstance(each, str | bytes) for each in image)
        for each in image if several else [image]:
            yield Row(each, label, writer)


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

"""Fields to classes: the exported network, calibrated probabilities and a verdict (LiteRT, no TensorFlow)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from pipeline import files
from pipeline.console import UserError, hushed

Verdict = Literal["digit", "unsure", "no digit"]

BATCH = 500  # fields a call: enough to be fast, little enough to need no memory to speak of
FLOOR = 1e-30  # below what float32 can say of a probability; keeps the logarithm finite
ACCEPTED = 0.99  # share of true digits that each threshold lets pass
DIGITS = tuple("0123456789")  # the classes of a calibration that names none
TORN = 0.6  # of the best answer's probability: with a second one above it, half of the best ones are wrong


@dataclass(frozen=True)
class Calibration:
    """How the network's answers become probabilities and verdicts.

    ``temperature`` divides the logits (Guo et al. 2017, section 4.2). Verdicts follow the evidence of a field:
    ``digit`` from ``certain`` on, unless it is torn between two, which nearly all clean digits reach; ``unsure`` from
    ``possible`` on, which nearly all digits reach that were degraded as photographs degrade them; below it, ``no
    digit``. ``classes`` are the names of the answers.
    """

    temperature: float
    certain: float
    possible: float
    classes: tuple[str, ...] = DIGITS

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf") or not 0 <= self.possible <= self.certain < float("inf"):
            raise UserError(f"calibration: expected temperature > 0 and 0 <= possible <= certain, found {self}")

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read a calibration that ``save`` wrote."""
        try:
            content = files.read_json(path)
            temperature, certain, possible = (float(content[name]) for name in ("temperature", "certain", "possible"))
            return cls(temperature, certain, possible, tuple(content.get("classes", DIGITS)))
        except FileNotFoundError:
            raise UserError(f"{path}: expected the calibration here; `dvc repro train` makes it") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{path}: expected temperature, certain and possible; `dvc repro train` makes it") from None

    def save(self, path: Path) -> None:
        """Write the calibration as a flat JSON file."""
        files.write_json(path, asdict(self))


def fit_calibration(
    clean: np.ndarray, degraded: np.ndarray, labels: np.ndarray, classes: tuple[str, ...] = DIGITS
) -> Calibration:
    """Fit temperature and thresholds to validation digits, as they are and degraded as photographs degrade them.

    ``clean`` and ``degraded`` [n, classes] are the network's logits up to a constant a row; ``labels`` [n]. The
    temperature has the least negative log-likelihood on the degraded ones.
    """
    temperature = round(fit_temperature(degraded, labels), 4)
    answers = softmax(clean / temperature)
    certain = _least(np.where(is_torn(answers), 0, evidence(answers)))
    possible = _least(evidence(softmax(degraded / temperature)))
    return Calibration(temperature, max(certain, possible), possible, classes)


def _least(evidences: np.ndarray) -> float:
    quantile = np.quantile(evidences, 1 - ACCEPTED, method="lower")
    return max(0.0, float(np.floor(quantile * 1e4) / 1e4))


def evidence(probabilities: np.ndarray) -> np.ndarray:
    """Return how far the best answer's logit lies above the mean logit, [...], of probabilities [..., classes].

    It tells digits from what is none better than the greatest probability does: a letter may be like one digit only
    and still be like none (compare the flattened softmax of Liang et al. 2018, ODIN).
    """
    logs = np.log(np.maximum(probabilities, FLOOR))
    return logs.max(-1) - logs.mean(-1)


def is_torn(probabilities: np.ndarray) -> np.ndarray:
    """Tell, bool [...], where two answers of probabilities [..., classes] are about equally likely."""
    ordered = np.sort(probabilities, axis=-1)
    return ordered[..., -2] > TORN * ordered[..., -1]


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature of least negative log-likelihood, by Newton's method on its inverse, which is convex."""
    logits = np.asarray(logits, np.float64)
    right = np.take_along_axis(logits, np.asarray(labels, np.int64)[:, None], 1)[:, 0]
    inverse = 1.0
    for _ in range(50):
        probabilities = softmax(inverse * logits)
        mean = (probabilities * logits).sum(1)
        curvature = ((probabilities * logits**2).sum(1) - mean**2).mean()
        step = (mean - right).mean() / max(float(curvature), 1e-12)
        inverse = float(np.clip(inverse - step, inverse / 2, inverse * 2))  # all-right digits would send it to infinity
        inverse = float(np.clip(inverse, 0.01, 100.0))
        if abs(step) < 1e-9:
            break
    return 1 / inverse


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities [n, k] in float64 of logits [n, k]."""
    powers = np.exp(np.asarray(logits, np.float64) - np.max(logits, axis=1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


class Classifier:
    """The exported network behind its calibration; the same fields give the same bits, one thread or many calls."""

    def __init__(self, model: bytes, calibration: Calibration, threads: int = 1) -> None:
        self.calibration = calibration
        try:
            self._network = Interpreter(model_content=model, num_threads=threads)
        except (ValueError, RuntimeError):
            raise UserError("the exported network is not a LiteRT model; `dvc repro train` makes it anew") from None
        self._input = self._network.get_input_details()[0]
        self._output = self._network.get_output_details()[0]["index"]
        answers = int(self._network.get_output_details()[0]["shape"][-1])
        if answers != len(self.classes):
            named = f"calibration.json names {len(self.classes)} classes"
            raise UserError(f"the exported network has {answers} answers, but {named}; `dvc repro train` makes both")
        self._size = 0

    @classmethod
    def load(cls, models: Path = files.MODELS, threads: int = 1) -> Classifier:
        """Read ``digits.tflite`` and ``calibration.json`` from the folder ``models``."""
        try:
            content = (models / "digits.tflite").read_bytes()
        except FileNotFoundError:
            raise UserError(f"{models / 'digits.tflite'}: expected the network here; `dvc repro` makes it") from None
        return cls(content, Calibration.load(models / "calibration.json"), threads)

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the names of the answers."""
        return self.calibration.classes

    def raw(self, fields: np.ndarray) -> np.ndarray:
        """Return the network's own probabilities, float32 [n, classes], of uint8 fields [n, 28, 28]."""
        found = np.empty((len(fields), len(self.classes)), np.float32)
        for start in range(0, len(fields), BATCH):
            found[start : start + BATCH] = self._call(fields[start : start + BATCH])
        return found

    def log_probabilities(self, fields: np.ndarray) -> np.ndarray:
        """Return the logits up to a constant a row, float64 [n, classes], before calibration."""
        return np.log(np.maximum(self.raw(fields).astype(np.float64), FLOOR))

    def probabilities(self, fields: np.ndarray) -> np.ndarray:
        """Return calibrated probabilities, float64 [n, classes], of uint8 fields [n, 28, 28]."""
        if len(fields) == 0:
            return np.empty((0, len(self.classes)))
        return softmax(self.log_probabilities(fields) / self.calibration.temperature)

    def verdict(self, probabilities: np.ndarray) -> Verdict:
        """Judge one field by its calibrated probabilities [classes]."""
        found = evidence(probabilities)
        if found >= self.calibration.certain and not is_torn(probabilities):
            return "digit"
        return "unsure" if found >= self.calibration.possible else "no digit"

    def _call(self, fields: np.ndarray) -> np.ndarray:
        if len(fields) != self._size:
            self._size = len(fields)
            self._network.resize_tensor_input(self._input["index"], [self._size, 28, 28, 1])
            with hushed():
                self._network.allocate_tensors()
        self._network.set_tensor(self._input["index"], fields[..., None].astype(self._input["dtype"]))
        self._network.invoke()
        return self._network.get_tensor(self._output)

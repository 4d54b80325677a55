"""The reports of one model, read from the workspace or from a git revision, so that two models can be compared."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import yaml

from pipeline import files, git, scoring
from pipeline.console import UserError

METRICS, PREDICTIONS, TRAIN, PHOTOS = (
    f"{files.REPORTS}/{name}" for name in ("metrics.json", "predictions.csv", "train.json", "photos.json")
)
NETWORK, CALIBRATION = (f"{files.MODELS}/{name}" for name in ("digits.tflite", "calibration.json"))
# A clone for a pull request has no `main` of its own, and that of a fork may be old.
MAIN = ("main", "origin/main", "upstream/main")
Reader = Callable[[str], bytes | None]


class IncomparableError(UserError):
    """Reports are missing or cannot be read, so that no comparison is possible: exit status 4."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=4)


@dataclass(frozen=True, eq=False)
class Evidence:
    """The reports of one model, and the parameters (flat, dotted) that made it.

    ``labels`` and ``predictions`` are uint8 [n], ``confidence`` [n] the probability of each prediction.
    ``model_sha256`` is the digest of the model's file itself, where there is one; ``network`` holds the exported
    network and its calibration by their paths, where both are there.
    """

    name: str
    metrics: Mapping[str, Any]
    train: Mapping[str, Any]
    photos: Mapping[str, Any]
    params: Mapping[str, Any]
    labels: np.ndarray
    predictions: np.ndarray
    confidence: np.ndarray
    model_sha256: str = ""
    network: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def is_correct(self) -> np.ndarray:
        """Return which predictions equal their labels, bool [n]."""
        return np.equal(self.labels, self.predictions)

    @property
    def figures(self) -> dict[str, Any]:
        """Return the metrics of all three reports in one mapping; for equal names `evaluate`'s count."""
        return {**self.photos, **self.train, **self.metrics}

    def mismatches(self) -> Iterator[str]:
        """Yield a sentence for each report that is of another model than reports/metrics.json."""
        model = str(self.metrics.get("model_sha256") or "")
        if not model:
            yield f"{METRICS} names no model"
            return
        named = {TRAIN: self.train.get("model_sha256"), PHOTOS: self.photos.get("model_sha256")}
        if self.model_sha256:
            named["models/digits.keras"] = self.model_sha256
        for path, other in named.items():
            if other != model:
                yield f"{path} is of model {str(other)[:12]}, {METRICS} of {model[:12]}"
        if round(float(self.is_correct.mean()), scoring.PLACES) != self.metrics.get("test_accuracy"):
            yield f"{PREDICTIONS} has another accuracy than {METRICS}"


def of_workspace() -> Evidence:
    """Read the reports and params.yaml of the working tree."""
    model = files.MODELS / "digits.keras"
    digest = files.sha256(model) if model.exists() else ""
    return read("the workspace", lambda path: Path(path).read_bytes() if Path(path).exists() else None, digest)


def of_revision(revision: str) -> Evidence:
    """Read the reports and params.yaml of a git revision; raise ``UserError`` if there is no such revision."""
    commit = git.commit(revision)
    if not commit:
        raise UserError(f"{revision}: expected a revision of this git repository")
    name = commit[:10] if commit.startswith(revision) else f"{revision} ({commit[:10]})"
    return read(name, lambda path: git.read(commit, path))


def read(name: str, reader: Reader, model_sha256: str = "") -> Evidence:
    """Read evidence with ``reader``, which returns the bytes of a path, or None where there is no such file.

    ``name`` stands for it in messages. Raises ``IncomparableError`` where a report is missing or cannot be read.
    """
    contents = {path: reader(path) for path in (METRICS, TRAIN, PHOTOS, PREDICTIONS, str(files.PARAMS))}
    missing = [path for path, content in contents.items() if not content]
    if missing:
        raise IncomparableError(f"{name} has no {', '.join(missing)}; `dvc repro` makes the reports, git keeps them")
    labels, predictions, confidence = _answers(name, contents[PREDICTIONS] or b"")
    metrics, train, photos = (_mapping(name, path, contents[path] or b"") for path in (METRICS, TRAIN, PHOTOS))
    params = flat(_mapping(name, str(files.PARAMS), contents[str(files.PARAMS)] or b""))
    network = {path: reader(path) or b"" for path in (NETWORK, CALIBRATION)}
    network = network if all(network.values()) else {}
    return Evidence(name, metrics, train, photos, params, labels, predictions, confidence, model_sha256, network)


def _mapping(name: str, path: str, content: bytes) -> dict[str, Any]:
    def refuse(constant: str) -> NoReturn:
        raise IncomparableError(f"{name}: {path} holds {constant}")

    try:
        found = yaml.safe_load(content) if path.endswith(".yaml") else json.loads(content, parse_constant=refuse)
    except (ValueError, yaml.YAMLError):
        found = None
    if not isinstance(found, dict):
        raise IncomparableError(f"{name}: {path} cannot be read; `dvc repro` makes the reports")
    return found


def _answers(name: str, content: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    try:
        rows = list(csv.DictReader(content.decode().splitlines()))
        labels, predictions = (np.array([int(row[key]) for row in rows], np.uint8) for key in ("label", "prediction"))
        confidence = np.array([float(row["probability"]) for row in rows])
    except (ValueError, KeyError, TypeError, OverflowError):
        raise IncomparableError(f"{name}: {PREDICTIONS} cannot be read; `dvc repro` makes the reports") from None
    if not rows or not np.isfinite(confidence).all():
        raise IncomparableError(f"{name}: {PREDICTIONS} holds {'NaN' if rows else 'no answers'}")
    return labels, predictions, confidence


def flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested sections as one mapping with dotted names."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def default_base(revision: str = "") -> str:
    """Return the commit to compare ``revision``, or the workspace, with: the merge base with `main`.

    Of the branches in ``MAIN`` all that are here count, and the newest common commit is taken: a local `main` that was
    not pulled for long must not give another base than CI has. On `main` itself the base is what came before: the last
    commit for changes that are not committed, else the first parent.
    """
    try:
        head, mains = git.commit(revision or "HEAD"), [name for name in MAIN if git.commit(name)]
    except git.NoRepositoryError as error:
        remedy = f"`git clone` it, or name a base: {_NAME_A_BASE}"
        raise IncomparableError(f"{error}: no commit to compare with; {remedy}") from None
    if not head or not mains:
        raise IncomparableError(f"no commit or no {' or '.join(MAIN)} here; name a base: --against REVISION")
    merge_base = git.text("merge-base", head, *mains)
    if not merge_base:
        remedy = f"fetch the whole history{_shallow()}, or name a base: {_NAME_A_BASE}"
        raise IncomparableError(f"no common commit with {mains[0]} here; {remedy}")
    if merge_base != head:
        return merge_base
    if not revision and git.text("status", "--porcelain", "--untracked-files=no"):
        return head
    parent = git.commit(f"{head}~1")
    if not parent and git.is_shallow():
        raise IncomparableError(f"the commit before this one is not here; fetch the whole history{_shallow()}")
    if not parent:
        raise IncomparableError("no baseline: there is no commit before this one to compare with")
    return parent


_NAME_A_BASE = "--against REVISION or --against champion"


def _shallow() -> str:
    return " (this clone is shallow: `git fetch --unshallow`)" if git.is_shallow() else ""

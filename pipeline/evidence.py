"""What the reports of one model say, read from the workspace or from git alone, so that two models can be compared."""

from __future__ import annotations

import csv
import json
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import yaml

from pipeline import files, scoring
from pipeline.console import UserError

METRICS, PREDICTIONS, TRAIN, PHOTOS = (
    f"{files.REPORTS}/{name}" for name in ("metrics.json", "predictions.csv", "train.json", "photos.json")
)
MAIN = ("main", "origin/main")  # a clone for a pull request has only the second
Reader = Callable[[str], bytes | None]


class IncomparableError(UserError):
    """Evidence is missing, or says nothing: exit status 4."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=4)


@dataclass(frozen=True, eq=False)
class Evidence:
    """The reports of one model, and the parameters (flat, dotted) that made it.

    ``labels`` and ``predictions`` are uint8 [n], ``sureness`` [n] the probability of each answer. ``model_sha256`` is
    the digest of the model's file itself, where there is one.
    """

    name: str
    metrics: Mapping[str, Any]
    train: Mapping[str, Any]
    photos: Mapping[str, Any]
    params: Mapping[str, Any]
    labels: np.ndarray
    predictions: np.ndarray
    sureness: np.ndarray
    model_sha256: str = ""

    @property
    def right(self) -> np.ndarray:
        """Return which answers are right, bool [n]."""
        return np.equal(self.labels, self.predictions)

    @property
    def figures(self) -> dict[str, Any]:
        """Return all flat figures of the reports."""
        return {**self.photos, **self.train, **self.metrics}

    def strays(self) -> Iterator[str]:
        """Yield what is not of the model that the metrics are of."""
        model = self.metrics.get("model_sha256")
        if not model:
            yield f"{METRICS} names no model"
            return
        named = {TRAIN: self.train.get("model_sha256"), PHOTOS: self.photos.get("model_sha256")}
        if self.model_sha256:
            named["models/digits.keras"] = self.model_sha256
        for path, other in named.items():
            if other != model:
                yield f"{path} is of model {str(other)[:12]}, {METRICS} of {model[:12]}"
        if round(float(self.right.mean()), scoring.PLACES) != self.metrics.get("test_accuracy"):
            yield f"{PREDICTIONS} has another accuracy than {METRICS}"


def of_workspace() -> Evidence:
    """Read the evidence that lies in the working tree."""
    model = files.MODELS / "digits.keras"
    digest = files.sha256(model) if model.exists() else ""
    return read("the workspace", lambda path: Path(path).read_bytes() if Path(path).exists() else None, digest)


def of_revision(revision: str) -> Evidence:
    """Read the evidence that a git revision holds; ``UserError`` where there is no such revision."""
    commit = git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if not commit:
        raise UserError(f"{revision}: expected a revision of this git repository")
    name = commit[:10] if commit.startswith(revision) else f"{revision} ({commit[:10]})"
    return read(name, lambda path: _git("show", f"{commit}:./{path}"))


def read(name: str, reader: Reader, model_sha256: str = "") -> Evidence:
    """Read evidence with ``reader``, which gives a file's bytes or None; ``IncomparableError`` if it says nothing."""
    contents = {path: reader(path) for path in (METRICS, TRAIN, PHOTOS, PREDICTIONS, str(files.PARAMS))}
    missing = [path for path, content in contents.items() if not content]
    if missing:
        raise IncomparableError(f"{name} has no {', '.join(missing)}; `dvc repro` makes the reports, git keeps them")
    labels, predictions, sureness = _answers(name, contents[PREDICTIONS] or b"")
    metrics, train, photos = (_mapping(name, path, contents[path] or b"") for path in (METRICS, TRAIN, PHOTOS))
    params = flat(_mapping(name, str(files.PARAMS), contents[str(files.PARAMS)] or b""))
    return Evidence(name, metrics, train, photos, params, labels, predictions, sureness, model_sha256)


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
        sureness = np.array([float(row["probability"]) for row in rows])
    except (ValueError, KeyError, TypeError, OverflowError):
        raise IncomparableError(f"{name}: {PREDICTIONS} cannot be read; `dvc repro` makes the reports") from None
    if not rows or not np.isfinite(sureness).all():
        raise IncomparableError(f"{name}: {PREDICTIONS} holds {'NaN' if rows else 'no answers'}")
    return labels, predictions, sureness


def flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested sections as one mapping with dotted names."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def default_base(revision: str = "") -> str:
    """Return the commit to compare ``revision``, or the workspace, with: the merge base with `main`.

    On `main` itself it is what came before: the last commit for changes that are not committed, else the first parent.
    """
    head = git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision or 'HEAD'}^{{commit}}")
    main = next((name for name in MAIN if git("rev-parse", "--verify", "--quiet", name)), "")
    if not head or not main:
        raise IncomparableError(f"no commit or no {' or '.join(MAIN)} here; name a base: --against REVISION")
    merge_base = git("merge-base", head, main)
    if not merge_base:
        raise IncomparableError(
            f"no common commit with {main} here; fetch the whole history, or name a base: --against"
        )
    if merge_base != head:
        return merge_base
    if not revision and git("status", "--porcelain", "--untracked-files=no"):
        return head
    parent = git("rev-parse", "--verify", "--quiet", f"{head}~1")
    if not parent:
        raise IncomparableError("no baseline: there is no commit before this one to compare with")
    return parent


def git(*words: str) -> str:
    """Return what a git command prints, without its last end of line; nothing when it fails."""
    return (_git(*words) or b"").decode().strip()


def _git(*words: str) -> bytes | None:
    done = subprocess.run(["git", *words], capture_output=True, check=False)
    return None if done.returncode else done.stdout

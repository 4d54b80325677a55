"""Reproduce: run the pipeline again with a run's commit, parameters and data, and compare the results.

python -m pipeline.reproduce RUN

RUN is an MLflow run by id, unique beginning of an id, or name; or a registered version, models:/digits@champion or
models:/digits/3. A temporary clone at the run's commit, with what was not committed then and with the run's
parameters, runs the whole pipeline, the training too: no checkpoint and no cache of this workspace is used, and nothing
in it is touched.

Prints  the sha256 of data, parameters, code and model of both runs, and the metrics that differ
Exits   0 bit for bit · 3 the same figures within sampling error, other bits · 1 not reproduced · 2 usage
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from mlflow.entities import Run as MlflowRun

from pipeline import config, console, fetch, files, git, provenance, registry
from pipeline.console import UserError
from pipeline.store import Store, open_store
from pipeline.tracking import Run

MADE_OF = ("data", "params", "code")
SAME, CLOSE, OTHER = 0, 3, 1
Z = 1.96  # standard errors: 95%
ACCURACIES = {"test_accuracy": "test", "best_val_accuracy": "validation"}  # and the digits that each is of
REMOVED_VARIABLES = (
    "DVC_",
    "MLFLOW_",
    "_MLFLOW_",
    "GIT_",
    "PYTHONPATH",
)  # variables that would make the clone use this workspace
KEPT_VARIABLES = {"DVC_NO_ANALYTICS", "MLFLOW_DISABLE_TELEMETRY"}


@dataclass(frozen=True)
class Outcome:
    """The comparison: digests and metrics of the run and of its reproduction, and known reasons for other bits."""

    digests: Mapping[str, tuple[str, str]]
    figures: Mapping[str, tuple[float, float]]
    images: Mapping[str, int]
    reasons: Sequence[str]

    @property
    def differing(self) -> list[str]:
        """Return the names of what differs."""
        return [name for name, (before, now) in {**self.digests, **self.figures}.items() if before != now]

    @property
    def status(self) -> int:
        """Return the exit status: ``SAME``, ``CLOSE`` or ``OTHER``."""
        if not self.differing:
            return SAME
        if any(name in self.differing for name in MADE_OF):
            return OTHER
        compared = [name for name in ACCURACIES if name in self.figures]
        return CLOSE if compared and all(self._close(name) for name in compared) else OTHER

    def _close(self, name: str) -> bool:
        return close(*self.figures[name], self.images[ACCURACIES[name]])


def main(arguments: Sequence[str]) -> int:
    """Reproduce a run and return the exit status."""
    wanted = _arguments(arguments)
    store = open_store()
    run = find(store, wanted.run)
    with tempfile.TemporaryDirectory(prefix="reproduce-") as folder:
        project = check_out(Run(store, run.info.run_id), Path(folder, "clone"))
        repeat(project, run.data.tags.get(provenance.LEFT_OUT, ""))
        outcome = compare(run, newest(project), parameters(store, run))
    print(describe(run, outcome))
    return outcome.status


def _arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.reproduce",
        description="Run the pipeline again as a run did, and compare the results.",
        epilog="example: python -m pipeline.reproduce models:/digits@champion",
    )
    parser.add_argument("run", metavar="RUN", help="id, unique beginning of an id, name, or models:/digits@champion")
    return parser.parse_args(arguments)


def find(store: Store, name: str) -> MlflowRun:
    """Return the run with this id or name; raise ``UserError`` if there is none, or several, or it has no model."""
    found = _candidates(store, name)
    if not found:
        raise UserError(f"{name}: no such run; expected an id, its beginning, a name, or models:/digits@champion")
    made = {run.data.tags.get("model.sha256") for run in found}
    if len(found) > 1 and len(made) > 1:
        ids = ", ".join(run.info.run_id[:8] for run in found[:8])
        raise UserError(f"{name}: {len(found)} runs are called so; name one by its id: {ids}")
    if made == {None}:
        raise UserError(f"{name}: run {found[0].info.run_id[:8]} is {found[0].info.status} and made no model")
    return found[0]


def _candidates(store: Store, name: str) -> list[MlflowRun]:
    if name.startswith("models:/"):
        alias = name.removeprefix("models:/").removeprefix(registry.MODEL)
        return [store.client.get_run(registry.need(store, alias.lstrip("@/")).run_id)] if alias else []
    runs = store.runs("")
    return [run for run in runs if run.info.run_name == name] or [
        run for run in runs if run.info.run_id.startswith(name)
    ]


def parameters(store: Store, run: MlflowRun) -> dict[str, dict[str, int]]:
    """Return the run's params.yaml; raise ``UserError`` where it is not kept."""
    kept = Run(store, run.info.run_id).read(str(files.PARAMS))
    if not kept:
        raise UserError(f"run {run.info.run_id}: its artifacts are gone; `python -m pipeline.doctor` says which")
    return yaml.safe_load(kept)


def check_out(run: Run, clone: Path) -> Path:
    """Make a clone as the run's workspace was: its commit, what was not committed, its parameters.

    Return the project's folder in it, which is not the clone's where the project is a folder of a larger repository.
    """
    found = run.client.get_run(run.run_id)
    tags = found.data.tags
    commit = _commit(found)
    text = parameters(run.store, found)
    _clone(commit, clone)
    project = clone / git.text("rev-parse", "--show-prefix", cwd=files.ROOT)
    patch = run.read(provenance.PATCH) if tags.get("git.dirty") == "true" else None
    if patch is not None:
        git.run(*PLAIN, "apply", "--whitespace=nowarn", "-", cwd=clone, stdin=patch)
    elif tags.get("git.dirty") == "true" and provenance.LEFT_OUT not in tags:
        raise UserError(f"run {run.run_id}: what was not committed is gone with its artifact {provenance.PATCH}")
    if not (project / "dvc.yaml").is_file():
        raise UserError(f"commit {commit[:12]} of run {run.run_id[:8]} has no dvc.yaml in this project's folder")
    files.write_text(project / files.PARAMS, yaml.safe_dump(text))
    return project


PLAIN = ("-c", "core.autocrlf=false", "-c", "core.hooksPath=/dev/null")  # bytes as committed; nobody's own hooks


def _clone(commit: str, clone: Path) -> None:
    """Check ``commit`` out in ``clone``, which borrows the objects of this project's repository.

    `git clone` would do, but not from a shallow clone, and it asks for another `safe.directory`.
    """
    folder = ("rev-parse", "--path-format=absolute", "--git-path")
    objects, shallow = (git.text(*folder, name, cwd=files.ROOT) for name in ("objects", "shallow"))
    git.run("init", "--quiet", "--template=", str(clone))
    files.write_bytes(clone / ".git/objects/info/alternates", os.fsencode(f"{objects}\n"))
    if Path(shallow).exists():
        files.write_bytes(clone / ".git/shallow", Path(shallow).read_bytes())
    git.run(*PLAIN, "checkout", "--quiet", "--detach", commit, cwd=clone)


def _commit(run: MlflowRun) -> str:
    tags = run.data.tags
    for commit in (tags.get("git.commit"), tags.get("dvc.baseline_rev")):
        if commit and git.commit(commit, files.ROOT):
            return commit
    if not tags.get("git.commit"):
        raise UserError(f"run {run.info.run_id}: made outside git or before the first commit, from code nobody kept")
    remedy = (
        "`git fetch --unshallow`, this clone is shallow" if git.is_shallow(files.ROOT) else "`git fetch` its branch"
    )
    raise UserError(f"commit {tags['git.commit'][:12]} of run {run.info.run_id[:8]} is not here; {remedy}")


def repeat(clone: Path, left_out: str = "") -> None:
    """Run the pipeline in ``clone``; the raw data is this workspace's where the clone needs the same, else fetched.

    ``left_out`` names what the run did not keep: a failure may come of that.
    """
    try:
        if fetch.present(files.ROOT / files.RAW, wanted_sums(clone)):
            _call(clone, sys.executable, "-m", "pipeline.fetch", "--from", str(files.ROOT / files.RAW))
            _call(clone, sys.executable, "-m", "dvc", "commit", "--quiet", "--force", "fetch")
        _call(clone, sys.executable, "-m", "dvc", "repro")
    except UserError as error:
        if not left_out:
            raise
        raise UserError(f"{error}; not committed then, and not kept: {left_out}", status=error.status) from None


def wanted_sums(clone: Path) -> dict[str, str]:
    """Return the sha256 of the raw files that a clone asks for: ours, where its commit is older than the parameter."""
    wanted = yaml.safe_load((clone / files.PARAMS).read_text("utf-8")).get("data", {}).get("sha256")
    return fetch.sums_of(wanted or config.load(files.ROOT / files.PARAMS).data.sha256.model_dump())


def _call(clone: Path, *words: str) -> None:
    """Run a command and all that it starts; they end with this process."""
    with subprocess.Popen(words, cwd=clone, env=_environment(), stdout=sys.stderr, start_new_session=True) as child:
        try:
            status = child.wait()
        except BaseException:
            os.killpg(child.pid, signal.SIGTERM)
            raise
    if status:
        raise UserError(f"not reproduced: `{' '.join(words[2:])}` ended with {status} in a clone", status=OTHER)


def _environment() -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in KEPT_VARIABLES or not name.startswith(REMOVED_VARIABLES)
    }
    return kept | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}


def newest(clone: Path) -> MlflowRun:
    """Return the run that the pipeline made in ``clone``."""
    store = open_store(f"sqlite:///{clone / 'mlruns' / 'mlflow.db'}")
    made = store.runs("attributes.status = 'FINISHED'")
    if not made:
        raise UserError("not reproduced: the pipeline trained nothing", status=OTHER)
    return made[0]


def compare(run: MlflowRun, again: MlflowRun, params: Mapping[str, Mapping[str, int]]) -> Outcome:
    """Compare a run with its reproduction."""
    before, now = run.data, again.data
    digests = {
        name: (before.tags.get(f"{name}.sha256", ""), now.tags.get(f"{name}.sha256", ""))
        for name in (*MADE_OF, "model")
    }
    common = sorted(before.metrics.keys() & now.metrics.keys())
    figures = {name: (before.metrics[name], now.metrics[name]) for name in common}
    old, new = ({name: pair[side] for name, pair in figures.items()} for side in (0, 1))
    digests["metrics"] = (files.digest(old), files.digest(new))
    return Outcome(digests, figures, params["preprocess"], list(reasons(before.tags, now.tags)))


def close(before: float, now: float, images: int) -> bool:
    """Return whether two accuracies on so many images differ by no more than the sampling error, at 95%."""
    mean = (before + now) / 2
    return abs(before - now) <= Z * math.sqrt(2 * mean * (1 - mean) / images)


def reasons(before: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    """Yield the differences between the tags of two runs that are known to change bits."""
    for name, words in (("system.processor", "another processor"), ("system.python", "another Python")):
        if before.get(name) and before[name] != now.get(name):
            yield f"{words}: {before[name]}, here {now.get(name)}"
    old, new = (dict(part.split("==") for part in tags.get("system.packages", "").split()) for tags in (before, now))
    changed = [f"{name} {old[name]}, here {new.get(name)}" for name in sorted(old) if old[name] != new.get(name)]
    if changed:
        yield f"other packages: {', '.join(changed)}"
    if before.get(provenance.LEFT_OUT):
        yield f"not committed then, and not kept: {before[provenance.LEFT_OUT]}"
    for name, words in (("evaluate", "the test digits"), ("predict-photo", "the photographs")):
        if before.get(f"{name}.code.sha256") not in (None, now.get(f"{name}.code.sha256")):
            yield f"{words} of the run were read by other code than its commit's"


def describe(run: MlflowRun, outcome: Outcome) -> str:
    """Return the table and the verdict."""
    rows = [["", "run", "here", ""]]
    rows += [[name, old[:12], new[:12], _mark(old, new)] for name, (old, new) in outcome.digests.items()]
    rows += [
        [name, f"{old:g}", f"{new:g}", _mark(old, new)]
        for name, (old, new) in outcome.figures.items()
        if old != new or name in ACCURACIES
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, f"{run.info.run_id[:8]} ({run.info.run_name}): {verdict(outcome)}"])


def _mark(old: object, new: object) -> str:
    return "same" if old == new else "differs"


def verdict(outcome: Outcome) -> str:
    """Return the verdict in words."""
    if outcome.status == SAME:
        return "reproduced bit for bit"
    made_of = [name for name in MADE_OF if name in outcome.differing]
    if made_of:
        return f"not reproduced: other {' and '.join(made_of)}"
    why = "; ".join(outcome.reasons) or "for a reason that is not known"
    if outcome.status == CLOSE:
        return f"the same figures within sampling error, other bits: {why}"
    return f"not reproduced: other figures: {why}"


if __name__ == "__main__":
    console.run(main, hint="Nothing in this workspace was touched.")

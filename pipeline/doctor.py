"""Doctor: find and repair what is wrong in the MLflow store.

python -m pipeline.doctor [--fix]

Looks for runs left RUNNING by processes that died, artifacts without a run and runs without artifacts, absolute
locations after the project was moved, and a model in models/ that has no run, as in an empty store.

Mends   stale runs always; with --fix also a deleted experiment, the locations, and the missing run, from the reports
        that DVC keeps. Lost artifacts cannot be restored, and artifacts without a run are not deleted: both are named.
Exits   0 all is well now · 1 something is left · 2 usage, or a store out of reach
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline import console, files, tracking
from pipeline.store import (
    EXPERIMENT,
    Store,
    connect,
    database_of,
    is_dead,
    moved_from,
    opened,
    relocate,
    store_uri,
    without_passwords,
)

OURS = "lifecycle_stage = 'active' AND experiment_id = (SELECT experiment_id FROM experiments WHERE name = 'digits')"
KINDS = (  # what has artifacts: its name, where they lie, a file of them, all of the kind, those that must have them
    ("run", "artifacts", "params.yaml", "SELECT run_uuid FROM runs", f" WHERE status = 'FINISHED' AND {OURS}"),
    ("model", "artifacts/models", "MLmodel", "SELECT model_id FROM logged_models", f" WHERE status = 2 AND {OURS}"),
)  # 2 is a model's READY


@dataclass(frozen=True)
class Finding:
    """A fault in words, and the function that mends it: always, or with ``--fix``."""

    words: str
    mend: Callable[[], object] | None = None
    always: bool = False


def main(arguments: Sequence[str]) -> int:
    """Examine the store, mend what is to be mended, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.doctor",
        description="Find and repair faults of the MLflow store.",
        epilog="example: python -m pipeline.doctor --fix",
    )
    parser.add_argument("--fix", action="store_true", help="mend what can be mended")
    fix = parser.parse_args(arguments).fix
    uri, left = store_uri(), 0
    for finding in examine(uri):
        left += not treat(finding, fix=fix)
    print(f"{without_passwords(uri)}: {f'{left} left' if left else 'all is well'}")
    return 1 if left else 0


def treat(finding: Finding, *, fix: bool) -> bool:
    """Mend a finding if ``fix`` or the finding itself asks for it, print it, and return whether it is mended."""
    mended = finding.mend is not None and (fix or finding.always)
    if mended and finding.mend:
        finding.mend()
    advice = ": mended" if mended else "; --fix mends it" if finding.mend else ""
    print(f"{finding.words}{advice}")
    return mended


def examine(uri: str) -> Iterator[Finding]:
    """Yield the faults; the caller may mend each one before the next is looked for."""
    database = database_of(uri)
    if database and not database.exists():  # nothing is made by looking
        yield from missing_run(uri, None)
        return
    if database:
        yield from moved(database)
        yield from orphans(database)
    store = connect(uri)
    if store.deleted:
        yield from deleted(store)
        store = connect(uri)
    if not store.deleted:
        yield from stale(store)
        yield from missing_run(uri, store)


def deleted(store: Store) -> Iterator[Finding]:
    """Find that the experiment was deleted on MLflow's page."""
    restore = functools.partial(store.client.restore_experiment, store.experiment_id)
    yield Finding(f"deleted: the experiment {EXPERIMENT}, and with it all its runs", restore)


def moved(database: Path) -> Iterator[Finding]:
    """Find that a local store was made in another folder."""
    old = moved_from(database)
    if old:
        yield Finding(f"moved: the store's locations are those of {old}", lambda: relocate(database))


def orphans(database: Path) -> Iterator[Finding]:
    """Find artifacts that nothing in a local store has, and runs and models whose artifacts are gone."""
    for kind, folder, file, everything, complete in KINDS:
        place, known = database.parent / folder, _ids(database, everything)
        for path in sorted(place.iterdir() if place.is_dir() else ()):
            if path.name not in known and (path / "artifacts").is_dir():
                yield Finding(
                    f"orphan: {console.display_path(path)} is of no {kind} in the store; remove it if nobody needs it"
                )
        for each in sorted(_ids(database, everything + complete)):
            if not (place / each / "artifacts" / file).is_file():
                yield Finding(f"gone: the artifacts of {kind} {each}, expected in {console.display_path(place / each)}")


def _ids(database: Path, query: str) -> set[str]:
    with opened(database) as connection:
        return {row[0] for row in connection.execute(query)}


def stale(store: Store) -> Iterator[Finding]:
    """Find runs whose process died."""
    for run in store.runs("attributes.status = 'RUNNING'"):
        if is_dead(run.data.tags):
            words = f"stale: run {run.info.run_id} is RUNNING, but its process {run.data.tags['process.pid']} is dead"
            close = functools.partial(store.client.set_terminated, run.info.run_id, "KILLED")
            yield Finding(words, close, always=True)


def missing_run(uri: str, store: Store | None) -> Iterator[Finding]:
    """Find that the model which the reports describe has no run; None is a store that does not exist yet."""
    report = files.REPORTS / "train.json"
    if report.exists() and not (store and tracking.find_run(store)):
        words = (
            f"missing: the store has no run of model {files.read_report(report)['model_sha256'][:12]} in {files.MODELS}"
        )
        yield Finding(words, lambda: tracking.restore(store or connect(uri)))


if __name__ == "__main__":
    console.run(main)

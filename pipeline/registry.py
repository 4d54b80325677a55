"""The registered model `digits`: its versions and the aliases `challenger`, `champion` and `previous`.

The gate calls all of it:

    version = registry.challenge(store, run)                       # the model in models/ passed: offer it
    registry.promote(store, {"verdict": "pass", "base": "..."})    # --promote: champion <- challenger
    registry.rollback(store)                                       # --rollback: champion <-> previous
    read = registry.reports_of(store, registry.find(store, registry.CHAMPION))   # --against champion
    evidence.read("the champion", read)

The tags of a version name its run, commit and model, and who promoted it, when, and with which verdict of the gate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mlflow.entities.model_registry import ModelVersion

from pipeline import files, provenance, tracking
from pipeline.console import UserError
from pipeline.learning import model
from pipeline.store import Store, StoreError
from pipeline.tracking import Run

MODEL = "digits"
CHALLENGER, CHAMPION, PREVIOUS = "challenger", "champion", "previous"
COPIED_TAGS = (
    "model.sha256",
    "code.sha256",
    "data.sha256",
    "params.sha256",
    "git.commit",
    "git.dirty",
)  # tags of the run


@dataclass(frozen=True)
class Version:
    """One version of the registered model: its number, its run, and its tags."""

    number: str
    run_id: str
    tags: Mapping[str, str]

    def __str__(self) -> str:
        return f"version {self.number} of {MODEL}"


def find(store: Store, name: str) -> Version | None:
    """Return the version with this alias or number; None where there is none."""
    try:
        if name.isdecimal():
            return _version(store.client.get_model_version(MODEL, name))
        return _version(store.client.get_model_version_by_alias(MODEL, name))
    except StoreError as error:
        if error.code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND"):
            return None
        raise


def _version(found: ModelVersion) -> Version:
    return Version(str(found.version), found.run_id or "", dict(found.tags))


def need(store: Store, name: str) -> Version:
    """Return the version with this alias or number; raise ``UserError`` where there is none."""
    version = find(store, name)
    if not version:
        raise UserError(f"models:/{MODEL}@{name}: no such version; `make gate` registers a model that passes")
    return version


def challenge(store: Store, run: Run, models: Path = files.MODELS) -> Version:
    """Make the model in ``models`` the challenger: a new version, or the one that it has already.

    ``run`` is its run (``tracking.run_of_model``). What is registered is the network with the code that reads
    photographs as it is now, which may be younger than the run. Raises ``UserError`` when the run is of another model.
    """
    known = store.client.get_run(run.run_id).data.tags
    found = files.sha256(models / model.ARCHIVE)
    if known.get("model.sha256") != found:
        raise UserError(f"{models / model.ARCHIVE}: not the model of run {run.run_id}; `dvc repro` makes them agree")
    logged = run.find_model() or run.log_model(models)
    version = _registered(store, logged) or _register(store, run, logged, known)
    store.client.set_registered_model_alias(MODEL, CHALLENGER, version.number)
    return version


def _registered(store: Store, model_id: str) -> Version | None:
    versions = (_version(found) for found in store.client.search_model_versions(f"name = '{MODEL}'"))
    return next((version for version in versions if version.tags.get("model.id") == model_id), None)


def _register(store: Store, run: Run, model_id: str, known: Mapping[str, str]) -> Version:
    _make_model(store)
    location = store.client.get_logged_model(model_id).artifact_location
    tags = {name: known[name] for name in COPIED_TAGS if name in known} | {"model.id": model_id}
    words = known.get("mlflow.note.content")  # the model card
    created = store.client.create_model_version(MODEL, location, run.run_id, tags, description=words, model_id=model_id)
    return _version(created)


def _make_model(store: Store) -> None:
    try:
        store.client.create_registered_model(MODEL, description="Reads photographs, and fields of 28 x 28")
    except StoreError as error:
        if error.code != "RESOURCE_ALREADY_EXISTS":
            raise


def promote(store: Store, gate: Mapping[str, str]) -> Version:
    """Move ``champion`` to the challenger and keep the old champion as ``previous``; the caller has seen it pass.

    ``gate`` is the gate's result, such as its verdict and the base; it is written to the version's tags as ``gate.*``,
    with the user and the time. Promoting the champion again changes nothing.
    """
    challenger, champion = need(store, CHALLENGER), find(store, CHAMPION)
    if champion and champion.number == challenger.number:
        return champion
    tags = {f"gate.{name}": value for name, value in gate.items()} | _signature("promoted")
    _tag(store, challenger, tags | {"promoted.over": champion.number if champion else ""})
    if champion:  # first, so that whatever happens in between there is a champion
        store.client.set_registered_model_alias(MODEL, PREVIOUS, champion.number)
    store.client.set_registered_model_alias(MODEL, CHAMPION, challenger.number)
    return need(store, CHAMPION)


def rollback(store: Store) -> Version:
    """Swap the aliases ``champion`` and ``previous``; return the new champion. A second call undoes the first."""
    champion, previous = need(store, CHAMPION), find(store, PREVIOUS)
    if not previous:
        raise UserError(f"models:/{MODEL}@{PREVIOUS}: no version was champion before {champion}")
    _tag(store, champion, _signature("rolled_back"))
    store.client.set_registered_model_alias(MODEL, CHAMPION, previous.number)
    store.client.set_registered_model_alias(MODEL, PREVIOUS, champion.number)
    return need(store, CHAMPION)


def _signature(action: str) -> dict[str, str]:
    return {f"{action}.by": provenance.user(), f"{action}.at": datetime.now(UTC).isoformat(timespec="seconds")}


def _tag(store: Store, version: Version, tags: Mapping[str, str]) -> None:
    for name, value in tags.items():
        store.client.set_model_version_tag(MODEL, version.number, name, value)


def reports_of(store: Store, version: Version) -> Callable[[str], bytes | None]:
    """Return a function from a path, such as reports/metrics.json, to the version's bytes of it, or None."""
    return lambda path: tracking.Run(store, version.run_id).read(path)

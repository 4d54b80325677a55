"""The MLflow store: the SQLite file of the main workspace, or the server that MLFLOW_TRACKING_URI names."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when MLflow is imported
os.environ.setdefault("MLFLOW_ENABLE_ASYNC_LOGGING", "false")  # what is logged asynchronously is lost at a kill
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
import psutil
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from pipeline import files
from pipeline.console import UserError, undisturbed

EXPERIMENT = "digits"


class SqliteClient(MlflowClient):
    """MLflow's client, none of whose calls is torn by a signal: a transaction half done would lock the file."""

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        return undisturbed()(value) if callable(value) and not name.startswith("_") else value


class Store:
    """The MLflow store of the main workspace, or the server that ``MLFLOW_TRACKING_URI`` names."""

    def __init__(self, client: MlflowClient, experiment_id: str) -> None:
        self.client = client
        self.experiment_id = experiment_id

    def runs(self, condition: str) -> list[MlflowRun]:
        """Return the runs of the experiment that meet an MLflow filter, newest first."""
        order = ["attributes.start_time DESC"]
        return list(self.client.search_runs([self.experiment_id], condition, max_results=50_000, order_by=order))


def store_uri() -> str:
    """Return where runs go: ``MLFLOW_TRACKING_URI``, else the SQLite file of the main workspace."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{files.workspace() / 'mlruns' / 'mlflow.db'}"


def open_store(uri: str = "") -> Store:
    """Open the store and put right what can be: close runs whose process died, follow a project that was moved."""
    uri = uri or store_uri()
    store = connect(uri)
    if uri.startswith(SQLITE):
        relocate(database_of(uri))
    close_stale(store)
    return store


SQLITE = "sqlite:///"


def database_of(uri: str) -> Path:
    """Return the file of a local store."""
    return Path(uri.removeprefix(SQLITE)).resolve()


def connect(uri: str) -> Store:
    """Open a store as it is, made when it is not there; raise ``UserError`` if it is out of reach."""
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        if uri.startswith(SQLITE):
            return _connect_local(uri)
        _reach(uri)
        return _connect(uri, artifacts=None)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"MLflow store {uri}: {reason}; expected a store that can be read and written") from None


def _connect_local(uri: str) -> Store:
    folder = database_of(uri).parent
    folder.mkdir(parents=True, exist_ok=True)
    ignore = folder / ".gitignore"
    if folder.name == "mlruns" and not ignore.exists():  # it is removed by who removes mlruns/
        files.write_text(ignore, "*\n!.gitignore\n")
    with FileLock(folder / ".lock"):  # processes that make the schema at once break it for good
        return _connect(uri, artifacts=(folder / "artifacts").as_uri())


LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def moved_from(database: Path) -> str:
    """Return the URI of the folder that an SQLite store was made in, where that is not the one it is in; else ""."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        query = "SELECT artifact_location FROM experiments WHERE name = ?"
        found = connection.execute(query, [EXPERIMENT]).fetchone()
    made_in = found[0].removesuffix("/artifacts") if found and found[0].startswith("file:") else ""
    return made_in if made_in != database.parent.as_uri() else ""


def relocate(database: Path) -> None:
    """Make the absolute locations in an SQLite store those of the folder it is in, after a move or a copy."""
    old, new = moved_from(database), database.parent.as_uri()
    if not old:
        return
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        for table, column in LOCATIONS:
            query = f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?"  # noqa: S608
            connection.execute(query, [new, len(old) + 1, len(old) + 1, f"{old}/"])


def _connect(uri: str, artifacts: str | None) -> Store:
    client = SqliteClient(uri) if uri.startswith(SQLITE) else MlflowClient(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment:
        return Store(client, experiment.experiment_id)
    try:
        return Store(client, client.create_experiment(EXPERIMENT, artifacts))
    except MlflowException:  # another process of a shared server was faster
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if not experiment:
            raise
        return Store(client, experiment.experiment_id)


def _reach(uri: str) -> None:
    if not uri.startswith(("http://", "https://")):
        return
    try:
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=5).close()  # noqa: S310
    except urllib.error.HTTPError:
        return  # something answers; MLflow says the rest
    except OSError as error:
        raise UserError(f"MLFLOW_TRACKING_URI={uri}: no answer ({error}); start the server or unset it") from None


def close_stale(store: Store) -> None:
    """Close the runs that a process of this machine left RUNNING when it died."""
    for run in store.runs("attributes.status = 'RUNNING'"):
        if is_dead(run.data.tags):
            store.client.set_terminated(run.info.run_id, "KILLED")


def is_dead(tags: Mapping[str, str]) -> bool:
    """Tell whether the process that these tags of a run name was of this machine and is no more."""
    if tags.get("process.host") != socket.gethostname():
        return False
    try:
        return f"{psutil.Process(int(tags['process.pid'])).create_time():.0f}" != tags["process.started"]
    except psutil.NoSuchProcess:
        return True

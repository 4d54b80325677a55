"""The MLflow store: the SQLite file of the main workspace, or what ``MLFLOW_TRACKING_URI`` names.

Every failure of the store is a one-line error: `Client` and `translated` turn all exceptions of MLflow, SQLAlchemy,
requests and the database drivers into a `StoreError`. Nothing else in the project catches their exceptions.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import sqlite3
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import wait
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when MLflow is imported
os.environ.setdefault("MLFLOW_ENABLE_ASYNC_LOGGING", "false")  # what is logged asynchronously is lost at a kill
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
import psutil
import requests
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import LifecycleStage
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import ERROR_CODE_TO_HTTP_STATUS, MlflowException, RestException
from mlflow.store.db.utils import create_sqlalchemy_engine
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request
from sqlalchemy.exc import DBAPIError, OperationalError
from tqdm import tqdm

from pipeline import files
from pipeline.console import UserError, in_background, undisturbed

EXPERIMENT = "digits"
SQLITE = "sqlite:///"
DATABASES = ("postgresql", "mysql", "mssql")  # what MLflow takes besides SQLite
HTTP = {  # defaults; MLflow's own 7 retries of 120 s, with doubled pauses, take minutes without any message
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",  # seconds
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # at the end of each run, with the password that a URI may hold
}
SECONDS = 10  # for the first answer of a server or database; MLflow's own attempts take minutes


class StoreError(UserError):
    """A failure of the MLflow store in one line.

    ``code`` is MLflow's own error code, where it gave one. ``is_refusal`` says that the server answered and does not
    take what it was sent: the same request would be refused again.
    """

    def __init__(self, message: str, code: str = "", *, is_refusal: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.is_refusal = is_refusal


@contextlib.contextmanager
def translated(uri: str) -> Iterator[None]:
    """Raise ``StoreError`` for all that the store at ``uri`` and the libraries in between raise within the block.

    Two kinds stay as they are: ``TypeError``, which is a fault of this project, and errors of the file system, which
    `console.run` reports.
    """
    try:
        yield
    except (UserError, TypeError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.filename:
            raise
        code, is_refusal = getattr(error, "error_code", ""), _status(error) in REFUSALS
        raise StoreError(explain(uri, error), code, is_refusal=is_refusal) from error


def explain(uri: str, error: Exception) -> str:
    """Return a failure in one line: the store without passwords, the reason, and what to do."""
    source = "MLFLOW_TRACKING_URI=" if os.environ.get("MLFLOW_TRACKING_URI") else "MLflow store "
    reason, remedy = _reason(error), _remedy(uri, error)
    if _is_away(error):
        name, registry = "MLFLOW_TRACKING_URI", os.environ.get("MLFLOW_REGISTRY_URI")
        if registry and database_of(uri):  # which is never away
            name, source, uri = "MLFLOW_REGISTRY_URI", "MLFLOW_REGISTRY_URI=", registry
        reason, remedy = f"no answer ({reason})", f"start the server or unset {name}, then run this again"
    return without_passwords(f"{source}{uri}: {reason}; {remedy}")


def _is_away(error: Exception) -> bool:
    causes = (error, error.__context__)
    broken = any(isinstance(cause, requests.exceptions.SSLError) for cause in causes)
    away = (requests.ConnectionError, requests.Timeout, TimeoutError)
    unreached = isinstance(error, OperationalError) and re.search(UNREACHED, str(error))
    return bool(unreached) or (not broken and any(isinstance(cause, away) for cause in causes))


# What the drivers of PostgreSQL and MySQL say of a host that they do not reach.
UNREACHED = (
    r"(?i)connection refused|timed? ?out|timeout expired|could not translate host|no route to host|can't connect"
)


# What SQLite says of a file that is another program's, is cut off, or has half of MLflow's tables.
RUINED = "no such table|already exists|duplicate column|not a database|malformed"


def _remedy(uri: str, error: Exception) -> str:
    if isinstance(error.__context__, requests.exceptions.SSLError):
        return "MLFLOW_TRACKING_SERVER_CERT_PATH names a file of the CA to trust"
    if isinstance(error, ModuleNotFoundError):
        module = (error.name or "").partition(".")[0]
        command = f"make setup EXTRAS={EXTRAS[module]}" if module in EXTRAS else f"pip install {_package(module)}"
        return f"`{command}` installs what this store needs"
    if "database is locked" in str(error):
        return "another program is writing to it: run this again when that program has ended"
    if "out-of-date database schema" in str(error):  # which MLflow also says of a schema newer than its own
        return f"copy it, then run `mlflow db upgrade {uri}`; if a newer MLflow wrote it, use that one"
    database = database_of(uri)
    if database and re.search(RUINED, str(error)):
        return f"no store of MLflow: move {database} away; `python -m pipeline.doctor --fix` begins one with this model"
    if _status(error) in REMEDIES:
        return REMEDIES[_status(error)]
    if uri.startswith(DATABASES) and isinstance(error, OperationalError):
        return "expected a database that exists, and a user and password that it takes"
    if uri.startswith("http"):
        return "expected the address of an MLflow server"
    return f"expected a store that can be read and written, such as {SQLITE}mlruns/mlflow.db or http://host:5000"


LOGIN = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
REMEDIES = {  # by HTTP status
    401: LOGIN,
    403: f"{LOGIN}, of a user who may do this; a server that refuses the host's name needs `--allowed-hosts`",
    404: "expected the address of an MLflow server, and nothing deleted that this needs",
    413: "the server takes no file of this size: raise the limit of the proxy in front of it, then run this again",
    **dict.fromkeys((429, 500, 502, 503, 504), "the server's log says more; run this again when it is well"),
}
REFUSALS = {400, 405, 411, 413, 414, 415, 422, 431}  # other requests may pass; 401, 403 and 404 concern all of them
EXTRAS = {"boto3": "s3", "google": "gs", "azure": "azure", "psycopg2": "postgresql"}  # of pyproject.toml, by module


def _package(module: str) -> str:
    return {"psycopg": "psycopg[binary]", "MySQLdb": "mysqlclient"}.get(module, module)


def _reason(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"the Python module {error.name} is missing"
    if isinstance(error, DBAPIError) and error.orig:
        error = error.orig  # the driver's own words, without the statement
    text = str(error).split("\n[SQL")[0]
    failed = error.__context__
    if isinstance(failed, requests.RequestException) and failed.response is None:
        inner = re.findall(r"[^:('\"]{4,}", re.sub(r"\(_ssl\.c:\d+\)", "", str(failed)))
        text = (
            inner[-1].strip(" )") if inner else type(failed).__name__
        )  # of exceptions within exceptions the innermost
    text = re.sub(
        r"API request to endpoint (\S+) failed with error code (\d+) != 200\. Response body:", r"\2 to \1:", text
    )
    text = " ".join(re.sub(r"<[^>]*>", " ", text).split())
    name = "" if isinstance(error, MlflowException) else f"{type(error).__name__}: "
    return f"{name}{text[:300]}".rstrip(".: ")


def _status(error: Exception) -> int:
    """Return the HTTP status that a server answered with; 0 where it did not."""
    response = getattr(error, "response", None)
    if isinstance(response, requests.Response):
        return response.status_code
    named = re.search(r"(?:error code|too many) (\d{3})", str(error))
    if named:
        return int(named[1])
    return ERROR_CODE_TO_HTTP_STATUS.get(error.error_code, 0) if isinstance(error, RestException) else 0


def without_passwords(text: str) -> str:
    """Return a URI, or a text with URIs in it, without user names, passwords and tokens."""
    text = re.sub(r"://\S*@", "://***@", text)
    return re.sub(r"(?i)((?:password|passwd|pwd|token|secret)=)[^&\s'\"]+", r"\1***", text)


class Client(MlflowClient):
    """MLflow's client, whose failures are `StoreError`; signals wait until a call to an SQLite file has returned.

    An interrupted transaction would leave the file locked.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        super().__init__(uri)

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name.startswith("_") or not callable(value):
            return value
        call = translated(self._uri)(value)
        return undisturbed()(call) if database_of(self._uri) else call


class Store:
    """The experiment of this project in the MLflow store at ``uri``."""

    def __init__(self, uri: str, client: Client, experiment_id: str, *, deleted: bool = False) -> None:
        self.uri = uri
        self.client = client
        self.experiment_id = experiment_id
        self.deleted = deleted
        self.answers = True

    def runs(self, condition: str) -> list[MlflowRun]:
        """Return the runs of the experiment that meet an MLflow filter, newest first."""
        order = ["attributes.start_time DESC"]
        return list(self.client.search_runs([self.experiment_id], condition, max_results=50_000, order_by=order))

    def undisturbed(self) -> contextlib.AbstractContextManager[None]:
        """Hold signals back for the block where the store is an SQLite file; a server may take minutes to answer."""
        return undisturbed() if database_of(self.uri) else contextlib.nullcontext()

    def note_failure(self, error: StoreError) -> None:
        """Print once that the store failed, and that the metrics are logged when it answers again."""
        if self.answers:
            self.answers = False
            tqdm.write(f"{error}. Training continues, and is logged when MLflow answers again.", file=sys.stderr)

    def note_answer(self) -> None:
        """Print that a store which did not answer answers again."""
        if not self.answers:
            self.answers = True
            tqdm.write("MLflow answers again: everything is logged.", file=sys.stderr)


@contextlib.contextmanager
def one_attempt(seconds: int) -> Iterator[None]:
    """Limit each request in the block to one attempt of so many seconds, whatever MLflow's settings are."""
    wanted = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": str(seconds)}
    before = {name: os.environ.get(name, HTTP[name]) for name in wanted}
    os.environ.update(wanted)  # which MLflow reads anew for each request
    try:
        yield
    finally:
        os.environ.update(before)


def store_uri() -> str:
    """Return where runs go: ``MLFLOW_TRACKING_URI``, else the SQLite file of the main workspace."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    return resolve(uri) if uri else f"{SQLITE}{files.workspace() / 'mlruns' / 'mlflow.db'}"


def resolve(uri: str) -> str:
    """Return a store's URI, complete: a relative file or folder made absolute, and PostgreSQL's driver named.

    Raise ``UserError`` for a file that no other process would find.

    Relative is to the main workspace: the copy of it that ``dvc exp run --temp`` runs in is deleted afterwards.
    """
    if uri.startswith("sqlite"):
        scheme, _, rest = uri.partition(":///")
        path, mark, query = rest.partition("?")
        if path in ("", ":memory:") or path.startswith("file:") or "\\" in path or re.match("[A-Za-z]:", path):
            expected = f"expected a file of this machine, such as {SQLITE}mlruns/mlflow.db"
            raise UserError(f"MLFLOW_TRACKING_URI={uri}: {expected}")
        return f"{scheme}:///{files.workspace() / path}{mark}{query}"
    if uri.startswith("file:") and not uri.startswith("file:/"):
        return (files.workspace() / uri.removeprefix("file:")).as_uri()
    if uri.startswith("postgresql://"):  # SQLAlchemy 2.1 takes psycopg 3 for it; the extra `postgresql` is psycopg2
        return uri.replace("postgresql://", "postgresql+psycopg2://", 1)
    if ":" not in uri and not uri.startswith(("databricks", "uc")):
        return str(files.workspace() / uri)
    return uri


def open_store(uri: str = "") -> Store:
    """Open the store, close runs whose process died, and correct the locations of a project that was moved."""
    uri = uri or store_uri()
    store = connect(uri)
    if store.deleted:
        remedy = "`python -m pipeline.doctor --fix` restores it"
        raise StoreError(f"MLflow experiment {EXPERIMENT}: expected one that is not deleted; {remedy}")
    database = database_of(uri)
    if database:
        relocate(database)
    close_stale(store)
    return store


def database_of(uri: str) -> Path | None:
    """Return the file of an SQLite store; None for any other."""
    scheme, _, rest = uri.partition(":///")
    return Path(rest.partition("?")[0]).resolve() if scheme.startswith("sqlite") else None


def connect(uri: str) -> Store:
    """Open a store without changing its content, create it if it does not exist; raise ``StoreError`` if that fails."""
    for name in ("alembic", "mlflow", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
    database = database_of(uri)
    for name, value in HTTP.items():  # also for an SQLite store: the registry, or its artifacts, may be elsewhere
        os.environ.setdefault(name, value)
    with translated(uri):
        if database:
            database.parent.mkdir(parents=True, exist_ok=True)
            ignore = database.parent / ".gitignore"
            if database.parent.name == "mlruns" and not ignore.exists():  # it is removed by who removes mlruns/
                files.write_text(ignore, "*\n!.gitignore\n")
            with FileLock(database.parent / ".lock"):  # processes that make the schema at once break it for good
                artifacts = (database.parent / "artifacts").as_uri()
                if not database.exists():
                    _create(database, artifacts)
                return _connect(uri, artifacts)
        if uri.startswith(("http://", "https://")):
            _reach_server(uri)
        elif uri.startswith(DATABASES):
            _reach_database(uri)
        return _connect(uri, None)


def _create(database: Path, artifacts: str) -> None:
    """Make an SQLite store beside its place and move it there: MLflow cannot finish a schema that a kill cut short."""
    with tempfile.TemporaryDirectory(prefix=".new-", dir=database.parent) as folder:
        new = Path(folder) / database.name
        _connect(f"{SQLITE}{new}", artifacts)
        new.rename(database)


def _reach_server(uri: str) -> None:
    """Send one request with MLflow's own settings, certificates and passwords; only a missing answer is an error."""
    http_request(
        get_default_host_creds(uri), "/health", "GET", max_retries=0, timeout=SECONDS, raise_on_status=False
    ).close()


def _reach_database(uri: str) -> None:
    """Connect once: MLflow tries ten times, which takes minutes for a host that drops packets."""
    engine = create_sqlalchemy_engine(uri)
    answer = in_background(lambda: engine.connect().close())
    if not wait([answer], timeout=SECONDS).done:
        raise TimeoutError(f"nothing within {SECONDS} s")
    answer.result()


def _connect(uri: str, artifacts: str | None) -> Store:
    client = Client(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if not experiment:
        with contextlib.suppress(StoreError):  # another process of a shared server was faster
            client.create_experiment(EXPERIMENT, artifacts)
        experiment = client.get_experiment_by_name(EXPERIMENT)
    if not experiment or experiment.name != EXPERIMENT:
        raise StoreError(f"MLflow store {without_passwords(uri)}: expected a store that keeps experiments; it does not")
    deleted = experiment.lifecycle_stage == LifecycleStage.DELETED
    return Store(uri, client, experiment.experiment_id, deleted=deleted)


@contextlib.contextmanager
def opened(database: Path, mode: str = "ro") -> Iterator[sqlite3.Connection]:
    """Open an SQLite store directly, without MLflow; changes (with ``mode`` "rw") are committed at the end."""
    with translated(f"{SQLITE}{database}"):
        connection = sqlite3.connect(f"{database.as_uri()}?mode={mode}", uri=True)
        with contextlib.closing(connection), connection:
            yield connection


LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def moved_from(database: Path) -> str:
    """Return the URI of the folder that an SQLite store was made in, where that is not the one it is in; else ""."""
    with opened(database) as connection:
        query = "SELECT artifact_location FROM experiments WHERE name = ?"
        found = connection.execute(query, [EXPERIMENT]).fetchone()
    made_in = found[0].removesuffix("/artifacts") if found and found[0].startswith("file:") else ""
    return made_in if made_in != database.parent.as_uri() else ""


def relocate(database: Path) -> None:
    """Make the absolute locations in an SQLite store those of the folder it is in, after a move or a copy."""
    old, new = moved_from(database), database.parent.as_uri()
    if not old:
        return
    with opened(database, "rw") as connection:
        for table, column in LOCATIONS:
            query = f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?"  # noqa: S608
            connection.execute(query, [new, len(old) + 1, len(old) + 1, f"{old}/"])


def process_tags() -> dict[str, str]:
    """Return the tags that identify this process for `is_dead`."""
    process = psutil.Process()
    return {
        "process.host": socket.gethostname(),
        "process.namespace": process_namespace(),
        "process.pid": str(process.pid),
        "process.started": f"{process.create_time():.0f}",
    }


def process_namespace() -> str:
    """Return where process numbers are unique: machine, boot and PID namespace; "" where that is not known.

    Containers often share one host name, but each numbers its processes on its own.
    """
    if sys.platform != "linux":
        return sys.platform  # no PID namespaces there
    try:
        machine = Path("/etc/machine-id").read_text().strip()
    except OSError:  # as in many containers
        machine = ""
    try:
        boot, numbers = Path("/proc/sys/kernel/random/boot_id").read_text().strip(), Path("/proc/self/ns/pid").stat()
    except OSError:
        return ""
    return f"{machine or 'unknown'} {boot} {numbers.st_ino}"


def close_stale(store: Store) -> None:
    """Close the runs that a process of this machine left RUNNING when it died."""
    for run in store.runs("attributes.status = 'RUNNING'"):
        if is_dead(run.data.tags):
            store.client.set_terminated(run.info.run_id, "KILLED")


INITIAL = "4026531836"  # the inode of Linux's initial PID namespace: PROC_PID_INIT_INO in include/linux/proc_ns.h


def is_dead(tags: Mapping[str, str]) -> bool:
    """Return whether the process in a run's tags belonged to this machine and no longer exists.

    A process of another host or PID namespace cannot be seen from here, and counts as alive.
    """
    here, there = process_namespace(), tags.get("process.namespace", "")
    if tags.get("process.host") != socket.gethostname() or not there:
        return False
    if here != there:
        return _restarted(here.split(), there.split())
    try:
        return f"{psutil.Process(int(tags['process.pid'])).create_time():.0f}" != tags["process.started"]
    except psutil.NoSuchProcess:
        return True


def _restarted(here: list[str], there: list[str]) -> bool:
    same_machine = here[:1] == there[:1] != ["unknown"]
    return same_machine and here[2:] == there[2:] == [INITIAL]

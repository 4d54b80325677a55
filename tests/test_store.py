"""What the MLflow store and the way to it do wrong is one line that names the store and what to do."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import socket
import sqlite3
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
import sqlalchemy.exc
from alembic.util.exc import CommandError
from mlflow.exceptions import MlflowException, RestException
from sqlalchemy import Engine, event

from pipeline import files, store, tracking
from pipeline.console import UserError
from pipeline.store import Client, StoreError, open_store, translated, without_passwords

SECRET = "open-sesame"  # noqa: S105


class Broken(BaseHTTPRequestHandler):
    """Answers every request with the status, or the fault, that its server was told."""

    server: Any

    def answer(self) -> None:
        if self.server.fault == "hang":
            self.server.ended.wait()
        elif self.server.fault == "close":
            return
        elif self.server.fault in ANSWERS:
            self.say(200, ANSWERS[self.server.fault])
        else:
            self.say(int(self.server.fault), f"<html>{'no ' * 500}</html>")

    do_GET = do_POST = do_PUT = do_PATCH = answer  # noqa: N815

    def say(self, status: int, body: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        pass


ANSWERS = {"html": "<html>Sign in</html>", "list": "[1, 2]", "empty": "", "other": '{"experiment": [1], "run": 7}'}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return a real HTTP server; ``fault`` says what is wrong with it."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setattr(store, "SECONDS", 1)
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Broken)
    server.ended = threading.Event()
    server.uri = f"http://ann:{SECRET}@127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.ended.set()
    server.shutdown()
    server.server_close()


FAULTS = {
    "401": "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
    "403": "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
    "404": "expected the address of an MLflow server",
    "413": "raise the limit",
    "500": "server's log",
    "503": "server's log",
    "hang": "no answer",
    "close": "no answer",
    "html": "expected the address of an MLflow server",
    "list": "expected the address of an MLflow server",
    "other": "expected the address of an MLflow server",
}
CALLS: dict[str, Callable[[Client, Path], object]] = {
    "read": lambda client, _: client.get_run("0" * 32),
    "create": lambda client, _: client.create_run("1"),
    "artifact": lambda client, file: client.log_artifact("0" * 32, str(file)),
}


def check(said: str, expected: str) -> None:
    assert expected in said
    assert "\n" not in said
    assert len(said) < 600
    assert SECRET not in said


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_a_server_answers_is_one_line(server: Any, fault: str, call: str, tmp_path: Path) -> None:
    server.fault = fault
    with pytest.raises(StoreError) as raised:
        CALLS[call](Client(server.uri), tmp_path)
    check(str(raised.value), FAULTS[fault])


@pytest.mark.parametrize("fault", [*FAULTS, "empty"])
def test_a_server_without_experiments_is_not_opened(server: Any, fault: str) -> None:
    server.fault = fault
    with pytest.raises(StoreError) as raised:
        open_store(server.uri)
    check(str(raised.value), FAULTS.get(fault, "expected a store that keeps experiments"))


def test_an_unreachable_server_is_named_at_once_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ann:{SECRET}@127.0.0.1:9")
    with pytest.raises(StoreError) as raised:
        open_store()
    check(
        str(raised.value),
        "MLFLOW_TRACKING_URI=http://***@127.0.0.1:9: no answer ([Errno 111] Connection refused); start",
    )


def test_a_registry_that_is_not_there_is_named(local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"http://ann:{SECRET}@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    opened = open_store(f"sqlite:///{local}")
    with pytest.raises(StoreError) as raised:
        opened.client.get_model_version_by_alias("digits", "champion")
    check(str(raised.value), "MLFLOW_REGISTRY_URI=http://***@127.0.0.1:9: no answer (")
    assert "unset MLFLOW_REGISTRY_URI" in str(raised.value)


class Answering(BaseHTTPRequestHandler):
    """Answers as an MLflow server that has the experiment, where the password is right."""

    def do_GET(self) -> None:
        body = json.dumps({"experiment": {"experiment_id": "7", "name": "digits", "lifecycle_stage": "active"}})
        allowed = self.headers.get("Authorization") in (BASIC, f"Bearer {SECRET}")
        self.send_response(200 if allowed else 401)
        self.end_headers()
        self.wfile.write(body.encode() if allowed else b"who is there?")

    def log_message(self, *_: object) -> None:
        pass


BASIC = f"Basic {base64.b64encode(f'ann:{SECRET}'.encode()).decode()}"


@pytest.fixture(scope="module")
def company(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Return the address of an https server whose certificate no public CA has signed, and the certificate's file.

    The server asks for a client certificate, and takes the same one.
    """
    folder = tmp_path_factory.mktemp("company")
    names = "subjectAltName=IP:127.0.0.1"
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=company -keyout key.pem -out cert.pem -addext"
    )
    subprocess.run([*command.split(), names], cwd=folder, check=True, capture_output=True)
    both = folder / "both.pem"
    both.write_text((folder / "key.pem").read_text() + (folder / "cert.pem").read_text())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(both)
    context.load_verify_locations(folder / "cert.pem")
    context.verify_mode = ssl.CERT_OPTIONAL
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}", both
    server.shutdown()
    server.server_close()


LOGGED_IN = {"MLFLOW_TRACKING_USERNAME": "ann", "MLFLOW_TRACKING_PASSWORD": SECRET}


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
@pytest.mark.parametrize(
    ("user", "settings"),
    [
        ("", LOGGED_IN | {"MLFLOW_TRACKING_SERVER_CERT_PATH": "CERT"}),
        ("", LOGGED_IN | {"MLFLOW_TRACKING_INSECURE_TLS": "true"}),
        ("", LOGGED_IN | {"REQUESTS_CA_BUNDLE": "CERT"}),
        ("", {"MLFLOW_TRACKING_TOKEN": SECRET, "MLFLOW_TRACKING_SERVER_CERT_PATH": "CERT"}),
        (f"ann:{SECRET}@", {"MLFLOW_TRACKING_SERVER_CERT_PATH": "CERT"}),
        ("", LOGGED_IN | {"MLFLOW_TRACKING_SERVER_CERT_PATH": "CERT", "MLFLOW_TRACKING_CLIENT_CERT_PATH": "CERT"}),
    ],
)
def test_every_server_that_mlflow_reaches_is_opened(
    company: tuple[str, Path], user: str, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    host, certificate = company
    for name, value in settings.items():
        monkeypatch.setenv(name, value.replace("CERT", str(certificate)))
    assert store.connect(f"https://{user}{host}").experiment_id == "7"


def test_a_self_signed_certificate_is_named_with_its_remedy(company: tuple[str, Path]) -> None:
    with pytest.raises(StoreError) as raised:
        open_store(f"https://{company[0]}")
    check(
        str(raised.value), "self-signed certificate; MLFLOW_TRACKING_SERVER_CERT_PATH names a file of the CA to trust"
    )


def refused() -> Exception:
    try:
        requests.get("http://127.0.0.1:9", timeout=1)
    except requests.RequestException as error:
        return error
    raise AssertionError


DATABASE = f"postgresql://ann:{SECRET}@db.example.org/mlflow"
OUTSIDE = {
    "MLflow": (MlflowException(f"no such thing at {DATABASE}"), "no such thing at postgresql://***@"),
    "MLflow's server": (RestException({"error_code": "PERMISSION_DENIED", "message": "no"}), "MLFLOW_TRACKING_TOKEN"),
    "SQLAlchemy": (
        sqlalchemy.exc.OperationalError(
            "UPDATE runs", {"password": SECRET}, sqlite3.OperationalError("database is locked")
        ),
        "OperationalError: database is locked; another program",
    ),
    "SQLAlchemy's plug-ins": (sqlalchemy.exc.NoSuchModuleError("Can't load plugin: postgres"), "expected a store"),
    "sqlite3": (sqlite3.DatabaseError("file is not a database"), "file is not a database; expected a store"),
    "PostgreSQL's driver": (
        ModuleNotFoundError("No module named 'psycopg2'", name="psycopg2"),
        "the Python module psycopg2 is missing; `make setup EXTRAS=postgresql` installs",
    ),
    "the client of S3": (ModuleNotFoundError("No module named 'boto3'", name="boto3"), "`make setup EXTRAS=s3`"),
    "that of Azure": (ModuleNotFoundError("...", name="azure.storage.blob"), "`make setup EXTRAS=azure`"),
    "a driver of no extra": (ModuleNotFoundError("...", name="MySQLdb"), "`pip install mysqlclient` installs"),
    "a database that is down": (
        sqlalchemy.exc.OperationalError("", {}, Exception("connection to db, port 1 failed: Connection refused")),
        "no answer (Exception: connection to db, port 1 failed: Connection refused); start the server or unset",
    ),
    "a database that is not there": (
        sqlalchemy.exc.OperationalError("", {}, Exception('database "mlflow" does not exist')),
        "expected a database that exists, and a user and password that it takes",
    ),
    "alembic": (CommandError("Can't locate revision identified by 'f00'"), "Can't locate revision"),
    "requests": (refused(), "no answer"),
    "the system": (TimeoutError("nothing within 10 s"), "no answer (TimeoutError: nothing within 10 s)"),
    "anything else": (KeyError("experiment"), "KeyError: 'experiment'; expected a store"),
}


@pytest.mark.parametrize("library", OUTSIDE)
def test_what_the_libraries_below_raise_is_one_line(library: str) -> None:
    error, expected = OUTSIDE[library]
    with pytest.raises(StoreError) as raised, translated(DATABASE):
        raise error
    check(str(raised.value), expected)


@pytest.mark.parametrize("error", [UserError("ours"), TypeError("a wrong call"), FileNotFoundError(2, "gone", "model")])
def test_errors_of_other_kinds_are_not_changed(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, translated(DATABASE):
        raise error
    assert raised.value is error


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("sqlite:///mlruns/mlflow.db", "sqlite:////main/mlruns/mlflow.db"),
        ("sqlite:///mlruns/mlflow.db?timeout=30", "sqlite:////main/mlruns/mlflow.db?timeout=30"),
        ("sqlite+pysqlite:///mlflow.db", "sqlite+pysqlite:////main/mlflow.db"),
        ("sqlite:////elsewhere/mlflow.db", "sqlite:////elsewhere/mlflow.db"),
        (" mlruns ", "/main/mlruns"),
        ("./mlruns", "/main/mlruns"),
        ("/elsewhere/mlruns", "/elsewhere/mlruns"),
        ("file:mlruns", "file:///main/mlruns"),
        ("file:./mlruns", "file:///main/mlruns"),
        ("file:///elsewhere", "file:///elsewhere"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("postgresql://db/mlflow", "postgresql+psycopg2://db/mlflow"),
        ("postgresql+psycopg://db/mlflow", "postgresql+psycopg://db/mlflow"),
        ("databricks", "databricks"),
        (" ", "sqlite:////main/mlruns/mlflow.db"),
    ],
)
def test_a_relative_store_is_the_main_workspace_s(uri: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", "/main")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert store.store_uri() == expected


@pytest.mark.parametrize(
    "uri",
    [
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite://mlruns/a.db",
        "sqlite:///C:/a.db",
        r"sqlite:///mlruns\a.db",
        "sqlite:///file:a?uri=true",
    ],
)
def test_a_store_that_no_later_command_would_find_is_refused(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UserError, match=r"expected a file of this machine, such as sqlite:///mlruns/mlflow\.db"):
        open_store()


def test_a_store_with_settings_in_its_uri_is_the_file_s(local: Path) -> None:
    assert open_store(f"sqlite:///{local}?timeout=1").runs("") == []
    assert [file.name for file in local.parent.glob("*.db*")] == ["mlflow.db"]


@pytest.fixture
def local(empty_store: Path, tmp_path: Path) -> Path:
    """Return the file of an SQLite store."""
    files.write_bytes(tmp_path / "mlflow.db", empty_store.read_bytes())
    return tmp_path / "mlflow.db"


@pytest.fixture
def _impatient() -> Iterator[None]:
    """Let SQLite wait a tenth of a second for a lock; MLflow lets it wait 20, for every statement."""

    def shorten(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> tuple[str, Any]:
        return statement.replace("busy_timeout = 20000", "busy_timeout = 100"), parameters

    event.listen(Engine, "before_cursor_execute", shorten, retval=True)
    yield
    event.remove(Engine, "before_cursor_execute", shorten)


@pytest.mark.usefixtures("_impatient")
def test_a_locked_store_is_one_line(local: Path) -> None:
    opened = open_store(f"sqlite:///{local}?timeout=0.1")
    with contextlib.closing(sqlite3.connect(local)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreError, match="database is locked; another program is writing to it: run this again"):
            opened.client.create_run(opened.experiment_id)


@pytest.mark.parametrize("revision", ["f00", "0584bdc529eb"])  # a later and an earlier: mlflow/mlflow 12627, 6703
def test_the_store_of_another_mlflow_is_named_with_its_remedy(local: Path, revision: str) -> None:
    with contextlib.closing(sqlite3.connect(local)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = ?", [revision])
    with pytest.raises(StoreError) as raised:
        open_store(f"sqlite:///{local}")
    check(str(raised.value), f"copy it, then run `mlflow db upgrade sqlite:///{local}`; if a newer MLflow wrote it")


def test_a_deleted_experiment_is_named_with_its_remedy(local: Path) -> None:
    opened = open_store(f"sqlite:///{local}")
    opened.client.delete_experiment(opened.experiment_id)
    with pytest.raises(StoreError, match=r"experiment digits: .* not deleted; `python -m pipeline.doctor --fix` rest"):
        open_store(f"sqlite:///{local}")


def test_a_database_that_does_not_answer_is_given_up_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(StoreError) as raised:
        open_store(f"postgresql+psycopg2://ann:{SECRET}@127.0.0.1:{silent.getsockname()[1]}/mlflow")
    check(str(raised.value), "no answer (TimeoutError: nothing within 1 s)")


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://ann:secret@host:5000/x", "http://***@host:5000/x"),
        ("postgresql://ann:se/cr@et@db/mlflow", "postgresql://***@db/mlflow"),
        ("https://secret@host", "https://***@host"),
        ("mysql://db/x?password=secret&ssl=1", "mysql://db/x?password=***&ssl=1"),
        ("sqlite:////srv/ann/mlflow.db", "sqlite:////srv/ann/mlflow.db"),
        ("at http://ann:secret@host, and more", "at http://***@host, and more"),
    ],
)
def test_passwords_are_not_shown(uri: str, shown: str) -> None:
    assert without_passwords(uri) == shown


MINE = store.process_tags()
MACHINE, BOOT, NUMBERS = MINE["process.namespace"].split()
GONE = {"process.pid": "4194304", "process.started": "0"}  # one more than Linux's highest


@pytest.mark.parametrize(
    ("changes", "dead"),
    [
        ({}, False),
        (GONE, True),
        (GONE | {"process.host": "another"}, False),
        (GONE | {"process.namespace": ""}, False),
        (GONE | {"process.namespace": f"{MACHINE} {BOOT} 4026532201"}, False),  # a container with our host name
        (GONE | {"process.namespace": f"{'0' * 32} {'0' * 36} {NUMBERS}"}, False),  # a machine with our host name
        (GONE | {"process.namespace": f"unknown {'0' * 36} {NUMBERS}"}, False),
    ],
)
def test_only_a_process_whose_number_counts_here_is_known_to_be_dead(changes: dict[str, str], dead: bool) -> None:
    assert store.is_dead(MINE | changes) is dead


@pytest.mark.skipif(store.INITIAL != NUMBERS or MACHINE == "unknown", reason="runs in a container")
def test_a_process_from_before_a_restart_of_the_machine_is_dead() -> None:
    assert store.is_dead(MINE | {"process.namespace": f"{MACHINE} {'0' * 36} {NUMBERS}"})


@pytest.mark.usefixtures("_impatient")
def test_epochs_that_a_store_missed_are_logged_when_it_answers(
    local: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = open_store(f"sqlite:///{local}?timeout=0.1")
    run = tracking.Run(opened, opened.client.create_run(opened.experiment_id).info.run_id)
    with contextlib.closing(sqlite3.connect(local)) as other:
        other.execute("BEGIN EXCLUSIVE")
        for epoch in (1, 2):
            run.log_epoch(epoch, {"loss": 1 / epoch})
        assert capsys.readouterr().err.count("Training continues, and is logged when MLflow answers again.") == 1
        monkeypatch.setattr(tracking, "WAIT", 0)
        with pytest.raises(StoreError, match="database is locked"):
            run.wait_for_store()
    run.log_epoch(3, {"loss": 1 / 3})
    history = opened.client.get_metric_history(run.run_id, "loss")
    assert [point.step for point in history] == [1, 2, 3]
    assert "MLflow answers again" in capsys.readouterr().err


@pytest.mark.usefixtures("_impatient")
def test_what_cannot_be_read_is_not_taken_for_missing(local: Path) -> None:
    opened = open_store(f"sqlite:///{local}?timeout=0.1")
    run = tracking.Run(opened, opened.client.create_run(opened.experiment_id).info.run_id)
    assert run.read("reports/metrics.json") is None
    with contextlib.closing(sqlite3.connect(local)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreError, match="database is locked"):
            run.read("reports/metrics.json")
    run.log_bytes(b"{}", "reports/metrics.json")
    assert run.read("reports/metrics.json") == b"{}"


def write_garbage(database: Path) -> None:
    database.write_bytes(b"garbage" * 1000)


def write_one_table(database: Path) -> None:
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE experiment_tags (key TEXT)")


@pytest.mark.parametrize("write", [write_garbage, write_one_table])
def test_a_file_that_is_no_store_is_named_with_what_to_do(tmp_path: Path, write: Callable[[Path], None]) -> None:
    database = tmp_path / "mlflow.db"
    write(database)
    with pytest.raises(StoreError, match=re.escape(f"move {database} away; `python -m pipeline.doctor --fix` begins")):
        open_store(f"sqlite:///{database}")


@pytest.mark.slow
def test_a_store_whose_making_was_killed_is_made_anew(tmp_path: Path) -> None:
    code = "import sys; from pipeline import store; store.connect(sys.argv[1])"
    uri, folder = f"sqlite:///{tmp_path}/mlflow.db", tmp_path
    for size in (1, 50_000):  # bytes of the schema that are written
        making = subprocess.Popen([sys.executable, "-c", code, uri], cwd=files.ROOT)
        while sum(path.stat().st_size for path in folder.rglob("mlflow.db")) < size:
            assert making.poll() is None
        making.kill()
        making.wait()
        assert not (tmp_path / "mlflow.db").exists()
    assert open_store(uri).runs("") == []

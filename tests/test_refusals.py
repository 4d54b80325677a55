"""What a server refuses for good costs itself, and neither the training nor the rest of its run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
from conftest import Project, environment
from PIL import Image
from test_remotes import mlflow_server

from pipeline import config, files, report, tracking
from pipeline.learning import model
from pipeline.store import Store, StoreError, open_store
from pipeline.tracking import Run


class Proxy(BaseHTTPRequestHandler):
    """Passes requests on to an MLflow server; answers those in ``refused`` with a status of its own."""

    server: Any

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status, refused = self.server.refusal
        if refused(self.command, self.path, body):
            self.say(status, b"<html>no</html>", "text/html")
            return
        headers = {name: value for name, value in self.headers.items() if name in ("Content-Type", "Accept")}
        answer = requests.request(self.command, self.server.behind + self.path, data=body, headers=headers, timeout=60)
        self.say(answer.status_code, answer.content, answer.headers.get("Content-Type", ""))

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer  # noqa: N815

    def say(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def nothing(*_: object) -> bool:
    return False


def files_over(limit: int) -> Callable[[str, str, bytes], bool]:
    return lambda method, _, body: method == "PUT" and len(body) > limit


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Return a proxy in front of a real MLflow server; ``refusal`` is a status, and what is answered with it."""
    with mlflow_server(tmp_path_factory.mktemp("server"), environment()) as behind:
        server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
        server.behind, server.uri = behind, f"http://127.0.0.1:{server.server_port}"
        server.refusal = 200, nothing
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
        server.server_close()


@pytest.fixture
def store(proxy: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Store]:
    """Open the store in a folder that has the files of a model and all its reports."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    params = config.load()
    monkeypatch.setattr(config, "load", lambda: params)
    monkeypatch.chdir(tmp_path)
    model.write(dict.fromkeys((model.ARCHIVE, model.NETWORK, model.CALIBRATION), b"model"), files.MODELS)
    files.write_json(files.REPORTS / "train.json", {"model_sha256": "a", "best_epoch": 1})
    for name, (_, _, picture, answers) in tracking.RESULTS.items():
        files.write_json(files.REPORTS / name, {"model_sha256": "a", "test_accuracy": 0.9})
        files.write_csv(files.REPORTS / answers, [{"label": 1, "prediction": 1}], ["label", "prediction"])
        Image.new("L", (8, 8)).save(files.REPORTS / picture)
    yield open_store(proxy.uri)
    proxy.refusal = 200, nothing


LOGGED: dict[str, Callable[[Run], object]] = {
    "reports/mistakes.png": lambda run: run.log_image("mistakes", files.REPORTS / "mistakes.png"),
    "reports/predictions.csv": lambda run: run.log_files([files.REPORTS / "predictions.csv"], "reports"),
    "uncommitted.patch": lambda run: run.log_bytes(b"+++", "uncommitted.patch"),
    "params.yaml": lambda run: run.log_params(config.load()),
    "the model": lambda run: run.log_trained({"model_sha256": "a", "best_epoch": 1}, files.MODELS),
    "reports/metrics.json": lambda run: run.log_results("metrics.json"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "status"), [*((name, 413) for name in LOGGED), *(("params.yaml", s) for s in (400, 422))]
)
def test_a_file_that_is_refused_costs_itself(
    store: Store, proxy: Any, name: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with tracking.training(store, config.load(), "d" * 64) as run:
        proxy.refusal = status, files_over(0)
        LOGGED[name](run)
        run.log_summary({"best_epoch": 1})
    found = store.client.get_run(run.run_id)
    assert (found.info.status, found.data.metrics["best_epoch"]) == ("FINISHED", 1)
    assert name in found.data.tags["refused"].split(", ")
    said = [line for line in capsys.readouterr().err.splitlines() if f"without {name}:" in line]
    assert len(said) == 1
    assert str(status) in said[0]
    assert "`dvc repro --force train` then logs a whole run" in said[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "status"), [*((name, 503) for name in LOGGED), *(("params.yaml", s) for s in (401, 403, 500))]
)
def test_what_a_later_attempt_may_log_is_not_given_up(store: Store, proxy: Any, name: str, status: int) -> None:
    run = tracking.start(store, config.load(), {"data_sha256": "d" * 64})
    proxy.refusal = status, files_over(0)
    with pytest.raises(StoreError, match=str(status)):
        LOGGED[name](run)
    run.end("FINISHED")
    assert "refused" not in store.client.get_run(run.run_id).data.tags


@pytest.mark.slow
@pytest.mark.parametrize(
    "log", [Run.wait_for_store, lambda run: run.log_summary({"a": 1}), lambda run: run.tag({"a": 1})]
)
def test_metrics_and_tags_that_are_refused_end_in_a_line_at_once(
    store: Store, proxy: Any, log: Callable[[Run], object]
) -> None:
    run = Run(store, store.client.create_run(store.experiment_id).info.run_id)
    proxy.refusal = 413, lambda *request: request[1].endswith("log-batch")
    run.log_epoch(1, {"loss": 1.0})
    with pytest.raises(StoreError, match="raise the limit of the proxy") as raised:
        log(run)
    assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_a_training_whose_model_is_refused_is_finished_and_logged_whole_later(
    made_project: Project, proxy: Any
) -> None:
    variables = {"MLFLOW_TRACKING_URI": proxy.uri}
    proxy.refusal = 413, files_over(10_000)
    said = made_project.run("dvc", "repro", "--force", "--single-item", "train", **variables).stderr
    assert "without the model: " in said
    assert "Traceback" not in said
    store = open_store(proxy.uri)
    condition = f"tags.`model.sha256` = '{made_project.json('train.json')['model_sha256']}'"
    (run,) = store.runs(condition)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["test_accuracy"] == made_project.json("metrics.json")["test_accuracy"]
    assert "the model" in run.data.tags["refused"]

    page = made_project.root / report.PAGE
    made_project.run("python", "-m", "pipeline.report", **variables)
    assert report.UNLOGGED in page.read_text("utf-8")

    proxy.refusal = 200, nothing
    made_project.run("dvc", "repro", "--force", "train", **variables)
    whole, _ = store.runs(condition)
    assert "refused" not in whole.data.tags
    assert Run(store, whole.info.run_id).find_model()
    made_project.run("python", "-m", "pipeline.report", **variables)
    assert report.UNLOGGED not in page.read_text("utf-8")

"""MLflow's pages open on a view that names what is logged; servers that cannot start say why."""

import json
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipeline import config, files, model_card, ui
from pipeline.console import Stopped, UserError
from pipeline.store import Store, open_store

NOTE = "mlflow.note.content"


@pytest.fixture(scope="module")
def workspace(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a workspace with a store whose description a person has written."""
    folder = tmp_path_factory.mktemp("workspace")
    files.write_bytes(folder / "mlruns" / "mlflow.db", empty_store.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_ROOT", str(folder))
        store = open_store()
    store.client.set_experiment_tag(store.experiment_id, NOTE, "Ours")
    return folder


@pytest.fixture
def store(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("DVC_ROOT", str(workspace))
    return open_store()


def experiment_tags(store: Store) -> dict[str, str]:
    return dict(store.client.get_experiment(store.experiment_id).tags)


def test_the_view_names_parameters_and_metrics_that_runs_have() -> None:
    assert {name.removeprefix("train.") for name in ui.PARAMETERS} <= set(config.Train.model_fields)
    assert set(ui.FIGURES) <= {name for name, *_ in model_card.CARD} | {"best_val_loss"}


def test_every_chart_stands_in_a_section() -> None:
    state = ui.view_state()
    sections = {section["uuid"] for section in state["compareRunSections"]}
    assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} == sections
    assert len({chart["uuid"] for chart in state["compareRunCharts"]}) == len(state["compareRunCharts"])


def test_a_signal_that_another_thread_takes_ends_the_wait() -> None:
    def take() -> None:
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)  # the system does so with the second of two at once

    before = signal.signal(signal.SIGUSR1, lambda *_: (_ for _ in ()).throw(Stopped(signal.SIGTERM)))
    server = subprocess.Popen(["sleep", "20"])
    try:
        threading.Timer(0.5, take).start()
        with pytest.raises(Stopped):
            ui.until_ended(server)
        assert server.poll() is None
    finally:
        signal.signal(signal.SIGUSR1, before)
        server.kill()
        server.wait()


def test_no_chart_starts_at_zero() -> None:
    assert "BAR" not in {chart["type"] for chart in ui.view_state()["compareRunCharts"]}


def test_the_address_is_printed_without_its_password(store: Store) -> None:
    address = ui.view_at("http://ann:secret@127.0.0.1:5000")
    assert address.startswith(f"http://127.0.0.1:5000/#/experiments/{store.experiment_id}/")


def test_a_store_keeps_the_view_whole(store: Store) -> None:
    ui.view_at("http://127.0.0.1:5000")
    kept = json.loads(experiment_tags(store)[f"mlflow.sharedViewState.{ui.VIEW}"])
    assert json.loads(kept["state"]) == json.loads(json.dumps(ui.view_state()))
    assert kept["name"] == "Which is best?"


def test_the_address_is_that_of_the_view(store: Store) -> None:
    address = ui.view_at("http://127.0.0.1:5000/")
    assert address.startswith(f"http://127.0.0.1:5000/#/experiments/{store.experiment_id}/runs?")
    assert address.endswith(f"viewStateShareKey={ui.VIEW}")


def test_what_a_person_has_written_stays(store: Store) -> None:
    ui.view_at("http://127.0.0.1:5000")
    assert experiment_tags(store)[NOTE] == "Ours"


def test_without_runs_it_says_what_makes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    with pytest.raises(UserError, match="mlruns: no runs yet; run `make` first"):
        ui.main([])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("store")
def test_a_port_that_is_taken_is_named_before_anything_starts() -> None:
    with socket.socket() as other:
        other.bind((ui.HOST, 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=rf"port {port}: .*in use; take another one"):
            ui.main(["--port", str(port)])


@pytest.mark.slow
def test_a_server_of_this_machine_is_reached_past_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setattr(ui, "SECONDS", 20)
    with socket.socket() as free:
        free.bind((ui.HOST, 0))
        port = free.getsockname()[1]
    code = "import http.server, sys; H = http.server.BaseHTTPRequestHandler; H.do_GET = lambda h: h.send_response(200) "
    code += "or h.end_headers(); http.server.HTTPServer((sys.argv[1], int(sys.argv[2])), H).serve_forever()"
    with subprocess.Popen([sys.executable, "-c", code, ui.HOST, str(port)], stderr=subprocess.DEVNULL) as server:
        try:
            ui.wait_for(server, port)
        finally:
            server.kill()

"""What is said to MLflow is said to a real store, and read back from it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from mlflow.entities import Run as MlflowRun

from pipeline import config, console, files, provenance, tracking
from pipeline.store import Store, close_stale, open_store

DATA = "d" * 64
HISTORY = [{"loss": 0.5, "accuracy": 0.8, "val_loss": 0.4, "val_accuracy": 0.9}, {"loss": 0.3, "val_loss": 0.2}]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_ROOT", str(tmp_path_factory.mktemp("workspace")))
        return open_store()


@pytest.fixture
def params() -> config.Params:
    return config.load()


def read(store: Store, run: tracking.Run) -> MlflowRun:
    return store.client.get_run(run.run_id)


def test_the_store_and_its_artifacts_lie_in_the_main_workspace(store: Store) -> None:
    location = store.client.get_experiment(store.experiment_id).artifact_location
    assert location.startswith("file:///")
    assert location.endswith("/mlruns/artifacts")


def test_a_run_carries_what_its_model_was_made_of(store: Store, params: config.Params) -> None:
    with tracking.training(store, params, DATA) as run:
        tags = read(store, run).data.tags
    assert tags["data.sha256"] == DATA
    assert tags["params.sha256"] == files.digest(params.train.model_dump())
    assert len(tags["code.sha256"]) == 64
    assert len(tags["git.commit"]) == 40
    assert tags["git.dirty"] in ("true", "false")


def test_parameters_have_their_names_in_params_yaml(store: Store, params: config.Params) -> None:
    with tracking.training(store, params, DATA) as run:
        logged = read(store, run).data.params
    assert logged["train.batch_size"] == str(params.train.batch_size)
    assert set(logged) == {f"train.{name}" for name in config.Train.model_fields}


def test_metrics_stand_at_their_epoch(store: Store, params: config.Params) -> None:
    with tracking.training(store, params, DATA) as run:
        for number, metrics in enumerate(HISTORY, 1):
            run.log_epoch(number, metrics)
    points = store.client.get_metric_history(run.run_id, "val_loss")
    assert [(point.step, point.value) for point in points] == [(1, 0.4), (2, 0.2)]


def test_the_digits_are_inputs_of_the_run(store: Store, params: config.Params) -> None:
    with tracking.training(store, params, DATA) as run:
        inputs = read(store, run).inputs.dataset_inputs
    assert {(each.dataset.name, each.tags[0].value) for each in inputs} == {
        ("mnist-training", "training"),
        ("mnist-validation", "validation"),
    }


@pytest.mark.parametrize(
    ("error", "status"), [(console.Stopped(signal.SIGTERM), "KILLED"), (ValueError("no digits"), "FAILED")]
)
def test_a_run_ends_as_its_training_does(
    store: Store, params: config.Params, error: BaseException, status: str
) -> None:
    with pytest.raises(type(error)), tracking.training(store, params, DATA) as run:
        raise error
    ended = read(store, run)
    assert ended.info.status == status
    assert str(error) in ended.data.tags["error"]


def test_runs_of_dead_processes_are_closed_and_others_left(store: Store, params: config.Params) -> None:
    dead, alive = (tracking.start(store, params, provenance.digests(params, DATA)) for _ in range(2))
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    dead.tag({"process.pid": gone.pid})
    close_stale(store)
    assert [read(store, run).info.status for run in (dead, alive)] == ["KILLED", "RUNNING"]
    alive.end("FINISHED")


def test_a_process_number_used_again_is_another_process(store: Store, params: config.Params) -> None:
    run = tracking.start(store, params, provenance.digests(params, DATA))
    run.tag({"process.started": f"{psutil.Process().create_time() - 1000:.0f}"})
    close_stale(store)
    assert read(store, run).info.status == "KILLED"


def test_a_store_that_is_no_database_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("these are no tables " * 200)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    with pytest.raises(console.UserError, match=r"mlflow\.db: .*not a database"):
        open_store()


def repository(folder: Path) -> None:
    (folder / "reports").mkdir()
    for name in ("params.yaml", "reports/train.json", "dvc.lock"):
        (folder / name).write_text("one\n")
    for words in ("init -q", "config user.email a@b", "config user.name ab", "add -A", "commit -qm one"):
        subprocess.run(["git", *words.split()], cwd=folder, check=True)


def test_the_patch_holds_what_people_changed_and_not_what_stages_wrote(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    repository(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert provenance.uncommitted() == b""
    for name in ("params.yaml", "reports/train.json", "dvc.lock", "new.py"):
        (tmp_path / name).write_text("two\n")
    patch = provenance.uncommitted().decode()
    assert [line.split(" b/")[1] for line in patch.splitlines() if line.startswith("diff")] == ["new.py", "params.yaml"]
    status = subprocess.run(["git", "status", "--short"], capture_output=True, text=True, check=True).stdout
    assert "?? new.py" in status  # the index is as it was


OPENER = """
from pipeline import config, tracking
store = open_store()
with tracking.training(store, config.load(), "d") as run:
    run.log_epoch(1, {"loss": 0.5})
"""


@pytest.mark.slow
def test_four_processes_at_once_make_one_healthy_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {**os.environ, "DVC_ROOT": str(tmp_path), "PYTHONPATH": str(files.ROOT)}
    openers = [subprocess.Popen([sys.executable, "-c", OPENER], env=environment) for _ in range(4)]
    assert [opener.wait() for opener in openers] == [0] * 4
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    assert [run.info.status for run in open_store().runs("")] == ["FINISHED"] * 4

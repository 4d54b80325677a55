"""What is said to MLflow is said to a real store, and read back from it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from mlflow.entities import Run as MlflowRun
from PIL import Image

from pipeline import config, console, files, provenance, tracking
from pipeline.store import Store, close_stale, connect, open_store

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


def test_a_store_that_is_made_anew_keeps_its_content_out_of_git(tmp_path: Path) -> None:
    connect(f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    assert (tmp_path / "mlruns/.gitignore").read_text() == (files.ROOT / "mlruns/.gitignore").read_text()


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


CONFLICT = '{\n<<<<<<< HEAD\n  "model_sha256": "a",\n=======\n  "model_sha256": "b",\n>>>>>>> other\n}\n'
UNREADABLE = [CONFLICT, '{"model_sha256": "a"', "", "[1]", '"a"', "null", "{}", "\udcff"]


def lay_out(reports: Path, model_sha256: str, **changed: str) -> None:
    """Write the reports of a model as its stages do, but for the ``changed`` ones."""
    for name, (_, _, picture, kept) in tracking.RESULTS.items():
        files.write_json(reports / name, {"model_sha256": model_sha256, "test_accuracy": 0.9})
        files.write_csv(reports / kept, [{"label": 1, "prediction": 1}], ["label", "prediction"])
        Image.new("L", (8, 8)).save(reports / picture)
    for name, content in changed.items():
        (reports / name.replace("_", ".")).write_bytes(content.encode(errors="surrogateescape"))


@pytest.fixture
def reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / files.REPORTS


def known(store: Store, params: config.Params) -> set[str]:
    """Return the stages whose results a new run of model "a" has from the reports."""
    with tracking.training(store, params, DATA) as run:
        run.log_known_results("a")
        return {name.removesuffix(".code.sha256") for name in read(store, run).data.tags} & {
            "evaluate",
            "predict-photo",
        }


@pytest.mark.parametrize(
    "changed",
    [
        *({"metrics_json": content} for content in UNREADABLE),
        {"metrics_json": '{"model_sha256": "b"}'},
        {"predictions_csv": "label,prediction\n<<<<<<< HEAD\n1,1\n=======\n1,2\n>>>>>>> other\n"},
        {"predictions_csv": "label,prediction\n1"},
        {"mistakes_png": ""},
        {"mistakes_png": CONFLICT},
    ],
)
def test_an_unreadable_report_is_not_logged_to_the_run(
    store: Store, params: config.Params, reports: Path, changed: dict[str, str]
) -> None:
    lay_out(reports, "a", **changed)
    assert known(store, params) == {"predict-photo"}


def test_reports_of_the_same_model_are_known_and_none_at_all_are_not(
    store: Store, params: config.Params, reports: Path
) -> None:
    assert known(store, params) == set()
    lay_out(reports, "a")
    assert known(store, params) == {"evaluate", "predict-photo"}


@pytest.mark.parametrize("content", UNREADABLE)
def test_a_train_report_that_cannot_be_read_is_one_line_that_names_it(
    store: Store, reports: Path, content: str
) -> None:
    lay_out(reports, "a", train_json=content)
    for ask in (tracking.find_run, tracking.restore, tracking.run_of_model):
        with pytest.raises(console.UserError, match=r"^reports/train\.json: not as a stage wrote it") as caught:
            ask(store)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["provenance.json", "history.csv"])
def test_a_run_that_cannot_be_restored_is_not_begun(store: Store, reports: Path, name: str) -> None:
    sha256 = "d" * 64
    made_of = {f"{part}_sha256": sha256 for part in ("code", "data", "params")}
    lay_out(reports, "a", train_json='{"model_sha256": "a"}', provenance_json=json.dumps(made_of))
    files.write_text(reports / "history.csv", "epoch,loss\n1,0.5\n")
    files.write_text(reports / name, CONFLICT)
    before = len(store.runs(""))
    with pytest.raises(console.UserError, match=rf"^reports/{name}: not as a stage wrote it"):
        tracking.restore(store)
    assert len(store.runs("")) == before


OPENER = """
from pipeline import config, tracking
from pipeline.store import open_store
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

"""Training survives being killed, tells MLflow the truth, and repeats nothing that was done."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Project, environment
from mlflow import MlflowClient
from mlflow.entities import Run

from pipeline import files
from pipeline.train import Clock

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def preprocessed(template: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return a project in which a training of 6 epochs can start; for copying only."""
    project = template.copy(tmp_path_factory.mktemp("preprocessed") / "project")
    project.set(**{"train.epochs": 6, "train.patience": 6, "train.threads": 1, "train.schedule": "constant"})
    project.dvc("repro", "preprocess")
    return project


@pytest.fixture
def prepared(preprocessed: Project, tmp_path: Path) -> Project:
    return preprocessed.copy(tmp_path / "prepared")


@pytest.fixture(scope="module")
def unbroken(preprocessed: Project, tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, str]:
    """Return a project after that training, for reading and copying only, and what it wrote to standard error."""
    project = preprocessed.copy(tmp_path_factory.mktemp("unbroken") / "project")
    return project, project.run("dvc", "repro", "train").stderr


def runs(project: Project) -> list[Run]:
    client = MlflowClient(f"sqlite:///{project.root}/mlruns/mlflow.db")
    experiment = client.get_experiment_by_name("digits")
    assert experiment
    return list(client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"]))


def statuses(project: Project) -> list[str]:
    return [run.info.status for run in runs(project)]


def epochs(project: Project) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in project.root.glob(".checkpoints/*/*.epoch")}


def start(project: Project, *command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        cwd=project.root,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def test_a_log_gets_a_line_an_epoch(unbroken: tuple[Project, str]) -> None:
    lines = [line for line in unbroken[1].splitlines() if line.startswith("train: ")]
    assert [line[: line.index(",")] for line in lines] == [f"train: epoch {number} of 6" for number in range(1, 7)]
    assert re.search(
        r"loss [\d.]+, accuracy [\d.]+, validation loss [\d.]+, accuracy [\d.]+; about \d+ seconds left", lines[0]
    )


def test_the_estimate_is_printed_once_after_enough_steps() -> None:
    clock = Clock(1000)
    assert [clock.estimate(done, now) for done, now in ((8, 60), (16, 62), (108, 70), (208, 80))] == [
        "",
        "",
        "about 89 seconds",
        "",
    ]
    assert clock.left(508, 110) == "about 49 seconds"


def test_restored_epochs_give_no_estimate_of_the_time_left() -> None:
    assert Clock(1000).left(500, 1.0) == ""


def test_killed_and_started_again_it_ends_as_if_nothing_had_happened(
    prepared: Project, unbroken: tuple[Project, str]
) -> None:
    kept = prepared.root / "models" / "digits.tflite"
    files.write_bytes(kept, b"of an earlier training")
    killed = start(prepared, "dvc", "repro", "train")
    wait_for(lambda: len(epochs(prepared)) >= 2, killed)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    before = epochs(prepared)
    assert len(before) < 6
    assert kept.read_bytes() == b"of an earlier training"  # and answers until there is another one
    prepared.dvc("repro", "train")
    assert epochs(prepared).items() >= before.items()
    for name in ("dvc.lock", "reports/train.json", "reports/history.csv"):
        assert (prepared.root / name).read_bytes() == (unbroken[0].root / name).read_bytes(), name
    assert statuses(prepared) == ["KILLED", "FINISHED"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_training_cleanly_with_a_hint(prepared: Project, number: int, status: int) -> None:
    stopped = start(prepared, sys.executable, "-m", "pipeline.train")
    wait_for(lambda: epochs(prepared), stopped)
    os.kill(stopped.pid, number)
    said = stopped.communicate()[1]
    assert stopped.returncode == status
    assert said.strip().splitlines()[-1].endswith("`dvc repro` resumes after the last finished epoch.")
    assert "Traceback" not in said
    assert statuses(prepared) == ["KILLED"]


def test_less_patience_after_more_trains_nothing(unbroken: tuple[Project, str], tmp_path: Path) -> None:
    project = unbroken[0].copy(tmp_path / "project")
    before, history = epochs(project), (project.root / "reports/history.csv").read_text()
    project.set(**{"train.patience": 1, "train.epochs": 2})
    project.stage("train")
    assert len(before) == 6
    assert epochs(project) == before
    assert history.startswith((project.root / "reports/history.csv").read_text())


def test_a_run_shows_the_whole_training(made_project: Project) -> None:
    (run,) = runs(made_project)
    report = made_project.json("train.json")
    assert report["parameters"] == 53_578
    assert run.data.tags["model.sha256"] == report["model_sha256"]
    assert run.data.metrics["best_val_accuracy"] == report["best_val_accuracy"]
    client = MlflowClient(f"sqlite:///{made_project.root}/mlruns/mlflow.db")
    points = client.get_metric_history(run.info.run_id, "val_loss")
    rows = (made_project.root / "reports/history.csv").read_text().splitlines()[1:]
    assert [(str(point.step), str(point.value)) for point in points] == [
        (row.split(",")[0], row.split(",")[3]) for row in rows
    ]


def test_an_unreachable_store_is_named_before_training(prepared: Project) -> None:
    command = [sys.executable, "-m", "pipeline.train"]
    done = prepared.run(*command, status=2, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert done.stderr.startswith("error: MLFLOW_TRACKING_URI=http://127.0.0.1:9: no answer")
    assert len(done.stderr.splitlines()) == 1
    assert epochs(prepared) == {}


def test_a_lost_store_is_made_anew_from_the_reports(made_project: Project) -> None:
    subprocess.run(["rm", "-r", "mlruns"], cwd=made_project.root, check=True)
    made_project.dvc("repro", "--force", "--single-item", "evaluate")
    (run,) = runs(made_project)
    assert run.data.tags["restored"] == "true"
    assert run.data.tags["model.sha256"] == made_project.json("train.json")["model_sha256"]
    assert run.data.metrics["test_accuracy"] == made_project.json("metrics.json")["test_accuracy"]


def test_the_test_result_joins_the_run_of_its_model(made_project: Project) -> None:
    (run,) = runs(made_project)
    assert "restored" not in run.data.tags
    assert run.data.metrics["test_accuracy"] == made_project.json("metrics.json")["test_accuracy"]
    assert f"{made_project.json('metrics.json')['test_accuracy']:.4f}" in run.data.tags["mlflow.note.content"]


def test_results_that_are_known_of_the_same_model_join_a_new_run_of_it(made_project: Project) -> None:
    subprocess.run(["rm", "-r", "mlruns"], cwd=made_project.root, check=True)
    made_project.dvc("repro", "--force", "--single-item", "train")
    (run,) = runs(made_project)
    assert "restored" not in run.data.tags
    assert run.data.metrics["test_accuracy"] == made_project.json("metrics.json")["test_accuracy"]
    assert run.data.metrics["photo_accuracy"] == made_project.json("photos.json")["photo_accuracy"]


def test_bad_parameters_end_it_before_anything_is_lost(made_project: Project) -> None:
    before = (made_project.root / "models/digits.keras").read_bytes()
    made_project.set(**{"train.dropout": 1.5})
    said = made_project.stage("train", status=2).stderr
    assert said.startswith("error: params.yaml: train.dropout")
    assert len(said.splitlines()) == 1
    assert (made_project.root / "models/digits.keras").read_bytes() == before

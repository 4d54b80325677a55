"""DVC's own experiments, queued and run side by side, and trainings that start at once: all in one healthy store."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from typing import Any

import pytest
from conftest import Project, environment
from mlflow import MlflowClient
from mlflow.entities import Run

FIGURES = ("best_epoch", "best_val_accuracy", "best_val_loss", "epochs_run")


def runs_of(project: Project) -> list[Run]:
    client = MlflowClient(f"sqlite:///{project.root}/mlruns/mlflow.db")
    return list(client.search_runs([client.get_experiment_by_name("digits").experiment_id]))


def experiments(project: Project) -> dict[str, dict[str, Any]]:
    """Return the data of each experiment that DVC shows, by name."""
    rows = json.loads(project.dvc("exp", "show", "--json"))
    return {
        row["revs"][0]["name"]: row["revs"][0]["data"]
        for base in rows
        for row in base.get("experiments") or []
    }  # fmt: skip


@pytest.mark.slow
def test_queued_experiments_all_land_in_one_store_with_the_figures_that_dvc_shows(made_project: Project) -> None:
    before = {run.info.run_id for run in runs_of(made_project)}
    grid = ["-S", "train.batch_size=32,64,128", "-S", "train.dropout=0.4"]  # one more than run at once
    made_project.dvc("exp", "run", "--queue", *grid)
    made_project.dvc("queue", "start", "-j", "2")
    wait_for_queue(made_project)
    shown = experiments(made_project)
    runs = [run for run in runs_of(made_project) if run.info.run_id not in before]
    assert {run.data.tags["dvc.exp_name"] for run in runs} == set(shown)
    assert sorted((run.data.params["train.batch_size"], run.data.params["train.dropout"]) for run in runs) == [
        ("128", "0.4"), ("32", "0.4"), ("64", "0.4"),
    ]  # fmt: skip
    for run in runs:
        reports = {name: each["data"] for name, each in shown[run.data.tags["dvc.exp_name"]]["metrics"].items()}
        assert run.info.status == "FINISHED"
        assert {name: run.data.metrics[name] for name in FIGURES} == {
            name: reports["reports/train.json"][name] for name in FIGURES
        }
        assert run.data.metrics["test_accuracy"] == reports["reports/metrics.json"]["test_accuracy"]


def wait_for_queue(project: Project) -> None:
    end = time.monotonic() + 900
    while True:
        said = project.dvc("queue", "status")
        assert "Failed" not in said, said + project.dvc("queue", "logs", said.split("Failed")[0].split()[-3])
        if said.count("Success") == 3:
            break
        assert time.monotonic() < end, said
        time.sleep(10)  # each question takes DVC 2 s of CPU, beside what it asks about
    project.dvc("queue", "stop")


@pytest.mark.slow
def test_trainings_at_once_on_a_fresh_clone_leave_a_finished_run_each_in_a_healthy_store(
    small_project: Project,
) -> None:
    (small_project.root / "mlruns" / "mlflow.db").unlink()
    small_project.stage("preprocess")
    command = [sys.executable, "-m", "pipeline.train"]
    started = [
        subprocess.Popen(
            command,
            cwd=small_project.root,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        said = [process.communicate(timeout=600) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * 2, said
    runs = runs_of(small_project)
    assert [run.info.status for run in runs] == ["FINISHED"] * 2
    assert len({run.data.tags["model.sha256"] for run in runs}) == 1
    database = sqlite3.connect(small_project.root / "mlruns" / "mlflow.db")
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()

"""A sweep: what a grid becomes, what is refused, who wins; and real sweeps, killed at every joint."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from conftest import Project, environment, without_progress
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.entities import Run
from PIL import Image

from pipeline import config, files
from pipeline.config import Params
from pipeline.console import UserError
from pipeline.sweeps import charts, cluster, leaderboard, trials
from pipeline.sweeps.leaderboard import Result
from pipeline.sweeps.trials import Trial

DATA = "d" * 64
PARAMS = config.load(files.ROOT / "params.yaml")


def with_grid(**parameters: Any) -> Params:
    return PARAMS.model_copy(update={"sweep": PARAMS.sweep.model_copy(update={"parameters": parameters})})


def expanded(**parameters: Any) -> list[Trial]:
    return trials.expand(with_grid(**parameters), limit=1000)


# --- the grid -------------------------------------------------------------------------------------------------------


def test_the_default_grid_is_27_trials_on_9_trajectories() -> None:
    found = trials.expand(PARAMS, limit=PARAMS.sweep.limit)
    groups = trials.group(found, DATA)
    assert len(found) == 27
    assert [len(group) for group in groups.values()] == [3] * 9
    assert all(len({trial.train.patience for trial in group}) == 3 for group in groups.values())


@given(st.dictionaries(st.sampled_from(["dropout", "average", "augment.share"]), st.just([0.1, 0.5, 0.25]), min_size=1))
def test_every_combination_is_a_trial_once(grid: dict[str, list[float]]) -> None:
    found = expanded(**grid)
    assert len({trial.sha256 for trial in found}) == len(found) == 3 ** len(grid)
    assert [trial.number for trial in found] == list(range(len(found)))


def test_a_trial_is_the_projects_parameters_but_for_what_varies_and_the_threads() -> None:
    [trial] = expanded(dropout=[0.35])
    assert trial.train == PARAMS.train.model_copy(update={"dropout": 0.35, "threads": PARAMS.sweep.threads})
    assert trial.name == "dropout 0.35"


def test_a_grid_may_vary_seeds_threads_and_a_single_effect_of_the_augmentation() -> None:
    found = expanded(seed=[1, 2], threads=[1, 2], **{"augment.share": [0, 0.5]})
    assert {(each.train.seed, each.train.threads, each.train.augment.share) for each in found} == {
        (seed, threads, share) for seed in (1, 2) for threads in (1, 2) for share in (0, 0.5)
    }


def test_trials_that_differ_in_stopping_share_a_trajectory_and_its_longest_training() -> None:
    stopping = {"patience": [1, 9], "epochs": [3, 30], "monitor": ["val_loss", "val_accuracy"]}
    found = expanded(**stopping, schedule=["constant"], seed=[1, 2])
    groups = trials.group(found, DATA)
    assert [len(group) for group in groups.values()] == [8, 8]
    assert all(trials.longest_training(group).epochs == 30 for group in groups.values())


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ({"momentum": [0.9]}, "sweep.parameters.momentum is not a parameter"),
        ({"augment.sahre": [0.9]}, "sweep.parameters.augment.sahre is not a parameter; did you mean share?"),
        ({"preprocess.train": [10]}, "sweep.parameters.preprocess.train is not a parameter"),
        ({"dropout": []}, "sweep.parameters.dropout is an empty list"),
        ({"dropout": [0.1, 1.5]}, "sweep.parameters.dropout is 1.5; expected a number at least 0 and below 1"),
        ({"batch_size": [64, "many"]}, "sweep.parameters.batch_size is 'many'; expected a whole number"),
        ({"dropout": [0, 0.0]}, "sweep.parameters.dropout holds 0.0 twice"),
        ({}, "sweep.parameters names no parameter"),
        ({"seed": list(range(1001))}, "makes 1001 trials, sweep.limit is 1000"),
    ],
)
def test_a_grid_that_cannot_be_run_is_refused_in_one_line(grid: dict[str, list[Any]], words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)) as error:
        expanded(**grid)
    assert "\n" not in str(error.value)


def test_yes_lifts_the_limit() -> None:
    assert len(trials.expand(with_grid(seed=list(range(1001))), limit=None)) == 1001


# --- the order ------------------------------------------------------------------------------------------------------


def result(trial: Trial, loss: float, accuracy: float = 0.9, epochs: int = 5) -> Result:
    figures = {"best_epoch": epochs - 1, "epochs_run": epochs, "stopped_early": True}
    return Result(trial, {**figures, "best_val_loss": loss, "best_val_accuracy": accuracy}, "ab" * 32)


def test_the_best_is_the_lowest_loss_or_the_highest_accuracy_whichever_is_watched() -> None:
    one, two = expanded(dropout=[0.1, 0.2])
    results = [result(one, 0.05, 0.99), result(two, 0.04, 0.98)]
    assert [each.trial for each in leaderboard.rank(results, "val_loss")] == [two, one]
    assert [each.trial for each in leaderboard.rank(results, "val_accuracy")] == [one, two]


def test_of_equals_the_one_that_needed_fewer_epochs_wins() -> None:
    one, two = expanded(patience=[1, 5])
    assert leaderboard.rank([result(two, 0.04, epochs=9), result(one, 0.04, epochs=5)], "val_loss")[0].trial == one


def test_over_seeds_the_mean_decides_and_a_lucky_seed_does_not() -> None:
    found = {(trial.train.dropout, trial.train.seed): trial for trial in expanded(dropout=[0.1, 0.2], seed=[1, 2])}
    losses = {(0.1, 1): 0.03, (0.1, 2): 0.07, (0.2, 1): 0.045, (0.2, 2): 0.04}
    ranked = leaderboard.rank([result(found[key], loss) for key, loss in losses.items()], "val_loss")
    assert [(each.trial.train.dropout, each.trial.train.seed) for each in ranked] == [
        (0.2, 2), (0.2, 1), (0.1, 1), (0.1, 2),
    ]  # fmt: skip
    row = leaderboard.table(ranked, "val_loss")[0]
    assert (row["seeds"], row["mean_val_loss"], row["sd_val_loss"]) == (2, 0.0425, 0.003536)


def test_a_failed_trial_comes_last_and_says_why() -> None:
    one, two, three = expanded(dropout=[0.1, 0.2, 0.3])
    ranked = leaderboard.rank([Result(one, error="no memory"), result(two, 0.5), result(three, 0.4)], "val_loss")
    rows = leaderboard.table(ranked, "val_loss")
    assert [row["dropout"] for row in rows] == [0.3, 0.2, 0.1]
    assert (rows[-1]["error"], rows[-1]["best_val_loss"]) == ("no memory", "")
    assert leaderboard.shown(rows).splitlines()[-1].endswith("failed")


def test_the_table_of_a_terminal_shows_the_best_20_and_counts_the_rest() -> None:
    found = expanded(seed=list(range(30)))
    rows = leaderboard.table(leaderboard.rank([result(trial, 0.1) for trial in found], "val_loss"), "val_loss")
    lines = leaderboard.shown(rows).splitlines()
    assert len(lines) == 22
    assert lines[-1] == "... and 10 more"


def test_the_command_names_all_that_varies_and_the_threads() -> None:
    [trial] = expanded(batch_size=[64], learning_rate=[0.00001], schedule=["cosine"])
    assert leaderboard.command(result(trial, 1)) == (
        "dvc exp run -S train.batch_size=64 -S train.learning_rate=1.0e-05 -S train.schedule=cosine -S train.threads=1"
    )


@pytest.mark.parametrize(
    "grid",
    [
        {"batch_size": [64, 128, 256], "dropout": [0.1, 0.2, 0.4], "patience": [1, 3, 5]},
        {"dropout": [0.1, 0.2]},
        {"dropout": [0.1]},
        {"schedule": ["cosine", "constant"], "seed": list(range(40))},
        {"dropout": [0.123451, 0.123452], "learning_rate": [0.00001, 0.1]},
    ],
)
def test_the_pictures_are_drawn_for_any_grid_and_always_alike(grid: dict[str, list[Any]], tmp_path: Path) -> None:
    found = expanded(**grid)
    ranked = leaderboard.rank([result(trial, 0.1 + trial.number / 100) for trial in found], "val_loss")
    for draw in (charts.parallel, charts.heatmap):
        picture = draw(ranked, "val_loss")
        (tmp_path / "picture.png").write_bytes(picture)
        with Image.open(tmp_path / "picture.png") as image:
            assert min(image.size) > 150
            assert "Software" not in image.info
        assert draw(ranked, "val_loss") == picture


def test_the_winner_is_written_into_params_yaml_and_nothing_else_changes() -> None:
    text = (files.ROOT / "params.yaml").read_text("utf-8")
    changes = {
        "train.batch_size": 64,
        "train.learning_rate": 0.00001,
        "train.augment.share": 0.123456,
        "train.schedule": "constant",
    }
    changed = config.replaced(text, changes)
    different = [(a, b) for a, b in zip(text.splitlines(), changed.splitlines(), strict=True) if a != b]
    assert len(different) == 4
    assert all(old.partition("#")[1:] == new.partition("#")[1:] for old, new in different)
    assert all(old.index("#") == new.index("#") for old, new in different)
    content = yaml.safe_load(changed)
    assert content["train"]["learning_rate"] == 0.00001
    assert content["train"]["augment"]["share"] == 0.123456
    assert (
        config.replaced(changed, {name: yaml.safe_load(text)["train"].get(name[6:], 0.5) for name in changes}) == text
    )


# --- real sweeps ----------------------------------------------------------------------------------------------------

GRID = {"batch_size": [32, 64], "patience": [1, 5]}


@pytest.fixture(scope="module")
def prepared(template: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = template.copy(tmp_path_factory.mktemp("prepared") / "project")
    project.set(**{"sweep.parameters": GRID, "train.epochs": 4})
    project.stage("preprocess")
    project.git("commit", "--quiet", "--all", "--message", "Sweep")
    return project


@pytest.fixture(scope="module")
def swept(prepared: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return a project after its sweep; for reading and copying only."""
    project = prepared.copy(tmp_path_factory.mktemp("swept") / "project")
    said = project.stage("sweep")
    assert said.stderr == ""
    assert "4 trials on 2 trajectories of at most 4 epochs, " in said.stdout
    assert re.search(r"sweep: an epoch takes \d+\.\d s: at most about \d+ (second|minute)s? more\n", said.stdout)
    return project


@pytest.fixture
def project(prepared: Project, tmp_path: Path) -> Project:
    return prepared.copy(tmp_path / "project")


def client_of(project: Project) -> MlflowClient:
    return MlflowClient(f"sqlite:///{project.root}/mlruns/mlflow.db")


def runs_of(project: Project) -> list[Run]:
    client = client_of(project)
    found = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    return list(found)


def children(project: Project, status: str = "FINISHED") -> list[Run]:
    return [run for run in runs_of(project) if "mlflow.parentRunId" in run.data.tags and run.info.status == status]


def models(project: Project) -> dict[tuple[str, str], str]:
    """Return the model of each finished trial; fail where one finished twice."""
    found = [(run.data.params["train.batch_size"], run.data.params["train.patience"]) for run in children(project)]
    assert len(set(found)) == len(found)
    return {key: run.data.tags["model.sha256"] for key, run in zip(found, children(project), strict=True)}


def page(project: Project) -> list[tuple[str, str, dict[str, Any], set[str]]]:
    """Return what MLflow shows of a sweep's runs, but for what times, hosts and ids are in."""
    return sorted(
        (run.info.run_name, run.info.status, run.data.params | run.data.metrics, set(run.data.tags))
        for run in runs_of(project)
    )


class Running:
    """A sweep that is running, and what it left behind when it ended."""

    def __init__(self, project: Project, *arguments: str, **variables: str) -> None:
        self.project = project
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.sweep", *arguments],
            cwd=project.root,
            env=environment() | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.seen: dict[int, psutil.Process] = {}

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def family(self) -> list[psutil.Process]:
        with psutil.Process(self.process.pid).oneshot():
            found = psutil.Process(self.process.pid).children(recursive=True)
        self.seen |= {process.pid: process for process in found}
        return found

    def workers(self) -> list[psutil.Process]:
        """Return the processes that train a trajectory."""
        found = []
        for process in self.family():
            try:
                found += [process] if "ray::train_trials" in " ".join(process.cmdline()) else []
            except psutil.Error:
                continue
        return found

    def wait_for_epochs(self, count: int) -> None:
        def there() -> bool:
            assert self.process.poll() is None, self.process.communicate()
            return len(list((self.project.root / ".checkpoints").glob("*/*.epoch"))) >= count

        until(there, 600)

    def end(self, status: int) -> tuple[str, str]:
        said = self.process.communicate(timeout=600)
        assert self.process.returncode == status, said
        return said[0], without_progress(said[1])

    def nothing_left(self) -> None:
        """Wait until Ray's processes are gone."""
        until(lambda: not any(process.is_running() for process in self.seen.values()), 60)


def until(true: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.mark.slow
def test_every_trial_has_the_model_that_train_makes_of_its_parameters(swept: Project, tmp_path: Path) -> None:
    rows = files.read_csv(swept.root / "reports" / "sweep.csv")
    assert models(swept) == {(row["batch_size"], row["patience"]): row["model_sha256"] for row in rows}
    alone = swept.copy(tmp_path / "alone")
    shutil.rmtree(alone.root / ".checkpoints")
    wanted = {"batch_size": int(rows[0]["batch_size"]), "patience": int(rows[0]["patience"]), "threads": 1}
    alone.set(**{f"train.{name}": value for name, value in wanted.items()})
    alone.stage("train")
    assert alone.json("train.json")["model_sha256"] == rows[0]["model_sha256"]
    assert str(alone.json("train.json")["best_val_loss"]) == rows[0]["best_val_loss"]


@pytest.mark.slow
def test_a_trial_is_logged_as_a_single_training_is(swept: Project, tmp_path: Path) -> None:
    alone = swept.copy(tmp_path / "alone")
    alone.set(**{"train.batch_size": 32, "train.patience": 1, "train.threads": 1})
    before = sorted(file.stat().st_mtime for file in (alone.root / ".checkpoints").glob("*/*.epoch"))
    alone.stage("train")
    assert before == sorted(file.stat().st_mtime for file in (alone.root / ".checkpoints").glob("*/*.epoch"))
    [lone] = [run for run in runs_of(alone) if run.info.run_name.startswith("batch 32") and run not in children(alone)
              and "mlflow.parentRunId" not in run.data.tags]  # fmt: skip
    [trial] = [run for run in children(alone) if run.info.run_name == "batch 32 · patience 1"]
    client = client_of(alone)
    assert trial.data.params == lone.data.params
    assert trial.data.metrics == lone.data.metrics
    for name in trial.data.metrics:
        steps = [[each.step for each in client.get_metric_history(run.info.run_id, name)] for run in (lone, trial)]
        assert steps[0] == steps[1]
    assert set(trial.data.tags) - set(lone.data.tags) == {"mlflow.parentRunId", "trajectory", "worker.host"}
    assert set(lone.data.tags) <= set(trial.data.tags)
    artifacts = [
        {each.path for each in client.list_artifacts(run.info.run_id)} - {"uncommitted.patch"} for run in (lone, trial)
    ]
    assert artifacts[0] == artifacts[1]
    assert len(lone.outputs.model_outputs) == len(trial.outputs.model_outputs) == 1


@pytest.mark.slow
def test_the_sweeps_own_run_shows_the_space_the_table_the_pictures_and_the_best(swept: Project) -> None:
    [parent] = [run for run in runs_of(swept) if "sweep.id" in run.data.tags and run not in children(swept)]
    best = files.read_csv(swept.root / "reports" / "sweep.csv")[0]
    assert parent.info.status == "FINISHED"
    assert parent.data.params == {"sweep.batch_size": "[32, 64]", "sweep.patience": "[1, 5]"}
    assert parent.data.metrics["best_val_loss"] == float(best["best_val_loss"])
    assert parent.data.metrics["trials"] == 4
    [winner] = [run for run in children(swept) if run.info.run_id == parent.data.tags["best.run_id"]]
    assert winner.info.run_name == parent.data.tags["best.trial"]
    client = client_of(swept)
    shown = {
        each.path for folder in ("reports", "images") for each in client.list_artifacts(parent.info.run_id, folder)
    }
    assert "reports/sweep.csv" in shown
    assert {name for path in shown for name in ("sweep_parallel", "sweep_heatmap") if name in path} == {
        "sweep_parallel",
        "sweep_heatmap",
    }


@pytest.mark.slow
def test_a_sweep_that_is_done_starts_no_worker_and_applies_its_winner(swept: Project, tmp_path: Path) -> None:
    project = swept.copy(tmp_path / "project")
    table = (project.root / "reports" / "sweep.csv").read_bytes()
    said = project.stage("sweep", "--apply", "--address", "127.0.0.1:1")
    best = files.read_csv(project.root / "reports" / "sweep.csv")[0]
    assert "trajectories of at most" not in said.stdout
    assert (project.root / "reports" / "sweep.csv").read_bytes() == table
    applied = config.load(project.root / "params.yaml").train
    assert (str(applied.batch_size), str(applied.patience), applied.threads) == (
        best["batch_size"],
        best["patience"],
        1,
    )
    command = re.search(r"dvc exp run(.*)", said.stdout)
    assert command
    swept_copy = swept.copy(tmp_path / "other")
    swept_copy.run("dvc", "repro", "--quiet", "preprocess")
    swept_copy.run("dvc", "exp", "run", "--quiet", *command[1].split(), "train")
    assert swept_copy.json("train.json")["model_sha256"] == best["model_sha256"]


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced_from_its_last_epoch(project: Project, swept: Project) -> None:
    with Running(project) as running:
        running.wait_for_epochs(1)
        worker = running.workers()[0]
        kept = {file: file.stat().st_mtime_ns for file in (project.root / ".checkpoints").glob("*/*.epoch")}
        worker.kill()
        _, said = running.end(0)
    assert re.fullmatch(r"sweep: .*; resuming from epoch [1-4]\n", said)
    assert all(file.stat().st_mtime_ns == stamp for file, stamp in kept.items())
    assert models(project) == models(swept)
    assert len(children(project)) == len(runs_of(project)) - 1


@pytest.mark.slow
def test_a_driver_that_is_killed_is_started_again_and_does_only_what_is_missing(
    project: Project, swept: Project
) -> None:
    with Running(project) as running:
        running.wait_for_epochs(3)
        workers = running.workers()
        running.process.kill()
        until(lambda: not any(worker.is_running() for worker in workers), 60)
    kept = {file: file.stat().st_mtime_ns for file in (project.root / ".checkpoints").glob("*/*.epoch")}
    seen = project.in_terminal(sys.executable, "-m", "pipeline.sweep")
    assert re.search(r"sweep: +\d+%.*epoch.*, \d of 4 trials, best val loss ", seen)  # rate, time left, the best
    assert all(file.stat().st_mtime_ns == stamp for file, stamp in kept.items())
    assert models(project) == models(swept)
    assert page(project) == page(swept)
    table = "reports/sweep.csv"
    assert (project.root / table).read_bytes() == (swept.root / table).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_sweep_cleanly_with_a_line_on_how_to_resume(project: Project, number: signal.Signals) -> None:
    with Running(project) as running:
        running.wait_for_epochs(1)
        running.family()
        running.process.send_signal(number)
        _, said = running.end(128 + number)
        running.nothing_left()
    hint = "Nothing is lost: the same command resumes from the last finished epochs."
    assert said == f"stopped by {number.name}. {hint}\n"
    assert {run.info.status for run in runs_of(project)} == {"KILLED"}


FAILING = """
import sys
from pipeline import config, console, sweep
from pipeline.learning import trajectory
from pipeline.sweeps import trials

def fragile(digits, group, checkpoints):
    for number, message in enumerate(trials.train_trials(digits, group, checkpoints)):
        if number > 2 and group[0].train.batch_size == 64:
            raise MemoryError("no room for 64")
        yield message

def main(arguments):
    params = config.load()
    wanted = trials.expand(params, limit=1000)
    ranked = sweep.run(params, wanted, trajectory.load_digits(sweep.files.PREPARED), train_trials=fragile)
    print([(each.trial.name, each.error) for each in ranked if each.error])

console.run(main)
"""


@pytest.mark.slow
def test_a_trial_that_fails_is_recorded_with_its_error_and_the_others_go_on(project: Project) -> None:
    project.set(**{"sweep.parameters": {"batch_size": [32, 64], "threads": [1, 2]}, "train.epochs": 2})
    (project.root / "failing.py").write_text(FAILING)
    said = project.run(sys.executable, "failing.py", PYTHONPATH=str(project.root))
    assert said.stdout.count("MemoryError: no room for 64") == 2
    assert sorted(run.data.params["train.threads"] for run in children(project)) == ["1", "2"]
    failed = children(project, "FAILED")
    assert [run.data.params["train.batch_size"] for run in failed] == ["64", "64"]
    assert {run.data.tags["error"] for run in failed} == {"MemoryError: no room for 64"}


@pytest.mark.slow
def test_a_driver_whose_ray_daemon_dies_says_so_and_how_to_resume(project: Project) -> None:
    with Running(project) as running:
        running.wait_for_epochs(1)
        next(process for process in running.family() if process.name() == "raylet").kill()
        _, said = running.end(1)
    assert said.endswith(
        "this process was killed, or Ray on this machine died. Nothing is lost: the same command resumes.\n"
    )


# --- a machine that is not the usual one ----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_long_tmpdir_and_an_empty_ray_address_hinder_no_sweep(project: Project, tmp_path: Path) -> None:
    project.set(**{"sweep.parameters": {"dropout": [0.1]}, "train.epochs": 1})
    long = tmp_path / "scratch-of-a-job-on-a-cluster-with-a-long-name" / ("x" * 60)
    long.mkdir(parents=True)
    said = project.run(
        sys.executable, "-m", "pipeline.sweep", "--workers", "1", TMPDIR=str(long), RAY_ADDRESS="", RAY_AUTH_MODE=""
    )
    assert said.stderr == ""
    assert [run.info.status for run in runs_of(project)] == ["FINISHED", "FINISHED"]


def test_rays_folder_is_short_and_gone_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (str(tmp_path / ("x" * 60)), str(tmp_path / "missing"), "/tmp"):
        monkeypatch.setenv("RAY_TMPDIR", place)
        monkeypatch.setattr(tempfile, "tempdir", place)
        with cluster.socket_folder() as folder:
            assert Path(folder).is_dir()
            assert len(folder) <= cluster.SHORT + len("/ray_12345678")
        assert not Path(folder).exists()

"""A sweep: what a grid becomes, what is refused, what is shown; and real sweeps, killed at every joint."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from conftest import Project, environment, without_progress
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.entities import Run
from PIL import Image

from pipeline import config, files, sweep
from pipeline.config import Params
from pipeline.console import UserError
from pipeline.sweeps import charts, cluster, comparison, leaderboard, race, trials
from pipeline.sweeps.race import Race
from pipeline.sweeps.trials import Result, Setting, Trial

DATA = "d" * 64
PARAMS = config.load(files.ROOT / "params.yaml")


def with_grid(seeds: int = 1, **parameters: Any) -> Params:
    sweep = PARAMS.sweep.model_copy(update={"parameters": parameters, "seeds": seeds})
    return PARAMS.model_copy(update={"sweep": sweep})


def expanded(**parameters: Any) -> list[Setting]:
    return trials.expand(with_grid(**parameters), limit=1000)


def with_seed(settings: list[Setting], *seeds: int) -> list[Trial]:
    return [Trial(setting, seed) for seed in seeds or (1,) for setting in settings]


# --- the settings ---------------------------------------------------------------------------------------------------


def test_the_default_grid_is_27_settings_on_9_trajectories_a_seed() -> None:
    found = trials.expand(PARAMS, limit=PARAMS.sweep.limit)
    groups = trials.group(with_seed(found, 1, 2), DATA)
    assert len(found) == 27
    assert [len(group) for group in groups.values()] == [3] * 18
    assert all(len({trial.train.patience for trial in group}) == 3 for group in groups.values())
    assert [group[0].seed for group in groups.values()] == [1] * 9 + [2] * 9


@given(st.dictionaries(st.sampled_from(["dropout", "average", "augment.share"]), st.just([0.1, 0.6, 0.25]), min_size=1))
def test_what_you_have_comes_first_and_every_combination_once(grid: dict[str, list[float]]) -> None:
    found = expanded(**grid)
    assert found[0].train == PARAMS.train.model_copy(update={"threads": PARAMS.sweep.threads})
    assert len({trial.sha256 for trial in with_seed(found)}) == len(found) == 1 + 3 ** len(grid)
    assert [setting.number for setting in found] == list(range(len(found)))


def test_what_you_have_is_not_trained_twice_where_the_grid_holds_it() -> None:
    found = expanded(dropout=[0.4, PARAMS.train.dropout], patience=[PARAMS.train.patience])
    assert [setting.varied["dropout"] for setting in found] == [PARAMS.train.dropout, 0.4]


def test_a_trial_is_the_projects_parameters_but_for_what_varies_the_threads_and_the_seed() -> None:
    _, setting = expanded(dropout=[0.35])
    trial = Trial(setting, 7)
    changes = {"dropout": 0.35, "threads": PARAMS.sweep.threads, "seed": 7}
    assert trial.train == PARAMS.train.model_copy(update=changes)
    assert (setting.name, trial.name) == ("dropout 0.35", "dropout 0.35 · seed 7")


def test_a_grid_may_vary_a_single_effect_of_the_augmentation() -> None:
    found = expanded(**{"augment.share": [0.1, 0.2]})
    assert [each.train.augment.share for each in found[1:]] == [0.1, 0.2]


def test_trials_that_differ_in_stopping_share_a_trajectory_and_its_longest_training() -> None:
    stopping = {"patience": [1, 9], "epochs": [3, 30], "monitor": ["val_loss", "val_accuracy"]}
    found = with_seed(expanded(**stopping, schedule=["constant"])[1:], 1, 2)
    groups = trials.group(found, DATA)
    assert [len(group) for group in groups.values()] == [8, 8]
    assert all(trials.longest_training(group).epochs == 30 for group in groups.values())


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ({"momentum": [0.9]}, "sweep.parameters.momentum is not a parameter"),
        ({"augment.sahre": [0.9]}, "sweep.parameters.augment.sahre is not a parameter; did you mean share?"),
        ({"preprocess.train": [10]}, "sweep.parameters.preprocess.train is not a parameter"),
        ({"dropout": []}, "sweep.parameters.dropout is []; expected a list of at least one value"),
        ({"dropout": [0.1, 1.5]}, "sweep.parameters.dropout is 1.5; expected a number at least 0 and below 1"),
        ({"batch_size": [64, "many"]}, "sweep.parameters.batch_size is 'many'; expected a whole number"),
        ({"dropout": [0, 0.0]}, "sweep.parameters.dropout holds 0.0 twice"),
        ({}, "sweep.parameters names no parameter"),
        ({"seed": [1, 2]}, "sweep.parameters.seed: every setting is trained with the same seeds; set sweep.seeds"),
        ({"device": ["cpu", "gpu"]}, "sweep.parameters.device: a sweep trains on one kind of device; set train.device"),
        ({"threads": [1, 2]}, "sweep.parameters.threads: every count gives the same bits; set sweep.threads"),
        ({"augment": [{"rotation": 0.1}]}, "sweep.parameters.augment: expected one of its values, such as augment.rot"),
        ({"dropout": {"from": 0, "to": float("inf"), "step": 1}}, "dropout goes from 0 to inf; expected two numbers"),
        ({"dropout": {"from": "1e-4", "to": 0.1}}, "YAML takes 1e-4 for a word, write it as 0.001 or 1.0e-03"),
        ({"dropout": {"from": 0, "to": 0.4, "step": 1.0e-05}}, "dropout has 40,000 steps; expected at most 1,000"),
        ({"dropout": {"from": 0, "to": 0.4, "digits": True}}, "dropout.digits is True; expected 1 to 6 significant"),
        ({"epochs": list(range(1, 501)), "seeds": 3}, "makes 1500 trials, sweep.limit is 1000"),
    ],
)
def test_a_grid_that_cannot_be_run_is_refused_in_one_line(grid: dict[str, list[Any]], words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)) as error:
        expanded(**grid)
    assert "\n" not in str(error.value)


def test_yes_lifts_the_limit() -> None:
    assert len(trials.expand(with_grid(epochs=list(range(1, 1001)), patience=[1, 2]), limit=None)) == 2001


# --- the race -------------------------------------------------------------------------------------------------------


def result(trial: Trial, accuracy: float, epochs: int = 5) -> Result:
    figures = {"best_epoch": epochs - 1, "epochs_run": epochs, "stopped_early": True}
    return Result(trial, {**figures, "best_val_loss": 1 - accuracy, "best_val_accuracy": accuracy}, "ab" * 32)


def raced(settings: list[Setting], means: Sequence[float], seeds: int, noise: float = 0.0005) -> Race:
    """Return the race of settings with these accuracies, to its end."""
    found = race.start(settings, with_grid(seeds))
    random = np.random.default_rng(1).normal(0, noise, (1000, len(settings)))
    while missing := found.replay()[1]:
        for trial in missing:
            accuracy = round(means[trial.setting.number] + random[trial.seed, trial.setting.number], 6)
            found.results[trial.key] = result(trial, accuracy)
    return found


def seeds_of(found: Race) -> list[int]:
    return [len(found.of(setting)) for setting in found.settings]


DROPOUTS = expanded(dropout=[0.1, 0.2, 0.3, 0.4])  # and what you have


def test_what_is_shown_to_be_worse_after_three_seeds_is_dropped_and_the_rest_goes_on() -> None:
    assert seeds_of(raced(DROPOUTS, [0.99, 0.99, 0.99, 0.98, 0.97], seeds=6)) == [6, 6, 6, 3, 3]


def test_nothing_is_dropped_before_three_seeds() -> None:
    assert seeds_of(raced(DROPOUTS, [0.99, 0.9, 0.8, 0.7, 0.6], seeds=2)) == [2] * 5


def test_what_you_have_is_trained_with_every_seed_though_it_is_the_worst() -> None:
    assert seeds_of(raced(DROPOUTS, [0.5, 0.99, 0.99, 0.98, 0.97], seeds=5)) == [5, 5, 5, 3, 3]


def test_what_you_have_is_judged_anew_after_every_seed() -> None:
    found = race.start(expanded(dropout=[0.4]), with_grid(6))
    while missing := found.replay()[1]:
        for trial in missing:
            behind = 0.01 if trial.seed <= 3 else -0.02
            found.results[trial.key] = result(trial, 0.98 - behind * (trial.setting.number == 0) + trial.seed / 1e4)
        if len(found.results) == 6:
            assert found.after(3).replay()[0].tolist() == [True, False]
    assert not found.replay()[0][0]


def test_more_seeds_continue_a_race_and_repeat_none_of_its_trials() -> None:
    means = [0.99, 0.99, 0.9895, 0.98, 0.97]
    short, long = raced(DROPOUTS, means, seeds=4), raced(DROPOUTS, means, seeds=8)
    assert short.results.items() < long.results.items()


@pytest.mark.parametrize("number", range(8))
def test_the_trials_of_a_race_do_not_depend_on_which_ended_first(number: int) -> None:
    random = Random(number)
    whole = raced(DROPOUTS, [0.99, 0.9895, 0.989, 0.9885, 0.98], seeds=6)
    half = race.start(DROPOUTS, with_grid(6))
    while missing := half.replay()[1]:
        for trial in random.sample(missing, random.randint(1, len(missing))):  # what a killed driver had kept
            half.results[trial.key] = whole.results[trial.key]
    assert half.results == whole.results


def test_a_setting_that_fails_is_dropped_and_the_others_go_on() -> None:
    found = race.start(DROPOUTS, with_grid(4))
    while missing := found.replay()[1]:
        for trial in missing:
            failed = trial.setting.number == 2
            found.results[trial.key] = Result(trial, error="no memory") if failed else result(trial, 0.99)
    assert seeds_of(found) == [4, 4, 3, 4, 4]
    rows = leaderboard.table(leaderboard.rank(found), "val_accuracy")
    assert (rows[-1]["dropout"], rows[-1]["error"], rows[-1]["mean_val_accuracy"]) == (0.2, "no memory", "")
    assert "failed" in leaderboard.shown(leaderboard.rank(found), "val_accuracy").splitlines()[-1]


def test_a_setting_without_a_figure_has_none_in_the_table_and_is_not_among_the_best() -> None:
    found = race.start(DROPOUTS, with_grid(4))
    while missing := found.replay()[1]:
        for trial in missing:
            number = trial.setting.number
            accuracy = float("nan") if number == 1 else 0.98 + number / 1000
            found.results[trial.key] = Result(trial, error="no memory") if number == 0 else result(trial, accuracy)
    ranked = leaderboard.rank(found)
    rows = leaderboard.table(ranked, "val_accuracy")
    assert [row["error"] for row in rows] == ["", "", "", "no memory", "val accuracy is not a number"]
    assert {row["difference"] for row in rows} == {""}  # what they would be compared with failed
    assert not any(row["best"] for row in rows[3:])
    assert leaderboard.verdict(ranked, "val_accuracy")[-1] == "Nothing is shown to be better than what you have."


def test_of_settings_that_are_better_and_equal_the_one_that_changes_least_is_named() -> None:
    settings = expanded(dropout=[0.2], patience=[1, PARAMS.train.patience])
    found = raced(settings, [0.97 if each.train.dropout != 0.2 else 0.99 for each in settings], 5, noise=0.0)
    named = leaderboard.winner(leaderboard.rank(found))
    assert named is not None
    assert (named.setting.train.dropout, named.setting.train.patience) == (0.2, PARAMS.train.patience)


# --- the order and the verdict --------------------------------------------------------------------------------------


def place(found: Race) -> list[int]:
    return [each.setting.number for each in leaderboard.rank(found)]


@pytest.mark.parametrize("metric", ["val_loss", "val_accuracy"])
def test_the_best_has_the_lowest_loss_or_the_highest_accuracy_whichever_compares(metric: str) -> None:
    settings = expanded(dropout=[0.1, 0.2])
    found = replace(race.start(settings, with_grid()), metric=metric)
    for trial, (loss, accuracy) in zip(with_seed(settings), [(0.03, 0.9), (0.05, 0.99), (0.04, 0.98)], strict=True):
        each = result(trial, accuracy)
        found.results[trial.key] = replace(each, summary={**each.summary, "best_val_loss": loss})
    assert place(found) == ([0, 2, 1] if metric == "val_loss" else [1, 2, 0])


def test_of_equals_the_one_that_needed_fewer_epochs_comes_first() -> None:
    found = race.start(expanded(patience=[1, 5]), with_grid())
    for trial, epochs in zip(with_seed(list(found.settings)), (7, 5, 9), strict=True):
        found.results[trial.key] = result(trial, 0.99, epochs)
    assert place(found) == [1, 0, 2]


def test_over_seeds_the_mean_decides_and_a_lucky_seed_does_not() -> None:
    found = race.start(expanded(dropout=[0.1, 0.2]), with_grid(2))
    accuracies = {(0, 1): 0.9, (0, 2): 0.9, (1, 1): 0.99, (1, 2): 0.91, (2, 1): 0.96, (2, 2): 0.97}
    for trial in found.replay()[1]:
        found.results[trial.key] = result(trial, accuracies[trial.setting.number, trial.seed])
    assert place(found) == [2, 1, 0]


def test_a_table_has_means_intervals_paired_differences_and_marks_what_may_be_the_best() -> None:
    found = raced(DROPOUTS, [0.99, 0.991, 0.99, 0.98, 0.97], seeds=5)
    rows = leaderboard.table(leaderboard.rank(found), "val_accuracy")
    assert [(row["dropout"], row["best"], row["seeds"]) for row in rows[-2:]] == [(0.3, "", 3), (0.4, "", 3)]
    assert (rows[0]["dropout"], rows[0]["best"]) == (0.1, "=")
    values = found.scores()
    assert rows[0]["mean_val_accuracy"] == pytest.approx(values[1].mean(), abs=1e-6)
    assert rows[0]["difference"] == pytest.approx((values[1] - values[0]).mean(), abs=1e-6)
    assert rows[-1]["difference"] == pytest.approx((values[4] - values[0])[:3].mean(), abs=1e-6)
    assert 0 < rows[0]["interval"] < 0.002
    [present] = [row for row in rows if row["dropout"] == PARAMS.train.dropout]
    assert (present["difference"], present["difference_interval"]) == ("", "")


def test_a_single_seed_has_no_interval_and_shows_nothing() -> None:
    found = raced(DROPOUTS, [0.5, 0.99, 0.98, 0.97, 0.96], seeds=1)
    ranked = leaderboard.rank(found)
    assert "±" not in leaderboard.shown(ranked, "val_accuracy")
    assert leaderboard.verdict(ranked, "val_accuracy")[-1] == "Nothing is shown to be better than what you have."


def test_of_equal_settings_nothing_is_said_to_be_better() -> None:
    ranked = leaderboard.rank(raced(DROPOUTS, [0.99] * 5, seeds=5))
    assert leaderboard.winner(ranked) is None
    assert leaderboard.verdict(ranked, "val_accuracy")[-1] == "Nothing is shown to be better than what you have."


def test_what_is_better_is_named_with_its_interval_and_its_command() -> None:
    ranked = leaderboard.rank(raced(DROPOUTS, [0.99, 0.992, 0.9919, 0.99, 0.98], seeds=5))
    last = leaderboard.verdict(ranked, "val_accuracy")[-1]
    shown = re.fullmatch(
        r"Better than what you have by (0\.\d\d) points \[\+(0\.\d\d), \+(0\.\d\d)\]: `dvc exp run -S (.*)`", last
    )
    assert shown, last
    mean, low, high = map(float, shown.groups()[:3])
    assert 0 < low < mean < high < 0.4
    assert shown[4] == "train.dropout=0.1"


def test_the_cheapest_of_those_that_may_be_the_best_is_named() -> None:
    found = race.start(expanded(patience=[1, 5]), with_grid(5))
    while missing := found.replay()[1]:
        for trial in missing:
            accuracy = 0.99 + 0.001 * (trial.seed % 3) - 0.00001 * (trial.setting.number == 1)
            found.results[trial.key] = result(trial, round(accuracy, 6), epochs=(7, 4, 8)[trial.setting.number])
    first = leaderboard.verdict(leaderboard.rank(found), "val_accuracy")[0]
    assert first == (
        "Not shown to be worse than the best (=): 3 of 3; "
        "the cheapest of them: patience 1, 4.0 epochs, where the first needs 7.0."
    )


def test_the_table_of_a_terminal_shows_the_best_20_and_counts_the_rest() -> None:
    ranked = leaderboard.rank(raced(expanded(patience=list(range(10, 39))), [0.99] * 30, seeds=1))
    lines = leaderboard.shown(ranked, "val_accuracy").splitlines()
    assert len(lines) == 22
    assert lines[-1] == "... and 10 more"


def test_the_command_names_all_that_varies() -> None:
    _, setting = expanded(batch_size=[64], learning_rate=[0.00001], schedule=["cosine"])
    assert leaderboard.command(setting) == (
        "dvc exp run -S train.batch_size=64 -S train.learning_rate=1.0e-05 -S train.schedule=cosine"
    )


@pytest.mark.parametrize(
    "grid",
    [
        {"batch_size": [64, 128, 256], "dropout": [0.1, 0.2, 0.4], "patience": [1, 3, 5]},
        {"dropout": [0.1, 0.2]},
        {"dropout": [0.1]},
        {"schedule": ["cosine", "constant"], "patience": list(range(10, 50))},
        {"dropout": [0.123451, 0.123452], "learning_rate": [0.00001, 0.1]},
    ],
)
def test_the_pictures_are_drawn_for_any_grid_and_always_alike(grid: dict[str, list[Any]], tmp_path: Path) -> None:
    settings = expanded(**grid)
    found = raced(settings, [0.9 + setting.number / 1000 for setting in settings], seeds=3)
    ranked = leaderboard.rank(found)
    draws = [partial(draw, ranked, "val_accuracy") for draw in (charts.parallel, charts.heatmap)]
    for draw in [*draws, partial(charts.effects, found)]:
        picture = draw()
        (tmp_path / "picture.png").write_bytes(picture)
        with Image.open(tmp_path / "picture.png") as image:
            assert min(image.size) > 150
            assert "Software" not in image.info
        assert draw() == picture


@pytest.mark.parametrize("fault", ["train: [1", "train: {seed: 1, seed: 2, dropout: 0}"])
def test_a_fault_made_while_the_sweep_ran_is_named_and_nothing_is_written(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = Setting(1, config.load().train, {"dropout": 0.3})
    monkeypatch.chdir(tmp_path)
    files.PARAMS.write_text(fault)
    with pytest.raises(UserError, match="expected plain values under `train`; use the command above"):
        sweep.apply(setting)
    assert files.PARAMS.read_text("utf-8") == fault


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


def test_the_documentation_quotes_the_simulation() -> None:
    text = (files.ROOT / "docs" / "experiments.md").read_text("utf-8")
    rows = files.read_csv(files.ROOT / "benchmarks" / "racing.csv")
    found = {(row["question"], row["settings"], row["noise"], row["difference"], row["method"]): row for row in rows}
    quoted = re.findall(
        r"^\| (\d+ seeds?|race to \d+, (?:level 0.1|halving .*?)|ASHA, best trial) \| (.*) \|$", text, re.MULTILINE
    )
    assert len(quoted) == 8
    for method, cells in quoted:
        pair = [found["named", "9", "equal", difference, method] for difference in ("0.05", "0.1")]
        assert cells.split(" | ") == [
            f"{100 * float(row[name]):.{places}f}%"
            for row in pair
            for name, places in (("share", 1), ("epochs_of_ten_seeds", 0))
        ]
    claims = re.findall(r"^\| race to (\d+), (\d+) settings \| (.*) \|$", text, re.MULTILINE)
    assert len(claims) == 4
    for seeds, settings, cells in claims:
        each = [found["claimed", settings, "equal", by, f"race to {seeds}"] for by in ("0", "0.05", "0.1")]
        assert cells.split(" | ") == [f"{100 * float(row['share']):.1f}%" for row in each]


def test_a_race_keeps_within_two_in_a_hundred_of_ten_seeds_and_claims_little_that_is_not_so() -> None:
    rows = files.read_csv(files.ROOT / "benchmarks" / "racing.csv")
    shares = {
        (row["noise"], row["difference"], row["method"]): float(row["share"]) for row in rows if row["settings"] == "9"
    }
    for noise in ("equal", "unequal"):
        for spread in ("0.03", "0.05", "0.1", "0.2"):
            ten = shares[noise, spread, "10 seeds"]
            assert shares[noise, spread, f"race to 10, level {comparison.DROPPED}"] >= ten - 0.02
            assert shares[noise, spread, "race to 10, halving [3]"] >= ten - 0.02
    claims = [row for row in rows if row["question"] == "claimed" and row["difference"] == "0"]
    assert max(float(row["share"]) for row in claims if row["method"] in ("race to 5", "race to 10")) <= 0.05


# --- real sweeps ----------------------------------------------------------------------------------------------------

GRID = {"batch_size": [32, 64], "patience": [1, 5]}
PICTURES = ("sweep_effects", "sweep_parallel", "sweep_heatmap")


@pytest.fixture(scope="module")
def prepared(template: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = template.copy(tmp_path_factory.mktemp("prepared") / "project")
    present = {"train.batch_size": 32, "train.patience": 5, "train.epochs": 4}
    project.set(**present, **{"sweep.parameters": GRID, "sweep.seeds": 1})
    project.stage("preprocess")
    project.git("commit", "--quiet", "--all", "--message", "Sweep")
    return project


@pytest.fixture(scope="module")
def swept(prepared: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return a project after its sweep; for reading and copying only."""
    project = prepared.copy(tmp_path_factory.mktemp("swept") / "project")
    said = project.stage("sweep")
    assert said.stderr == ""
    assert said.stdout.startswith(
        "sweep: 4 settings with 1 seed: 4 trials on 2 trajectories; at most 8 epochs, 0 of them there already; "
    )
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


def read_trials(project: Project) -> list[dict[str, str]]:
    return files.read_csv(project.root / "reports" / "sweep_trials.csv")


def page(project: Project) -> list[tuple[str, str, dict[str, Any], set[str]]]:
    """Return what MLflow shows of a sweep's runs, but for what times, hosts and ids are in."""
    return sorted(
        (run.info.run_name, run.info.status, run.data.params | run.data.metrics, set(run.data.tags))
        for run in runs_of(project)
    )


WORKERS = ("ray::train_trials", "ray::IDLE")  # names of processes


class Running:
    """A sweep that is running, and what it left behind when it ended."""

    def __init__(self, project: Project, *arguments: str, script: str = "") -> None:
        self.project = project
        self.process = subprocess.Popen(
            [sys.executable, *([script] if script else ["-m", "pipeline.sweep"]), *arguments],
            cwd=project.root,
            env=environment() | {"PYTHONPATH": str(project.root)},
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
        found = [] if self.has_ended() else psutil.Process(self.process.pid).children(recursive=True)
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

    def epochs(self) -> list[Path]:
        """Return the epochs that are kept."""
        return list((self.project.root / ".checkpoints").glob("*/*.epoch"))

    def is_busy_or_ended(self, epochs: int) -> bool:
        """Tell whether there are more than so many epochs, and a worker that trains the next; or none ever will."""
        return self.has_ended() or (len(self.epochs()) > epochs and bool(self.workers()))

    def has_ended(self) -> bool:
        """Tell whether the driver has ended."""
        return self.process.poll() is not None

    def wait_for_epochs(self, count: int) -> None:
        def there() -> bool:
            assert not self.has_ended(), self.process.communicate()
            return len(self.epochs()) >= count

        until(there, 600)

    def end(self, status: int) -> tuple[str, str]:
        said = self.process.communicate(timeout=600)
        assert self.process.returncode == status, said
        return said[0], without_progress(said[1])

    def no_worker_left(self) -> None:
        """Wait until no worker of the driver's is left; Ray's own agents end when they like."""
        until(lambda: not any(name(process).startswith(WORKERS) for process in self.seen.values()), 300)

    def nothing_left(self) -> None:
        """Wait until Ray's processes are gone."""
        until(lambda: not any(process.is_running() for process in self.seen.values()), 300)


def name(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def until(true: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_trial_is_logged_as_a_single_training_is(swept: Project, tmp_path: Path) -> None:
    alone = swept.copy(tmp_path / "alone")
    alone.set(**{"train.batch_size": 32, "train.patience": 1, "train.threads": 2})
    before = sorted(file.stat().st_mtime for file in (alone.root / ".checkpoints").glob("*/*.epoch"))
    alone.stage("train")
    assert before == sorted(file.stat().st_mtime for file in (alone.root / ".checkpoints").glob("*/*.epoch"))
    [lone] = [run for run in runs_of(alone) if run.info.run_name.startswith("batch 32") and run not in children(alone)
              and "mlflow.parentRunId" not in run.data.tags]  # fmt: skip
    [trial] = [run for run in children(alone) if run.info.run_name == "batch 32 · patience 1 · seed 1"]
    client = client_of(alone)
    assert trial.data.params == lone.data.params | {"train.threads": "1"}
    assert trial.data.metrics == lone.data.metrics
    for name in trial.data.metrics:
        steps = [[each.step for each in client.get_metric_history(run.info.run_id, name)] for run in (lone, trial)]
        assert steps[0] == steps[1]
    own = {"mlflow.parentRunId", "sweep.setting", "sweep.seed", "trajectory", "worker.host"}
    assert set(trial.data.tags) - set(lone.data.tags) == own
    assert (trial.data.tags["sweep.setting"], trial.data.tags["sweep.seed"]) == ("batch 32 · patience 1", "1")
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
    assert round(parent.data.metrics["mean_val_accuracy"], 6) == float(best["mean_val_accuracy"])
    assert (parent.data.metrics["settings"], parent.data.metrics["trials"]) == (4, 4)
    [winner] = [run for run in children(swept) if run.info.run_id == parent.data.tags["best.run_id"]]
    assert winner.data.tags["sweep.setting"] == parent.data.tags["best.setting"]
    assert parent.data.tags["mlflow.note.content"].endswith("Nothing is shown to be better than what you have.")
    client = client_of(swept)
    shown = {
        each.path for folder in ("reports", "images") for each in client.list_artifacts(parent.info.run_id, folder)
    }
    assert {"reports/sweep.csv", "reports/sweep_trials.csv"} <= shown
    assert {name for path in shown for name in PICTURES if name in path} == set(PICTURES)


@pytest.mark.slow
def test_a_sweep_that_is_done_starts_no_worker_and_applies_nothing_that_is_not_shown(
    swept: Project, tmp_path: Path
) -> None:
    project = swept.copy(tmp_path / "project")
    text, table = ((project.root / name).read_bytes() for name in ("params.yaml", "reports/sweep.csv"))
    said = project.stage("sweep", "--apply", "--address", "127.0.0.1:1", status=1)
    best = files.read_csv(project.root / "reports" / "sweep.csv")[0]
    assert "trajectories" not in said.stdout
    assert said.stdout.endswith("\nNothing is shown to be better than what you have.\n")
    assert said.stderr.startswith("error: --apply: nothing is shown to be better, so params.yaml stays as it is; ")
    assert (project.root / "params.yaml").read_bytes() == text
    assert (project.root / "reports" / "sweep.csv").read_bytes() == table
    project.stage("sweep", "--apply", "--force", "--address", "127.0.0.1:1")
    applied = config.load(project.root / "params.yaml").train
    assert (applied.batch_size, applied.patience) == (int(best["batch_size"]), int(best["patience"]))


@pytest.mark.slow
def test_the_command_of_a_setting_trains_the_model_of_its_trial(swept: Project, tmp_path: Path) -> None:
    rows = {(row["batch_size"], row["patience"]): row for row in read_trials(swept)}
    assert models(swept) == {varied: row["model_sha256"] for varied, row in rows.items()}
    project = swept.copy(tmp_path / "project")
    shutil.rmtree(project.root / ".checkpoints")
    settings = trials.expand(config.load(project.root / "params.yaml"), limit=None)
    command = leaderboard.command(settings[2]).removeprefix("dvc exp run ")
    project.run("dvc", "exp", "run", "--quiet", *command.split(), "train")
    row = rows[str(settings[2].train.batch_size), str(settings[2].train.patience)]
    found = project.json("train.json")
    assert (found["model_sha256"], str(found["best_val_loss"])) == (row["model_sha256"], row["best_val_loss"])


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
        until(lambda: not any(worker.is_running() for worker in workers), 300)
    kept = {file: file.stat().st_mtime_ns for file in (project.root / ".checkpoints").glob("*/*.epoch")}
    seen = project.in_terminal(sys.executable, "-m", "pipeline.sweep")
    assert re.search(r"sweep: +\d+%.*epoch.*, \d of 4 trials, best val accuracy ", seen)  # rate, time left, the best
    assert all(file.stat().st_mtime_ns == stamp for file, stamp in kept.items())
    assert models(project) == models(swept)
    assert page(project) == page(swept)
    table = "reports/sweep.csv"
    assert (project.root / table).read_bytes() == (swept.root / table).read_bytes()


@pytest.mark.parametrize("option", ["--minutes=-1", "--minutes=nan", "--minutes=1e9", "--workers=-1"])
def test_an_option_that_is_no_number_of_anything_is_refused_in_one_line(option: str) -> None:
    with pytest.raises(
        UserError, match=rf"{option.partition('=')[0]} is .*; expected a number up to 100,000, 0 for no limit"
    ):
        sweep.main([option])


PRETENDED = """
import sys, time
import numpy as np
from pipeline import config, console, sweep
from pipeline.learning import model, trajectory
from pipeline.learning.trajectory import Epoch
from pipeline.sweeps import trials

def learn(digits, train, after):
    for number in range(after.number + 1 if after else 1, train.epochs + 1):
        time.sleep(0.05)
        random = np.random.default_rng([train.seed, int(100 * train.dropout), number])
        accuracy = round(1 - 0.3 / number - train.dropout / 20 + random.normal(0, 0.002), 6)
        metrics = {"loss": 1 - accuracy, "accuracy": accuracy, "val_loss": 1 - accuracy, "val_accuracy": accuracy}
        if train.batch_size == 14:
            metrics["val_loss"] = float("nan")
        yield Epoch(number, metrics, {"average.00": random.random(10)})

def package(epoch, train, digits):
    content = repr((train.model_dump(), epoch.number)).encode()
    return dict.fromkeys((model.ARCHIVE, model.NETWORK, model.CALIBRATION), content)

def train_trials(digits, group, checkpoints):
    for message in trials.train_trials(digits, group, checkpoints, learn, package):
        if isinstance(message, trials.Packaged) and group[0].train.batch_size == 13:
            raise MemoryError("no room for 13")
        yield message

console.run(lambda arguments: sweep.main(arguments, train_trials), hint=sweep.HINT)
"""
PRETENDED_GRID = {"dropout": [0.05, 0.2], "patience": [1, 5]}


@pytest.fixture(scope="module")
def pretended(prepared: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return a project whose sweep has epochs of 50 ms that nobody learnt, with noise of its own for every seed."""
    project = prepared.copy(tmp_path_factory.mktemp("pretended") / "project")
    project.set(**{"sweep.parameters": PRETENDED_GRID, "sweep.seeds": 5, "train.epochs": 10})
    (project.root / "pretended.py").write_text(PRETENDED)
    project.git("add", ".")
    project.git("commit", "--quiet", "--message", "Pretend")
    return project


@pytest.fixture(scope="module")
def raced_once(pretended: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return the project after that sweep; for reading and copying only."""
    project = pretended.copy(tmp_path_factory.mktemp("raced") / "project")
    sweep_pretended(project)
    return project


@pytest.fixture(scope="module")
def searched_once(pretended: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return the project after a search by TPE with one worker; for reading and copying only."""
    project = pretended.copy(tmp_path_factory.mktemp("searched") / "project")
    project.set(**{"sweep.search": "tpe", "sweep.trials": 6, "sweep.round": 3, "sweep.seeds": 4})
    project.set(**{"sweep.parameters": {"dropout": {"from": 0.0, "to": 0.4, "step": 0.05}, "patience": [1, 5]}})
    said = sweep_pretended(project, "--workers", "1")
    assert said.startswith("sweep: 6 points by TPE, 3 at once; now 7 settings with 3 seeds: 21 trials on 12 trajector")
    dropped = {row["seeds"] for row in files.read_csv(project.root / "reports" / "sweep.csv")} - {"4"}
    assert dropped == {"3"}
    return project


def sweep_pretended(project: Project, *arguments: str, status: int = 0) -> str:
    words = [sys.executable, "pretended.py", *arguments]
    return project.run(*words, status=status, PYTHONPATH=str(project.root)).stdout


@pytest.fixture
def endless(pretended: Project, tmp_path: Path) -> Project:
    """Return that project with a sweep that has not ended before it is stopped."""
    project = pretended.copy(tmp_path / "project")
    project.set(**{"train.epochs": 300, "train.patience": 300, "sweep.parameters": {"dropout": [0.05, 0.2]}})
    return project


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_sweep_cleanly_with_a_line_on_how_to_resume(endless: Project, number: signal.Signals) -> None:
    with Running(endless, script="pretended.py") as running:
        running.wait_for_epochs(1)
        running.family()
        running.process.send_signal(number)
        _, said = running.end(128 + number)
        running.nothing_left()
    hint = "Nothing is lost: the same command resumes from the last finished epochs."
    assert said == f"stopped by {number.name}. {hint}\n"
    assert {run.info.status for run in runs_of(endless)} == {"KILLED"}


@pytest.mark.slow
def test_minutes_stop_a_sweep_as_a_signal_does(endless: Project) -> None:
    words = [sys.executable, "pretended.py", "--minutes", "0.05"]
    said = endless.run(*words, status=128 + signal.SIGINT, PYTHONPATH=str(endless.root))
    hint = "Nothing is lost: the same command resumes from the last finished epochs."
    assert said.stderr == f"stopped by SIGINT. {hint}\n"


@pytest.mark.slow
def test_a_driver_whose_ray_daemon_dies_says_so_and_how_to_resume(endless: Project) -> None:
    with Running(endless, script="pretended.py") as running:
        running.wait_for_epochs(1)
        next(process for process in running.family() if process.name() == "raylet").kill()
        _, said = running.end(1)
    assert said.endswith(
        "this process was killed, or Ray on this machine died. Nothing is lost: the same command resumes.\n"
    )


@pytest.mark.slow
def test_a_race_trains_each_setting_with_the_same_seeds_until_it_is_shown_to_be_worse(raced_once: Project) -> None:
    rows = files.read_csv(raced_once.root / "reports" / "sweep.csv")
    assert {row["seeds"] for row in rows if row["dropout"] == "0.2"} == {"3"}
    assert {row["seeds"] for row in rows if row["dropout"] == "0.05"} == {"5"}
    seeds: dict[str, set[str]] = {}
    for run in children(raced_once):
        seeds.setdefault(run.data.tags["sweep.setting"], set()).add(run.data.tags["sweep.seed"])
    assert sorted(map(len, seeds.values())) == [3, 3, 5, 5]
    assert len(children(raced_once)) == len(runs_of(raced_once)) - 1 == 16


@pytest.mark.slow
def test_what_is_shown_to_be_better_is_applied(pretended: Project, tmp_path: Path) -> None:
    project = pretended.copy(tmp_path / "project")
    project.set(**{"train.dropout": 0.4, "sweep.seeds": 4, "sweep.parameters": {"dropout": [0.1, 0.3]}})
    said = sweep_pretended(project, "--apply")
    assert re.search(r"\nBetter than what you have by 1\.\d\d points .*: `dvc exp run -S train\.dropout=0\.1`", said)
    assert config.load(project.root / "params.yaml").train.dropout == 0.1


@pytest.mark.slow
def test_more_seeds_and_more_values_train_only_what_is_new(raced_once: Project, tmp_path: Path) -> None:
    project = raced_once.copy(tmp_path / "project")
    kept = {file: file.stat().st_mtime_ns for file in (project.root / ".checkpoints").glob("*/*.epoch")}
    project.set(**{"sweep.seeds": 6})
    said = sweep_pretended(project)
    assert "16 trials ended before" in said
    assert len(children(project)) == len(runs_of(project)) - 1 == 18  # the same sweep, one seed more for two
    project.set(**{"sweep.parameters": PRETENDED_GRID | {"dropout": [0.05, 0.2, 0.3], "patience": [5]}})
    sweep_pretended(project)
    assert all(file.stat().st_mtime_ns == stamp for file, stamp in kept.items())


@pytest.mark.slow
def test_a_sweep_killed_ten_times_ends_as_one_that_was_not(
    pretended: Project, searched_once: Project, tmp_path: Path
) -> None:
    project, random, words = pretended.copy(tmp_path / "project"), Random(2), ["--workers", "2"]
    shutil.copy(searched_once.root / "params.yaml", project.root)
    for killed in (2, 2, 3):  # workers, then the driver
        with Running(project, *words, script="pretended.py") as running:
            for _ in range(killed):
                seen = len(running.epochs())
                until(partial(running.is_busy_or_ended, seen), 300)  # a machine with too much to do fails to start Ray
                for worker in running.workers()[:1]:
                    worker.kill()
            time.sleep(random.uniform(0, 2))
            if not running.has_ended():
                running.family()
                running.process.kill()
            running.no_worker_left()
    sweep_pretended(project, *words)
    for table in ("reports/sweep.csv", "reports/sweep_trials.csv", "reports/sweep_parallel.png"):
        assert (project.root / table).read_bytes() == (searched_once.root / table).read_bytes(), table
    assert page(project) == page(searched_once)


@pytest.mark.slow
def test_what_halving_lets_wait_is_resumed_from_its_kept_epoch_and_has_one_run(
    pretended: Project, raced_once: Project, tmp_path: Path
) -> None:
    project = pretended.copy(tmp_path / "project")
    project.set(**{"sweep.halving": [3], "sweep.seeds": 3})
    sweep_pretended(project)
    waiting = [run for run in children(project) if "sweep.waits" in run.data.tags]
    assert {run.data.metrics["epochs_run"] for run in waiting} == {3}
    assert {run.data.params["train.dropout"] for run in waiting} == {"0.2"}
    kept = {file: file.stat().st_mtime_ns for file in (project.root / ".checkpoints").glob("*/*.epoch")}
    assert "trajectories" not in sweep_pretended(project)
    project.set(**{"sweep.halving": [], "sweep.seeds": 5})
    sweep_pretended(project)
    assert all(file.stat().st_mtime_ns == stamp for file, stamp in kept.items())
    assert (project.root / "reports/sweep.csv").read_bytes() == (raced_once.root / "reports/sweep.csv").read_bytes()
    assert page(project) == page(raced_once)


@pytest.mark.slow
def test_a_trial_that_fails_is_recorded_with_its_error_and_the_others_go_on(pretended: Project, tmp_path: Path) -> None:
    project = pretended.copy(tmp_path / "project")
    project.set(**{"sweep.parameters": {"batch_size": [13, 64], "patience": [1, 2]}, "sweep.seeds": 1})
    words = [sys.executable, "pretended.py"]
    said = project.run(*words, status=1, PYTHONPATH=str(project.root))
    assert said.stderr.count("MemoryError: no room for 13") == 2
    assert [run.data.params["train.batch_size"] for run in children(project)].count("64") == 2
    failed = children(project, "FAILED")
    assert [run.data.params["train.batch_size"] for run in failed] == ["13", "13"]
    assert {run.data.tags["error"] for run in failed} == {"MemoryError: no room for 13"}
    again = project.run(*words, status=1, PYTHONPATH=str(project.root))
    assert again.stderr.count("MemoryError: no room for 13") == 2
    assert len(children(project, "FAILED")) == 2  # tried again, in the place of those before


@pytest.mark.slow
def test_a_setting_whose_loss_is_never_a_number_fails_alone(pretended: Project, tmp_path: Path) -> None:
    project = pretended.copy(tmp_path / "project")
    project.set(**{"sweep.parameters": {"batch_size": [14, 64]}, "sweep.seeds": 1})
    said = project.run(sys.executable, "pretended.py", status=1, PYTHONPATH=str(project.root))
    assert "failed: batch 14 · seed 1: val_loss was not a number in any of" in said.stderr
    assert "1 of 3 trials failed: before you decide, mend what they name above, or run this again." in said.stderr
    assert [row["error"] == "" for row in files.read_csv(project.root / "reports/sweep.csv")] == [True, True, False]


@pytest.mark.slow
def test_digits_that_were_prepared_for_other_parameters_are_refused(pretended: Project, tmp_path: Path) -> None:
    project = pretended.copy(tmp_path / "project")
    project.set(**{"preprocess.train": 777})
    said = project.run(sys.executable, "pretended.py", status=2, PYTHONPATH=str(project.root)).stderr
    assert said == (
        "error: preprocess.train is 777, but data/prepared has 1,000 such digits; "
        "`dvc repro preprocess` makes it anew\n"
    )


# --- a machine that is not the usual one ----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_long_tmpdir_no_ray_address_and_a_python_with_a_space_hinder_no_sweep(
    pretended: Project, tmp_path: Path
) -> None:
    project = pretended.copy(tmp_path / "project")
    project.set(**{"sweep.parameters": {"dropout": [PARAMS.train.dropout]}, "sweep.seeds": 1, "train.epochs": 1})
    long = tmp_path / "scratch-of-a-job-on-a-cluster-with-a-long-name" / ("x" * 60)
    long.mkdir(parents=True)
    python = tmp_path / "a b" / "python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    variables = {
        "TMPDIR": str(long),
        "RAY_ADDRESS": "",
        "RAY_AUTH_MODE": "",
        "PYTHONPATH": f"{project.root}:{sysconfig.get_path('purelib')}",
    }
    said = project.run(python, "pretended.py", "--workers", "1", **variables)
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

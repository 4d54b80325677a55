"""What TPE proposes: the same points whoever ended first and however often the search was interrupted."""

from __future__ import annotations

import math
import re
from random import Random
from typing import Any

import numpy as np
import pytest

from pipeline import config, files
from pipeline.config import Params
from pipeline.console import UserError
from pipeline.sweeps import comparison, race, search, trials
from pipeline.sweeps.race import Race
from pipeline.sweeps.trials import Result, Trial

PARAMS = config.load(files.ROOT / "params.yaml")
SPACE: dict[str, Any] = {
    "learning_rate": {"from": 0.0005, "to": 0.01, "scale": "log", "digits": 2},
    "dropout": {"from": 0.0, "to": 0.4, "step": 0.05},
    "schedule": ["constant", "cosine"],
    "patience": [1, 3],
}


def params_of(parameters: dict[str, Any] = SPACE, **sweep: Any) -> Params:
    update = {"parameters": parameters, "search": "tpe", "trials": 20, "round": 8, "seeds": 4, **sweep}
    return PARAMS.model_copy(update={"sweep": PARAMS.sweep.model_copy(update=update)})


def result_of(trial: Trial) -> Result:
    """Return a result whose best is at a rate of 0.004 and dropout 0.1."""
    away = abs(math.log(trial.train.learning_rate / 0.004)) + 10 * abs(trial.train.dropout - 0.1)
    noise = np.random.default_rng([trial.seed, round(1e5 * trial.train.learning_rate)]).normal(0, 0.0003)
    return Result(trial, {"best_val_accuracy": round(0.99 - 0.002 * away + noise, 6), "epochs_run": 5})


def searched(params: Params, random: Random | None = None) -> Race:
    """Run a search to its end; with ``random``, its trials end in any order and it is resumed after each few."""
    current = race.start(trials.expand(params, limit=None), params)
    results = current.results
    while True:
        current = race.extended(current, params)
        _, missing = current.replay()
        if not missing:
            return current
        ended = random.sample(missing, random.randint(1, len(missing))) if random else missing
        results.update({trial.key: result_of(trial) for trial in ended})
        if random:
            current = race.start(trials.expand(params, limit=None), params)
            current.results.update(results)
            results = current.results


def points(found: Race) -> list[dict[str, Any]]:
    return [setting.varied for setting in found.settings]


WHOLE = searched(params_of())


@pytest.mark.parametrize("number", range(3))
def test_what_is_proposed_does_not_depend_on_who_ended_first_nor_on_interruptions(number: int) -> None:
    assert searched(params_of(), Random(number)).results == WHOLE.results


def test_more_trials_continue_the_same_points_and_another_round_or_seed_is_another_search() -> None:
    assert points(WHOLE) == points(searched(params_of(trials=40)))[: len(WHOLE.settings)]
    assert points(WHOLE) != points(searched(params_of(round=4)))
    assert points(WHOLE) != points(searched(params_of(search_seed=2)))


def test_what_a_search_is_holds_its_rounds_and_the_version_of_optuna() -> None:
    assert len({str(search.identity(params_of(**{name: 5}).sweep)) for name in ("trials", "round", "seeds")}) == 3
    assert search.identity(params_of().sweep)[-1].count(".") == 2
    assert search.identity(params_of(search="sobol").sweep) == []


def test_each_point_is_round_differs_from_the_others_and_has_every_value_of_stopping() -> None:
    found = points(WHOLE)[1:]
    assert len({str(point) for point in found}) == 20 * 2
    assert all(point["learning_rate"] == float(f"{point['learning_rate']:.2g}") for point in found)
    assert {point["dropout"] for point in found} <= {round(0.05 * step, 2) for step in range(9)}
    assert [point["patience"] for point in found] == [1, 3] * 20


def test_later_points_are_better_than_the_random_ones_at_the_start() -> None:
    scores = searched(params_of(trials=40)).after(1).scores()[1::2, 0]
    assert scores[-20:].mean() > scores[: search.STARTUP].mean() + 0.0005


def test_a_race_begins_when_all_points_have_the_first_seeds() -> None:
    params = params_of(trials=8)
    current = race.extended(race.start(trials.expand(params, limit=None), params), params)
    assert {trial.seed for trial in current.replay()[1]} == set(range(1, comparison.FIRST + 1))
    assert {seed for seed, _ in searched(params).results} == {1, 2, 3, 4}


def test_a_point_that_failed_is_not_told_and_the_search_goes_on() -> None:
    params = params_of(trials=16)
    current = race.start(trials.expand(params, limit=None), params)
    while missing := (current := race.extended(current, params)).replay()[1]:
        for trial in missing:
            failed = trial.train.schedule == "constant"
            current.results[trial.key] = Result(trial, error="no memory") if failed else result_of(trial)
    assert len(current.settings) == 1 + 16 * 2


def test_a_budget_leaves_out_points_that_it_might_not_suffice_for() -> None:
    first = (1 + 8) * PARAMS.train.epochs * comparison.FIRST
    found = searched(params_of(epochs=first))
    assert (len(found.settings), found.is_cut) == (1 + 8 * 2, True)
    assert not searched(params_of(trials=8, epochs=first)).is_cut
    with pytest.raises(UserError, match=f"sweep.epochs is {first - 1}; 3 seeds of all settings take up to {first}"):
        searched(params_of(epochs=first - 1))


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"dropout": [0.1, 0.2], "batch_size": [64, 128]}, "sweep.trials is 20, the lists make 4 points; lower it"),
        ({"dropout": {"from": 0.0, "to": 0.4, "step": 0.1}}, "sweep.trials is 20, the lists make 5 points; lower it"),
        (
            {
                "schedule": ["cosine", "constant"],
                "average": {"values": [each / 20 for each in range(18)], "when": {"schedule": "constant"}},
            },
            "sweep.trials is 20, the lists make 19 points; lower it, or set search: grid",
        ),
        ({"learning_rate": {"from": 0.01, "to": 0.001}}, "goes from 0.01 to 0.001; expected two numbers, the lower"),
        ({"learning_rate": {"from": 0.5, "to": 2.0}}, "learning_rate is 2.0; expected a number above 0 and at most 1"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused_in_one_line(parameters: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)) as error:
        trials.expand(params_of(parameters), limit=None)
    assert "\n" not in str(error.value)

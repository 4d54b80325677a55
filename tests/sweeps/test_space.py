"""The combinations of a sweep: lists, ranges, conditions, and the points of a Sobol sequence."""

from __future__ import annotations

import re
from typing import Any

import pytest

from pipeline import config, files
from pipeline.config import Params
from pipeline.console import UserError
from pipeline.sweeps import comparison, race, trials
from pipeline.sweeps.trials import Result, Setting, Trial

PARAMS = config.load(files.ROOT / "params.yaml")
RATE = {"from": 0.0005, "to": 0.01, "scale": "log", "digits": 2}
DROPOUT = {"from": 0.0, "to": 0.4, "step": 0.1}


def params_of(parameters: dict[str, Any], **sweep: Any) -> Params:
    return PARAMS.model_copy(update={"sweep": PARAMS.sweep.model_copy(update={"parameters": parameters, **sweep})})


def expanded(parameters: dict[str, Any], **sweep: Any) -> list[Setting]:
    return trials.expand(params_of(parameters, **sweep), limit=1000)


def test_a_range_with_a_step_is_a_list_of_round_values() -> None:
    [_, *found] = expanded({"dropout": DROPOUT})
    assert [setting.varied["dropout"] for setting in found] == [0.0, 0.1, 0.2, 0.3, 0.4]
    [_, *found] = expanded({"batch_size": {"from": 32, "to": 96, "step": 32}})
    assert [setting.varied["batch_size"] for setting in found] == [32, 64, 96]


def test_more_points_of_a_sobol_sequence_keep_those_of_fewer() -> None:
    space = {"learning_rate": RATE, "dropout": DROPOUT, "batch_size": [64, 128]}
    few, many = (expanded(space, search="sobol", trials=count) for count in (20, 50))
    assert (len(few), len(many)) == (21, 51)
    assert [each.train for each in few] == [each.train for each in many[:21]]
    assert expanded(space, search="sobol", trials=20, search_seed=2)[1:] != few[1:]


def test_the_points_of_a_range_are_round_within_it_and_spread_evenly_over_its_scale() -> None:
    [_, *found] = expanded({"learning_rate": RATE}, search="sobol", trials=16)
    rates = [setting.varied["learning_rate"] for setting in found]
    assert all(0.0005 <= rate <= 0.01 and rate == float(f"{rate:.2g}") for rate in rates)
    assert sum(rate < (0.0005 * 0.01) ** 0.5 for rate in rates) == pytest.approx(8, abs=1)
    [_, *found] = expanded({"batch_size": {"from": 16, "to": 256}}, search="sobol", trials=8)
    assert all(isinstance(setting.varied["batch_size"], int) for setting in found)


def test_a_parameter_of_stopping_is_not_searched_but_read_off_every_trajectory() -> None:
    [_, *found] = expanded({"learning_rate": RATE, "patience": [1, 3]}, search="sobol", trials=5)
    assert len(found) == 10
    groups = trials.group([Trial(setting, 1) for setting in found], "")
    assert [len(group) for group in groups.values()] == [2] * 5


@pytest.mark.parametrize("search", ["grid", "sobol"])
def test_a_parameter_with_a_condition_varies_only_where_it_holds(search: str) -> None:
    average = {"values": [0.9, 0.95], "when": {"schedule": "constant"}}
    found = expanded({"schedule": ["constant", "cosine"], "average": average}, search=search, trials=3)
    kinds = {(setting.varied["schedule"], setting.varied["average"]) for setting in found}
    assert kinds == {("constant", 0.9), ("constant", 0.95), ("cosine", PARAMS.train.average)}
    assert len(found) == 3  # what you have is the one without the condition


@pytest.mark.parametrize(
    ("parameters", "sweep", "words"),
    [
        ({"dropout": 0.1}, {}, "sweep.parameters.dropout is 0.1; expected a list of values, or a range"),
        ({"dropout": {"min": 0.1}}, {}, "sweep.parameters.dropout is {'min': 0.1}; expected a list of values, or a"),
        (
            {"dropout": {"from": 0.4, "to": 0.4, "step": 0.1}},
            {},
            "goes from 0.4 to 0.4; expected two numbers, the lower",
        ),
        ({"dropout": {"from": 0.4, "step": 0.1}}, {}, "goes from 0.4 to None; expected two numbers, the lower first"),
        (
            {"dropout": {"from": 0, "to": 0.4, "scale": "log"}},
            {},
            "scale is log from 0; expected linear, or log from ab",
        ),
        (
            {"dropout": {"from": 0, "to": 0.4, "scale": "exp"}},
            {},
            "scale is exp from 0; expected linear, or log from ab",
        ),
        (
            {"dropout": {"from": 0, "to": 0.4, "step": 0.3}},
            {},
            "step is 0.3; expected one that goes from 0 to 0.4 in wh",
        ),
        (
            {"dropout": {"from": 0, "to": 0.4, "step": 0}},
            {},
            "step is 0; expected one that goes from 0 to 0.4 in whole",
        ),
        ({"learning_rate": RATE | {"digits": 0}}, {}, "digits is 0; expected 1 to 6 significant digits"),
        ({"learning_rate": RATE}, {}, "learning_rate has no step; give it one, or set sweep.search: sobol"),
        (
            {"patience": {"from": 1, "to": 5}, "dropout": [0.1]},
            {"search": "sobol"},
            "patience has no step; give it one",
        ),
        (
            {"learning_rate": RATE | {"to": 2}},
            {"search": "sobol"},
            "learning_rate is 2.0; expected a number above 0 and at",
        ),
        (
            {"dropout": DROPOUT},
            {"search": "sobol", "trials": 6},
            "sweep.trials is 6, the lists make 5 points; lower it,",
        ),
        (
            {"average": {"values": [0.9], "when": {"schedule": "constant"}}},
            {},
            "when is {schedule: constant}; expected",
        ),
        (
            {"average": {"values": [0.9], "when": {"schedule": "steep"}}, "schedule": ["constant"]},
            {},
            "when is {schedule: steep}; expected a parameter of this sweep that has this value in a list",
        ),
        ({"dropout": {"values": [0.9], "when": 3}}, {}, "dropout.when is 3; expected one parameter with its value"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused_in_one_line(
    parameters: dict[str, Any], sweep: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=re.escape(words)) as error:
        expanded(parameters, **sweep)
    assert "\n" not in str(error.value)


# --- the budget -----------------------------------------------------------------------------------------------------


def seeds_within(budget: int) -> tuple[int, int]:
    """Return how many seeds two settings of 8 epochs at most and 5 in fact are trained with, and what is left out."""
    params = params_of({"dropout": [0.2]}, seeds=6, epochs=budget)
    params = params.model_copy(update={"train": params.train.model_copy(update={"epochs": 8})})
    found = race.start(trials.expand(params, limit=None), params)
    while missing := found.replay()[1]:
        for trial in missing:
            summary = {"best_val_accuracy": 0.99, "best_val_loss": 0.1, "epochs_run": 5}
            found.results[trial.key] = Result(trial, summary)
    return len(found.of(found.settings[0])), found.left_out()


def test_a_budget_in_epochs_leaves_out_the_seeds_that_it_might_not_suffice_for() -> None:
    # three seeds took 30 epochs of 48, which leaves 18 for a fourth that takes at most 16
    assert seeds_within(2 * 8 * comparison.FIRST) == (4, 2)
    assert seeds_within(0) == (6, 0)
    assert seeds_within(1000) == (6, 0)


def test_a_budget_that_the_first_seeds_may_exceed_is_refused_before_anything_trains() -> None:
    words = re.escape("params.yaml: sweep.epochs is 47; 3 seeds of all settings take up to 48")
    with pytest.raises(UserError, match=words):
        seeds_within(2 * 8 * comparison.FIRST - 1)

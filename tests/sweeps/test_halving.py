"""Synchronous successive halving: who is trained further, who waits, and that what waits is resumed."""

from __future__ import annotations

import re
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from pipeline import config, files
from pipeline.config import Params
from pipeline.console import UserError
from pipeline.sweeps import leaderboard, race, trials
from pipeline.sweeps.race import Race
from pipeline.sweeps.trials import Result, Trial

PARAMS = config.load(files.ROOT / "params.yaml")
DROPOUTS = [0.06, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4]  # and what you have, 0.05


def params_of(**sweep: Any) -> Params:
    update = {"parameters": {"dropout": DROPOUTS}, "seeds": 4, "halving": [2, 4], **sweep}
    train = PARAMS.train.model_copy(update={"epochs": 8, "patience": 8, "dropout": 0.05})
    return PARAMS.model_copy(update={"train": train, "sweep": PARAMS.sweep.model_copy(update=update)})


def result_of(trial: Trial) -> Result:
    """Return a result that is the better the higher the dropout is, by much more than seeds differ."""
    accuracy = [0.9 + 0.01 * epoch + 0.1 * trial.train.dropout + 1e-4 * trial.seed for epoch in range(trial.epochs)]
    history = [{"val_accuracy": each, "val_loss": 1 - each} for each in accuracy]
    summary = {"best_val_accuracy": accuracy[-1], "best_val_loss": 1 - accuracy[-1], "epochs_run": len(accuracy)}
    return Result(trial, summary, history=history, waits=trial.epochs < trial.train.epochs)


def raced(params: Params, results: dict[tuple[int, int], Result] | None = None, random: Random | None = None) -> Race:
    found = race.start(trials.expand(params, limit=None), params)
    found.results.update(results or {})
    while missing := found.replay()[1]:
        ended = random.sample(missing, random.randint(1, len(missing))) if random else missing
        found.results.update({trial.key: result_of(trial) for trial in ended})
    return found


def epochs_of(found: Race) -> list[int]:
    """Return how many epochs each setting has with its first seed."""
    return [len(found.results[1, setting.number].history) for setting in found.settings]


@pytest.mark.parametrize("metric", ["val_accuracy", "val_loss"])
def test_at_each_epoch_the_better_third_and_what_you_have_go_on_and_the_others_wait(metric: str) -> None:
    found = raced(params_of(metric=metric))
    # nine settings, of which the best three and what you have go on at epoch 2; of these four, the best two at epoch 4
    assert epochs_of(found) == [8, 2, 2, 2, 2, 2, 4, 8, 8]
    assert {seed for seed, number in found.results if number == 1} == {1, 2, 3}


def test_without_halving_every_setting_is_trained_to_its_end() -> None:
    assert epochs_of(raced(params_of(halving=[]))) == [8] * 9


@pytest.mark.parametrize("number", range(4))
def test_who_waits_does_not_depend_on_which_trial_ended_first(number: int) -> None:
    assert raced(params_of(), random=Random(number)).results == raced(params_of()).results


def test_what_waits_is_resumed_when_halving_is_relaxed_and_what_has_ended_is_not_trained_again() -> None:
    before = raced(params_of())
    params = params_of(halving=[])
    relaxed = race.start(trials.expand(params, limit=None), params)
    relaxed.results.update(before.results)
    _, missing = relaxed.replay()
    assert {trial.setting.number for trial in missing} == {1, 2, 3, 4, 5, 6}
    assert {trial.until for trial in missing} == {0}
    assert epochs_of(raced(params, before.results)) == [8] * 9
    assert epochs_of(raced(params_of(halving=[4]), before.results))[1:3] == [4, 4]


def test_what_waits_has_no_figures_and_comes_last_and_is_never_said_to_be_the_best() -> None:
    ranked = leaderboard.rank(raced(params_of()))
    rows = leaderboard.table(ranked, "val_accuracy")
    assert [row["error"] for row in rows] == [""] * 3 + ["waits at epoch 4"] + ["waits at epoch 2"] * 5
    assert {(row["best"], row["mean_val_accuracy"], row["difference"]) for row in rows[3:]} == {("", "", "")}
    assert leaderboard.shown(ranked, "val_accuracy").splitlines()[-1].split()[-2:] == ["waits", "2.0"]


def test_the_tables_can_be_written_when_all_wait() -> None:
    params = params_of()
    found = race.start(trials.expand(params, limit=None), params)
    found.results.update({trial.key: result_of(trial) for trial in found.replay()[1]})
    assert not any(each.has_figures for each in leaderboard.rank(found))


def test_a_trial_that_ended_before_an_epoch_of_halving_is_not_asked_for_again() -> None:
    found = race.start(trials.expand(params_of(), limit=None), params_of())
    asked = []
    while missing := found.replay()[1]:
        for trial in missing:
            asked += [trial.seed] if trial.setting.number == 8 else []
            ended = replace(result_of(Trial(trial.setting, trial.seed, 1)), waits=False)
            found.results[trial.key] = ended if trial.setting.number == 8 else result_of(trial)
    assert asked == [1, 2, 3]
    assert [each.has_figures for each in leaderboard.rank(found) if each.setting.number == 8] == [True]


def test_a_budget_counts_only_what_halving_may_train() -> None:
    least = 9 * 3 * 2
    with pytest.raises(UserError, match=f"sweep.epochs is {least - 1}; 3 seeds of all settings take up to {least}"):
        raced(params_of(epochs=least - 1))
    assert set(epochs_of(raced(params_of(epochs=least)))) == {2}


@pytest.mark.parametrize("halving", [[4, 2], [2, 2], [0, 2], [2, 8], [-1]])
def test_epochs_of_halving_out_of_order_or_beyond_the_end_are_refused_in_one_line(halving: list[int]) -> None:
    words = f"params.yaml: sweep.halving is {halving}; expected ascending epochs below train.epochs, 8"
    with pytest.raises(UserError, match=re.escape(words)):
        raced(params_of(halving=halving))


def test_halving_is_refused_where_a_search_would_have_to_learn_from_what_waits() -> None:
    with pytest.raises(UserError, match=r"sweep\.halving: what waits cannot be told to `tpe`"):
        raced(params_of(search="tpe", trials=4, parameters={"dropout": {"from": 0.0, "to": 0.4}}))

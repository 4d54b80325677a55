"""What each parameter is worth: main effects, intervals and shares of the variance, where the truth is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipeline import config, files
from pipeline.sweeps import effects, race, trials
from pipeline.sweeps.race import Race
from pipeline.sweeps.trials import Result

PARAMS = config.load(files.ROOT / "params.yaml")
GRID: dict[str, Any] = {"batch_size": [64, 128, 256], "dropout": [0.05, 0.2], "patience": [1, 3]}


def raced(parameters: dict[str, Any], noise: float, seeds: int = 3, **sweep: Any) -> Race:
    """Return a race in which only dropout and batch size matter, each alone: 0.02 x dropout, and 0.001 a doubling."""
    update = {"parameters": parameters, "seeds": seeds, **sweep}
    params = PARAMS.model_copy(update={"sweep": PARAMS.sweep.model_copy(update=update)})
    found = race.start(trials.expand(params, limit=None), params)
    rng = np.random.default_rng(3)
    while missing := found.replay()[1]:
        for trial in missing:
            common, own = 0.002 * (trial.seed % 3), rng.normal(0, noise)
            accuracy = 0.99 + common - 0.02 * trial.train.dropout - 0.001 * np.log2(trial.train.batch_size / 64) + own
            figures = {"best_val_accuracy": accuracy, "best_val_loss": 1 - accuracy}
            summary = {**figures, "epochs_run": 4 + trial.train.patience}
            found.results[trial.key] = Result(trial, summary)
    return found


def effect_of(found: Race, name: str) -> effects.Effect:
    compared = effects.compared(found)
    return effects.main_effect([each[name] for each in compared.varied], compared.metric)


def test_a_main_effect_is_the_mean_over_all_other_parameters_free_of_what_is_common_to_a_seed() -> None:
    effect = effect_of(raced(GRID, noise=0), "dropout")
    assert effect.values == ["0.05", "0.2"]
    assert effect.mean[0] - effect.mean[1] == pytest.approx(0.02 * 0.15)
    assert effect.half == pytest.approx([0, 0], abs=1e-9)


def test_an_interval_holds_the_true_effect_about_95_times_in_a_hundred() -> None:
    truth = np.array([0.001, 0.0, -0.001])  # around their mean
    rng, held = np.random.default_rng(5), []
    for _ in range(400):
        figures = np.repeat(truth, 4)[:, None] + rng.normal(0, 0.002, (1, 5)) + rng.normal(0, 0.001, (12, 5))
        effect = effects.main_effect([64] * 4 + [128] * 4 + [256] * 4, figures)
        held += [abs(effect.mean - figures.mean() - truth) <= effect.half]
    assert 0.92 < np.mean(held) < 0.98


def test_epochs_are_compared_as_the_metric_is() -> None:
    compared = effects.compared(raced(GRID, noise=0.001))
    assert effects.main_effect([each["patience"] for each in compared.varied], compared.epochs).mean.tolist() == [5, 7]


def test_the_shares_of_a_full_grid_are_those_of_its_analysis_of_variance() -> None:
    found = effects.shares(effects.compared(raced(GRID, noise=0)))
    batch, dropout = np.var([0, 0.001, 0.002]), np.var([0, 0.003])
    assert found["batch_size"] == pytest.approx(batch / (batch + dropout))
    assert found["dropout"] == pytest.approx(dropout / (batch + dropout))
    assert found["patience"] == pytest.approx(0, abs=1e-9)


def test_of_pure_noise_the_seeds_explain_nearly_all() -> None:
    found = effects.shares(
        effects.compared(raced({"patience": list(range(1, 9)), "monitor": ["val_loss"]}, noise=0.01))
    )
    assert found["seeds"] > 0.8
    assert sum(found.values()) == pytest.approx(1)


def test_the_sentence_names_the_largest_share_first() -> None:
    words = effects.sentence(effects.compared(raced(GRID, noise=0)))
    assert words == (
        "Of the variance between trainings: dropout 77%, batch 23%, patience 0%, interactions 0%, seeds 0%."
    )


def test_what_you_have_is_left_out_where_it_is_no_point_of_the_grid() -> None:
    compared = effects.compared(raced({"dropout": [0.2, 0.4], "batch_size": [64, 256]}, noise=0.001))
    assert {each["dropout"] for each in compared.varied} == {0.2, 0.4}
    assert effects.shares(compared)


def test_only_seeds_that_all_settings_were_trained_with_are_compared() -> None:
    found = raced(GRID, noise=0.0002, seeds=5)
    assert len({len(found.of(setting)) for setting in found.settings}) > 1
    assert effects.compared(found).metric.shape == (12, 3)


def test_a_sampled_space_has_main_effects_by_quarters_and_no_shares() -> None:
    space = {"dropout": {"from": 0.0, "to": 0.5}, "average": {"from": 0.9, "to": 0.99}}
    found = raced(space, noise=0.0001, search="sobol", trials=16)
    effect = effect_of(found, "dropout")
    assert len(effect.values) == 4
    assert all(" to " in value for value in effect.values)
    assert list(effect.mean) == sorted(effect.mean, reverse=True)
    assert effects.shares(effects.compared(found)) == {}


@pytest.mark.parametrize("metric", ["val_accuracy", "val_loss"])
def test_the_importance_in_a_sampled_space_is_that_of_what_makes_the_best(metric: str) -> None:
    space = {"dropout": {"from": 0.0, "to": 0.5}, "average": {"from": 0.9, "to": 0.99}, "patience": [1, 3]}
    found = effects.compared(raced(space, noise=0.0001, search="sobol", trials=32, metric=metric))
    decided = effects.importance(found)
    assert sum(decided.values()) == pytest.approx(1)
    assert decided["dropout"] > 0.7
    assert effects.sentence(found).startswith("What decides whether a setting is among the best (PED-ANOVA): dropout ")


def test_a_full_grid_has_shares_and_no_importance_and_few_points_of_a_sampled_space_neither() -> None:
    assert effects.importance(effects.compared(raced(GRID, noise=0.0001))) == {}
    few = effects.compared(raced({"dropout": {"from": 0.0, "to": 0.5}}, noise=0, search="sobol", trials=8))
    few = replace(few, varied=[each | {"batch_size": 64 + place % 2} for place, each in enumerate(few.varied)])
    assert (effects.shares(few), effects.importance(few), effects.sentence(few)) == ({}, {}, "")


def test_what_noise_adds_to_a_share_is_taken_off() -> None:
    found = effects.Compared([{"dropout": 0.1}, {"dropout": 0.2}], np.array([[0.0, 2.0], [2.0, 6.0]]), np.ones((2, 2)))
    # sums of squares: 9 between the settings, 1 within them with one degree of freedom
    assert effects.shares(found) == pytest.approx({"dropout": 0.8, "interactions": 0, "seeds": 0.2})

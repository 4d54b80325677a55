"""The simulation of sweeps: its ASHA is that of Optuna, and its halving that of the sweep."""

import numpy as np
import optuna
import pytest

from benchmarks import racing, sweep
from pipeline import files
from pipeline.sweeps import comparison


@pytest.mark.parametrize("seed", range(3))
def test_asha_stops_the_trials_that_optunas_pruner_stops(seed):
    pruner = optuna.pruners.SuccessiveHalvingPruner(
        min_resource=1, reduction_factor=3, min_early_stopping_rate=0, bootstrap_count=0
    )
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", pruner=pruner)
    rungs = ([], [])
    for scores in np.random.default_rng(seed).normal(size=(60, 2)):
        trial, ours, theirs = study.ask(), False, False
        for epoch, rung, score in zip((1, 3), rungs, scores, strict=True):
            rung.append(np.array([score if not ours else -np.inf]))
            ours = ours or bool(racing.asha_stops(rung)[0])
            if not theirs:
                trial.report(score, epoch)
                theirs = trial.should_prune()
        study.tell(trial, state=optuna.trial.TrialState.PRUNED if theirs else None, values=None if theirs else score)
        assert ours == theirs


def test_halving_keeps_the_better_third_twice_and_what_you_have():
    truth = np.tile(np.r_[-9, np.arange(8)], (5, 1)).astype(float)
    waits, epochs = racing.halve(
        np.random.default_rng(1), racing.Sweeps(truth, np.repeat(truth[..., None], 10, -1)), (2, 4)
    )
    assert waits.tolist() == [[False] + [True] * 6 + [False] * 2] * 5
    # five settings wait at the second of eight epochs and one at the fourth, with three of ten seeds
    assert epochs == pytest.approx((5 * 2 + 4) / 8 / 9 * comparison.FIRST / 10)


def test_the_report_on_speed_has_the_figures_of_the_simulation():
    assert "\n".join(sweep.simulated()) in (files.ROOT / "benchmarks" / "README.md").read_text("utf-8")

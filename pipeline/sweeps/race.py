"""A race of settings, seed by seed: which trials come next is a pure function of the results so far.

Nothing of a race is stored. A sweep that was killed asks again from the beginning, and what was trained answers; more
seeds continue it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from pipeline.config import Params, Train
from pipeline.console import UserError
from pipeline.sweeps import comparison, trials
from pipeline.sweeps.trials import Result, Setting, Trial

PRESENT = 0  # the place of the project's own parameters among the settings: they are never dropped


@dataclass(frozen=True)
class Race:
    """Settings, the seeds that each may be trained with, and the results so far by their trials' keys.

    ``resolution`` is the smallest step of ``metric``; ``budget`` the epochs that may be trained, 0 for any number;
    ``is_cut`` tells whether it leaves out points that a search would propose. At the epochs of ``halving`` the better
    third of the settings is trained further, by the mean over the first seeds; the others wait.
    """

    settings: Sequence[Setting]
    seeds: Sequence[int]
    metric: str
    resolution: float
    budget: int = 0
    is_cut: bool = False
    halving: Sequence[int] = ()
    results: dict[tuple[int, int], Result] = field(default_factory=dict)

    @property
    def sign(self) -> int:
        """1 where a higher metric is better, -1 where a lower one is."""
        return -1 if self.metric.endswith("loss") else 1

    def after(self, seeds: int) -> Race:
        """Return the race as it stood after so many seeds."""
        return replace(self, seeds=self.seeds[:seeds])

    def of(self, setting: Setting) -> list[Result]:
        """Return a setting's results, in the order of the seeds."""
        return [result for seed in self.seeds if (result := self.results.get((seed, setting.number)))]

    def scores(self) -> np.ndarray:
        """Return the metric of each best epoch, [settings, seeds], minus it if lower is better; NaN: none."""
        scores = np.full((len(self.settings), len(self.seeds)), np.nan)
        for column, seed in enumerate(self.seeds):
            for setting in self.settings:
                result = self.results.get((seed, setting.number))
                if result and not result.error and not result.waits:
                    scores[setting.number, column] = self.sign * result.summary[f"best_{self.metric}"]
        return scores

    def replay(self) -> tuple[np.ndarray, list[Trial]]:
        """Return which settings are out, bool [settings]: failed or shown to be worse; and the trials that are next."""
        scores, (out, missing) = self.scores(), self._halve()
        if missing:
            return out, missing
        for count in range(min(comparison.FIRST, len(self.seeds)), len(self.seeds) + 1):
            running = [setting for setting in self.settings if not out[setting.number] or setting.number == PRESENT]
            wanted = [Trial(setting, seed) for seed in self.seeds[:count] for setting in running]
            if self.budget and self._spent(wanted) > self.budget:
                return out, []
            if missing := [trial for trial in wanted if not self._has(trial)]:
                return out, missing
            out[PRESENT] = False  # it goes on, and is judged anew
            out |= [any(result.error for result in self.of(setting)) for setting in self.settings]
            out |= comparison.is_worse(scores[:, :count], ~out, self.resolution)
        return out, []

    def _halve(self) -> tuple[np.ndarray, list[Trial]]:
        """Return which settings wait, bool [settings], and the trials that the next decision of a third needs."""
        waits, first = np.zeros(len(self.settings), bool), self.seeds[: comparison.FIRST]
        for epoch in self.halving:
            running = [setting for setting in self.settings if not waits[setting.number]]
            wanted = [Trial(setting, seed, epoch) for seed in first for setting in running]
            if missing := [trial for trial in wanted if not self._has(trial)]:
                return waits, [] if self.budget and self._spent(wanted) > self.budget else missing
            order = sorted(running, key=lambda setting: -self._score_at(epoch, setting))
            for setting in order[-(-len(order) // 3) :]:
                waits[setting.number] = setting.number != PRESENT
        return waits, []

    def _score_at(self, epoch: int, setting: Setting) -> float:
        """Return the mean over the first seeds of a setting's best metric up to an epoch; -inf where one failed."""
        results = self.of(setting)[: comparison.FIRST]
        best = [
            max((self.sign * each[self.metric] for each in result.history[:epoch]), default=-np.inf)
            for result in results
        ]
        return float(np.mean(best))

    def _has(self, trial: Trial) -> bool:
        """Tell whether a trial has ended, or waits at its epoch or a later one."""
        result = self.results.get(trial.key)
        return result is not None and (not result.waits or 0 < trial.until <= len(result.history))

    def _spent(self, wanted: Sequence[Trial]) -> int:
        """Return the epochs trained for the seeds of ``wanted``, and the most that what has not ended of it takes."""
        last = max(trial.seed for trial in wanted)
        every = {result.trial.key: result.trial for result in self.results.values() if result.trial.seed <= last}
        groups = trials.group(list((every | {trial.key: trial for trial in wanted}).values()), "").values()
        return sum(max(map(self._epochs, group)) for group in groups)

    def _epochs(self, trial: Trial) -> int:
        return int(self.results[trial.key].summary.get("epochs_run", 0)) if self._has(trial) else trial.epochs

    def told(self) -> dict[Train, float]:
        """Return the mean score of every setting that all first seeds have ended of, -inf where one failed."""
        first = self.after(comparison.FIRST)
        scores = np.nan_to_num(first.scores().mean(1), nan=-np.inf)
        ended = [each for each in self.settings if len(first.of(each)) == len(first.seeds)]
        return {each.train: float(scores[each.number]) for each in ended}

    def left_out(self) -> int:
        """Return how many of the seeds the budget leaves out."""
        _, missing = self.replay()
        trained = {seed for seed, _ in self.results}
        return 0 if missing else len([seed for seed in self.seeds if seed not in trained])


def extended(race: Race, params: Params) -> Race:
    """Return the race with the settings that `search: tpe` proposes after the results so far.

    Until it has proposed all, they race with the first seeds alone: it is told the means of these.
    """
    if params.sweep.search != "tpe":
        return race
    every = trials.seeds(params)
    while True:
        settings = trials.expand(params, limit=None, scores=race.told())
        searched = replace(race, settings=settings, seeds=every[: comparison.FIRST])
        if searched.replay()[1]:
            return searched
        if len(searched.told()) == len(race.settings):
            return replace(race, seeds=every, is_cut=len(settings) > len(race.settings))
        race = searched


def start(settings: Sequence[Setting], params: Params) -> Race:
    """Return the race of ``settings`` before its first result."""
    metric = params.sweep.metric
    step = 1e-6 if metric.endswith("loss") else 1 / params.preprocess.validation  # a loss is rounded, a digit counts
    halving, shortest = params.sweep.halving, min(setting.train.epochs for setting in settings)
    if sorted({epoch for epoch in halving if 0 < epoch < shortest}) != halving:
        raise UserError(
            f"params.yaml: sweep.halving is {halving}; expected ascending epochs below train.epochs, {shortest}"
        )
    if halving and params.sweep.search == "tpe":
        raise UserError(
            "params.yaml: sweep.halving: what waits cannot be told to `tpe`; set search: sobol, or halving: []"
        )
    found = Race(settings, trials.seeds(params), metric, step, params.sweep.epochs, halving=halving)
    if not found.replay()[1]:
        seeds = found.seeds[: comparison.FIRST]
        most = trials.most_epochs(trials.group(replace(found, budget=0).replay()[1], ""))
        raise UserError(
            f"params.yaml: sweep.epochs is {found.budget}; {len(seeds)} seeds of all settings take up to {most}"
        )
    return found

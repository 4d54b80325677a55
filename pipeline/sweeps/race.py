"""A race of settings, seed by seed: which trials come next is a pure function of the results so far.

Nothing of a race is stored. A sweep that was killed asks again from the beginning, and what was trained answers; more
seeds continue it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from pipeline.config import Params
from pipeline.console import UserError
from pipeline.sweeps import comparison, trials
from pipeline.sweeps.trials import Result, Setting, Trial

PRESENT = 0  # the place of the project's own parameters among the settings: they are never dropped


@dataclass(frozen=True)
class Race:
    """Settings, the seeds that each may be trained with, and the results so far by their trials' keys.

    ``resolution`` is the smallest step of ``metric``; ``budget`` the epochs that may be trained, 0 for any number.
    """

    settings: Sequence[Setting]
    seeds: Sequence[int]
    metric: str
    resolution: float
    budget: int = 0
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
                if result and not result.error:
                    scores[setting.number, column] = self.sign * result.summary[f"best_{self.metric}"]
        return scores

    def replay(self) -> tuple[np.ndarray, list[Trial]]:
        """Return which settings are out, bool [settings]: failed or shown to be worse; and the trials that are next."""
        scores, out = self.scores(), np.zeros(len(self.settings), bool)
        for count in range(min(comparison.FIRST, len(self.seeds)), len(self.seeds) + 1):
            running = [setting for setting in self.settings if not out[setting.number] or setting.number == PRESENT]
            wanted = [Trial(setting, seed) for seed in self.seeds[:count] for setting in running]
            if self.budget and self._spent(wanted) > self.budget:
                return out, []
            if missing := [trial for trial in wanted if trial.key not in self.results]:
                return out, missing
            out[PRESENT] = False  # it goes on, and is judged anew
            out |= [any(result.error for result in self.of(setting)) for setting in self.settings]
            out |= comparison.is_worse(scores[:, :count], ~out, self.resolution)
        return out, []

    def _spent(self, wanted: Sequence[Trial]) -> int:
        """Return the epochs trained for earlier seeds, and the most that the last of ``wanted`` take."""
        last = max(trial.seed for trial in wanted)
        first_round = self.seeds[: comparison.FIRST]
        later = [trial for trial in wanted if trial.seed == last or last in first_round]
        before = [self.results[key].trial for key in self.results if key[0] < last and last not in first_round]
        spent = sum(
            max(int(self.results[trial.key].summary.get("epochs_run", 0)) for trial in group)
            for group in trials.group(before, "").values()
        )
        return spent + trials.most_epochs(trials.group(later, ""))

    def left_out(self) -> int:
        """Return how many of the seeds the budget leaves out."""
        _, missing = self.replay()
        trained = {seed for seed, _ in self.results}
        return 0 if missing else len([seed for seed in self.seeds if seed not in trained])


def start(settings: Sequence[Setting], params: Params) -> Race:
    """Return the race of ``settings`` before its first result."""
    metric = params.sweep.metric
    step = 1e-6 if metric.endswith("loss") else 1 / params.preprocess.validation  # a loss is rounded, a digit counts
    found = Race(settings, trials.seeds(params), metric, step, params.sweep.epochs)
    if not found.replay()[1]:
        seeds = found.seeds[: comparison.FIRST]
        most = trials.most_epochs(trials.group([Trial(each, seed) for each in settings for seed in seeds], ""))
        raise UserError(
            f"params.yaml: sweep.epochs is {found.budget}; {len(seeds)} seeds of all settings take up to {most}"
        )
    return found

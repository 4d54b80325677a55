"""What each parameter of a sweep is worth: its main effect with intervals, and the share of the variance it explains.

Over the settings that were trained with the same seeds, so that a race that drops some does not tilt the comparison.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.sweeps import comparison, search
from pipeline.sweeps.leaderboard import cell
from pipeline.sweeps.race import PRESENT, Race
from pipeline.sweeps.trials import label

LEVELS = 8  # values of a parameter that are shown one by one; of more, quarters
REST = ("interactions", "seeds")
PED_ANOVA = "What decides whether a setting is among the best (PED-ANOVA)"
FEW = 5  # settings among the best that PED-ANOVA needs, as Optuna's documentation says


@dataclass(frozen=True)
class Effect:
    """The mean over all settings with a value, of the metric or of the epochs, and half its 95% interval; by value."""

    values: Sequence[str]
    mean: np.ndarray
    half: np.ndarray


@dataclass(frozen=True)
class Compared:
    """Settings with the same seeds: their parameters, and the metric and epochs of each trial, [settings, seeds].

    ``sign`` is -1 where a lower metric is better.
    """

    varied: Sequence[Mapping[str, Any]]
    metric: np.ndarray
    epochs: np.ndarray
    sign: int = 1


def compared(race: Race) -> Compared:
    """Return the settings that did not fail, and the seeds that all of them were trained with.

    The present parameters are left out where they are not a point of a full grid.
    """
    metric, epochs = race.sign * race.scores(), np.full((len(race.settings), len(race.seeds)), np.nan)
    for (seed, number), result in race.results.items():
        if seed in race.seeds and np.isfinite(metric[number, race.seeds.index(seed)]):
            epochs[number, race.seeds.index(seed)] = result.summary["epochs_run"]
    rows = [number for number in range(len(metric)) if np.isfinite(metric[number, 0])]
    varied = [race.settings[number].varied for number in rows]
    others = [number for number in rows if number != PRESENT]
    if not _is_grid(varied):
        rows = others or rows
    columns = np.isfinite(metric[rows]).all(0)
    metric, epochs = (each[rows][:, columns] for each in (metric, epochs))
    return Compared([race.settings[number].varied for number in rows], metric, epochs, race.sign)


def _is_grid(varied: Sequence[Mapping[str, Any]]) -> bool:
    if not varied:
        return False
    return math.prod(len({str(each[name]) for each in varied}) for name in varied[0]) == len(varied)


def main_effect(varied: Sequence[Any], figures: np.ndarray) -> Effect:
    """Return the effect of one parameter, given its value in each setting, on figures [settings, seeds].

    Deviations from the mean of a seed, which takes away what is common to it.
    """
    names, means = level_means(varied, figures)
    found = comparison.estimate(means - figures.mean(0), 0)
    return Effect(names, found.mean + figures.mean(), found.half_width())


def level_means(varied: Sequence[Any], figures: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Return the values of one parameter, given its value in each setting, and the means over all settings with each.

    Of figures [settings, seeds]; the means are [values, seeds].
    """
    places, names = _levels(varied)
    return names, np.array([figures[places == place].mean(0) for place in range(len(names))])


def _levels(varied: Sequence[Any]) -> tuple[np.ndarray, list[str]]:
    """Return the place of each value among the levels, and their names; many numbers are put into quarters."""
    by_name = {str(value): value for value in varied}
    order = sorted(by_name, key=lambda name: (isinstance(by_name[name], str), by_name[name]))
    if len(order) <= LEVELS or isinstance(varied[0], str):
        return np.array([order.index(str(value)) for value in varied]), [cell(by_name[name]) for name in order]
    firsts = np.cumsum([0, *map(len, np.array_split(order, 4))])[1:]
    quarters = np.array([int(np.searchsorted(firsts, order.index(str(value)), "right")) for value in varied])
    parts = [[cell(by_name[name]) for name in part] for part in np.array_split(order, 4)]
    return quarters, [f"{part[0]} to {part[-1]}" for part in parts]


def shares(found: Compared) -> dict[str, float]:
    """Return the share of the variance that each parameter, their interactions and the seeds explain; {} if unknown.

    An analysis of variance of a full grid with two seeds or more; from each sum of squares what noise adds to it is
    taken off (Hays 1963, omega squared).
    """
    count, seeds = found.metric.shape
    if not _is_grid(found.varied) or seeds < 2 or count < 2:
        return {}
    deviations = found.metric - found.metric.mean(0)
    means, total = deviations.mean(1), float((deviations**2).sum())
    noise = float(((deviations - means[:, None]) ** 2).sum()) / ((count - 1) * (seeds - 1))
    squares, freedom = {}, {}
    for name in found.varied[0]:
        keys = [str(each[name]) for each in found.varied]
        levels = {key: np.mean([mean for mean, own in zip(means, keys, strict=True) if own == key]) for key in keys}
        squares[name], freedom[name] = seeds * sum(levels[key] ** 2 for key in keys), len(levels) - 1
    squares[REST[0]] = seeds * float((means**2).sum()) - sum(squares.values())
    freedom[REST[0]] = count - 1 - sum(freedom.values())
    explained = {name: max(float(squares[name]) - freedom[name] * noise, 0) / (total or 1) for name in squares}
    return explained | {REST[1]: max(1 - sum(explained.values()), 0)}


def importance(found: Compared) -> dict[str, float]:
    """Return how much each parameter decides whether a setting is among the best, adding up to 1; {} if unknown.

    For settings that are no full grid: PED-ANOVA (Watanabe et al. 2023, as in Optuna). A number counts by its place
    among all, since a search covers each range evenly on the range's own scale.
    """
    if _is_grid(found.varied) or len(found.varied) < 2 * FEW:
        return {}
    optuna = search.quiet_optuna()
    study = optuna.create_study(direction="maximize")
    places = {
        name: np.unique([each[name] for each in found.varied], return_inverse=True)[1] for name in found.varied[0]
    }
    space = {
        name: optuna.distributions.IntDistribution(0, int(own.max())) for name, own in places.items() if own.max() > 0
    }
    for number, score in enumerate(found.sign * found.metric.mean(1)):
        params = {name: int(places[name][number]) for name in space}
        study.add_trial(optuna.create_trial(params=params, distributions=space, value=float(score)))
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(
        target_quantile=max(0.1, FEW / len(found.varied)), region_quantile=1.0, evaluate_on_local=True
    )
    decided = optuna.importance.get_param_importances(study, evaluator=evaluator, normalize=True)
    return {name: float(decided.get(name, 0)) for name in places}


def sentence(found: Compared) -> str:
    """Return the shares, or the importance where they are not known, in words, the largest first."""
    for words, each in (("Of the variance between trainings", shares(found)), (PED_ANOVA, importance(found))):
        order = sorted(each, key=lambda name: (name in REST, -each[name]))
        if parts := [f"{label(name)} {each[name]:.0%}" for name in order]:
            return f"{words}: {', '.join(parts)}."
    return ""

"""What came of a sweep: its settings from best to worst by validation, as a table, a verdict and a command."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline import config
from pipeline.sweeps import comparison
from pipeline.sweeps.race import PRESENT, Race
from pipeline.sweeps.trials import Result, Setting, label

SHOWN = 20  # rows that a terminal and a run's note show; the file has them all
Row = dict[str, Any]
FIGURES = ("best_val_loss", "best_val_accuracy", "best_epoch", "epochs_run", "stopped_early")


@dataclass(frozen=True)
class Standing:
    """A setting's place: its mean over seeds and the difference to the present parameters, with half their intervals.

    ``behind`` is the mean difference to the best on the same seeds, ``epochs`` the mean length of its trainings,
    ``is_best`` whether it is not shown to be worse than the best, ``is_better`` whether it is shown to be better than
    the present parameters. A setting with an ``error`` has no figures, nor has one that ``waits`` at an epoch.
    """

    setting: Setting
    seeds: int
    mean: float = 0.0
    half: float = 0.0
    difference: float = 0.0
    difference_half: float = 0.0
    behind: float = 0.0
    epochs: float = 0.0
    is_best: bool = False
    is_better: bool = False
    error: str = ""
    waits: int = 0

    @property
    def has_figures(self) -> bool:
        """Whether it was trained to its end."""
        return not self.error and not self.waits


def rank(race: Race) -> list[Standing]:
    """Return the settings best first, those that failed last.

    Equals: the one with fewer epochs, then the one that comes first in the sweep.
    """
    out, _ = race.replay()
    scores, present = race.scores(), np.array(PRESENT)
    means = comparison.estimate(scores, race.resolution)
    against = comparison.differences(scores, present, race.resolution)
    better = comparison.is_better(scores, present, race.resolution)
    behind = comparison.differences(scores, comparison.best(scores, ~out), race.resolution).mean
    figures = zip(means.mean, means.half_width(), against.mean, against.half_width(), behind, strict=True)
    standings = [
        _standing(race, setting, each, is_best=not out[setting.number], is_better=bool(better[setting.number]))
        for setting, each in zip(race.settings, figures, strict=True)
    ]
    return sorted(standings, key=_order)


def _order(each: Standing) -> tuple[float, ...]:
    waits = (bool(each.waits), -each.waits)
    return (bool(each.error), *waits, not each.is_best, -each.behind, each.epochs, each.setting.number)


def _standing(race: Race, setting: Setting, figures: Sequence[float], *, is_best: bool, is_better: bool) -> Standing:
    results = race.of(setting)
    if error := next((result.error for result in results if result.error), ""):
        return Standing(setting, len(results), error=error)
    if waits := max((len(result.history) for result in results if result.waits), default=0):
        return Standing(setting, len(results), epochs=waits, waits=waits)
    if np.isnan(figures[0]):
        return Standing(setting, len(results), error=f"{label(race.metric)} is not a number")
    mean, half, difference, difference_half, behind = map(float, figures)
    behind = 0.0 if np.isnan(behind) else behind
    epochs = statistics.fmean(result.summary["epochs_run"] for result in results)
    signed = (race.sign * mean, half, race.sign * difference + 0.0, difference_half)  # no -0.0
    return Standing(setting, len(results), *signed, behind, epochs, is_best, is_better)


def table(ranked: Sequence[Standing], metric: str) -> list[Row]:
    """Return one row a setting, best first; a single seed has no interval."""
    return [
        {
            "rank": place,
            "best": "=" if each.is_best else "",
            **each.setting.varied,
            "seeds": each.seeds,
            **_interval(f"mean_{metric}", "interval", each.mean, each.half, shown=each.has_figures),
            **_interval("difference", "difference_interval", each.difference, each.difference_half,
                        shown=each.has_figures and each.setting.number != PRESENT and not np.isnan(each.difference)),
            "epochs": "" if each.error else round(each.epochs, 2),
            "error": each.error or (f"waits at epoch {each.waits}" if each.waits else ""),
        }
        for place, each in enumerate(ranked, 1)
    ]  # fmt: skip


def _interval(name: str, other: str, mean: float, half: float, *, shown: bool) -> Row:
    return {name: round(mean, 6) if shown else "", other: round(half, 6) if shown and np.isfinite(half) else ""}


def trial_table(race: Race) -> list[Row]:
    """Return one row a trial, seed by seed in the order of the settings."""
    return [
        {
            **result.trial.setting.varied,
            "seed": result.trial.seed,
            **{name: result.summary.get(name, "") for name in FIGURES},
            "model_sha256": result.model_sha256,
            "error": result.error,
        }
        for _, result in sorted(race.results.items())
    ]


def shown(ranked: Sequence[Standing], metric: str) -> str:
    """Return the best rows as a table for a terminal."""
    lines = cells(ranked[:SHOWN], metric)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(map(str.rjust, line, widths)).rstrip() for line in lines]
    return "\n".join([*text, *([f"... and {len(ranked) - SHOWN} more"] if len(ranked) > SHOWN else [])])


def cells(ranked: Sequence[Standing], metric: str) -> list[list[str]]:
    """Return the table that people read, its head first."""
    names = list(ranked[0].setting.varied)
    lines = [["rank", "", *map(label, names), "seeds", label(metric), "than what you have", "epochs"]]
    for place, each in enumerate(ranked, 1):
        figures = [_mean(each, metric), difference(each, metric), f"{each.epochs:.1f}"]
        lines.append([
            str(place), "=" if each.is_best else "", *(cell(each.setting.varied[name]) for name in names),
            str(each.seeds), *(figures if each.has_figures else ["failed" if each.error else "waits", "", figures[-1]]),
        ])  # fmt: skip
    return lines


def figure(value: float, metric: str) -> str:
    """Return a value of a metric as it is shown: an accuracy in percent."""
    scale, places = _unit(metric)
    return f"{value * scale:.{places}f}"


def _mean(each: Standing, metric: str) -> str:
    half = f" ± {figure(each.half, metric)}" if np.isfinite(each.half) else ""
    return f"{figure(each.mean, metric)}{half}"


def difference(each: Standing, metric: str) -> str:
    """Return the difference to the present parameters with its interval, of an accuracy in points."""
    if each.setting.number == PRESENT:
        return "what you have"
    if np.isnan(each.difference):  # what you have failed
        return ""
    scale, places = _unit(metric)
    mean, half = each.difference * scale, each.difference_half * scale
    interval = f" [{mean - half:+.{places}f}, {mean + half:+.{places}f}]" if np.isfinite(half) else ""
    return f"{mean:+.{places}f}{interval}"


def _unit(metric: str) -> tuple[int, int]:
    """Return the factor and the decimals that a metric is shown with: an accuracy in percent."""
    return (1, 4) if metric.endswith("loss") else (100, 2)


def verdict(ranked: Sequence[Standing], metric: str) -> list[str]:
    """Return what is known in two sentences: which settings may be the best, and whether one is better than today's."""
    return [_best_set(ranked), _against_present(ranked, metric)]


def winner(ranked: Sequence[Standing]) -> Standing | None:
    """Return the best of the settings that are shown to be better than the present parameters, if any is.

    Of equals, as two kinds of patience that stop nothing are, it is the one that changes least.
    """
    better = [each for each in ranked if each.is_better]
    equals = [each for each in better if (each.mean, each.epochs) == (better[0].mean, better[0].epochs)]
    here = next((each.setting.varied for each in ranked if each.setting.number == PRESENT), {})
    return min(equals, key=lambda each: len(each.setting.varied.items() - here.items()), default=None)


def _best_set(ranked: Sequence[Standing]) -> str:
    alike, trained = [each for each in ranked if each.is_best], [each for each in ranked if each.has_figures]
    if not trained:
        return "No setting was trained to its end with each of its seeds."
    if len(alike) < 2 or ranked[0].seeds < 2:
        return f"The best of the {len(trained)} that were trained: {ranked[0].setting.name}."
    cheapest = min(alike, key=lambda each: each.epochs)
    price = f"{cheapest.epochs:.1f} epochs, where the first needs {ranked[0].epochs:.1f}"
    which = "the first" if cheapest is ranked[0] else f"{cheapest.setting.name}, {price}"
    return f"Not shown to be worse than the best (=): {len(alike)} of {len(trained)}; the cheapest of them: {which}."


def _against_present(ranked: Sequence[Standing], metric: str) -> str:
    if not (found := winner(ranked)):
        return "Nothing is shown to be better than what you have."
    points = "" if metric.endswith("loss") else " points"
    amount, _, interval = difference(found, metric).lstrip("+-").partition(" ")
    return f"Better than what you have by {amount}{points} {interval}: `{command(found.setting)}`"


def cell(value: object) -> str:
    """Return a value in at most four decimals, where that shows it."""
    return f"{value:.4f}".rstrip("0").rstrip(".") if isinstance(value, float) and abs(value) >= 1e-3 else str(value)


def command(setting: Setting) -> str:
    """Return the command that makes a setting the project's own as a DVC experiment."""
    changes = setting.varied.items()
    return " ".join(["dvc exp run", *(f"-S train.{name}={config.written(value)}" for name, value in changes)])


def first_result(race: Race, standing: Standing) -> Result:
    """Return what a setting came to with the project's own seed."""
    return race.of(standing.setting)[0]

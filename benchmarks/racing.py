"""Simulate sweeps whose true means are known: how often the named setting is as good as the best, and for what price.

    python -m benchmarks.racing [--sweeps 1000]

Writes benchmarks/racing.csv. The noise between seeds is resampled from the trainings in benchmarks/recipes.csv, 0.3 of
its variance common to a seed ("equal": the residuals of all recipes but the article's; "unequal": each setting has the
noise of a recipe of its own, 0.03 to 0.14 points). Learning curves are reports/history.csv with that noise.
Decided by the functions of the sweep itself, `pipeline/sweeps/comparison.py`. ASHA is its rule (Li et al. 2018, as in
Ray's ASHAScheduler: epochs 1 and 3, the best third goes on) written here; tests/test_racing.py holds it to Optuna's
SuccessiveHalvingPruner, trial by trial. Halving is the sweep's: after these epochs the better third goes on.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline import console, files
from pipeline.sweeps import comparison

TABLE = Path("benchmarks/racing.csv")
SEEDS, COMMON, NEAR = 10, 0.3, 0.02  # most seeds; share of the variance that a seed has in all settings; points
RESOLUTION = 100 / 12_000  # a validation digit, in points
# Validation accuracy after each epoch of a real training, in points: `eight epochs` of benchmarks/recipes.yaml, seed 1.
CURVE = (98.7083, 99.025, 99.2, 99.2083, 99.3083, 99.3417, 99.3333, 99.3333)
HALVING = ((3,), (2, 4))  # after which of these epochs
Rng = np.random.Generator


class Sweeps(NamedTuple):
    """Sweeps side by side: true means [sweeps, settings] and scores [sweeps, settings, seeds], in points."""

    truth: np.ndarray
    scores: np.ndarray


def main(arguments: Sequence[str]) -> None:
    """Write and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.racing", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sweeps", type=int, default=1000)
    rows = measure(parser.parse_args(arguments).sweeps)
    files.write_csv(TABLE, rows, list(rows[0]))
    print(TABLE.read_text("utf-8"), end="")


def measure(count: int) -> list[dict[str, Any]]:
    """Return all rows: which setting is named, and what is claimed."""
    rng, rows = np.random.default_rng(22), []
    for noise in ("equal", "unequal"):
        for spread in (0.03, 0.05, 0.1, 0.2):
            sweeps = draw(rng, rng.normal(0, spread, (count, 9)), noise)
            rows += [row("named", 9, noise, spread, method, *found) for method, found in named(rng, sweeps).items()]
        for settings in (9, 27):
            for better in (0, 0.05, 0.1):
                truth = np.tile(np.r_[0, better, np.zeros(settings - 2)], (count, 1))
                sweeps = draw(rng, truth, noise)
                rows += [
                    row("claimed", settings, noise, better, method, *found) for method, found in claimed(sweeps).items()
                ]
    return rows


def row(
    question: str, settings: int, noise: str, difference: float, method: str, share: float, epochs: float
) -> dict[str, Any]:
    """Return a row: the share of sweeps that name a setting within 0.02 points of the best, or say "better"."""
    facts = {"question": question, "settings": settings, "noise": noise, "difference": difference, "method": method}
    return facts | {"share": f"{share:.3f}", "epochs_of_ten_seeds": f"{epochs:.2f}"}


def residuals() -> list[np.ndarray]:
    """Return, for each recipe, the validation accuracies of its seeds less their mean, in points."""
    recipes: dict[str, list[float]] = {}
    for each in files.read_csv(files.ROOT / "benchmarks" / "recipes.csv"):
        recipes.setdefault(each["recipe"], []).append(100 * float(each["val_accuracy"]))
    # so many seeds have a smaller variance around their own mean than around the true one
    return [
        (np.array(each) - statistics.fmean(each)) * np.sqrt(len(each) / (len(each) - 1)) for each in recipes.values()
    ]


def draw(rng: Rng, truth: np.ndarray, noise: str) -> Sweeps:
    """Draw the scores of every setting with every seed, to a digit of the validation set."""
    shape = (*truth.shape, SEEDS)
    recipes = residuals()
    pooled = np.concatenate([each / each.std() for each in recipes])
    sds = [each.std() for each in recipes]
    equal = np.sqrt(np.mean(np.square(sds[1:])))
    sd = equal if noise == "equal" else rng.choice(sds, (*truth.shape, 1))
    common, own = (smoothed(rng, pooled, each) for each in ((len(truth), 1, SEEDS), shape))
    scores = truth[..., None] + sd * (np.sqrt(COMMON) * common + np.sqrt(1 - COMMON) * own)
    return Sweeps(truth, np.round(scores / RESOLUTION) * RESOLUTION)


def smoothed(rng: Rng, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Resample values of variance 1, smoothed: the highest of 29 would else be drawn again and again."""
    width = 0.3
    return (rng.choice(values, shape) + rng.normal(0, width, shape)) / np.sqrt(1 + width**2)


def named(rng: Rng, sweeps: Sweeps) -> dict[str, tuple[float, float]]:
    """Return for each method how often its setting is within 0.02 points of the best, and its share of the epochs."""
    found = {}
    for seeds in (1, 5, 10):
        chosen = sweeps.scores[..., :seeds].mean(-1).argmax(-1)
        found[f"{seeds} seeds" if seeds > 1 else "1 seed"] = (near(sweeps, chosen), seeds / SEEDS)
    for seeds, level in ((5, comparison.DROPPED), (10, comparison.DROPPED), (10, 0.05), (10, 0.2)):
        scores, chosen = race(sweeps.scores[..., :seeds], level)
        found[f"race to {seeds}, level {level}"] = (near(sweeps, chosen), spent(scores))
    for halving in HALVING:
        waits, early = halve(np.random.default_rng(23), sweeps, halving)  # of its own: other rows draw as without it
        scores, chosen = race(sweeps.scores, comparison.DROPPED, out=waits)
        words = f"race to 10, halving {list(halving)}"
        found[words] = (near(sweeps, chosen), spent(scores) + early)
    epochs = found[f"race to 10, level {comparison.DROPPED}"][1]
    scores = asha(rng, sweeps, round(epochs * SEEDS * sweeps.truth.shape[-1]))
    for words, each in zip(("mean of three or more", "best trial"), scores, strict=True):
        found[f"ASHA, {words}"] = (near(sweeps, each.argmax(-1)), epochs)
    return found


def near(sweeps: Sweeps, chosen: np.ndarray) -> float:
    """Return how often the chosen setting, int [sweeps], is within 0.02 points of the best one."""
    best = np.take_along_axis(sweeps.truth, chosen[:, None], -1)[:, 0]
    return float(np.mean(sweeps.truth.max(-1) - best <= NEAR))


def spent(scores: np.ndarray) -> float:
    """Return the share of the epochs of ten seeds that were trained."""
    return float(np.isfinite(scores).mean() * scores.shape[-1] / SEEDS)


def halve(rng: Rng, sweeps: Sweeps, halving: Sequence[int]) -> tuple[np.ndarray, float]:
    """Return which settings wait, bool [sweeps, settings], and their epochs as a share of those of ten seeds."""
    curve, noise = CURVE, (sweeps.scores - sweeps.truth[..., None]).std(-1, keepdims=True)
    first = sweeps.scores[..., : comparison.FIRST]
    waits, epochs = np.zeros(sweeps.truth.shape, bool), np.zeros(sweeps.truth.shape)
    for epoch in halving:
        own = rng.normal(sweeps.truth[..., None], noise, first.shape)  # an epoch has noise of its own
        means = np.where(waits, -np.inf, (curve[epoch - 1] - curve[-1] + (first + own) / 2).mean(-1))
        third = -(-(~waits).sum(-1, keepdims=True) // 3)
        stopped = ~waits & (means < np.take_along_axis(-np.sort(-means, -1), third - 1, -1))
        stopped[:, 0] = False
        epochs[stopped], waits = epoch, waits | stopped
    return waits, float(epochs.mean() / len(curve) * comparison.FIRST / SEEDS)


def race(
    scores: np.ndarray, level: float, prior: float = comparison.PRIOR, out: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Race as the sweep does, the first setting never dropped; return the scores trained, and the best setting.

    ``out``, bool [sweeps, settings], are out from the start.
    """
    trained, out = np.full(scores.shape, np.nan), np.zeros(scores.shape[:-1], bool) if out is None else out.copy()
    for count in range(comparison.FIRST, scores.shape[-1] + 1):
        running = ~out
        running[:, 0] = True
        trained[..., :count] = np.where(running[..., None], scores[..., :count], trained[..., :count])
        out[:, 0] = False
        out |= comparison.is_worse(trained[..., :count], ~out, RESOLUTION, level, prior)
    return trained, comparison.best(trained, ~out)


def asha(rng: Rng, sweeps: Sweeps, budget: int) -> np.ndarray:
    """Return the mean of each setting's trials that ASHA did not stop, and their best, [2, sweeps, settings].

    It has the epochs of ``budget`` whole trainings, and starts new seeds of all settings as long as they last.
    """
    rows, settings = np.arange(len(sweeps.truth)), sweeps.truth.shape[-1]
    curve = CURVE
    noise = (sweeps.scores - sweeps.truth[..., None]).std(-1)
    left, rungs = np.full(len(rows), budget * len(curve)), ([], [])  # type: np.ndarray, tuple[list[np.ndarray], ...]
    total, ended = np.zeros(sweeps.truth.shape), np.zeros(sweeps.truth.shape)
    highest = np.full(sweeps.truth.shape, -np.inf)
    while (left > 0).any():
        for setting in rng.permuted(np.tile(np.arange(settings), (len(rows), 1)), axis=1).T:
            score = sweeps.scores[rows, setting, rng.integers(0, SEEDS, len(rows))]
            running = left > 0
            for epoch, rung in zip((1, 3), rungs, strict=True):
                own = rng.normal(sweeps.truth[rows, setting], noise[rows, setting])  # an epoch has noise of its own
                rung.append(np.where(running, curve[epoch - 1] - curve[-1] + (score + own) / 2, -np.inf))
                stopped = running & asha_stops(rung)
                left -= np.where(stopped, epoch, 0)
                running &= ~stopped
            left -= np.where(running, len(curve), 0)
            total[rows, setting] += np.where(running, score, 0)
            ended[rows, setting] += running
            highest[rows, setting] = np.maximum(highest[rows, setting], np.where(running, score, -np.inf))
    often = ended >= np.minimum(comparison.FIRST, ended.max(-1, keepdims=True))
    means = np.where(often, total / np.maximum(ended, 1), -np.inf)
    return np.array([means, highest])


def asha_stops(rung: Sequence[np.ndarray]) -> np.ndarray:
    """Return whether the last of the scores at a rung, [trials, sweeps], is below the best third; -inf: not there."""
    best = -np.sort(-np.array(rung), axis=0)
    third = np.maximum(np.isfinite(best).sum(0) // 3, 1)
    stopped: np.ndarray = rung[-1] < best[third - 1, np.arange(best.shape[1])]
    return stopped


def claimed(sweeps: Sweeps) -> dict[str, tuple[float, float]]:
    """Return how often any setting is said to be better than the first one, by how the variance is estimated."""
    found = {}
    present = np.zeros(len(sweeps.truth), int)
    for words, prior in ((", each its own variance", 0), ("", comparison.PRIOR), (", one variance for all", 1e6)):
        for seeds in (5, 10):
            scores, _ = race(sweeps.scores[..., :seeds], comparison.DROPPED, prior)
            better = comparison.is_better(scores, present, RESOLUTION, prior=prior)
            found[f"race to {seeds}{words}"] = (float(better.any(-1).mean()), spent(scores))
    return found


if __name__ == "__main__":
    console.run(main)

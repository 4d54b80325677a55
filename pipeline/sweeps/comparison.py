"""Which settings are shown to differ, from their scores on the same seeds: the statistics of a sweep.

Pure functions of scores, float [..., settings, seeds]: higher is better, NaN where a setting was not trained. Axes in
front are sweeps side by side: `benchmarks/racing.py` runs a thousand at once.

A race (Maron and Moore 1994; irace, Lopez-Ibanez et al. 2016) trains every setting with a few seeds, drops those that
are shown to be worse than the best, and trains the others with more. Settings are compared in pairs on the same seeds.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipeline import scoring

FIRST = 3  # seeds before a setting may be dropped: with two, an interval is 12.7 standard errors wide
DROPPED = 0.1  # level of a drop, over all settings: 0.05 saves less, 0.2 drops the best more often (racing.csv)
CLAIMED = 0.025  # one-sided level of "better", over all settings: with it goes a two-sided interval of 95%
# Degrees of freedom that the variance common to all settings counts for beside a setting's own (Smyth 2004, Statistical
# Applications in Genetics and Molecular Biology 3:3). Without it, five seeds show a difference of 0.1 points half as
# often; the common variance alone claims wrongly where settings differ in noise (benchmarks/racing.csv).
PRIOR = 4


class Estimate(NamedTuple):
    """Means over seeds, their standard errors, and the degrees of freedom of those, float [..., settings]."""

    mean: np.ndarray
    error: np.ndarray
    freedom: np.ndarray

    def half_width(self, confidence: float = 0.95) -> np.ndarray:
        """Return half the width of the interval around the mean by Student's t; infinite for a single seed."""
        from scipy.special import stdtrit

        return np.where(
            self.freedom > 0, stdtrit(np.maximum(self.freedom, 1), (1 + confidence) / 2) * self.error, np.inf
        )

    def p_below(self) -> np.ndarray:
        """Return the one-sided p-value of a mean below 0; 1 for a single seed and for none."""
        from scipy.special import stdtr

        with np.errstate(invalid="ignore"):
            p = stdtr(np.maximum(self.freedom, 1), self.mean / self.error)
        return np.where((self.freedom > 0) & np.isfinite(p), p, 1.0)


def estimate(samples: np.ndarray, resolution: float, prior: float = PRIOR) -> Estimate:
    """Return the mean of each setting over its seeds; ``resolution`` is the smallest step of a score.

    The variance is drawn towards that of all settings, as far as there are others. It is at least that of a step:
    three equal differences are no proof that there is no noise.
    """
    there = np.isfinite(samples)
    count = there.sum(-1)
    mean = np.where(there, samples, 0).sum(-1) / np.maximum(count, 1)
    squares = np.where(there, samples - mean[..., None], 0.0) ** 2
    own = np.maximum(count - 1, 0)
    total, common = own.sum(-1, keepdims=True), squares.sum((-2, -1))[..., None]
    weight = np.minimum(prior, total - own) * (own > 0)
    variance = (squares.sum(-1) + weight * common / np.maximum(total, 1)) / np.maximum(own + weight, 1)
    error = np.sqrt(np.maximum(variance, resolution**2) / np.maximum(count, 1))
    return Estimate(np.where(count > 0, mean, np.nan), error, own + weight)


def differences(scores: np.ndarray, reference: np.ndarray, resolution: float, prior: float = PRIOR) -> Estimate:
    """Return the paired differences to the setting ``reference``, int [...], whose own row is NaN."""
    base = np.take_along_axis(scores, reference[..., None, None], -2)
    others = np.arange(scores.shape[-2]) != reference[..., None]
    return estimate(np.where(others[..., None], scores - base, np.nan), resolution, prior)


def is_shown(p: np.ndarray, level: float, compared: np.ndarray) -> np.ndarray:
    """Return which of the p-values [..., settings] are significant among the ``compared`` (Holm), bool."""
    return scoring.holm(np.where(compared, p, np.inf)) <= level


def best(scores: np.ndarray, racing: np.ndarray) -> np.ndarray:
    """Return the number of the setting with the highest mean among those ``racing``, bool [..., settings]."""
    means = np.where(racing, estimate(scores, 0).mean, -np.inf)
    return np.where(np.isnan(means), -np.inf, means).argmax(-1)


def is_worse(
    scores: np.ndarray, racing: np.ndarray, resolution: float, level: float = DROPPED, prior: float = PRIOR
) -> np.ndarray:
    """Return which of the settings ``racing`` are shown to be worse than the best one, bool [..., settings]."""
    found = differences(scores, first := best(scores, racing), resolution, prior)
    compared = racing & (np.arange(scores.shape[-2]) != first[..., None])
    return is_shown(found.p_below(), level, compared) & compared


def is_better(
    scores: np.ndarray, present: np.ndarray, resolution: float, level: float = CLAIMED, prior: float = PRIOR
) -> np.ndarray:
    """Return which settings are shown to be better than the setting ``present``, int [...]: bool [..., settings]."""
    found = differences(scores, present, resolution, prior)
    compared = np.broadcast_to(np.arange(scores.shape[-2]) != present[..., None], found.mean.shape)
    return is_shown(found._replace(mean=-found.mean).p_below(), level, compared) & compared

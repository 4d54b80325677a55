"""Statistics of predictions: accuracy with its interval, calibration, and paired tests of two models.

Pure functions of arrays and counts. scipy is imported where it is needed: `wilson` also serves commands that must
start at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

PLACES = 4  # decimals of a share: one image of 10,000 is 0.0001
BINS = 15  # Guo et al. 2017, figure 1
_EPSILON = 1e-7  # Keras's epsilon, so that the loss is the one that Keras reports


def is_correct(labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Return which predictions equal their labels, bool [n]; raise ``ValueError`` if lengths differ or are 0."""
    if labels.shape != predictions.shape or labels.ndim != 1 or not len(labels):
        raise ValueError(f"expected as many answers as labels, found {predictions.shape} and {labels.shape}")
    return np.equal(labels, predictions)


def wilson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the two-sided score interval of a share (Wilson 1927); of no trials at all it is (0, 1)."""
    if not 0 <= successes <= trials:
        raise ValueError(f"expected 0 to {trials} successes, found {successes}")
    if not trials:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, weight = successes / trials, z * z / trials
    middle = share + weight / 2
    half = z * math.sqrt(share * (1 - share) / trials + weight / (4 * trials))
    return max(0.0, (middle - half) / (1 + weight)), min(1.0, (middle + half) / (1 + weight))


def mcnemar(lost: int, won: int) -> float:
    """Return the one-sided exact p-value that a change makes answers worse (McNemar 1947; Edwards 1948).

    Of the images on which before and after disagree, ``lost`` went from right to wrong and ``won`` from wrong to
    right: the chance of at least so many losses among them if a loss were as likely as a win.
    """
    from scipy.special import bdtrc

    return float(bdtrc(lost - 1, lost + won, 0.5)) if lost else 1.0


def difference_bound(lost: int, won: int, images: int, p: float) -> float:
    """Return the lower bound of a paired difference of accuracy, after minus before, at one-sided level ``p``.

    It inverts the score test of Tango (1998, Statistics in Medicine 17:891-908), which keeps its level where few
    images disagree: a change is not inferior at a margin when this bound lies above minus the margin.
    """
    if lost < 0 or won < 0 or lost + won > images or not images:
        raise ValueError(f"expected counts within {images} images, found {lost} lost and {won} won")
    z = NormalDist().inv_cdf(1 - p)
    low, high = -1.0, (won - lost) / images
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if _tango(lost, won, images, middle) > z else (low, middle)
    return low


def difference_interval(lost: int, won: int, images: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the two-sided interval of a paired difference of accuracy, after minus before (Tango 1998)."""
    p = (1 - confidence) / 2
    return difference_bound(lost, won, images, p), -difference_bound(won, lost, images, p)


def _tango(lost: int, won: int, images: int, difference: float) -> float:
    """Return Tango's statistic: standard errors between what was seen and a true ``difference``."""
    spread = difference * (1 - difference)
    a = 2 * images
    b = -won - lost + (2 * images - won + lost) * difference
    losing = (math.sqrt(b * b + 4 * a * lost * spread) - b) / (2 * a)  # the most likely share of losses under it
    variance = images * (2 * losing + spread)
    return (won - lost - images * difference) / math.sqrt(variance) if variance > 0 else math.inf


def holm(ps: np.ndarray) -> np.ndarray:
    """Return p-values [..., n] corrected for their number (Holm 1979), without counting infinite ones."""
    order = np.argsort(ps, -1, kind="stable")
    left = np.isfinite(ps).sum(-1, keepdims=True) - np.arange(ps.shape[-1])
    corrected = np.maximum.accumulate(np.take_along_axis(ps, order, -1) * np.maximum(left, 1), -1)
    found = np.empty(ps.shape)
    np.put_along_axis(found, order, np.minimum(corrected, 1), -1)
    return found


def cross_entropy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean of -log of what float [n, classes] gives to the labels, uint8 [n]: Keras's categorical loss."""
    given = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.log(np.clip(given, _EPSILON, 1 - _EPSILON)).mean())


@dataclass(frozen=True)
class Bin:
    """The answers whose probability lies in one bin: its mean, the share of them that are right, and how many."""

    probability: float
    accuracy: float
    images: int


def reliability(probabilities: np.ndarray, correct: np.ndarray, bins: int = BINS) -> list[Bin]:
    """Return the bins of equal width over [0, 1] that hold answers, by the probability of the answer given, [n]."""
    places = _bin(probabilities, bins)
    return [
        Bin(float(probabilities[here].mean()), float(correct[here].mean()), int(here.sum()))
        for here in (places == place for place in np.unique(places))
    ]


def _bin(probabilities: np.ndarray, bins: int) -> np.ndarray:
    return np.clip(np.ceil(probabilities * bins) - 1, 0, bins - 1).astype(int)


def calibration_error(curve: list[Bin]) -> float:
    """Return the expected calibration error of a reliability curve (Naeini et al. 2015; bins as in Guo et al. 2017)."""
    images = sum(bin_.images for bin_ in curve)
    return sum(bin_.images * abs(bin_.accuracy - bin_.probability) for bin_ in curve) / images


def calibration_bound(probabilities: np.ndarray, correct: np.ndarray, p: float = 0.05, bins: int = BINS) -> float:
    """Return an upper bound of the expected calibration error at one-sided level ``p``.

    Within a bin the error has one sign, so the whole is the mean over images of sign x (right - probability), and its
    standard error is that of a mean. The plug-in estimate is biased upwards, which leaves the bound on the safe side.
    """
    gaps = correct - probabilities.astype(np.float64)
    places = _bin(probabilities, bins)
    signed = gaps * np.sign(np.bincount(places, gaps, minlength=bins))[places]
    return float(signed.mean() + NormalDist().inv_cdf(1 - p) * signed.std() / math.sqrt(len(signed)))


def confusion(labels: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """Return the counts, int [classes, classes], of images by label (rows) and answer (columns)."""
    pairs = labels.astype(int) * classes + predictions.astype(int)
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


@dataclass(frozen=True)
class ClassScore:
    """Precision, recall and F1 of one class; a share of no images counts as 0."""

    label: int
    precision: float
    recall: float
    f1: float
    images: int


def class_scores(counts: np.ndarray) -> list[ClassScore]:
    """Return the scores of each class from its confusion counts, int [classes, classes]."""
    hits, answers, images = counts.diagonal(), counts.sum(axis=0), counts.sum(axis=1)
    shares = zip(hits / np.maximum(answers, 1), hits / np.maximum(images, 1), strict=True)
    f1 = 2 * hits / np.maximum(answers + images, 1)
    return [
        ClassScore(label, float(precision), float(recall), float(f1[label]), int(images[label]))
        for label, (precision, recall) in enumerate(shares)
    ]

"""The points of a space that a search compares: all of a grid, the first of a Sobol sequence, or what TPE proposes.

Which points there are is a pure function of params.yaml and, for TPE, of the scores so far. No state of a search is
stored: it is resumed by asking from the beginning, and what was trained answers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from pipeline.config import Sweep
from pipeline.console import UserError
from pipeline.learning.trajectory import STOPPING
from pipeline.sweeps.space import SECTION, Axis

MOST = 2**16  # points of a Sobol sequence to look for new ones among
ASKS = 50  # proposals of TPE for a new point, before a round is ended without: in a small space it repeats itself
STARTUP = 10  # points that TPE draws at random first, as is Optuna's default
Score = Callable[[dict[str, Any]], float | None]  # of a combination, higher is better; -inf: it failed, None: not yet


def size(found: Sequence[Axis], sweep: Sweep) -> int:
    """Return how many combinations a search has at most."""
    _, free = _split(found, sweep.search)
    return math.prod(len(axis.values) for axis in free) * (1 if sweep.search == "grid" else sweep.trials)


def identity(sweep: Sweep) -> list[object]:
    """Return what a search depends on besides the scores and what it proposes before the first of them."""
    return [sweep.trials, sweep.round, version("optuna")] if sweep.search == "tpe" else []


def combinations(
    found: Sequence[Axis], present: Mapping[str, Any], sweep: Sweep, score: Score
) -> Iterator[dict[str, Any]]:
    """Yield the combinations of a search, with the ``present`` value of a parameter where its ``when`` does not hold.

    Parameters of stopping are not searched: their values are read off every history, and so each point has them all.
    TPE is told the best of a point's.
    """
    searched, free = _split(found, sweep.search)

    def combined(point: dict[str, Any]) -> list[dict[str, Any]]:
        return [_resolved(found, point | others, present) for others in _grid(free)]

    def best(point: dict[str, Any]) -> float | None:
        scores = [score(each) for each in combined(point)]
        return None if None in scores else max(each for each in scores if each is not None)

    points: Sequence[dict[str, Any]] = [{}]
    if searched:
        points = _sobol(searched, sweep, present) if sweep.search == "sobol" else _tpe(searched, sweep, present, best)
    yield from itertools.chain.from_iterable(map(combined, points))


def _split(found: Sequence[Axis], search: str) -> tuple[list[Axis], list[Axis]]:
    """Return what a search draws, and what it has every value of."""
    searched = [axis for axis in found if search != "grid" and axis.name not in STOPPING]
    free = [axis for axis in found if axis not in searched]
    if without := [axis.name for axis in free if not axis.values]:
        remedy = "give it one, or set sweep.search: sobol" if search == "grid" else "give it one"
        raise UserError(f"{SECTION}.{without[0]} has no step; {remedy}")
    return searched, free


def _holds(axis: Axis, chosen: Mapping[str, Any]) -> bool:
    return all(chosen[name] == value for name, value in axis.when.items())


def _grid(searched: Sequence[Axis]) -> list[dict[str, Any]]:
    names = [axis.name for axis in searched]
    return [dict(zip(names, each, strict=True)) for each in itertools.product(*(axis.values for axis in searched))]


def _resolved(axes: Sequence[Axis], chosen: Mapping[str, Any], present: Mapping[str, Any]) -> dict[str, Any]:
    return {axis.name: chosen[axis.name] if _holds(axis, chosen) else present[axis.name] for axis in axes}


def _sobol(searched: Sequence[Axis], sweep: Sweep, present: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the first points of a scrambled Sobol sequence that differ: fewer trials have the first of them."""
    from scipy.stats import qmc

    trials, seed = sweep.trials, sweep.search_seed
    found: dict[str, dict[str, Any]] = {}
    sequence = qmc.Sobol(len(searched), scramble=True, rng=np.random.default_rng(seed))
    drawn = 0
    while len(found) < trials and drawn < MOST:
        for place in sequence.random(drawn or 1):  # as many as there were: a power of two
            drawn_at = {axis.name: axis.at(each) for axis, each in zip(searched, place, strict=True)}
            point = _resolved(searched, drawn_at, present)
            found.setdefault(repr(point), point)
        drawn = 2 * drawn or 1
    if len(found) < trials:
        raise _too_few(trials, len(found))
    return list(found.values())[:trials]


def _too_few(trials: int, points: int) -> UserError:
    return UserError(
        f"params.yaml: sweep.trials is {trials}, the lists make {points} points; lower it, or set search: grid"
    )


def _tpe(searched: Sequence[Axis], sweep: Sweep, present: Mapping[str, Any], score: Score) -> list[dict[str, Any]]:
    """Return the points that TPE proposes (Bergstra et al. 2011, as in Optuna), to the first round without scores.

    In rounds of a fixed size, told in the order of their proposal: who ended first and how many workers there are
    changes nothing. A larger ``trials`` continues the same points.
    """
    if all(axis.values for axis in searched) and math.prod(len(axis.values) for axis in searched) <= MOST:
        points = {repr(_resolved(searched, each, present)) for each in _grid(searched)}
        if len(points) < sweep.trials:
            raise _too_few(sweep.trials, len(points))
    optuna = quiet_optuna()
    # All arguments but those that Optuna means to remove; the version in the sweep's identity stands for these.
    sampler = optuna.samplers.TPESampler(
        n_startup_trials=STARTUP, n_ei_candidates=24, seed=sweep.search_seed, multivariate=True, group=False,
        constant_liar=True, constraints_func=None,
    )  # fmt: skip
    study = optuna.create_study(direction="maximize", sampler=sampler)
    space = {axis.name: _distribution(axis) for axis in searched}
    failed = optuna.trial.TrialState.FAIL
    found: dict[str, dict[str, Any]] = {}
    while len(found) < sweep.trials:
        proposed: dict[str, tuple[Any, dict[str, Any]]] = {}
        for _ in range(ASKS * sweep.round):
            asked = study.ask(space)
            point = _resolved(
                searched, {axis.name: _value(axis, asked.params[axis.name]) for axis in searched}, present
            )
            if repr(point) in found or repr(point) in proposed:
                study.tell(asked, state=failed)  # which TPE learns nothing from
            else:
                proposed[repr(point)] = asked, point
            if len(proposed) == min(sweep.round, sweep.trials - len(found)):
                break
        scores = [score(point) for _, point in proposed.values()]
        found |= {name: point for name, (_, point) in proposed.items()}
        if None in scores or not proposed:
            break
        for (asked, _), each in zip(proposed.values(), scores, strict=True):
            study.tell(asked, *([each] if each != -math.inf else []), state=None if each != -math.inf else failed)
    return list(found.values())


def quiet_optuna() -> Any:
    """Return Optuna, which tells of every study on standard error unless it is told not to."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _distribution(axis: Axis) -> Any:
    """Return an axis as Optuna knows it: a list of numbers by their places, since these have an order."""
    from optuna import distributions

    if not axis.values:
        if isinstance(axis.low, int) and isinstance(axis.high, int):
            return distributions.IntDistribution(axis.low, axis.high, log=axis.is_log)
        return distributions.FloatDistribution(axis.low, axis.high, log=axis.is_log)
    if all(isinstance(each, int | float) and not isinstance(each, bool) for each in axis.values):
        return distributions.IntDistribution(0, len(axis.values) - 1)
    return distributions.CategoricalDistribution(range(len(axis.values)))


def _value(axis: Axis, asked: Any) -> Any:
    return axis.values[asked] if axis.values else axis.rounded(asked)

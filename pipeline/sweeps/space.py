"""The combinations of parameters that a sweep compares: all of a grid, or the first points of a Sobol sequence.

A parameter has a list of values, or a range: ``{from: 0.0005, to: 0.01, scale: log, digits: 2}``,
``{from: 0, to: 0.4, step: 0.05}``. ``when: {schedule: constant}`` in a range (or beside ``values: [...]``) makes it
vary only where another parameter has that value. Which points there are is a pure function of params.yaml.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import numpy as np

from pipeline.console import UserError
from pipeline.learning.trajectory import STOPPING

SECTION = "params.yaml: sweep.parameters"
KEYS = {"from", "to", "scale", "step", "digits", "when", "values"}
MOST = 2**16  # points of a Sobol sequence to look for new ones among


@dataclass(frozen=True)
class Axis:
    """One parameter: its values, or the ends of a range; ``digits`` are significant ones; ``when`` names another's."""

    name: str
    values: Sequence[Any] = ()
    low: float = 0.0
    high: float = 0.0
    is_log: bool = False
    digits: int = 3
    when: Mapping[str, Any] = field(default_factory=dict)

    def at(self, place: float) -> Any:
        """Return the value at a place in [0, 1)."""
        if self.values:
            return self.values[int(place * len(self.values))]
        value = self.low + place * (self.high - self.low)
        if self.is_log:
            value = self.low * (self.high / self.low) ** place
        if isinstance(self.low, int) and isinstance(self.high, int):
            return round(value)
        return float(f"{value:.{self.digits}g}")  # before it is hashed: no last bit of another machine's logarithm

    def examples(self) -> Sequence[Any]:
        """Return what has to be allowed for all of it to be: its values, or the ends of the range."""
        return self.values or [self.at(0), self.at(1)]


def axes(parameters: Mapping[str, Any]) -> list[Axis]:
    """Return the parameters as axes; raise ``UserError`` in one line for what is none."""
    found = [_axis(name, content) for name, content in parameters.items()]
    by_name = {axis.name: axis for axis in found}
    for axis in found:
        for name, value in axis.when.items():
            other = by_name.get(name)
            if not other or other.when or name in STOPPING or value not in other.values:
                raise UserError(
                    f"{SECTION}.{axis.name}.when is {{{name}: {value}}}; expected a parameter of this sweep that has "
                    "this value in a list, no `when` of its own, and is not of stopping"
                )
    return found


def _axis(name: str, content: Any) -> Axis:
    if isinstance(content, list):
        return Axis(name, _listed(name, content))
    if not isinstance(content, dict) or not content or set(content) - KEYS:
        raise UserError(
            f"{SECTION}.{name} is {content!r}; expected a list of values, or a range such as "
            "{from: 0, to: 0.4, step: 0.05} or {from: 0.001, to: 0.01, scale: log, digits: 2}"
        )
    when = content.get("when", {})
    if not isinstance(when, dict) or len(when) > 1:
        raise UserError(f"{SECTION}.{name}.when is {when!r}; expected one parameter with its value")
    if "values" in content:
        return Axis(name, _listed(name, content["values"]), when=when)
    return _range(name, content, when)


def _listed(name: str, values: Any) -> list[Any]:
    if not isinstance(values, list) or not values:
        raise UserError(f"{SECTION}.{name} is {values!r}; expected a list of at least one value")
    return values


def _range(name: str, content: Mapping[str, Any], when: Mapping[str, Any]) -> Axis:
    low, high, step = (content.get(key) for key in ("from", "to", "step"))
    scale, digits = content.get("scale", "linear"), content.get("digits", 3)
    if not (_is_number(low) and _is_number(high) and low < high):
        raise UserError(f"{SECTION}.{name} goes from {low} to {high}; expected two numbers, the lower first")
    if scale not in ("linear", "log") or (scale == "log" and (low <= 0 or step is not None)):
        raise UserError(
            f"{SECTION}.{name}.scale is {scale} from {low}; expected linear, or log from above 0 without step"
        )
    if not isinstance(digits, int) or not 1 <= digits <= 6:
        raise UserError(f"{SECTION}.{name}.digits is {digits!r}; expected 1 to 6 significant digits")
    if step is None:
        return Axis(name, (), low, high, scale == "log", digits, when)
    count = (high - low) / step if _is_number(step) and step > 0 else 0.5
    if abs(count - round(count)) > 1e-9:
        raise UserError(f"{SECTION}.{name}.step is {step}; expected one that goes from {low} to {high} in whole steps")
    values = [low + number * step for number in range(round(count) + 1)]
    return Axis(name, [float(f"{each:.6g}") if isinstance(each, float) else each for each in values], when=when)


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def size(found: Sequence[Axis], search: str, trials: int) -> int:
    """Return how many combinations a search has at most."""
    _, free = _split(found, search)
    return math.prod(len(axis.values) for axis in free) * (1 if search == "grid" else trials)


def combinations(
    found: Sequence[Axis], present: Mapping[str, Any], search: str, trials: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Yield the combinations of a search, with the ``present`` value of a parameter where its ``when`` does not hold.

    Parameters of stopping are not searched: their values are read off every history, and so each point has them all.
    """
    searched, free = _split(found, search)
    points = _sobol(searched, trials, seed, present) if searched else [{}]
    for point, others in itertools.product(points, _grid(free)):
        chosen = point | others
        yield {axis.name: chosen[axis.name] if _holds(axis, chosen) else present[axis.name] for axis in found}


def _split(found: Sequence[Axis], search: str) -> tuple[list[Axis], list[Axis]]:
    """Return what a search draws, and what it has every value of."""
    searched = [axis for axis in found if search == "sobol" and axis.name not in STOPPING]
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


def _sobol(searched: Sequence[Axis], trials: int, seed: int, present: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the first points of a scrambled Sobol sequence that differ: fewer trials have the first of them."""
    from scipy.stats import qmc

    found: dict[str, dict[str, Any]] = {}
    sequence = qmc.Sobol(len(searched), scramble=True, rng=np.random.default_rng(seed))
    drawn = 0
    while len(found) < trials and drawn < MOST:
        for place in sequence.random(drawn or 1):  # as many as there were: a power of two
            point = {axis.name: axis.at(each) for axis, each in zip(searched, place, strict=True)}
            point = {axis.name: point[axis.name] if _holds(axis, point) else present[axis.name] for axis in searched}
            found.setdefault(repr(point), point)
        drawn = 2 * drawn or 1
    if len(found) < trials:
        raise UserError(
            f"params.yaml: sweep.trials is {trials}, the lists make {len(found)} points; lower it, or set search: grid"
        )
    return list(found.values())[:trials]

"""The parameters that a sweep varies, and the values that each may take.

A parameter has a list of values, or a range: ``{from: 0.0005, to: 0.01, scale: log, digits: 2}``,
``{from: 0, to: 0.4, step: 0.05}``. ``when: {schedule: constant}`` in a range (or beside ``values: [...]``) makes it
vary only where another parameter has that value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from pipeline.console import UserError
from pipeline.learning.trajectory import STOPPING

SECTION = "params.yaml: sweep.parameters"
KEYS = {"from", "to", "scale", "step", "digits", "when", "values"}


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
        return self.rounded(value)

    def rounded(self, value: float) -> Any:
        """Return a value of the range as it is trained with."""
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


MOST = 1000  # steps of a range


def _range(name: str, content: Mapping[str, Any], when: Mapping[str, Any]) -> Axis:
    low, high, step = (content.get(key) for key in ("from", "to", "step"))
    scale, digits = content.get("scale", "linear"), content.get("digits", 3)
    if not (_is_number(low) and _is_number(high) and low < high):
        words = [value for value in (low, high) if isinstance(value, str)]
        hint = f"; YAML takes {words[0]} for a word, write it as 0.001 or 1.0e-03" if words else ""
        raise UserError(f"{SECTION}.{name} goes from {low} to {high}; expected two numbers, the lower first{hint}")
    if scale not in ("linear", "log") or (scale == "log" and (low <= 0 or step is not None)):
        raise UserError(
            f"{SECTION}.{name}.scale is {scale} from {low}; expected linear, or log from above 0 without step"
        )
    if isinstance(digits, bool) or not isinstance(digits, int) or not 1 <= digits <= 6:
        raise UserError(f"{SECTION}.{name}.digits is {digits!r}; expected 1 to 6 significant digits")
    if step is None:
        return Axis(name, (), low, high, scale == "log", digits, when)
    count = (high - low) / step if _is_number(step) and step > 0 else 0.5
    if abs(count - round(count)) > 1e-9:
        raise UserError(f"{SECTION}.{name}.step is {step}; expected one that goes from {low} to {high} in whole steps")
    if count > MOST:
        raise UserError(f"{SECTION}.{name} has {count:,.0f} steps; expected at most {MOST:,}, or a range without step")
    values = [low + number * step for number in range(round(count) + 1)]
    return Axis(name, [float(f"{each:.6g}") if isinstance(each, float) else each for each in values], when=when)


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

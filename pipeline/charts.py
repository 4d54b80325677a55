"""Pages, and small charts in them as inline SVG, drawn in the page's colours, so that one serves light and dark.

A chart is a picture with a text alternative; the page that shows it also holds its figures as a table.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

WIDTH, HEIGHT = 460, 280
LEFT, RIGHT, TOP, BOTTOM = 60, 14, 12, 46  # pixels outside the axes

Point = tuple[float, float]


def page(template: str, **facts: Any) -> str:
    """Return a page: a template of this folder, filled in."""
    loader = FileSystemLoader(Path(__file__).parent)
    jinja = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return jinja.get_template(template).render(facts)


@dataclass(frozen=True)
class Axis:
    """A linear scale of ``low`` to ``high`` onto pixels ``start`` to ``end``; ticks are ``min_step`` or more apart."""

    low: float
    high: float
    start: float
    end: float
    min_step: float = 0

    def at(self, value: float) -> float:
        """Return the pixel of a value."""
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        """Return at most seven round values within the scale, 1, 2 or 5 times a power of ten apart."""
        power = 10.0 ** math.floor(math.log10((self.high - self.low) / 6))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * 6.001 >= self.high - self.low)
        step = max(step, self.min_step)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(number * step, 10) for number in range(first, last + 1)]


def horizontal_axis(low: float, high: float, min_step: float = 0) -> Axis:
    """Return a horizontal axis of a chart."""
    return Axis(low, high if high > low else low + 1, LEFT, WIDTH - RIGHT, min_step)


def vertical_axis(low: float, high: float) -> Axis:
    """Return a vertical axis of a chart."""
    return Axis(low, high if high > low else low + 1, HEIGHT - BOTTOM, TOP)


def curves(title: str, x_label: str, y_label: str, series: Mapping[str, Sequence[float]], marked: int = 0) -> Markup:
    """Draw series of one value an epoch, the first epoch being 1, and a mark at the epoch ``marked`` where it is not 0.

    The series are the classes ``first``, ``second`` ... of the page's style, and are named beside a piece of the line.
    """
    values = [value for each in series.values() for value in each]
    room = 0.05 * (max(values) - min(values))
    x, y = horizontal_axis(1, max(map(len, series.values())), 1), vertical_axis(min(values) - room, max(values) + room)
    parts = [_frame(x, y, x_label, y_label)]
    if marked:
        parts.append(_line([(x.at(marked), y.start), (x.at(marked), y.end)], "mark"))
        left = x.at(marked) > WIDTH / 2
        place = (x.at(marked) + (-6 if left else 6), (y.start + y.end) / 2)
        parts.append(_text(place, f"best: epoch {marked}", "end" if left else "start"))
    for name, each in zip(NAMES, series.values(), strict=False):
        points = [(x.at(epoch), y.at(value)) for epoch, value in enumerate(each, 1)]
        parts += [_line(points, name), *(_dot(point, 3, name) for point in points)]
    return _chart(title, parts)


NAMES = ("first", "second", "third")


def reliability(title: str, rows: Sequence[tuple[float, float, int]]) -> Markup:
    """Draw how often answers are right, against how sure they are; rows of (probability, accuracy, images).

    The area of a point grows with its images; on the diagonal the probabilities are honest.
    """
    lowest = min((min(row[:2]) for row in rows), default=0.0)
    low = math.floor(lowest * 10 - 1e-9) / 10 if lowest > 0 else 0.0
    x, y = horizontal_axis(max(0.0, low), 1.0), vertical_axis(max(0.0, low), 1.0)
    most = max((images for *_, images in rows), default=1)
    parts = [_frame(x, y, "probability of the answer", "share that is right")]
    parts.append(_line([(x.at(x.low), y.at(y.low)), (x.at(1), y.at(1))], "mark"))
    for sureness, accuracy, images in rows:
        parts.append(_dot((x.at(sureness), y.at(accuracy)), 3 + 9 * math.sqrt(images / most), "first area"))
    return _chart(title, parts)


def histogram(title: str, x_label: str, series: Mapping[str, Mapping[str | float, float]]) -> Markup:
    """Draw up to three series of shares by bin as outlines; bins are numbers or names in their order.

    Numbers are the lower ends of bins of equal width. The series are the classes ``first``, ``second`` and ``third`` of
    the page's style, which holds their key.
    """
    bins = list(dict.fromkeys(bin_ for each in series.values() for bin_ in each))
    names = [bin_ for bin_ in bins if isinstance(bin_, str)]
    bins = bins if names else sorted(bins, key=float)
    starts = [float(place) if names else float(bin_) for place, bin_ in enumerate(bins)]
    width = min((right - left for left, right in itertools.pairwise(starts)), default=1.0)
    x = horizontal_axis(starts[0], starts[-1] + width)
    y = vertical_axis(0, max(share for each in series.values() for share in each.values()))
    parts = [_frame(x, y, x_label, "share of the pictures", names)]
    places = starts if names else [x.low + width * step for step in range(round((x.high - x.low) / width))]
    for kind, each in zip(NAMES, series.values(), strict=False):
        shares = dict.fromkeys(places, 0.0) | {starts[bins.index(bin_)]: share for bin_, share in each.items()}
        corners = [
            (x.at(end), y.at(share)) for start, share in sorted(shares.items()) for end in (start, start + width)
        ]
        parts.append(_line([(x.start, y.start), *corners, (x.end, y.start)], kind))
    return _chart(title, parts)


def interval(title: str, value: float, low: float, high: float, floor: float = 0.0) -> Markup:
    """Draw a share and its interval on a line, with a mark at the ``floor`` where it is not 0."""
    ends = [end for end in (low, high, floor) if end > 0]
    room = max(0.15 * (max(ends) - min(ends)), 0.0005)
    x = Axis(max(0.0, min(ends) - room), min(1.0, max(ends) + room), 16, WIDTH - 16)
    middle = 26.0
    parts = [_line([(x.start, middle), (x.end, middle)], "axis")]
    for tick in x.ticks():
        parts += [_line([(x.at(tick), middle), (x.at(tick), middle + 5)], "axis")]
        parts += [_text((x.at(tick), middle + 20), number(tick), "middle")]
    if floor:
        parts += [_line([(x.at(floor), 8), (x.at(floor), middle + 5)], "mark")]
        left = x.at(floor) > WIDTH / 2
        parts += [_text((x.at(floor) + (-4 if left else 4), 12), "the gate's floor", "end" if left else "start")]
    parts += [_line([(x.at(low), middle), (x.at(high), middle)], "first band"), _dot((x.at(value), middle), 6, "first")]
    return _chart(title, parts, height=52)


def number(value: float) -> str:
    """Return a tick's number without the noise of binary fractions."""
    return f"{value:.10f}".rstrip("0").rstrip(".") or "0"


def _frame(x: Axis, y: Axis, x_label: str, y_label: str, names: Sequence[str] = ()) -> Markup:
    """Draw the axes with their ticks, or with ``names`` along the horizontal one."""
    parts = []
    for tick in y.ticks():
        parts.append(_line([(x.start, y.at(tick)), (x.end, y.at(tick))], "grid"))
        parts.append(_text((x.start - 8, y.at(tick) + 4), number(tick), "end"))
    for tick in () if names else x.ticks():
        parts.append(_line([(x.at(tick), y.start), (x.at(tick), y.start + 5)], "axis"))
        parts.append(_text((x.at(tick), y.start + 20), number(tick), "middle"))
    parts += [_text((x.at(place + 0.5), y.start + 20), name, "middle") for place, name in enumerate(names)]
    parts.append(_line([(x.start, y.start), (x.end, y.start)], "axis"))
    parts.append(_text(((x.start + x.end) / 2, HEIGHT - 6), x_label, "middle"))
    middle = (y.start + y.end) / 2
    turned = Markup('<text x="14" y="{0}" text-anchor="middle" transform="rotate(-90 14 {0})">{1}</text>')
    return Markup("").join([*parts, turned.format(middle, y_label)])


def _line(points: Iterable[Point], kind: str) -> Markup:
    path = " ".join(f"{x:g},{y:g}" for x, y in points)
    return Markup('<polyline class="{}" points="{}"/>').format(kind, path)


def _dot(point: Point, radius: float, kind: str) -> Markup:
    return Markup('<circle class="{}" cx="{:g}" cy="{:g}" r="{:g}"/>').format(kind, *point, round(radius, 1))


def _text(place: Point, words: str, anchor: str) -> Markup:
    return Markup('<text x="{:g}" y="{:g}" text-anchor="{}">{}</text>').format(*place, anchor, words)


def _chart(title: str, parts: Iterable[Markup], height: int = HEIGHT) -> Markup:
    start = Markup('<svg class="chart" role="img" aria-label="{}" viewBox="0 0 {} {}">').format(title, WIDTH, height)
    return Markup("").join([start, Markup("<title>{}</title>").format(escape(title)), *parts, Markup("</svg>")])

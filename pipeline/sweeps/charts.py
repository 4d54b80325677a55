"""The pictures of a sweep, as PNG, over its settings' means: the same results give the same bytes."""

from __future__ import annotations

import io
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure

from pipeline.sweeps import effects as effects_of
from pipeline.sweeps.leaderboard import Standing, cell, figure
from pipeline.sweeps.race import Race
from pipeline.sweeps.trials import label

DARK_IS_BETTER = "viridis"  # as clear in grey as in colour, whatever the eye
FEW = 12  # values beside each other that can still be read


def parallel(ranked: Sequence[Standing], metric: str) -> bytes:
    """Draw each setting as a line across its parameters to its mean score; the best setting is the broad line."""
    good = [result for result in ranked if result.has_figures]
    names, scores = list(good[0].setting.varied), [result.mean for result in good]
    colors, scale = _colors(scores, metric)
    norm = Normalize(*scale)
    drawing = Figure(figsize=(2.2 * len(names) + 3, 4.5), layout="constrained")
    axes = drawing.subplots()
    orders = {name: levels(good, name) for name in names}
    for rank, (result, value) in reversed(list(enumerate(zip(good, scores, strict=True)))):
        among = 0.8 - 0.6 * rank / len(good)  # the best highest, so that no line hides another
        heights = [(order.index(result.setting.varied[name]) + among) / len(order) for name, order in orders.items()]
        line = [*heights, float(norm(value))]
        axes.plot(line, color=colors(norm(value)), linewidth=4 if result is good[0] else 1.3, alpha=0.9)
    for place, order in enumerate(orders.values()):
        texts = {(number + 0.5) / len(order): cell(level) for number, level in enumerate(order)}
        shown = list(texts)[:: -(-len(texts) // FEW)]
        _upright(axes, place, shown, [texts[height] for height in shown])
    _upright(axes, len(names), np.linspace(0, 1, 5), [figure(value, metric) for value in np.linspace(*scale, 5)])
    axes.set(xlim=(-0.3, len(names) + 0.4), ylim=(-0.04, 1.04), yticks=[])
    axes.set_xticks(range(len(names) + 1), [*map(label, names), label(metric)], fontsize=11)
    axes.spines[:].set_visible(False)
    axes.set_title(f"{len(good)} settings by their mean {label(metric)}; the broad line is the best", fontsize=11)
    return _png(drawing)


def levels(results: Sequence[Standing], name: str) -> list[Any]:
    """Return the values that a parameter takes, in order."""
    values = {str(value): value for value in (result.setting.varied[name] for result in results)}
    return [values[text] for text in sorted(values, key=lambda text: _order(values[text]))]


def _order(value: Any) -> tuple[int, float, str]:
    return (0, value, "") if isinstance(value, int | float) else (1, 0, str(value))


def _upright(axes: Axes, place: int, heights: Sequence[float] | np.ndarray, texts: Sequence[str]) -> None:
    axes.axvline(place, color="0.6", linewidth=1, zorder=0)
    plate = {"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.8}
    for height, text in zip(heights, texts, strict=True):
        axes.text(place + 0.04, height, text, va="center", fontsize=10, bbox=plate)


def heatmap(ranked: Sequence[Standing], metric: str) -> bytes:
    """Draw the mean score over the two parameters that matter most, a square a pair of values."""
    good = [result for result in ranked if result.has_figures]
    down, *across = _by_influence(good)[:2]
    right = across[0] if across else ""
    rows, columns = levels(good, down), levels(good, right) if right else [""]
    means = _means(good, [down, *across])
    values = np.array(
        [[means.get((str(row), str(column))[: 1 + len(across)], np.nan) for column in columns] for row in rows]
    )
    colors, scale = _colors([value for value in values.flat if not np.isnan(value)], metric)
    drawing = Figure(
        figsize=(1.1 * min(len(columns), FEW) + 3.4, 0.7 * min(len(rows), FEW) + 1.8), layout="constrained"
    )
    axes = drawing.subplots()
    norm = Normalize(*scale)
    drawn = axes.imshow(values, cmap=colors, norm=norm, aspect="auto")
    if len(rows) <= FEW and len(columns) <= FEW:
        _label(axes, values, norm, colors, metric)
    axes.set_xticks(*_ticks(columns))
    axes.set_yticks(*_ticks(rows))
    axes.set(xlabel=label(right), ylabel=label(down))
    rest = [label(name) for name in good[0].setting.varied if name not in (down, right)]
    axes.set_title(label(metric) + (f", mean over {', '.join(rest)}" if rest else ""), fontsize=11)
    drawing.colorbar(drawn, format=lambda value, _: figure(value, metric))
    return _png(drawing)


def _ticks(values: Sequence[Any]) -> tuple[list[int], list[str]]:
    places = list(range(len(values)))[:: -(-len(values) // FEW)]
    return places, [cell(values[place]) for place in places]


def _by_influence(results: Sequence[Standing]) -> list[str]:
    """Return the parameters, the one first whose values differ most in their mean score."""

    def influence(name: str) -> float:
        means = _means(results, [name]).values()
        return max(means) - min(means)

    return sorted(results[0].setting.varied, key=lambda name: -influence(name))


def _means(results: Sequence[Standing], names: Sequence[str]) -> dict[tuple[str, ...], float]:
    """Return the mean score by the values of some parameters."""
    scores: dict[tuple[str, ...], list[float]] = {}
    for result in results:
        scores.setdefault(tuple(str(result.setting.varied[name]) for name in names), []).append(result.mean)
    return {values: statistics.fmean(each) for values, each in scores.items()}


def _label(axes: Axes, values: np.ndarray, norm: Normalize, colors: Colormap, metric: str) -> None:
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            light = np.dot(colors(norm(value))[:3], (0.299, 0.587, 0.114))
            color = "black" if light > 0.5 else "white"
            axes.text(column, row, figure(value, metric), ha="center", va="center", color=color)


def _colors(scores: Sequence[float], metric: str) -> tuple[Colormap, tuple[float, float]]:
    colors = colormaps[DARK_IS_BETTER if metric.endswith("loss") else f"{DARK_IS_BETTER}_r"]
    low, high = min(scores), max(scores)
    return colors, (low, high) if high > low else (low, low + 1e-6)


def _png(drawing: Figure) -> bytes:
    content = io.BytesIO()
    drawing.savefig(content, format="png", dpi=120, metadata={"Software": None})
    return content.getvalue()


def effects(race: Race) -> bytes:
    """Draw each parameter's main effect on the metric and on the epochs, with 95% intervals: a column a parameter."""
    found = effects_of.compared(race)
    explained, decided = effects_of.shares(found), effects_of.importance(found)
    names = list(found.varied[0])
    drawing = Figure(figsize=(2.8 * len(names) + 1, 5), layout="constrained")
    rows = drawing.subplots(2, len(names), squeeze=False, sharey="row")
    for name, (above, below) in zip(names, rows.T, strict=True):
        values = [each[name] for each in found.varied]
        for axes, figures in ((above, found.metric), (below, found.epochs)):
            effect = effects_of.main_effect(values, figures)
            half = np.where(np.isfinite(effect.half), effect.half, 0)
            axes.errorbar(range(len(effect.values)), effect.mean, half, fmt="o", capsize=4, color="C0")
            turned = max(map(len, effect.values)) > 8
            axes.set_xticks(range(len(effect.values)), effect.values, rotation=20 if turned else 0)
            axes.set_xticklabels(effect.values, ha="right" if turned else "center")
            axes.tick_params(labelbottom=axes is below)
            axes.margins(x=0.2)
            axes.grid(axis="y", color="0.9")
            axes.spines[["top", "right"]].set_visible(False)
        share = (
            f"{explained[name]:.0%} of the variance"
            if explained
            else f"importance {decided[name]:.0%}"
            if decided
            else ""
        )
        above.set_title(f"{label(name)}\n{share}".strip(), fontsize=11)
    rows[0, 0].set_ylabel(label(race.metric))
    rows[0, 0].yaxis.set_major_formatter(lambda value, _: figure(value, race.metric))
    rows[1, 0].set_ylabel("epochs")
    return _png(drawing)

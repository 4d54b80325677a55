"""What came of a sweep: its trials from best to worst by validation, as a table and as a command."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline import config
from pipeline.sweeps.trials import Trial, label

SHOWN = 20  # rows that a terminal and a run's note show; the file has them all
Row = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """What became of a trial: its summary (`trajectory.summary`) and its model, or the error that ended it."""

    trial: Trial
    summary: Mapping[str, float] = field(default_factory=dict)
    model_sha256: str = ""
    error: str = ""
    run_id: str = ""


def rank(results: Sequence[Result], monitor: str) -> list[Result]:
    """Return the results best first by ``best_<monitor>``: by the mean over seeds, then by their own; failures last.

    Equals: the one with fewer epochs, then the one that comes first in the grid.
    """
    sign = -1 if monitor == "val_accuracy" else 1
    alike = _by_setting(results)

    def place(result: Result) -> tuple[float, ...]:
        if result.error:
            return (1, result.trial.number)
        scores = [each.summary[f"best_{monitor}"] for each in alike[_setting(result)]]
        own = result.summary[f"best_{monitor}"]
        return (0, sign * statistics.fmean(scores), sign * own, result.summary["epochs_run"], result.trial.number)

    return sorted(results, key=place)


def _setting(result: Result) -> str:
    return json.dumps({name: value for name, value in result.trial.varied.items() if name != "seed"}, sort_keys=True)


def _by_setting(results: Sequence[Result]) -> dict[str, list[Result]]:
    alike: dict[str, list[Result]] = {}
    for result in results:
        if not result.error:
            alike.setdefault(_setting(result), []).append(result)
    return alike


def table(ranked: Sequence[Result], monitor: str) -> list[Row]:
    """Return one row a trial, best first; with mean and sd (n - 1) over the seeds where the grid varies them."""
    alike = _by_setting(ranked)
    return [
        {
            "rank": place,
            **result.trial.varied,
            **{name: result.summary.get(name, "") for name in FIGURES},
            **(_over_seeds(alike.get(_setting(result), []), monitor) if "seed" in result.trial.varied else {}),
            "model_sha256": result.model_sha256,
            "error": result.error,
        }
        for place, result in enumerate(ranked, 1)
    ]


FIGURES = ("best_val_loss", "best_val_accuracy", "best_epoch", "epochs_run", "stopped_early")


def _over_seeds(alike: Sequence[Result], monitor: str) -> Row:
    scores = [result.summary[f"best_{monitor}"] for result in alike]
    return {
        "seeds": len(scores),
        f"mean_{monitor}": round(statistics.fmean(scores), 6) if scores else "",
        f"sd_{monitor}": round(statistics.stdev(scores), 6) if len(scores) > 1 else "",
    }


def shown(rows: Sequence[Row]) -> str:
    """Return the best rows as a table for a terminal."""
    names = [name for name in rows[0] if name not in ("model_sha256", "stopped_early", "error")]
    lines = [[label(name.removeprefix("best_")) for name in names]]
    lines += [[_figure(name, row[name]) for name in names] + ["failed"] * bool(row["error"]) for row in rows[:SHOWN]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=False)]
    text = ["  ".join(map(str.rjust, line, [*widths, 6])).rstrip() for line in lines]
    return "\n".join([*text, *([f"... and {len(rows) - SHOWN} more"] if len(rows) > SHOWN else [])])


def _figure(name: str, value: object) -> str:
    return f"{value:.4f}" if name.startswith(("best_val", "mean_", "sd_")) and value != "" else cell(value)


def cell(value: object) -> str:
    """Return a value in at most four decimals, where that shows it."""
    return f"{value:.4f}".rstrip("0").rstrip(".") if isinstance(value, float) and abs(value) >= 1e-3 else str(value)


def command(best: Result) -> str:
    """Return the command that makes a trial the project's own as a DVC experiment."""
    return " ".join(
        ["dvc exp run", *(f"-S train.{name}={config.written(value)}" for name, value in settings(best).items())]
    )


def settings(best: Result) -> dict[str, Any]:
    """Return the parameters of ``train`` that make a trial: those that vary, and the threads that give its bits."""
    return {**best.trial.varied, "threads": best.trial.train.threads}

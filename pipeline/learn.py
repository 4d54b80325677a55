"""Learn: from the corrections to a challenger in one command, and what came of it in one line.

    python -m pipeline.learn [--share 0.05]

Trains from nothing, as `dvc repro` does, with the corrections that are learned from in the place of a share of the
digits; then the gate judges the model, and reads the other corrections with it and with the base.

Reads   data/corrections
Writes  params.yaml's train.corrections, and all that `dvc repro` and the gate write
Exits   as the gate; as `dvc repro` where that fails
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline import config, console, corrections, evidence, files, gate
from pipeline.console import UserError

SHARE = 0.05  # of an epoch's digits, as many as the non-digits; not measured


def main(arguments: Sequence[str]) -> int:
    """Train with the corrections, judge the model and say what has changed."""
    wanted = _arguments(arguments)
    params = config.load()
    check_corrections(params.data.classes)
    before, share = params.train.corrections, wanted.share or params.train.corrections or SHARE
    if share != before:
        text = config.replaced(files.PARAMS.read_text("utf-8"), {"train.corrections": share})
        config.check(config.Train, params.train.model_dump() | {"corrections": share}, "--share", "train.")
        files.write_text(files.PARAMS, text)
        print(f"params.yaml: train.corrections is {share:g}, was {before:g}", flush=True)
    status = subprocess.run([sys.executable, "-m", "dvc", "repro"], check=False).returncode
    if status:
        return status
    status = gate.main([])
    metrics = files.read_report(files.REPORTS / "metrics.json")
    found = files.read_report(gate.CORRECTIONS) if gate.CORRECTIONS.exists() else {}
    print(describe(found, metrics, accuracy_before()))
    return status


def _arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.learn",
        description="Learn from data/corrections, and judge what came of it.",
        epilog="example: python -m pipeline.learn --share 0.1",
    )
    words = f"of an epoch's digits; default train.corrections of params.yaml, or {SHARE} where that is 0"
    parser.add_argument("--share", type=float, default=0.0, help=words)
    return parser.parse_args(arguments)


def check_corrections(classes: Sequence[str]) -> None:
    """Raise ``UserError`` where there is nothing to learn from."""
    kept = corrections.load(files.CORRECTIONS, classes)
    if not kept:
        raise UserError(f"{files.CORRECTIONS}: expected pictures to learn from; `make demo` keeps them, at your word")
    if not corrections.split(kept).learned:
        words = "which halves pictures, and writers where they are named; keep more pictures, or by more writers"
        raise UserError(f"{files.CORRECTIONS}: all {len(kept)} pictures fall to the half that is measured, {words}")


def accuracy_before() -> float | None:
    """Return the test accuracy of the gate's base; None where there is none."""
    base = gate.attempt(lambda: evidence.of_revision(evidence.default_base()))
    return None if isinstance(base, evidence.IncomparableError) else base.metrics.get("test_accuracy")


def describe(found: Mapping[str, Any], metrics: Mapping[str, Any], before: float | None) -> str:
    """Return what has changed in one line, from the gate's figures, those of the model, and the base's accuracy."""
    if "right_before" in found:
        words = "{right_before} of {measured} right before, {right} now".format_map(found)
        words += f" {gate.interval(found)} points"
    elif found:
        words = "{right} of {measured} right now".format_map(found)
    else:
        words = "none to measure on yet"
    digits = f"test digits {metrics['test_accuracy']:.2%}" + (f", was {before:.2%}" if before is not None else "")
    return f"your corrections: {words}; {digits}"


if __name__ == "__main__":
    console.run(main, hint="Nothing is lost: the same command resumes after the last finished epoch.")

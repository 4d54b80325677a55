"""Summary: the last lines of `make`, with the metrics of the model and the next commands to try."""

from __future__ import annotations

import contextlib
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline import console, files, git

FACTS = {  # for each report, sentences in separate lines; the first one is printed whose figures the report has
    "data.json": "{train_images:,} training, {validation_images:,} validation and {test_images:,} test images",
    "train.json": "{parameters:,} parameters, {epochs_run:,} epochs, the best was epoch {best_epoch:,}",
    "metrics.json": "test accuracy {test_accuracy:.4f} (95%: {test_accuracy_low:.4f} to {test_accuracy_high:.4f}),"
    " loss {test_loss:.4f}",
    "photos.json": "{photo_accuracy:.1%} of {photos_scored:,} labelled pictures read right\n"
    "{photos_read:,} pictures read, none with a label in labels.csv",
}
PICTURES = {"digits.png": "the digits", "mistakes.png": "the mistakes", "contact_sheet.png": "the photographs"}
NEXT = {
    "make ui": "compare the runs",
    "make photo FILE=five.jpg": "read a picture of your own",
    "dvc exp run -S train.dropout=0.3": "try something else (`source .venv/bin/activate` first)",
    "make help": "what else there is",
}


def summarize(reports: Path) -> list[str]:
    """Return the summary's lines; reports that do not exist are left out."""
    made = {name: files.read_report(reports / name) for name in FACTS if (reports / name).exists()}
    facts = [fact for name, report in made.items() for fact in _first(FACTS[name].splitlines(), report)]
    seen = [f"{path} ({what})" for name, what in PICTURES.items() if (path := reports / name).exists()]
    return ["", *facts, *([f"See {', '.join(seen)}"] if seen else []), *_columns(NEXT)]


def _first(sentences: Sequence[str], figures: Mapping[str, Any]) -> list[str]:
    for sentence in sentences:
        with contextlib.suppress(KeyError, TypeError, ValueError):  # a figure is missing, or is not a number
            return [sentence.format_map(figures)]
    return []


def _columns(rows: Mapping[str, Any]) -> list[str]:
    width = max(map(len, rows))
    return [f"  {name:{width}}  {what}" for name, what in rows.items()]


def explain_difference() -> str:
    """Return a note if a stage made other files of the same code, parameters and data than HEAD's did; else "".

    The committed results are those of x86-64 with AVX2. Other kinds of processor add numbers in another order.
    """
    with contextlib.suppress(OSError, git.GitError, yaml.YAMLError, KeyError, TypeError, ValueError):
        lock, committed = Path("dvc.lock").read_text("utf-8"), git.run("show", "HEAD:./dvc.lock").stdout
        if lock == committed:
            return ""
        here, there = (yaml.safe_load(text)["stages"] for text in (lock, committed))
        stages = [name for name in here if name in there and _differ(here[name], there[name])]
        if not stages:
            return ""
        metrics = json.loads(git.run("show", "HEAD:./reports/metrics.json").stdout)
        found = files.read_report(files.REPORTS / "metrics.json")["test_accuracy"]
        low, high = metrics["test_accuracy_low"], metrics["test_accuracy_high"]
        within = "within" if low <= found <= high else "outside"
        return (
            f"note: this processor ({platform.machine()}) makes other bits than the committed ones, in "
            f"{' and '.join(stages)}: test accuracy {found:.4f}, {within} the committed interval ({low:.4f} to "
            f"{high:.4f}). `git checkout dvc.lock models reports` takes the committed files back, `git stash` keeps "
            "yours aside"
        )
    return ""


def _differ(here: Mapping[str, Any], there: Mapping[str, Any]) -> bool:
    """Tell whether two entries of dvc.lock name the same inputs, and a file that differs in its content."""
    if any(here.get(key) != there.get(key) for key in ("cmd", "deps", "params")):
        return False
    made = {out["path"]: out["md5"] for out in there["outs"]}
    return any(made.get(out["path"], out["md5"]) != out["md5"] for out in here["outs"])


def main(arguments: Sequence[str]) -> None:
    """Print the summary."""
    console.no_arguments(arguments)
    print("\n".join(summarize(files.REPORTS)))
    if note := explain_difference():
        print(note, file=sys.stderr)


if __name__ == "__main__":
    console.run(main)

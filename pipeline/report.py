"""Report: one page that says how the model in front of you is doing, and what it was made of.

    python -m pipeline.report

Reads   reports/, dvc.lock, params.yaml; what has not been made is left out
Writes  reports/index.html: one file that loads nothing, for light and dark, wide and narrow screens
        The page is kept with the model's MLflow run too. It names the commit, and so it is no output of a DVC stage.
"""

from __future__ import annotations

import base64
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup

from pipeline import charts, console, files, git
from pipeline.console import UserError

PAGE = files.REPORTS / "index.html"
UNLOGGED = "<!-- not yet kept with the model's run -->\n"  # makes the page another one, so that the next call keeps it
TEMPLATE = "report.html"
TABLES = ("history", "calibration", "predictions", "photos", "sweep")
PICTURES = ("mistakes", "contact_sheet", "sweep_effects", "sweep_parallel", "sweep_heatmap", "digits")
WORST, BEST = 24, 20  # mistakes and settings that are listed
UNSHOWN = ("error",)  # of a setting
PACKAGES = ("tensorflow", "keras", "ai-edge-litert", "numpy", "scipy", "opencv-python-headless", "mlflow", "dvc")
Row = Mapping[str, str]
SECTIONS = {  # anchor: its name, and what must be there for it
    "result": ("Result", "metrics"),
    "training": ("Training", "history"),
    "mistakes": ("Mistakes", "confusion"),
    "calibration": ("Calibration", "calibration"),
    "photographs": ("Photographs", "photos"),
    "sweep": ("Sweep", "sweep"),
    "gate": ("Gate", "gate"),
    "data": ("Data", "data"),
    "provenance": ("Provenance", ""),
}


def main(arguments: Sequence[str]) -> None:
    """Write the page, and keep it with the model's run when it says something new."""
    console.no_arguments(arguments)
    reports = files.REPORTS
    if not (reports / "metrics.json").exists():
        raise UserError(f"{reports / 'metrics.json'}: expected the reports on a model here; `dvc repro` makes them")
    page = render(reports, commit())
    if not PAGE.exists() or PAGE.read_text("utf-8") != page:
        from pipeline import tracking  # an unchanged page does not wait for MLflow

        files.write_text(PAGE, page + UNLOGGED)
        tracking.log_page(page, PAGE.name)
        files.write_text(PAGE, page)
    print(f"report: {PAGE}")


def render(reports: Path, commit: str) -> str:
    """Return the page on the reports in a folder; ``commit`` is a sentence on the code they come from."""
    jinja = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    facts = collect(reports) | {"commit": commit}
    facts["sections"] = [(anchor, name) for anchor, (name, needed) in SECTIONS.items() if not needed or facts[needed]]
    return jinja.get_template(TEMPLATE).render(facts)


def collect(reports: Path) -> dict[str, Any]:
    """Return all that the page shows, from the reports in a folder."""
    metrics, train, data, photos, made_of = (
        _json(reports / f"{name}.json") for name in ("metrics", "train", "data", "photos", "provenance")
    )
    rows = {
        name: _csv(reports / f"{name}.csv") for name in ("history", "calibration", "predictions", "photos", "sweep")
    }
    params = _params()
    about = {"name": "", "title": "", "classes": []} | params.get("data", {})
    return {
        "title": about["title"],
        "metrics": metrics,
        "facts": headline(metrics, train, photos),
        "interval": _interval(metrics, params.get("gate", {}).get("test_accuracy_low", 0.0)),
        "charts": _charts(rows["history"], rows["calibration"], int(train.get("best_epoch", 0))),
        "history": _table(rows["history"]),
        "calibration": [tuple(row.values()) for row in rows["calibration"]],
        "confusion": confusion(rows["predictions"], about["classes"]),
        "mistakes": mistakes(rows["predictions"]),
        "pictures": {name: _embedded(reports / f"{name}.png") for name in PICTURES},
        "photos": _photos(photos, rows["photos"]),
        "sweep": _sweep(rows["sweep"]),
        "gate": gate(_text(reports / "gate.md"), metrics.get("model_sha256", "")),
        "data": data_sentence(data, about["name"]),
        "digests": list(digests(metrics, made_of, files.ROOT / "dvc.lock")),
        "parameters": [(name, value) for name, value in _flat(params) if name.startswith(("preprocess.", "train."))],
        "versions": list(versions()),
    }


def headline(
    metrics: Mapping[str, Any], train: Mapping[str, Any], photos: Mapping[str, Any]
) -> list[tuple[str, str, str]]:
    """Return the figures at the top: name, value, and what has to be said with it."""
    found = []
    if metrics:
        interval = f"95%: {metrics['test_accuracy_low']:.2%} to {metrics['test_accuracy_high']:.2%}"
        found += [("test accuracy", f"{metrics['test_accuracy']:.2%}", interval)]
        found += [("test loss", f"{metrics['test_loss']:.4f}", "cross-entropy, before calibration")]
        found += [("calibration error", f"{metrics['calibration_error']:.4f}", "0 is honest")]
    if "photo_accuracy" in photos:
        interval = f"95%: {photos['photo_accuracy_low']:.1%} to {photos['photo_accuracy_high']:.1%}"
        found += [("photographs", f"{photos['photo_accuracy']:.1%}", interval)]
    if train:
        epochs = f"best of {train['epochs_run']} epochs" + (", then stopped early" if train["stopped_early"] else "")
        found += [
            ("validation accuracy", f"{train['best_val_accuracy']:.2%}", f"epoch {train['best_epoch']}, {epochs}")
        ]
        found += [("parameters", f"{train['parameters']:,}", "")]
    if "model_bytes" in metrics:
        work = f"{metrics['multiply_adds'] / 1e6:.1f} million multiply-adds an answer"
        found += [("size", f"{metrics['model_bytes'] / 1000:.0f} kB", work)]
    return found


def _interval(metrics: Mapping[str, Any], floor: float) -> Markup | None:
    if not metrics:
        return None
    value, low, high = (metrics[f"test_accuracy{end}"] for end in ("", "_low", "_high"))
    return charts.interval(f"Test accuracy {value:.4f}, 95% interval {low:.4f} to {high:.4f}", value, low, high, floor)


def _charts(history: Sequence[Row], calibration: Sequence[Row], best: int) -> dict[str, Any]:
    drawn = {}
    for name in ("loss", "accuracy") if history else ():
        series = {words: [float(row[key]) for row in history] for words, key in _pair(name).items()}
        drawn[name] = charts.curves(f"{name.capitalize()} by epoch", "epoch", name, series, best)
    points = [(float(row["probability"]), float(row["accuracy"]), int(row["images"])) for row in calibration]
    return drawn | {"reliability": charts.reliability("Share of right answers by their probability", points)}


def _pair(name: str) -> dict[str, str]:
    return {"training": name, "validation": f"val_{name}"}


def confusion(predictions: Sequence[Row], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return the confusion matrix as a row of cells a class, with recall and precision; a cell's shade is its share."""
    counts = [[0] * len(classes) for _ in classes]
    for row in predictions:
        counts[int(row["label"])][int(row["prediction"])] += 1
    worst = max(_share(row, read) for label, row in enumerate(counts) for read in range(len(row)) if read != label) or 1
    found = []
    for label, answers in enumerate(counts):
        cells = [
            {"count": count, "same": read == label, "shade": round(0.1 + 0.35 * _share(answers, read) / worst, 2)}
            for read, count in enumerate(answers)
        ]
        column = [each[label] for each in counts]
        shares = {"recall": _percent(answers, label), "precision": _percent(column, label)}
        found.append({"name": classes[label], "cells": cells, **shares})
    return found if predictions else []


def _share(counts: Sequence[int], place: int) -> float:
    return counts[place] / (sum(counts) or 1)


def _percent(counts: Sequence[int], place: int) -> str:
    return f"{_share(counts, place):.1%}" if sum(counts) else ""


def mistakes(predictions: Sequence[Row]) -> list[tuple[str, ...]]:
    """Return the wrong answers that were most sure: image, written, read, probability."""
    wrong = [row for row in predictions if row["label"] != row["prediction"]]
    wrong.sort(key=lambda row: -float(row["probability"]))
    return [(row["index"], row["label"], row["prediction"], row["probability"]) for row in wrong[:WORST]]


def gate(page: str, model: str) -> dict[str, Any]:
    """Return the gate's verdict, its sentence and its page as HTML; nothing where the page is of another model."""
    lines = [line for line in page.splitlines() if line]
    named = re.search(r"^Of .*?, model `(\w+)`", page, re.MULTILINE)
    if not lines or (named and not model.startswith(named[1])):
        return {}
    return {"verdict": lines[0].removeprefix("# Gate: "), "words": lines[1], "page": _html("\n".join(lines[2:]))}


def _html(markdown: str) -> Markup:
    """Return Markdown as HTML for a section: its headings a level down, its wide parts in reach of the keyboard."""
    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = reader.parse(markdown)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{int(token.tag[1]) + 1}"
    found = str(reader.renderer.render(tokens, reader.options, {}))
    for start, end in (("<table>", "</table>"), ("<pre>", "</pre>")):
        found = found.replace(start, f'<div class="wide" tabindex="0">{start}').replace(end, f"{end}</div>")
    return Markup(found)  # noqa: S704


def data_sentence(data: Mapping[str, Any], name: str) -> str:
    """Return how many images there are of each use."""
    if not data:
        return ""
    return (
        "{name}: {train_images:,} images to learn from, {validation_images:,} that decide when to stop and which epoch "
        "is kept, and {test_images:,} that nothing is chosen on."
    ).format(name=name, **data)


def _photos(report: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    if not report:
        return {}
    sentence = "{photos_read} pictures were read, {photos_unsure} of them unsurely.".format_map(report)
    if "photo_accuracy" in report:
        right = round(report["photo_accuracy"] * report["photos_scored"])
        sentence += f" {right} of the {report['photos_scored']} with a label were read right, every digit of them."
    return _table(rows) | {"sentence": sentence}


def _sweep(rows: Sequence[Row]) -> dict[str, Any]:
    shown = [{name: value for name, value in row.items() if name not in UNSHOWN} for row in rows[:BEST]]
    return _table(shown) | {"total": len(rows)} if rows else {}


def digests(metrics: Mapping[str, Any], made_of: Mapping[str, Any], lock: Path) -> Iterable[tuple[str, str]]:
    """Yield what the model was made of, and the model, by sha256."""
    if "model_sha256" in metrics:
        yield "model", metrics["model_sha256"]
        yield "test digits", metrics["test_sha256"]
    for name in ("data", "params", "code"):
        if f"{name}_sha256" in made_of:
            yield {"data": "training data", "params": "parameters"}.get(name, name), made_of[f"{name}_sha256"]
    if lock.exists():
        yield "dvc.lock", files.sha256(lock)


def versions() -> Iterable[tuple[str, str]]:
    """Yield the versions of what computes."""
    yield "python", platform.python_version()
    for name in PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue


def commit() -> str:
    """Return a sentence on the commit of the code, and whether there is more than the commit."""
    try:
        found = git.text("log", "-1", "--format=%H%n%s").splitlines() if git.last_commit() else []
    except git.NoRepositoryError:
        found = []
    if not found:
        return "Not in a git repository, or before its first commit."
    changed = git.text("status", "--porcelain", "--", ".", ":!reports", ":!dvc.lock")
    more = ", with changes that are not committed" if changed else ""
    return f"Commit {found[0][:12]}, “{''.join(found[1:])}”{more}."


def _params() -> dict[str, Any]:
    return yaml.safe_load(_text(files.PARAMS)) or {}


def _flat(values: Mapping[str, Any], above: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _table(rows: Sequence[Row]) -> dict[str, Any]:
    return {"columns": list(rows[0]), "rows": [list(row.values()) for row in rows]} if rows else {}


def _embedded(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}" if path.exists() else ""


def _json(path: Path) -> dict[str, Any]:
    return files.read_report(path) if path.exists() else {}


def _csv(path: Path) -> list[dict[str, str]]:
    return files.read_table(path) if path.exists() else []


def _text(path: Path) -> str:
    return path.read_text("utf-8") if path.exists() else ""


if __name__ == "__main__":
    console.run(main)

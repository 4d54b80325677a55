"""Report: one page with the metrics of the model in models/, its curves, mistakes and origin.

    python -m pipeline.report

Reads   reports/, dvc.lock, params.yaml; a section whose report does not exist is left out
Writes  reports/index.html: one file that loads nothing, for light and dark, wide and narrow screens
        The page is also logged to the model's MLflow run. It names the commit, and so it is no output of a DVC stage.
"""

from __future__ import annotations

import base64
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markupsafe import Markup

from pipeline import charts, config, console, files, git, provenance
from pipeline.console import UserError

PAGE = files.REPORTS / "index.html"
UNLOGGED = "<!-- not yet logged to the model's run -->\n"  # at the end of a page that the next call has to log
TEMPLATE = "report.html"
NEEDED = {  # keys that the page shows of a report, where there is one: those with a text, and those with a number
    "metrics": (
        ("model_sha256", "test_sha256"),
        (
            *("test_accuracy", "test_accuracy_low", "test_accuracy_high", "test_images", "test_loss"),
            *("calibration_error", "model_bytes", "multiply_adds"),
        ),
    ),
    "train": ((), ("best_epoch", "best_val_accuracy", "epochs_run", "parameters")),
    "data": ((), ("train_images", "validation_images", "test_images")),
    "photos": ((), ("photos_read", "photos_unsure")),
    "provenance": (("code_sha256", "data_sha256", "params_sha256"), ()),
    "corrections": (("model_sha256",), ("measured", "right")),
}
LABELLED = ("photo_accuracy", "photo_accuracy_low", "photo_accuracy_high", "photos_scored")  # where labels are known
TABLES = {  # columns that must be numbers
    "history": ("loss", "accuracy", "val_loss", "val_accuracy"),
    "calibration": ("probability", "accuracy", "images"),
    "predictions": ("index", "label", "prediction", "probability"),
    "photos": (),
    "sweep": (),
}
PICTURES = ("mistakes", "contact_sheet", "sweep_effects", "sweep_parallel", "sweep_heatmap", "digits")
WORST, BEST = 24, 20  # mistakes and settings that are listed
HIDDEN_COLUMNS = ("error",)  # of a setting
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
    """Write the page, and log it to the model's run if it has changed."""
    console.no_arguments(arguments)
    reports = files.REPORTS
    if not (reports / "metrics.json").exists():
        raise UserError(f"{reports / 'metrics.json'}: expected the reports on a model here; `dvc repro` makes them")
    page = render(reports, commit())
    if _text(PAGE) != page:
        from pipeline import tracking  # imported here, since importing MLflow takes seconds

        files.write_text(PAGE, page + UNLOGGED)
        if tracking.log_page(page, PAGE.name):
            files.write_text(PAGE, page)
    print(f"report: {PAGE}")


def render(reports: Path, commit: str) -> str:
    """Return the page on the reports in a folder; ``commit`` is a sentence on the code they come from."""
    facts = collect(reports) | {"commit": commit}
    facts["sections"] = [(anchor, name) for anchor, (name, needed) in SECTIONS.items() if not needed or facts[needed]]
    return charts.page(TEMPLATE, **facts)


def collect(reports: Path) -> dict[str, Any]:
    """Return all that the page shows, from the reports in a folder."""
    metrics, train, data, photos, made_of, corrections = (_json(reports, name) for name in NEEDED)
    rows = {name: _csv(reports, name) for name in TABLES}
    params = _params()
    about = {"name": "", "title": "", "classes": []} | params.get("data", {})
    return {
        "title": about["title"],
        "metrics": metrics,
        "facts": [*headline(metrics, train, photos), *corrected(corrections, metrics.get("model_sha256", ""))],
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
    """Return the figures at the top of the page: name, value, and a remark."""
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
        epochs = f"best of {train['epochs_run']} epochs" + (
            ", then stopped early" if train.get("stopped_early") else ""
        )
        found += [
            ("validation accuracy", f"{train['best_val_accuracy']:.2%}", f"epoch {train['best_epoch']}, {epochs}")
        ]
        found += [("parameters", f"{train['parameters']:,}", "")]
    if metrics:
        work = f"{metrics['multiply_adds'] / 1e6:.1f} million multiply-adds an answer"
        found += [("size", f"{metrics['model_bytes'] / 1000:.0f} kB", work)]
    return found


def corrected(found: Mapping[str, Any], model: str) -> list[tuple[str, str, str]]:
    """Return what the gate found of the corrections that nothing learns from; nothing if that is of another model."""
    if found.get("model_sha256") != model or not found:
        return []
    before = f", {found['right_before']} with the base" if "right_before" in found else ""
    return [("corrections", f"{found['right']} of {found['measured']}", f"read right, not learned from{before}")]


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
    points = [(float(row["probability"]), float(row["accuracy"]), int(float(row["images"]))) for row in calibration]
    return drawn | {"reliability": charts.reliability("Share of right answers by their probability", points)}


def _pair(name: str) -> dict[str, str]:
    return {"training": name, "validation": f"val_{name}"}


def confusion(predictions: Sequence[Row], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return the confusion matrix as a row of cells a class, with recall and precision; a cell's shade is its share."""
    counts = [[0] * len(classes) for _ in classes]
    for row in predictions:
        pair = [int(float(row[name])) for name in ("label", "prediction")]
        if not all(0 <= each < len(classes) for each in pair):
            path = files.REPORTS / "predictions.csv"
            raise files.UnreadableError(path, f"expected labels 0 to {len(classes) - 1}, found {max(pair)}")
        counts[pair[0]][pair[1]] += 1
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
    """Return the mistakes with the highest probability: index of the image, label, prediction, probability."""
    wrong = [row for row in predictions if row["label"] != row["prediction"]]
    wrong.sort(key=lambda row: -float(row["probability"]))
    return [(row["index"], row["label"], row["prediction"], row["probability"]) for row in wrong[:WORST]]


def gate(page: str, model: str) -> dict[str, Any]:
    """Return the gate's verdict, its sentence and its page as HTML; {} if the page is of another model, or no page."""
    lines = [line for line in page.splitlines() if line]
    named = re.search(r"^Of .*?, model `(\w+)`", page, re.MULTILINE)
    whole = len(lines) > 1 and lines[0].startswith("# Gate: ")
    if not whole or (named and not model.startswith(named[1])):
        return {}
    return {"verdict": lines[0].removeprefix("# Gate: "), "words": lines[1], "page": _html("\n".join(lines[2:]))}


def _html(markdown: str) -> Markup:
    """Return Markdown as HTML: headings one level lower, tables and code blocks that the keyboard can scroll."""
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
    """Return a sentence with the number of training, validation and test images."""
    if not data:
        return ""
    return (
        "{name}: {train_images:,} training images, {validation_images:,} validation images, which decide when to stop "
        "and which epoch is kept, and {test_images:,} test images, on which nothing is chosen."
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
    shown = [{name: value for name, value in row.items() if name not in HIDDEN_COLUMNS} for row in rows[:BEST]]
    return _table(shown) | {"total": len(rows)} if rows else {}


def digests(metrics: Mapping[str, Any], made_of: Mapping[str, Any], lock: Path) -> Iterable[tuple[str, str]]:
    """Yield the name and the sha256 of the model and of all that it was made of."""
    if metrics:
        yield "model", metrics["model_sha256"]
        yield "test digits", metrics["test_sha256"]
    for name in ("data", "params", "code"):
        if made_of:
            yield {"data": "training data", "params": "parameters"}.get(name, name), made_of[f"{name}_sha256"]
    if lock.exists():
        yield "dvc.lock", files.sha256(lock)


def versions() -> Iterable[tuple[str, str]]:
    """Yield the versions of Python and of the packages that results depend on."""
    yield "python", platform.python_version()
    for name in PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue


def commit() -> str:
    """Return a sentence that names the commit of the code, and says whether there are uncommitted changes."""
    try:
        found = git.text("log", "-1", "--format=%H%n%s").splitlines() if git.last_commit() else []
    except git.NoRepositoryError:
        found = []
    if not found:
        return "Not in a git repository, or before its first commit."
    changed = git.text("status", "--porcelain", "--", ".", *provenance.OUTPUTS)
    more = ", with changes that are not committed" if changed else ""
    return f"Commit {found[0][:12]}, “{''.join(found[1:])}”{more}."


def _params() -> dict[str, Any]:
    return config.load().model_dump() if files.PARAMS.exists() else {}


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


def _json(reports: Path, name: str) -> dict[str, Any]:
    path, (texts, numbers) = reports / f"{name}.json", NEEDED[name]
    if not path.exists():
        return {}
    found = files.read_report(path, *texts, numbers=numbers)
    if LABELLED[0] in found:
        files.read_report(path, numbers=LABELLED)
    return found


def _csv(reports: Path, name: str) -> list[dict[str, str]]:
    path = reports / f"{name}.csv"
    return files.read_table(path, *TABLES[name]) if path.exists() else []


def _text(path: Path) -> str:
    return path.read_text("utf-8", "replace") if path.exists() else ""


if __name__ == "__main__":
    console.run(main)

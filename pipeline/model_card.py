"""What is known of a model: a card in Markdown for the page of its MLflow run, and a line for who asks it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pipeline import files, git
from pipeline.console import UserError


def card(params: Mapping[str, str], metrics: Mapping[str, float], tags: Mapping[str, str]) -> str:
    """Return the model card of a run from its parameters, metrics and tags; what they lack is left out."""
    settings = ", ".join(f"{name[6:]} {params[name]}" for name in sorted(params) if name in NAMED)
    digests = [f"{words} `{tags[tag][:12]}`" for tag, words in DIGESTS.items() if tags.get(tag)]
    made = f"Trained with {settings}; {', '.join(digests)}."
    lines = [
        f"# {tags.get('data.title', '')}, 28 x 28",
        f"A convolutional network of {metrics.get('parameters', 0):,.0f} parameters. Its answers for an image:",
        f"{tags.get('data.classes', '')}.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {words} | {form.format(metrics[name])} |" for name, words, form in CARD if name in metrics),
        "",
        made,
        "",
        f"Intended use: {tags.get('data.intended_use', '')}",
    ]
    if "report.page" in tags:
        lines += ["", f"[The report: curves, mistakes, photographs, provenance]({tags['report.page']})"]
    return "\n".join(lines)


CARD = (
    ("test_accuracy", "accuracy on the test images", "{:.4f}"),
    ("test_accuracy_low", "its 95% interval from", "{:.4f}"),
    ("test_accuracy_high", "to", "{:.4f}"),
    ("test_loss", "loss on the test images", "{:.4f}"),
    ("calibration_error", "calibration error", "{:.4f}"),
    ("photo_accuracy", "accuracy on the sample photographs", "{:.3f}"),
    ("best_val_accuracy", "accuracy on the validation images", "{:.4f}"),
    ("best_epoch", "best epoch", "{:.0f}"),
    ("epochs_run", "epochs", "{:.0f}"),
)


DIGESTS = {"data.sha256": "data", "model.sha256": "model", "git.commit": "commit"}  # without git there is no commit
NAMED = {f"train.{name}" for name in ("batch_size", "dropout", "patience", "epochs", "learning_rate", "seed")}


KEPT = {"network_sha256": files.MODELS / "digits.tflite", "calibration_sha256": files.MODELS / "calibration.json"}
MADE, METRICS = files.REPORTS / "provenance.json", files.REPORTS / "metrics.json"


def line() -> str:
    """Return which model is in models/ in one line: its digest, accuracy and commit; or which files do not agree."""
    try:
        made, metrics = files.read_report(MADE, "model_sha256", *KEPT), files.read_report(METRICS, "model_sha256")
        strays = list(_strays(made, metrics))
    except FileNotFoundError as error:
        return f"model: unknown, there is no {error.filename}; `dvc repro` makes it"
    except UserError as error:
        return f"model: unknown, {error}"
    if strays:
        return f"model: unknown, {' and '.join(strays)}: not of the training in {MADE}; `dvc repro` makes them agree"
    accuracy = metrics.get("test_accuracy", "unknown")
    return f"model {made['model_sha256'][:12]}, test accuracy {accuracy}, {_commit()}"


def _strays(made: Mapping[str, str], metrics: Mapping[str, str]) -> Iterator[str]:
    yield from (str(path) for name, path in KEPT.items() if files.sha256(path) != made[name])
    if metrics["model_sha256"] != made["model_sha256"]:
        yield str(METRICS)


def _commit() -> str:
    """Return the last commit that changed the model, or why there is none, in words."""
    paths = "--", str(files.MODELS), str(MADE)
    try:
        found = not git.text("status", "--porcelain", *paths) and git.text("log", "-1", "--format=%H", *paths)
    except git.GitError as error:
        return f"commit unknown ({error})"
    return f"commit {found[:12]}" if found else "not committed"

"""The model card, in Markdown: metrics, origin and intended use of a model, for the page of its MLflow run."""

from __future__ import annotations

from collections.abc import Mapping


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

"""The model card, in Markdown: what is known of a model, for the page of its MLflow run."""

from __future__ import annotations

from collections.abc import Mapping


def card(params: Mapping[str, str], metrics: Mapping[str, float], tags: Mapping[str, str]) -> str:
    """Return the model card, in Markdown."""
    made = (
        f"Trained with {', '.join(f'{name[6:]} {params[name]}' for name in sorted(params) if name in NAMED)}; "
        f"data `{tags.get('data.sha256', '')[:12]}`, model `{tags.get('model.sha256', '')[:12]}`, "
        f"commit `{tags.get('git.commit', '')[:12]}`."
    )
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


NAMED = {f"train.{name}" for name in ("batch_size", "dropout", "patience", "epochs", "learning_rate", "seed")}

"""Train every recipe of benchmarks/recipes.yaml with several seeds: what each step buys, and how sure that is.

    python -m benchmarks.recipes [--seeds 5] [--recipe ours] [--workers 2]
    dvc exp run $(python -m benchmarks.recipes --options article)

Every training has one thread and as many run at once as there are workers. The epoch is chosen on the validation
digits; the test digits are read once, at the end, to report. Trained epochs are kept in .checkpoints/, so that a study
that was stopped resumes. Writes benchmarks/recipes.csv, a training a row, and prints its means as a table. The second
form trains a recipe as the project's own model.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pipeline import config, console, evidence, files
from pipeline.config import Train
from pipeline.console import UserError
from pipeline.learning import model, trajectory
from pipeline.learning.classifier import Calibration, Classifier
from pipeline.learning.trajectory import Epoch

RECIPES, REPORT = Path("benchmarks/recipes.yaml"), Path("benchmarks/recipes.csv")
COLUMNS = ("recipe", "seed", "epochs_run", "best_epoch", "val_accuracy", "test_accuracy", "test_loss", "cpu_minutes")


def main(arguments: Sequence[str]) -> None:
    """Run the study and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recipes", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--recipe", action="append", help="only this one (may be given several times)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--options", metavar="RECIPE", help="print what `dvc exp run` is to be told, and train nothing")
    given = parser.parse_args(arguments)
    recipes = ladder()
    wanted = [given.options] if given.options else given.recipe or list(recipes)
    if unknown := set(wanted) - set(recipes):
        raise UserError(f"{', '.join(sorted(unknown))}: expected one of {', '.join(recipes)}")
    if given.options:
        print(" ".join(options(recipes[given.options])))
        return
    work = [(name, seed, recipes[name]) for seed in range(1, given.seeds + 1) for name in wanted]
    rows = [row for row in kept_rows() if row["recipe"] not in wanted]
    with (
        console.progress(len(work), "study", "training") as bar,
        multiprocessing.get_context("spawn").Pool(given.workers, maxtasksperchild=1) as pool,
    ):
        for row in pool.imap_unordered(study, work):
            rows.append(row)
            bar.update()
            order = list(recipes)
            rows.sort(key=lambda each: (order.index(each["recipe"]), int(each["seed"])))
            files.write_csv(REPORT, rows, COLUMNS)
    print("\n".join(table(rows)))


def ladder() -> dict[str, Train]:
    """Return the recipes by name, each with the changes of those above it; an empty one is params.yaml's own."""
    own = config.load().train
    changes: dict[str, Any] = {}
    recipes = {}
    for name, change in yaml.safe_load(RECIPES.read_text("utf-8")).items():
        changes = changes | change if change else {}
        recipes[name] = changed(own, changes)
    return recipes


def changed(train: Train, changes: dict[str, Any]) -> Train:
    """Return ``train`` with values by their dotted names."""
    content = train.model_dump()
    for name, value in changes.items():
        section = content["augment"] if name.startswith("augment.") else content
        section[name.removeprefix("augment.")] = value
    return config.check(Train, content, str(RECIPES), "train.")


def options(recipe: Train) -> list[str]:
    """Return what makes params.yaml's parameters this recipe's, as `dvc exp run` takes it."""
    own, other = (evidence.flat(train.model_dump()) for train in (config.load().train, recipe))
    return [f"-S train.{name}={value}" for name, value in other.items() if value != own[name]]


def kept_rows() -> list[dict[str, Any]]:
    """Return the rows of earlier studies."""
    return list(files.read_csv(REPORT)) if REPORT.exists() else []


def study(work: tuple[str, int, Train]) -> dict[str, Any]:
    """Train one recipe with one seed and return its row."""
    name, seed, recipe = work
    epochs, best, minutes, content = trained(recipe, seed)
    test_accuracy, test_loss = tested(content)
    return {
        "recipe": name,
        "seed": seed,
        "epochs_run": epochs,
        "best_epoch": best.number,
        "val_accuracy": round(best.metrics["val_accuracy"], 5),
        "test_accuracy": round(test_accuracy, 4),
        "test_loss": round(test_loss, 4),
        "cpu_minutes": round(minutes, 1),
    }


def trained(recipe: Train, seed: int) -> tuple[int, Epoch, float, dict[str, bytes]]:
    """Return how many epochs a recipe trains, the best one, the CPU minutes and the model's files by name.

    An epoch on disk costs what it did when it was trained.
    """
    train = recipe.model_copy(update={"seed": seed, "threads": 1})
    digits = trajectory.load_digits(files.PREPARED)
    kept = trajectory.open_checkpoints(train, digits.sha256, config.load().checkpoints)
    costs = kept.folder / "cpu_seconds.json"
    spent: dict[str, float] = files.read_json(costs) if costs.exists() else {}
    epochs, start = [], time.process_time()
    for epoch in trajectory.load_or_train(digits, train, kept):
        epochs.append(epoch)
        spent.setdefault(str(epoch.number), round(time.process_time() - start, 1))
        files.write_json(costs, spent)
        start = time.process_time()
        if trajectory.is_finished([each.metrics for each in epochs], train):
            break
    best = epochs[trajectory.best_epoch([each.metrics for each in epochs], train.monitor) - 1]
    minutes = sum(spent[str(epoch.number)] for epoch in epochs) / 60
    return len(epochs), best, minutes, model.package(best, train, digits)


def tested(content: dict[str, bytes]) -> tuple[float, float]:
    """Return accuracy and loss on the test digits."""
    images, labels = (np.load(files.PREPARED / f"test-{kind}.npy") for kind in ("images", "labels"))
    answers = Classifier(content[model.NETWORK], Calibration(temperature=1, certain=0, possible=0)).raw(images)
    right = answers[np.arange(len(labels)), labels]
    return float((answers.argmax(1) == labels).mean()), float(-np.log(np.maximum(right, 1e-30)).mean())


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the lines of a Markdown table: a recipe a row, mean and standard deviation over its seeds."""
    lines = [
        "| recipe | n | test accuracy | validation accuracy | epochs | CPU minutes |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in dict.fromkeys(row["recipe"] for row in rows):
        group = [row for row in rows if row["recipe"] == name]
        test, validation, epochs, minutes = (
            [float(row[column]) for row in group]
            for column in ("test_accuracy", "val_accuracy", "epochs_run", "cpu_minutes")
        )
        lines.append(
            f"| {name} | {len(group)} | {spread(test)} | {spread(validation)} "
            f"| {statistics.mean(epochs):.1f} | {statistics.median(minutes):.1f} |"
        )
    return lines


def spread(shares: Sequence[float]) -> str:
    """Return mean and standard deviation in percent."""
    deviation = statistics.stdev(shares) if len(shares) > 1 else math.nan
    return f"{100 * statistics.mean(shares):.3f} ± {100 * deviation:.3f}"


if __name__ == "__main__":
    console.run(main)

"""Time from the start of the process to a model that reads 99.22% of the test digits, the article's claim.

    python -m benchmarks.race [--rounds 3] [--epochs 12] [--autolog]

The article's script and a recipe of ours take turns, each a cold process with two threads. Ours is asked after every
epoch and stops the clock while it answers; the article's script answers once, after its last epoch. The test digits
choose nothing here: they say when to look at the clock.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence

import numpy as np

from benchmarks import recipes
from benchmarks.article import alive
from pipeline import console, files
from pipeline.learning import trajectory

GOAL = 0.9922
OURS = "six epochs"
Finish = tuple[float, float]  # seconds, test accuracy


def main(arguments: Sequence[str]) -> None:
    """Print the table; with ``--recipe``, run one recipe and print a line an epoch."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.race", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12, help="of the article's script")
    parser.add_argument("--autolog", action="store_true", help="let the script with MLflow's autologging race too")
    parser.add_argument("--recipe", help="train this recipe alone")
    given = parser.parse_args(arguments)
    if given.recipe:
        train_until_goal(given.recipe)
        return
    article = ["benchmarks.article", "--epochs", str(given.epochs)]
    found: dict[str, list[Finish]] = {}
    for _ in range(given.rounds):
        with tempfile.TemporaryDirectory() as store:
            racers = {
                "the article's script, Keras 3": article,
                f"ours: {OURS}, until it is there": ["benchmarks.race", "--recipe", OURS],
            }
            if given.autolog:
                racers["the article's script with `mlflow.keras.autolog()`"] = [*article, "--autolog", store]
            for name, command in racers.items():
                found.setdefault(name, []).append(finish(command))
    print("\n".join(table(found)))


def train_until_goal(name: str) -> None:
    """Train a recipe until it reaches the goal, and print seconds and test accuracy after every epoch."""
    idle = 0.0
    recipe = recipes.ladder()[name].model_copy(update={"threads": 2})
    digits = trajectory.load_digits(files.PREPARED)
    for epoch in trajectory.train_epochs(digits, recipe):
        reached = alive()
        accuracy = accuracy_of(recipe.network, epoch.weights)
        print(f"epoch {epoch.number}: test accuracy {accuracy:.4f}, {reached - idle:.1f} s", flush=True)
        idle += alive() - reached
        if accuracy >= GOAL:
            return


def accuracy_of(name: str, weights: list[np.ndarray]) -> float:
    """Return the share of the test digits that a network with these weights reads right."""
    from pipeline.learning import network

    images, labels = (np.load(files.PREPARED / f"test-{kind}.npy") for kind in ("images", "labels"))
    reader = network.build(name)
    reader.set_weights(weights)
    return float(np.mean(reader.predict(images[..., None], batch_size=500, verbose=0).argmax(1) == labels))


def finish(command: Sequence[str]) -> Finish:
    """Run a racer and return the seconds and the accuracy of the last line that it prints."""
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, check=False)
    found = re.findall(r"test accuracy ([\d.]+),.*? ([\d.]+) s$", done.stdout, re.MULTILINE)
    if done.returncode or not found:
        raise console.UserError(f"{' '.join(command)} failed: {done.stderr[-500:]}", status=1)
    return float(found[-1][1]), float(found[-1][0])


def table(found: dict[str, list[Finish]]) -> list[str]:
    """Return the lines of a Markdown table of medians, each beside the first."""
    first = statistics.median(seconds for seconds, _ in next(iter(found.values())))
    lines = ["| | n | test accuracy | wall s | ratio |", "| --- | ---: | ---: | ---: | ---: |"]
    for name, finishes in found.items():
        seconds, accuracy = (statistics.median(each) for each in zip(*finishes, strict=True))
        lines.append(f"| {name} | {len(finishes)} | {accuracy:.4f} | {seconds:.0f} | {seconds / first:.2f} |")
    return lines


if __name__ == "__main__":
    console.run(main)

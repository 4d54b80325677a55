"""Time the workflow from outside, as a person waits for it: every stage, `dvc repro`, and reading photographs.

    python -m benchmarks.workflow [--rounds 3] [--train 48000]

Works in a temporary copy of the working tree. The training loop runs once a round; in all other rows its
checkpoints stand in for it, so that what is timed is everything around the loop. Each row is a cold process and its
children: medians of wall seconds and CPU seconds, and the peak memory of the largest process.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from pipeline import config, console, files
from pipeline.learning import trajectory
from pipeline.store import open_store

STAGES = ("fetch", "preprocess", "train", "evaluate", "predict_photo")
EPOCHS = 50  # a store's writes that the tracking is timed over


@dataclass(frozen=True)
class Cost:
    """What one process and its children took: seconds of wall and of CPU, megabytes at the peak of the largest."""

    wall: float
    cpu: float
    megabytes: float


def main(arguments: Sequence[str]) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.workflow", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--train", type=int, default=48000, help="digits to learn from (fewer for a quick look)")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        root = copy_tree(Path(folder, "project"), given.train)
        print("\n".join(table(measure(root, given.rounds))))


def copy_tree(root: Path, train: int) -> Path:
    """Copy what git has or would add, and the raw data that is there, into a git repository of its own."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], capture_output=True, check=True
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if Path(name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(name, root / name)
    (root / "dvc.lock").unlink(missing_ok=True)
    params = (root / "params.yaml").read_text("utf-8")
    (root / "params.yaml").write_text(params.replace("train: 48000", f"train: {train}", 1), "utf-8")
    for words in ("init -q", "add -A", "-c user.name=b -c user.email=b@b commit -qm b"):
        subprocess.run(["git", *words.split()], cwd=root, check=True)
    return root


def measure(root: Path, rounds: int) -> dict[str, list[Cost]]:
    """Return the costs of every row, one a round."""
    dvc, python = [sys.executable, "-m", "dvc"], [sys.executable, "-m"]
    learnt = [from_nothing(root, *dvc, "repro") for _ in range(rounds)]
    history = len(files.read_csv(root / "reports/history.csv"))
    pictures = sorted(path for path in (root / "data/photos").iterdir() if path.suffix in (".jpg", ".png"))
    picture = pictures[0]
    hundred = root / "hundred"
    hundred.mkdir()
    for number in range(100):
        each = pictures[number % len(pictures)]
        shutil.copy2(each, hundred / f"{number:03d}{each.suffix}")
    large = root / "large.jpg"
    with Image.open(picture) as image:
        image.convert("RGB").resize((4000, 3000), Image.Resampling.BICUBIC).save(large, quality=90)
    rows: dict[str, Callable[[], Cost]] = {
        f"`dvc repro`, empty cache, {history} epochs on disk": lambda: afresh(root, *dvc, "repro"),
        "`dvc repro`, nothing to do": lambda: run(root, *dvc, "repro"),
        **{f"stage {stage}": partial(run, root, *python, f"pipeline.{stage}") for stage in STAGES},
        "predict-photo, one picture": lambda: run(root, *python, "pipeline.predict_photo", str(picture)),
        "predict-photo, one of 12 megapixels": lambda: run(root, *python, "pipeline.predict_photo", str(large)),
        "predict-photo, a hundred": lambda: run(root, *python, "pipeline.predict_photo", str(hundred)),
    }
    costs: dict[str, list[Cost]] = {"`dvc repro`, empty cache, the training too": learnt}
    for _ in range(rounds):
        for name, row in rows.items():
            costs.setdefault(name, []).append(row())
    costs["tracking, an epoch"] = tracking_costs(root, rounds)
    return costs


def from_nothing(root: Path, *command: str) -> Cost:
    """Time a command after everything is gone, the trained epochs too; the runs stay."""
    shutil.rmtree(root / ".checkpoints", ignore_errors=True)
    return afresh(root, *command)


def afresh(root: Path, *command: str) -> Cost:
    """Time a command after all outputs and DVC's cache are gone; the trained epochs and the runs stay."""
    for name in ("data/raw", "data/prepared", "models", "reports", ".dvc/cache", ".dvc/tmp"):
        shutil.rmtree(root / name, ignore_errors=True)
    (root / "dvc.lock").unlink(missing_ok=True)
    return run(root, *command)


def run(root: Path, *command: str) -> Cost:
    """Run a command in ``root`` and return its cost; raise ``UserError`` with what it said when it fails."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_"))}
    kept["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
    with tempfile.TemporaryFile() as said:
        start = time.perf_counter()
        child = subprocess.Popen(command, cwd=root, env=kept | {"DVC_NO_ANALYTICS": "1"}, stdout=said, stderr=said)
        _, status, used = os.wait4(child.pid, 0)
        wall = time.perf_counter() - start
        if status:
            said.seek(0)
            raise console.UserError(f"{' '.join(command)} failed: {said.read().decode()[-500:]}")
    return Cost(wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def tracking_costs(root: Path, rounds: int) -> list[Cost]:
    """Time what one epoch of training says to the store, in this process."""
    from pipeline import tracking

    os.environ["DVC_ROOT"] = str(root)
    store, params = open_store(), config.load()
    costs = []
    with tracking.training(store, params, "benchmark") as told:
        for round_ in range(rounds):
            wall, cpu = time.perf_counter(), time.process_time()
            for number in range(EPOCHS):
                told.log_epoch(round_ * EPOCHS + number, dict.fromkeys(METRICS, 0.5))
            costs.append(Cost((time.perf_counter() - wall) / EPOCHS, (time.process_time() - cpu) / EPOCHS, 0))
    return costs


METRICS = ("loss", "accuracy", "val_loss", "val_accuracy")


def table(costs: dict[str, list[Cost]]) -> list[str]:
    """Return the lines of a Markdown table of medians."""
    lines = ["| | n | wall s | CPU s | peak MB |", "| --- | ---: | ---: | ---: | ---: |"]
    for name, each in costs.items():
        wall, cpu, peak = (statistics.median(getattr(cost, part) for cost in each) for part in Cost.__annotations__)
        lines.append(f"| {name} | {len(each)} | {wall:.3g} | {cpu:.3g} | {peak:.0f} |")
    return [*lines, "", f"Processor: {' '.join(trajectory.processor())}, {os.cpu_count()} cores."]


if __name__ == "__main__":
    console.run(main)

"""Time sweeps: against runs of `train` in a row, with more workers, and what the driver adds to an epoch and a trial.

    python -m benchmarks.sweep [--rounds 3] [--quick]

Works in temporary folders, on a part of MNIST (data/raw where it is there). The last rows train trajectories of a
millisecond, so that what is timed is everything around the training: Ray, the disk, MLflow. Then the means of
benchmarks/racing.csv: what is known after such a sweep.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pipeline import config, console, files, sweep
from pipeline.config import Params, Train
from pipeline.learning import model, trajectory
from pipeline.learning.trajectory import Digits, Epoch
from pipeline.sweeps import cluster, trials
from pipeline.sweeps.trials import Message, Setting, Trial

DIGITS = {"train": 4000, "validation": 1000, "test": 100}
GRID: dict[str, list[Any]] = {"batch_size": [64, 128, 256], "dropout": [0.05, 0.2, 0.4], "patience": [1, 3, 5]}
Row = tuple[str, float, str, str]  # what, how much, in which unit, the aim


def main(arguments: Sequence[str]) -> None:
    """Print the table: medians of rounds, each in a project of its own."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round of what the driver adds, and of 30 trials")
    given = parser.parse_args(arguments)
    rounds = [measure(given.quick) for _ in range(1 if given.quick else given.rounds)]
    print("| | n | measured | aim |\n| --- | ---: | ---: | ---: |")
    for same in zip(*rounds, strict=True):
        name, _, unit, aim = same[0]
        print(f"| {name} | {len(same)} | {statistics.median(row[1] for row in same):.3g} {unit} | {aim} |")
    print("", *simulated(), sep="\n")


def simulated() -> list[str]:
    """Return the lines of a table: how well each method names, and for what share of the epochs, by simulation."""
    differences = ("0.03", "0.05", "0.1", "0.2")
    rows: dict[str, list[str]] = {}
    for row in files.read_csv(files.ROOT / "benchmarks" / "racing.csv"):
        if row["question"] == "named" and row["noise"] == "equal":
            epochs = f"{float(row['epochs_of_ten_seeds']):.0%}"
            rows.setdefault(row["method"], []).append(f"{float(row['share']):.1%} for {epochs}")
    head = " | ".join(f"{each} apart" for each in differences)
    return [
        (
            "The setting that is named is within 0.02 points of the best, for a share of the epochs of ten seeds each "
            "(1,000 simulated sweeps of nine settings, `python -m benchmarks.racing`):"
        ),
        "",
        f"| method | {head} |",
        f"| --- |{' ---: |' * len(differences)}",
        *(f"| {method} | {' | '.join(cells)} |" for method, cells in rows.items()),
    ]


def measure(quick: bool) -> list[Row]:
    """Return every row once, from an empty project."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        os.environ["DVC_ROOT"] = folder
        os.environ["PYTHONPATH"] = str(files.ROOT)
        params = prepare(GRID, epochs=6)
        digits = trajectory.load_digits(files.PREPARED)
        rows = [] if quick else [*against_train(params), workers(params, digits)]
        return [*rows, overhead(params, digits), many(params, digits, 30 if quick else 1000)]


def prepare(grid: Mapping[str, list[Any]], epochs: int) -> Params:
    """Prepare a part of MNIST here, with a params.yaml that sweeps ``grid``."""
    content = yaml.safe_load((files.ROOT / files.PARAMS).read_text("utf-8"))
    content["preprocess"] |= DIGITS
    content["train"] |= {"epochs": epochs, "threads": 1}
    content["sweep"] |= {"parameters": dict(grid), "seeds": 1, "threads": 1}
    files.PARAMS.write_text(yaml.safe_dump(content), "utf-8")
    there = files.ROOT / files.RAW
    stage("fetch", *(["--from", str(there)] if there.is_dir() else []))
    stage("preprocess")
    return config.load()


def stage(name: str, *words: str) -> float:
    """Run a stage or a command and return its seconds."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", f"pipeline.{name}", *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise console.UserError(f"{name} failed: {done.stderr[-500:]}", status=1)
    return time.perf_counter() - start


def against_train(params: Params) -> list[Row]:
    """Time a sweep, and `train` with each trial's parameters, from the start."""
    wanted = [Trial(setting, params.train.seed) for setting in trials.expand(params, limit=None)]
    swept, alone = stage("sweep"), 0.0
    for trial in wanted:
        delete_checkpoints()
        alone += run_train(params, trial)
    return [
        (f"sweep of {len(wanted)} trials on {len(trials.group(wanted, ''))} trajectories", swept, "s", ""),
        (f"{len(wanted)} runs of `train` in a row", alone, "s", ""),
        ("... against the sweep", alone / swept, "times", "3 times"),
    ]


def delete_checkpoints() -> None:
    """Remove the checkpoints."""
    shutil.rmtree(".checkpoints", ignore_errors=True)


def run_train(params: Params, trial: Trial) -> float:
    """Time `train` with a trial's parameters."""
    content = params.model_dump() | {"train": trial.train.model_dump()}
    files.PARAMS.write_text(yaml.safe_dump(content), "utf-8")
    return stage("train")


def workers(params: Params, digits: Digits) -> Row:
    """Compare the epochs an hour of two workers with those of one, from the first epoch of the last worker on."""
    one, two = (rate(params, digits, count) for count in (1, 2))
    return ("two workers of one thread, epochs an hour against one", two / one, "times", "1.7 times")


def rate(params: Params, digits: Digits, count: int) -> float:
    """Return the epochs a second of so many workers, all of them warm."""
    train = params.train.model_copy(update={"batch_size": 128, "patience": 99, "epochs": 5, "threads": 1})
    trajectories = [[Trial(Setting(0, train, {}), seed)] for seed in range(count)]
    with cluster.connected("local", digits, train, train_only, workers=count) as ray:
        streams = [ray.start(each, {}) for each in trajectories]
        times: list[float] = []
        while streams:
            for stream in ray.ready(streams):
                message = ray.next_message(stream)
                times += [time.perf_counter()] if isinstance(message, bytes) else []
                if message is None:
                    streams.remove(stream)
    return (len(times) - count) / (times[-1] - times[count - 1])


def train_only(digits: Digits, group: Sequence[Trial], checkpoints: Mapping[str, Sequence[bytes]]) -> Iterator[Message]:
    """Train a trajectory without packaging."""
    yield from trials.train_trials(digits, group, checkpoints, package=lambda *_: {})


def overhead(params: Params, digits: Digits) -> Row:
    """Time an epoch of full size on its way from a worker to the disk and to the runs of three trials."""
    count = 100
    grid = {"patience": [count, count + 1]}  # and the project's own
    run_pretended(params, digits, grid, epochs=count, train_trials=train_large)
    written = sorted(file.stat().st_mtime for file in newest_trajectory().glob("*.epoch"))
    spent = (written[-1] - written[0]) / (count - 1)
    return (f"driver, an epoch of 0.9 MB streamed to 3 trials, mean of {count}", spent * 1000, "ms", "30 ms")


def newest_trajectory() -> Path:
    """Return the folder of the trajectory that was trained last."""
    return max(Path(".checkpoints").glob("*/0001.epoch"), key=lambda file: file.stat().st_mtime).parent


def many(params: Params, digits: Digits, count: int) -> Row:
    """Time a sweep of so many trials, each alone on a trajectory of a millisecond."""
    seconds = run_pretended(
        params,
        digits,
        {"learning_rate": [0.004 + each / 1e6 for each in range(count)]},
        epochs=3,
        train_trials=train_small,
    )
    aim = "180 s" if count == 1000 else ""
    return (f"sweep of {count} trials on as many trajectories of 1 ms", seconds, "s", aim)


def run_pretended(
    params: Params, digits: Digits, grid: dict[str, list[Any]], epochs: int, train_trials: cluster.TrainTrials
) -> float:
    """Sweep without training; return the seconds."""
    params = params.model_copy(
        update={
            "train": params.train.model_copy(update={"epochs": epochs}),
            "sweep": params.sweep.model_copy(update={"parameters": grid}),
        }
    )
    start = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):
        sweep.run(params, trials.expand(params, limit=None), digits, train_trials=train_trials)
    return time.perf_counter() - start


def train_small(
    digits: Digits, group: Sequence[Trial], checkpoints: Mapping[str, Sequence[bytes]]
) -> Iterator[Message]:
    """Train a trajectory that takes a millisecond."""
    yield from trials.train_trials(digits, group, checkpoints, learn=partial(pretend, 10), package=wrap)


def train_large(
    digits: Digits, group: Sequence[Trial], checkpoints: Mapping[str, Sequence[bytes]]
) -> Iterator[Message]:
    """Train a trajectory with epochs of the real size."""
    yield from trials.train_trials(digits, group, checkpoints, learn=partial(pretend, 53_578), package=wrap)


def pretend(size: int, _: Digits, train: Train, after: Epoch | None) -> Iterator[Epoch]:
    """Yield epochs of so many weights that nobody learnt, each a little better than the one before."""
    random = np.random.default_rng(train.seed)
    state = {f"{kind}.00": random.random(size, np.float32) for kind in ("weight", "average", "first", "second")}
    for number in range(after.number + 1 if after else 1, train.epochs + 1):
        time.sleep(0.001 / train.epochs)
        loss = round(1 / number + train.seed / 1e5, 6)
        yield Epoch(number, {"loss": loss, "accuracy": 0.9, "val_loss": loss, "val_accuracy": 0.9}, state)


def wrap(epoch: Epoch, train: Train, _: Digits) -> dict[str, bytes]:
    """Return files of the model's names."""
    return dict.fromkeys((model.ARCHIVE, model.NETWORK, model.CALIBRATION), str((train.seed, epoch.number)).encode())


if __name__ == "__main__":
    console.run(main)

"""Stage train: train epoch after epoch, stop when they get no better, keep the best epoch's network.

Reads   data/prepared (training and validation digits; the test digits stay unread), params.yaml
Writes  models/digits.keras, models/digits.tflite, models/calibration.json, reports/train.json,
        reports/history.csv, reports/provenance.json (the digests of data, parameters and code)
Expect  53,578 parameters and a best validation accuracy of 0.993 to 0.995 with the default parameters.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline import config, console, files, provenance, tracking
from pipeline.learning import model, trajectory
from pipeline.learning.trajectory import Digits, Epoch
from pipeline.store import open_store

HINT = "Nothing is lost: `dvc repro` resumes after the last finished epoch."


def main(arguments: Sequence[str]) -> None:
    """Train as params.yaml says, and tell MLflow."""
    console.no_arguments(arguments)
    params = config.load()
    digits = trajectory.load_digits(files.PREPARED)
    store = open_store()
    with tracking.training(store, params, digits.sha256) as run:
        run.tag({"system.processor": " ".join(trajectory.processor(params.train.device))})
        epochs = list(train_epochs(params, digits, run))
        history = [epoch.metrics for epoch in epochs]
        best = epochs[trajectory.best_epoch(history, params.train.monitor) - 1]
        content = model.package(best, params.train, digits)
        report: dict[str, Any] = dict(trajectory.summary(history, params.train))
        report |= {"parameters": sum(weight.size for weight in best.weights), "model_sha256": model.sha256(content)}
        write(content, report, history)
        made = provenance.digests(params, digits.sha256) | model.digests(content)
        files.write_json(files.REPORTS / "provenance.json", made)
        run.log_trained(report, files.MODELS)
        run.log_known_results(report["model_sha256"])
    print(describe(report))


def train_epochs(params: config.Params, digits: Digits, run: tracking.Run) -> Iterator[Epoch]:
    """Yield the epochs of this run, each told to MLflow, until it is finished."""
    train, steps = params.train, trajectory.steps_per_epoch(params.train, len(digits.labels))
    kept = trajectory.open_checkpoints(train, digits.sha256, params.checkpoints)
    history: list[trajectory.Metrics] = []
    with console.progress(train.epochs * steps, "train", "steps") as bar:
        clock = Clock(train.epochs * steps)

        def on_steps(count: int) -> None:
            bar.update(count)
            if estimate := clock.estimate(int(bar.n), time.monotonic()):
                bar.write(f"train: {estimate} on this machine for {train.epochs} epochs at most", file=sys.stderr)

        for epoch in trajectory.load_or_train(digits, train, kept, on_steps):
            history.append(epoch.metrics)
            run.log_epoch(epoch.number, epoch.metrics)
            bar.update(epoch.number * steps - bar.n)
            bar.set_postfix(epoch=epoch.number, val_accuracy=epoch.metrics["val_accuracy"], refresh=False)
            left = clock.left(int(bar.n), time.monotonic())
            console.log(f"train: {describe_epoch(epoch, train.epochs)}" + (f"; {left} left at most" if left else ""))
            yield epoch
            if trajectory.is_finished(history, train):
                return


class Clock:
    """Tells from the steps that this process has taken how long the rest takes.

    Parameters
    ----------
    total
        Steps of the whole training.
    """

    WARM = 5.0  # seconds between the first steps, which compile the network, and the estimate

    def __init__(self, total: int) -> None:
        self.total = total
        self.start: tuple[float, int] | None = None
        self.told = False

    def estimate(self, done: int, now: float) -> str:
        """Return how long all steps after ``done`` take, once, when enough were seen by ``now`` (seconds); else ""."""
        if self.start is None:
            self.start = now, done
        if self.told or now - self.start[0] < self.WARM:
            return ""
        self.told = True
        return self.left(done, now)

    def left(self, done: int, now: float) -> str:
        """Return the time left in words; "" where no step was taken in this process, or none is left."""
        if self.start is None or not self.start[1] < done < self.total:
            return ""
        since, first = self.start
        return f"about {console.duration((now - since) / (done - first) * (self.total - done))}"


def describe_epoch(epoch: Epoch, epochs: int) -> str:
    """Return an epoch's number and metrics, for a log."""
    metrics = epoch.metrics
    return (
        f"epoch {epoch.number} of {epochs}, loss {metrics['loss']:.4f}, accuracy {metrics['accuracy']:.4f}, "
        f"validation loss {metrics['val_loss']:.4f}, accuracy {metrics['val_accuracy']:.4f}"
    )


def write(content: dict[str, bytes], report: dict[str, Any], history: trajectory.History) -> None:
    """Write the model's files and what is to be known of its training."""
    model.write(content, files.MODELS)
    rows = [{"epoch": number, **metrics} for number, metrics in enumerate(history, 1)]
    files.write_csv(files.REPORTS / "history.csv", rows, list(rows[0]))
    files.write_json(files.REPORTS / "train.json", report)


def describe(report: dict[str, Any]) -> str:
    """Return the result in one line."""
    return (
        f"train: {report['epochs_run']} epochs, the best was epoch {report['best_epoch']}: "
        f"validation accuracy {report['best_val_accuracy']:.4f}, loss {report['best_val_loss']:.4f}"
    )


if __name__ == "__main__":
    console.run(main, hint=HINT)

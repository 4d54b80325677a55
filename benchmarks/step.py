"""Time a training step of ours beside the article's plain Keras, and PyTorch where that is installed.

    python -m benchmarks.step [--threads 2] [--rounds 7] [--steps 50]

All learn the same network, in batches of 128, from the same noise, in turn, round after round, in one process; the
table holds medians over the rounds. What counts is the ratio of CPU time, which a busy machine disturbs least.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks import article
from benchmarks.article import BATCH, DROPOUT
from pipeline import config, console

Epoch = Callable[[], object]


def main(arguments: Sequence[str]) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=50)
    given = parser.parse_args(arguments)
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (given.steps * BATCH, 28, 28), dtype=np.uint8)
    labels = rng.integers(0, 10, len(images), dtype=np.uint8)
    trainers = {
        "plain Keras": keras_trainer(images, labels, given.threads),
        "ours, float32": our_trainer(images, labels, given.threads, "float32"),
    }
    if config.load().train.instructions == "native":  # AVX2 has no such numbers
        trainers["ours, bfloat16"] = our_trainer(images, labels, given.threads, "bfloat16")
    if importlib.util.find_spec("torch"):
        trainers["PyTorch"] = torch_trainer(images, labels, given.threads)
    print("\n".join(table(measure(trainers, given.rounds, given.steps), given.rounds)))


def keras_trainer(images: np.ndarray, labels: np.ndarray, threads: int) -> Epoch:
    """Return what learns once through the digits as the article's script does, brought to Keras 3."""
    from pipeline.learning import network

    network.use_threads(threads)
    keras = network.keras
    keras.utils.set_random_seed(1)
    model = article.build(keras)
    scaled, targets = images[..., None].astype(np.float32) / 255, keras.utils.to_categorical(labels, 10)
    return lambda: model.fit(scaled, targets, batch_size=BATCH, epochs=1, verbose=0)


def our_trainer(images: np.ndarray, labels: np.ndarray, threads: int, precision: str) -> Epoch:
    """Return what learns once through the digits as the train stage does."""
    from pipeline.learning.network import Trainer

    changes = {
        "network": "article",
        "threads": threads,
        "precision": precision,
        "batch_size": BATCH,
        "dropout": DROPOUT,
    }
    trainer = Trainer(config.load().train.model_copy(update=changes), len(labels) // BATCH)
    return lambda: trainer.train_epoch(images, labels, 1)


def torch_trainer(images: np.ndarray, labels: np.ndarray, threads: int) -> Epoch:
    """Return what learns once through the digits in PyTorch, in the layout that is its fastest."""
    import torch
    from torch import nn

    torch.set_num_threads(threads)
    parts: list[Any] = [
        nn.Conv2d(1, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(DROPOUT),
        nn.Conv2d(64, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(DROPOUT),
        nn.Flatten(), nn.Linear(1600, 10),
    ]  # fmt: skip
    model = nn.Sequential(*parts).to(memory_format=torch.channels_last)
    optimizer, loss = torch.optim.Adam(model.parameters()), nn.CrossEntropyLoss()
    scaled = (torch.from_numpy(images)[:, None].float() / 255).to(memory_format=torch.channels_last)
    targets = torch.from_numpy(labels).long()

    def epoch() -> None:
        for batch in torch.randperm(len(targets)).split(BATCH):
            optimizer.zero_grad()
            loss(model(scaled[batch]), targets[batch]).backward()
            optimizer.step()

    return epoch


def measure(trainers: dict[str, Epoch], rounds: int, steps: int) -> dict[str, tuple[float, float]]:
    """Return the median CPU and wall milliseconds a step of each trainer, without a first round to warm up."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in trainers}
    for _ in range(rounds + 1):
        for name, learn in trainers.items():
            cpu, wall = time.process_time(), time.perf_counter()
            learn()
            spent = time.process_time() - cpu, time.perf_counter() - wall
            taken[name].append((spent[0] / steps * 1e3, spent[1] / steps * 1e3))
    return {
        name: (statistics.median(cpu for cpu, _ in each[1:]), statistics.median(wall for _, wall in each[1:]))
        for name, each in taken.items()
    }


def table(times: dict[str, tuple[float, float]], rounds: int) -> list[str]:
    """Return the lines of a Markdown table with every trainer beside the first one."""
    first_cpu, first_wall = next(iter(times.values()))
    lines = [
        "| a step of 128 digits | n | CPU ms | wall ms | CPU ratio | wall ratio |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, (cpu, wall) in times.items():
        ratios = f"{cpu / first_cpu:.2f} | {wall / first_wall:.2f}"
        lines.append(f"| {name} | {rounds} | {cpu:.1f} | {wall:.1f} | {ratios} |")
    return lines


if __name__ == "__main__":
    console.run(main)

"""Time the parts of a training step of the article's network, beside what its arithmetic alone would take.

    python -m benchmarks.floor [--threads 2] [--rounds 7]

The floor is the multiplications and additions of its convolutions at the rate of a large matrix product on the same
threads. Each part is timed alone, forward and back; medians over the rounds, wall time, batches of 128, float32.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from benchmarks import step
from benchmarks.article import BATCH
from pipeline import console

SIDE, FILTERS, REPEATED = 2048, 64, 20  # of the product, of each convolution, steps a call


def main(arguments: Sequence[str]) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.floor", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args(arguments)
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (REPEATED * BATCH, 28, 28), dtype=np.uint8)
    labels = rng.integers(0, 10, len(images), dtype=np.uint8)
    whole = step.our_trainer(images, labels, given.threads, "float32")  # first: it settles the number of threads
    parts = {
        "first convolution and its pooling": (block(26, 1, learns_input=False), 2 * 24**2 * 9 * FILTERS),
        "second convolution and its pooling": (block(12, FILTERS, learns_input=True), 3 * 10**2 * 9 * FILTERS**2),
    }
    times = {name: (median(run, given.rounds), 2 * BATCH * count) for name, (run, count) in parts.items()}
    taken = median(whole, given.rounds) / REPEATED
    rate = 2 * SIDE**3 / median(product(), given.rounds)
    print("\n".join(table(times, taken, rate, given.rounds)))


def product() -> Callable[[], object]:
    """Return a product of two large matrices."""
    from pipeline.learning.network import tf

    one, other = tf.random.normal([SIDE, SIDE]), tf.random.normal([SIDE, SIDE])
    return tf.function(lambda: one @ other, autograph=False)


def block(side: int, channels: int, *, learns_input: bool) -> Callable[[], object]:
    """Return a convolution and its pooling, forward, and back to its weights and, where that is learnt, its input."""
    from pipeline.learning.network import tf

    values, filters = tf.random.normal([BATCH, side, side, channels]), tf.random.normal([3, 3, channels, FILTERS])
    watched = [filters, values] if learns_input else [filters]

    def run() -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(watched)
            found = tf.nn.max_pool2d(tf.nn.conv2d(values, filters, 1, "VALID"), 2, 2, "VALID")
        return tape.gradient(found, watched)

    return tf.function(run, autograph=False)


def median(run: Callable[[], object], rounds: int) -> float:
    """Return the median seconds of a call, without a first one to warm up."""
    taken = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


def table(times: Mapping[str, tuple[float, float]], taken: float, rate: float, rounds: int) -> list[str]:
    """Return the lines of a Markdown table: milliseconds of each part beside those of its arithmetic at ``rate``."""
    floor = sum(operations for _, operations in times.values()) / rate
    lines = [
        f"A matrix product of {SIDE} x {SIDE} reaches {rate / 1e9:.0f} GFLOP/s here.",
        "",
        "| part of a step, alone | n | ms | its arithmetic alone, ms |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, (each, count) in times.items():
        lines.append(f"| {name} | {rounds} | {1e3 * each:.1f} | {1e3 * count / rate:.1f} |")
    return [*lines, f"| the whole step | {rounds} | {1e3 * taken:.1f} | {1e3 * floor:.1f} ({floor / taken:.0%}) |"]


if __name__ == "__main__":
    console.run(main)

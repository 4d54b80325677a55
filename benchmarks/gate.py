"""Prove the gate: how often it passes challengers whose truth is known, over 1,000 simulated pairs of models each.

    python -m benchmarks.gate

Draws, image by image, whether a base and a challenger read it right, and hands both to the gate with the limits of
params.yaml, except for the floor of accuracy: what is measured is the comparison. Writes benchmarks/gate.csv (seeded,
the same on every machine) and prints it as the README's table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipeline import config, console, files, gate, scoring
from pipeline.evidence import Evidence
from pipeline.gate import Verdict

REPORT = Path("benchmarks/gate.csv")
PAIRS, IMAGES, SEED = 1000, 10_000, 4
BOTH_WRONG = 0.004  # share of images; with 30 in 10,000 won, the base reads 99.3% right
Change = Callable[[np.random.Generator, Evidence], Evidence]


@dataclass(frozen=True)
class Challenger:
    """A kind of challenger: images of 10,000 that it is expected to lose and to win, and what else is done to it."""

    name: str
    lost: int
    won: int
    change: Change | None = None
    margin: float | None = None


def answer_at_random(random: np.random.Generator, side: Evidence) -> Evidence:
    """Answer as a network that was trained on shuffled labels does: with no regard to the image."""
    return measured(replace(side, predictions=random.integers(0, 10, len(side.labels), dtype=np.uint8)))


def swap_3_and_5(_: np.random.Generator, side: Evidence) -> Evidence:
    """Answer 3 for 5 and 5 for 3."""
    order = np.array([0, 1, 2, 5, 4, 3, 6, 7, 8, 9], np.uint8)
    return measured(replace(side, predictions=order[side.predictions]))


def use_other_digits(random: np.random.Generator, side: Evidence) -> Evidence:
    """Evaluate on other test digits, as right as before."""
    shift = random.integers(0, 10, len(side.labels), dtype=np.uint8)
    labels, predictions = ((part + shift) % 10 for part in (side.labels, side.predictions))
    return replace(side, labels=labels, predictions=predictions, metrics={**side.metrics, "test_sha256": "other"})


CHALLENGERS = (
    Challenger("identical", 0, 0),
    Challenger("equally good, 60 digits differ", 30, 30),
    Challenger("equally good, 60 digits differ, margin 0.20", 30, 30, margin=0.002),
    Challenger("0.3 points better, 60 digits differ", 15, 45),
    Challenger("0.3 points worse, 60 digits differ", 45, 15),
    Challenger("0.3 points worse, 90 digits differ", 60, 30),
    Challenger("0.5 points worse, 60 digits differ", 55, 5),
    Challenger("0.5 points worse, 110 digits differ", 80, 30),
    Challenger("broken labels", 30, 30, answer_at_random),
    Challenger("swapped classes", 30, 30, swap_3_and_5),
    Challenger("wrong test set", 30, 30, use_other_digits),
)


def draw_pair(random: np.random.Generator, lost: float, won: float) -> tuple[Evidence, Evidence]:
    """Return a base and a challenger that loses and wins images with these expected shares."""
    labels = random.integers(0, 10, IMAGES, dtype=np.uint8)
    wrong = ((labels + random.integers(1, 10, IMAGES)) % 10).astype(np.uint8)
    fate = random.random(IMAGES)
    loses, wins = fate < lost, (lost <= fate) & (fate < lost + won)
    fails = fate > 1 - BOTH_WRONG
    base = np.where(wins | fails, wrong, labels)
    challenger = np.where(loses | fails, wrong, labels)
    return side_of("base", labels, base), side_of("challenger", labels, challenger)


def side_of(name: str, labels: np.ndarray, predictions: np.ndarray) -> Evidence:
    """Return evidence that has nothing wrong with it but, perhaps, its answers."""
    own = {"model_sha256": name}
    metrics = {**own, "test_sha256": "same", "calibration_error_high": 0.005, "model_bytes": 1, "multiply_adds": 1}
    photos = {**own, "photo_accuracy": 1.0}
    return measured(Evidence(name, metrics, own, photos, {}, labels, predictions, np.ones(len(labels))))


def measured(side: Evidence) -> Evidence:
    """Return the evidence with the accuracy that its answers have."""
    accuracy = round(float(side.is_correct.mean()), scoring.PLACES)
    return replace(side, metrics={**side.metrics, "test_accuracy": accuracy, "test_accuracy_low": accuracy})


def simulate(kind: Challenger, limits: config.Gate, pairs: int) -> Counter[Verdict]:
    """Return how many of ``pairs`` the gate gives each verdict."""
    random = np.random.default_rng([SEED, CHALLENGERS.index(kind)])
    limits = limits.model_copy(update={"test_accuracy_low": 0.0, "margin": kind.margin or limits.margin})
    verdicts: Counter[Verdict] = Counter()
    for _ in range(pairs):
        base, challenger = draw_pair(random, kind.lost / 1e4, kind.won / 1e4)
        if kind.change:
            challenger = kind.change(random, challenger)
        verdicts[gate.conclude(gate.decide(challenger, base, limits))] += 1
    return verdicts


def rows(limits: config.Gate, pairs: int = PAIRS) -> Iterator[dict[str, object]]:
    """Yield a row a kind of challenger: how many pairs of ``pairs`` got which verdict."""
    for kind in CHALLENGERS:
        verdicts = simulate(kind, limits, pairs)
        yield {"challenger": kind.name, "pairs": pairs, **{verdict: verdicts[verdict] for verdict in reversed(Verdict)}}


def main(arguments: Sequence[str]) -> None:
    """Simulate, write the report, print the table."""
    console.no_arguments(arguments)
    found = list(rows(config.load().gate))
    files.write_csv(REPORT, found, list(found[0]))
    verdicts = list(reversed(Verdict))
    print("| challenger | " + " | ".join(verdicts) + " |\n|---|" + "---|" * len(verdicts))
    for row in found:
        print(f"| {row['challenger']} | " + " | ".join(f"{row[verdict] / PAIRS:.1%}" for verdict in verdicts) + " |")  # type: ignore[operator]


if __name__ == "__main__":
    console.run(main)

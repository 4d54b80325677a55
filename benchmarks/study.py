"""What batch size, dropout and patience are worth, for the article's network and for ours, on the whole of MNIST.

    python -m benchmarks.study [--network article] [--seeds 5] [--workers 2]
    python -m benchmarks.study --precision bfloat16 --instructions native
    python -m benchmarks.study --tables

A race over the grid of params.yaml's `sweep.parameters`, as `make sweep` runs it: the article's network with the recipe
`article` of benchmarks/recipes.yaml, ours with params.yaml as it is; these parameters are setting 0. Each training has
one thread, as many run at once as there are workers, and patience is read off each history. Epochs are kept in
.checkpoints/, so that a study that was stopped resumes. Writes benchmarks/study.csv, a trial a row; prints its means,
paired differences and effects in Markdown, and draws each network's effects into docs/, by the functions of the sweep
itself.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks import recipes
from pipeline import config, console, files
from pipeline.config import Checkpoints, Params, Sweep
from pipeline.console import UserError
from pipeline.learning import trajectory
from pipeline.sweeps import charts, comparison, effects, leaderboard, race, trials
from pipeline.sweeps.race import Race
from pipeline.sweeps.trials import Result, Setting, Trial, label

TABLE = Path("benchmarks/study.csv")
NETWORKS = {"article": "the article's network", "deep": "our network"}
METRIC = "val_accuracy"
KEPT = Checkpoints(max_mb=10_000, max_days=365)  # two studies of five seeds are 800 MB of epochs
COLUMNS = ("network", "setting", "precision", "seed", METRIC, "epochs")  # of a row, besides what varies
Row = dict[str, Any]


def main(arguments: Sequence[str]) -> None:
    """Train what is missing of the study, and print what is known."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--network", action="append", choices=NETWORKS, help="only this one")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), help="in the place of each network's own")
    parser.add_argument("--instructions", choices=("avx2", "native"), help="in the place of params.yaml's")
    parser.add_argument("--tables", action="store_true", help="print what the rows say, and train nothing")
    given = parser.parse_args(arguments)
    rows = list(files.read_csv(TABLE)) if TABLE.exists() else []
    if not given.tables:
        changes = {name: value for name in ("precision", "instructions") if (value := getattr(given, name))}
        for network in given.network or NETWORKS:
            rows = run(network, given.seeds, changes, given.workers, rows)
    print("\n".join(report(rows)))
    draw(rows, files.ROOT / "docs")


def run(network: str, seeds: int, changes: dict[str, Any], workers: int, rows: Sequence[Row]) -> list[Row]:
    """Train what is missing of a network's race, write the table after every trajectory, and return all rows."""
    params = params_of(network, seeds, changes)
    current = race.start(trials.expand(params, limit=None), params)
    wanted = sorted(current.settings[0].varied)
    if rows and (found := sorted(varying(rows[0]))) != wanted:
        raise UserError(f"{TABLE}: it varies {', '.join(found)}, params.yaml {', '.join(wanted)}; remove it first")
    digest = trajectory.load_digits(files.PREPARED).sha256
    others = [row for row in rows if row["network"] != network]
    with multiprocessing.get_context("spawn").Pool(workers, maxtasksperchild=1) as pool:
        while missing := current.replay()[1]:
            groups = list(trials.group(missing, digest).values())
            with console.progress(len(groups), f"study, {network}", "trajectory") as bar:
                for results in pool.imap_unordered(train_trajectory, groups):
                    current.results.update({result.trial.key: result for result in results})
                    bar.update()
                    rows = sorted([*others, *rows_of(network, current)], key=lambda row: row["network"])
                    files.write_csv(TABLE, rows, list(rows[-1]))
    return list(rows)


def params_of(network: str, seeds: int, changes: dict[str, Any]) -> Params:
    """Return the parameters of a network's sweep; ``changes`` are of ``train``."""
    params = config.load()
    train = recipes.changed(recipes.ladder()["article"] if network == "article" else params.train, changes)
    content = {"search": "grid", "seeds": seeds, "metric": METRIC, "epochs": 0, "threads": 1}
    sweep = config.check(Sweep, params.sweep.model_dump() | content, "benchmarks.study", "--")
    return params.model_copy(update={"train": train, "sweep": sweep})


def train_trajectory(group: Sequence[Trial]) -> list[Result]:
    """Train the trajectory of some trials until the last of them stops; return what each came to."""
    train, digits = trials.longest_training(group), trajectory.load_digits(files.PREPARED)
    kept = trajectory.open_checkpoints(train, digits.sha256, KEPT)
    history: list[trajectory.Metrics] = []
    results: list[Result] = []
    for epoch in trajectory.load_or_train(digits, train, kept):
        history.append(epoch.metrics)
        stopping = [trial for trial in group if trajectory.is_finished(history, trial.train)]
        done = [result.trial for result in results]
        results += [Result(each, trajectory.summary(history, each.train)) for each in stopping if each not in done]
        if len(results) == len(group):
            break
    return results


def rows_of(network: str, current: Race) -> list[Row]:
    """Return one row a trial, seed by seed in the order of the settings."""
    return [
        {
            "network": network,
            "setting": result.trial.setting.number,
            **result.trial.setting.varied,
            "precision": result.trial.train.precision,
            "seed": result.trial.seed,
            METRIC: round(result.summary[f"best_{METRIC}"], 6),
            "epochs": result.summary["epochs_run"],
        }
        for _, result in sorted(current.results.items())
    ]


def races_of(rows: Sequence[Row]) -> dict[str, Race]:
    """Return the race of each network whose setting 0, the present parameters, has been trained."""
    params, found = config.load(), {}
    for network in dict.fromkeys(row["network"] for row in rows):
        own = rows_of_network(rows, network)
        varied = {int(row["setting"]): {name: yaml.safe_load(str(row[name])) for name in varying(row)} for row in own}
        settings = {old: Setting(new, params.train, varied[old]) for new, old in enumerate(sorted(varied))}
        current = Race(
            list(settings.values()), sorted({int(row["seed"]) for row in own}), METRIC, 1 / params.preprocess.validation
        )
        for row in own:
            trial = Trial(settings[int(row["setting"])], int(row["seed"]))
            summary = {f"best_{METRIC}": float(row[METRIC]), "epochs_run": int(row["epochs"])}
            current.results[trial.key] = Result(trial, summary)
        if race.PRESENT in settings:
            found[network] = current
    return found


def varying(row: Row) -> list[str]:
    """Return the names of the parameters that the study varies."""
    return [name for name in row if name not in COLUMNS]


def report(rows: Sequence[Row]) -> list[str]:
    """Return, in Markdown, a table of settings for each network, and a sentence for each parameter."""
    races = races_of(rows)
    if not races:
        raise UserError(f"{TABLE}: expected rows; run `python -m benchmarks.study`")
    lines = []
    for network, current in races.items():
        own, ranked = rows_of_network(rows, network), leaderboard.rank(current)
        head, *body = leaderboard.cells(ranked, METRIC)
        known = f"{len(own)} trials, {own[0]['precision']}. {leaderboard.verdict(ranked, METRIC)[0]}"
        lines += [f"### {NETWORKS[network].capitalize()}", "", known, ""]
        lines += [_line(head), _line(["---:"] * len(head)), *map(_line, body), ""]
        if why := effects.sentence(effects.compared(current)):
            lines += [why, ""]
        lines += [f"With one seed each the best would have been {named_by_seed(current)}.", ""]
    names = dict.fromkeys(name for current in races.values() for name in current.settings[0].varied)
    return [*lines, *(f"- {sentence(name, races)}" for name in names)]


def named_by_seed(current: Race) -> str:
    """Return the best setting of each seed alone, and the seeds that name it; of equals the one with fewer epochs."""
    named: dict[str, list[int]] = {}
    for seed in current.seeds:
        alone = [result for result in current.results.values() if result.trial.seed == seed]
        best = min(alone, key=lambda each: (-each.summary[f"best_{METRIC}"], each.summary["epochs_run"]))
        named.setdefault(best.trial.setting.name, []).append(seed)
    return "; ".join(f"{name} by {', '.join(f'seed {seed}' for seed in seeds)}" for name, seeds in named.items())


def draw(rows: Sequence[Row], folder: Path) -> None:
    """Draw the effects of each network's parameters as ``study-<network>.png``."""
    for network, current in races_of(rows).items():
        files.write_bytes(folder / f"study-{network}.png", charts.effects(current))


def rows_of_network(rows: Sequence[Row], network: str) -> list[Row]:
    """Return the rows of a network."""
    return [row for row in rows if row["network"] == network]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def sentence(name: str, races: dict[str, Race]) -> str:
    """Return what a parameter's values are worth against the present one, in points and in epochs, for each network."""
    parts = []
    for network, current in races.items():
        found = effects.compared(current)
        varied = [each[name] for each in found.varied]
        present = current.settings[race.PRESENT].varied[name]
        values, metric = effects.level_means(varied, 100 * found.metric)
        _, epochs = effects.level_means(varied, found.epochs)
        reference = values.index(leaderboard.cell(present)) if leaderboard.cell(present) in values else 0
        worth = [comparison.differences(each, np.array(reference), 0) for each in (metric, epochs)]
        against = [
            f"{value} is worth {_worth(worth[0], place, 2, 'points')} and {_worth(worth[1], place, 1, 'epochs')}"
            for place, value in enumerate(values)
            if place != reference
        ]
        seeds = f"{metric.shape[1]} seeds, against {values[reference]}"
        parts.append(f"for {NETWORKS[network]} ({seeds}) {', '.join(against)}")
    return f"{label(name).capitalize()}: {'; '.join(parts)}."


def _worth(found: comparison.Estimate, place: int, decimals: int, unit: str) -> str:
    mean, half = found.mean[place], found.half_width()[place]
    if abs(mean) + half < 1e-9:  # the same trainings
        return f"no {unit}"
    unknown = "" if abs(mean) > half else ", not told apart"
    return f"{mean:+.{decimals}f} [{mean - half:+.{decimals}f}, {mean + half:+.{decimals}f}{unknown}] {unit}"


if __name__ == "__main__":
    console.run(main)

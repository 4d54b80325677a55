"""Command sweep: train the settings of `sweep` with several seeds on Ray, and say which are shown to be better.

    python -m pipeline.sweep [--address HOST:PORT] [--workers N] [--minutes N] [--yes] [--apply [--force]]

Reads   params.yaml, data/prepared (training and validation digits; the test digits stay unread)
Writes  reports/sweep.csv (a row a setting), reports/sweep_trials.csv (a row a trial), reports/sweep_*.png;
        with --apply what is shown to be better in params.yaml
Expect  the default grid: 27 settings on 9 trajectories a seed, each trial with the model that `train` makes of its
        parameters; a table, and last what is better than the project's present parameters, or that nothing is.

Workers only compute: they stream epochs back, and this process, the driver, keeps them in .checkpoints/ and logs them
to MLflow. So a worker may die at any time, and so may the driver: what was trained is not trained again.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import yaml
from filelock import FileLock, Timeout

from pipeline import config, console, files, provenance, tracking
from pipeline.config import Params
from pipeline.console import UserError
from pipeline.learning import trajectory
from pipeline.learning.trajectory import Digits
from pipeline.store import Store, open_store
from pipeline.sweeps import charts, cluster, comparison, driver, effects, leaderboard, race, search, trials
from pipeline.sweeps.leaderboard import Standing
from pipeline.sweeps.race import Race
from pipeline.sweeps.trials import Result, Setting, Trial
from pipeline.tracking import Run

TABLE, TRIALS = (files.REPORTS / name for name in ("sweep.csv", "sweep_trials.csv"))
PARALLEL, HEATMAP, EFFECTS = (files.REPORTS / f"sweep_{name}.png" for name in ("parallel", "heatmap", "effects"))
MOST = 100_000  # workers, or minutes
HINT = "Nothing is lost: the same command resumes from the last finished epochs."


def main(arguments: Sequence[str], train_trials: cluster.TrainTrials = trials.train_trials) -> int:
    """Run what is missing of the sweep, then show the table and what is known."""
    options = _parse(arguments)
    params = config.load()
    settings = trials.expand(params, limit=None if options.yes else params.sweep.limit)
    digits = _digits(params)
    with _only_one(), _limited(options.minutes):
        finished = run(params, settings, digits, options.address, train_trials=train_trials, workers=options.workers)
    ranked, metric = leaderboard.rank(finished), params.sweep.metric
    print(leaderboard.shown(ranked, metric))
    failed = [result for result in finished.results.values() if result.error]
    for result in failed:
        print(f"failed: {result.trial.name}: {result.error}", file=sys.stderr)
    if len(failed) == len(finished.results):
        raise UserError("every trial failed", status=1)
    left_out = ["points of the search"] if finished.is_cut else []
    left_out += [_count(seeds, "seed")] if (seeds := finished.left_out()) else []
    if left_out:
        print(f"\nsweep.epochs, {finished.budget:,}, leaves out {' and '.join(left_out)}; a larger one trains them.")
    print("", *sentences_on(finished, ranked), sep="\n")
    if failed:
        count = f"{len(failed)} of {_count(len(finished.results), 'trial')} failed"
        print(f"{count}: before you decide, mend what they name above, or run this again.", file=sys.stderr)
    if options.apply:
        apply(_to_apply(ranked, force=options.force))
    return 1 if failed else 0


def _digits(params: Params) -> Digits:
    """Return the digits, as many as params.yaml wants; raise ``UserError`` where they were prepared for another one."""
    digits = trajectory.load_digits(files.PREPARED)
    for name, labels in (("train", digits.labels), ("validation", digits.val_labels)):
        if len(labels) != (wanted := getattr(params.preprocess, name)):
            raise UserError(
                f"preprocess.{name} is {wanted:,}, but {files.PREPARED} has {len(labels):,} such digits; "
                "`dvc repro preprocess` makes it anew"
            )
    return digits


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.sweep",
        description="Compare the settings of params.yaml's `sweep` over seeds, on Ray.",
        epilog="example: python -m pipeline.sweep --address 10.0.0.1:6379 --apply",
    )
    parser.add_argument("--address", default="", help="a Ray cluster, as host:port (or RAY_ADDRESS); else this machine")
    parser.add_argument("--workers", type=int, default=0, help="trials at once on this machine; else as many as fit")
    parser.add_argument(
        "--minutes", type=float, default=0, help="stop after so many, as Ctrl-C does; it can be resumed"
    )
    parser.add_argument("--yes", action="store_true", help="run more trials than sweep.limit")
    parser.add_argument("--apply", action="store_true", help="write what is shown to be better into params.yaml")
    parser.add_argument("--force", action="store_true", help="with --apply: write the first of the table all the same")
    given = parser.parse_args(arguments)
    for name in ("workers", "minutes"):
        if not 0 <= getattr(given, name) <= MOST:
            raise UserError(f"--{name} is {getattr(given, name)}; expected a number up to {MOST:,}, 0 for no limit")
    return given


@contextlib.contextmanager
def _only_one() -> Iterator[None]:
    path = files.workspace() / ".checkpoints" / "sweep.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path, timeout=0):
            yield
    except Timeout:
        raise UserError("another sweep is running in this project; expected one at a time") from None


@contextlib.contextmanager
def _limited(minutes: float) -> Iterator[None]:
    """Stop the block, as SIGINT does, after so many minutes; 0 is no limit."""
    timer = threading.Timer(minutes * 60, signal.raise_signal, [signal.SIGINT])
    timer.daemon = True
    if minutes > 0:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def run(
    params: Params,
    settings: Sequence[Setting],
    digits: Digits,
    address: str = "",
    *,
    train_trials: cluster.TrainTrials = trials.train_trials,
    workers: int = 0,
) -> Race:
    """Run the trials that have not finished before, report on all, and return the race at its end."""
    store = open_store()
    digests = provenance.digests(params, digits.sha256)
    del digests["params_sha256"]
    sweep_id = _sweep_id(settings, params.sweep, digests)
    finished = _finished_before(store, sweep_id)
    current, missing = _next(store, race.start(settings, params), params, finished)
    with contextlib.ExitStack() as stack:
        if missing:
            train = settings[0].train
            ray = stack.enter_context(cluster.connected(address, digits, train, train_trials, workers))
        origin = provenance.find_origin()
        parent = stack.enter_context(tracking.sweeping(store, params, {**digests, "sweep_id": sweep_id}, origin))
        _delete_unfinished(store, parent)
        if missing:
            print(_announcement(current, params, digits.sha256, ray.capacity(train)), flush=True)
            waiting = {sha256: run.info.run_id for sha256, run in finished.items() if driver.WAITS in run.data.tags}
            recorder = driver.Recorder(store, params, digests, origin, parent, waiting)
            later: int | None = _epochs_later(params, missing, digits.sha256)
        while missing:
            grouped = trials.group(missing, digits.sha256)
            driver.drive(recorder, ray, grouped, _Keeper(current, missing).keep, later)
            later = None
            current, missing = _next(store, current, params, finished)
        report(current, parent)
    return current


def _sweep_id(settings: Sequence[Setting], sweep: config.Sweep, digests: Mapping[str, str]) -> str:
    """Return the digest of what a sweep compares and by what: more seeds continue the same sweep."""
    own = sorted(Trial(setting, setting.train.seed).sha256 for setting in settings)
    return files.digest(own, sweep.metric, digests, *search.identity(sweep))[:16]


def _finished_before(store: Store, sweep_id: str) -> dict[str, tracking.MlflowRun]:
    parent = tracking.find_sweep(store, sweep_id)
    return tracking.finished_children(store, parent) if parent else {}


def _next(
    store: Store, current: Race, params: Params, finished: Mapping[str, tracking.MlflowRun]
) -> tuple[Race, list[Trial]]:
    """Return the race and what it has to train next, with the results of what is ``finished``, by its digest."""
    while True:
        current = race.extended(current, params)
        _, missing = current.replay()
        known = [trial for trial in missing if trial.sha256 in finished and trial.key not in current.results]
        if not known:
            return current, missing
        for trial in known:
            result = _result_of(trial, run := finished[trial.sha256])
            if current.halving or driver.WAITS in run.data.tags:
                points = store.client.get_metric_history(run.info.run_id, current.metric)
                history = [{each.key: each.value} for each in sorted(points, key=lambda each: each.step)]
                result = replace(result, history=history, waits=driver.WAITS in run.data.tags)
            current.results[trial.key] = result


def _result_of(trial: Trial, run: tracking.MlflowRun) -> Result:
    metrics = run.data.metrics
    summary = {name: metrics[name] for name in leaderboard.FIGURES} | {"stopped_early": bool(metrics["stopped_early"])}
    summary |= {name: int(metrics[name]) for name in ("best_epoch", "epochs_run")}
    return Result(trial, summary, run.data.tags.get("model.sha256", ""), run_id=run.info.run_id)


def _delete_unfinished(store: Store, parent: Run) -> None:
    """Delete the runs that earlier attempts at this sweep did not finish: each trial is to have one."""
    for run in store.runs(f"tags.`mlflow.parentRunId` = '{parent.run_id}' and attributes.status != 'FINISHED'"):
        store.client.delete_run(run.info.run_id)


class _Keeper:
    """Keeps the results of a round, and writes the tables when all trials of a seed have ended."""

    def __init__(self, current: Race, missing: Sequence[Trial]) -> None:
        self.race = current
        self.left = Counter(trial.seed for trial in missing)

    def keep(self, result: Result) -> None:
        """Keep a result."""
        self.race.results[result.trial.key] = result
        self.left[result.trial.seed] -= 1
        done = [seed for seed in self.race.seeds if seed <= max(self.left) and not self.left[seed]]
        if not self.left[result.trial.seed] and done == list(self.race.seeds[: len(done)]):
            write_tables(self.race.after(len(done)))


def _epochs_later(params: Params, missing: Sequence[Trial], data_sha256: str) -> int:
    """Return the epochs that take at most the rounds of a search after ``missing``, and the seeds after the first."""
    rounds = -(-params.sweep.trials // params.sweep.round) if params.sweep.search == "tpe" else 1
    later = [seed for seed in trials.seeds(params) if seed > max(trial.seed for trial in missing)]
    running = {trial.setting.number: Trial(trial.setting, params.train.seed) for trial in missing}.values()
    now, a_seed = (trials.most_epochs(trials.group(list(each), data_sha256)) for each in (missing, running))
    return (rounds - 1) * now + rounds * len(later) * a_seed


def _announcement(current: Race, params: Params, data_sha256: str, capacity: int) -> str:
    """Say what the sweep may cost at most, and what of it is there already."""
    every = [Trial(setting, seed) for setting in current.settings for seed in current.seeds]
    grouped = trials.group(every, data_sha256)
    root = files.workspace() / ".checkpoints"
    there = sum(
        min(len(list((root / key).glob("*.epoch"))), trials.longest_training(group).epochs)
        for key, group in grouped.items()
    )
    sizes = f"{_count(len(current.settings), 'setting')} with {_count(len(current.seeds), 'seed')}"
    if params.sweep.search == "tpe":
        sizes = f"{_count(params.sweep.trials, 'point')} by TPE, {params.sweep.round} at once; now {sizes}"
    work = f"{_count(len(every), 'trial')} on {_count(len(grouped), 'trajectory')}"
    epochs = f"at most {_count(trials.most_epochs(grouped), 'epoch')}, {there:,} of them there already"
    parts = [f"sweep: {sizes}: {work}; {epochs}; {capacity} at once"]
    if current.budget:
        parts.append(f"{current.budget:,} epochs of them by sweep.epochs")
    if current.halving:
        parts.append(f"after epoch {' and '.join(map(str, current.halving))} the better third is trained further")
    if done := len(current.results):
        parts.append(f"{_count(done, 'trial')} ended before")
    if params.sweep.seeds > comparison.FIRST:
        parts.append(f"\nsweep: after {comparison.FIRST} seeds, settings that are shown to be worse are dropped")
    return "; ".join(parts).replace("; \n", "\n")


def _count(number: int, noun: str) -> str:
    plural = noun if number == 1 else f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number:,} {plural}"


def write_tables(current: Race) -> list[Standing]:
    """Write the tables of settings and of trials; return the settings, best first."""
    ranked = leaderboard.rank(current)
    for path, rows in ((TABLE, leaderboard.table(ranked, current.metric)), (TRIALS, leaderboard.trial_table(current))):
        files.write_csv(path, rows, list(rows[0]))
    return ranked


def report(current: Race, parent: Run) -> None:
    """Write the tables and the pictures, and log them and the best setting to the sweep's own run."""
    ranked, metric = write_tables(current), current.metric
    parent.log_files([TABLE, TRIALS], str(files.REPORTS))
    failed = sum(bool(result.error) for result in current.results.values())
    parent.log_summary({"settings": len(ranked), "trials": len(current.results), "failed_trials": failed})
    best = ranked[0]
    if not best.has_figures:
        return
    files.write_bytes(PARALLEL, charts.parallel(ranked, metric))
    files.write_bytes(HEATMAP, charts.heatmap(ranked, metric))
    files.write_bytes(EFFECTS, charts.effects(current))
    for picture in (EFFECTS, PARALLEL, HEATMAP):
        parent.log_image(picture.stem, picture)
    first = leaderboard.first_result(current, best)
    parent.log_summary({f"mean_{metric}": best.mean, "mean_epochs": best.epochs})
    sentences = "\n\n".join(sentences_on(current, ranked))
    note = f"```\n{leaderboard.shown(ranked, metric)}\n```\n\n{sentences}"
    parent.tag({"best.run_id": first.run_id, "best.setting": best.setting.name, "mlflow.note.content": note})


def sentences_on(current: Race, ranked: Sequence[Standing]) -> list[str]:
    """Return what is known: which parameters matter, which settings may be the best, whether one is better."""
    why = effects.sentence(effects.compared(current))
    return [*([why] if why else []), *leaderboard.verdict(ranked, current.metric)]


def _to_apply(ranked: Sequence[Standing], *, force: bool) -> Setting:
    found = leaderboard.winner(ranked) or (ranked[0] if force else None)
    if not found:
        raise UserError(
            f"--apply: nothing is shown to be better, so {files.PARAMS} stays as it is; with --force it becomes "
            f"{ranked[0].setting.name}",
            status=1,
        )
    return found.setting


def apply(setting: Setting) -> None:
    """Write a setting's parameters into params.yaml, its comments kept, and say which."""
    changes = {f"train.{name}": value for name, value in setting.varied.items()}
    try:
        text = config.replaced(files.PARAMS.read_text("utf-8"), changes)
        params = config.check(Params, config.parse(text), str(files.PARAMS))
    except (yaml.YAMLError, ValueError, StopIteration):  # an alias, a merged section, or a fault made meanwhile
        raise UserError(f"{files.PARAMS}: expected plain values under `train`; use the command above") from None
    if params.train.model_copy(update={"threads": setting.train.threads}) != setting.train:
        raise UserError(f"{files.PARAMS} changed while the sweep ran; use the command above")
    files.write_text(files.PARAMS, text)
    print(f"{files.PARAMS}: {', '.join(f'{name}={config.written(value)}' for name, value in changes.items())}")


if __name__ == "__main__":
    console.run(main, hint=HINT)

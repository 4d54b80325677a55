"""Command sweep: try every combination of `sweep.parameters` on Ray, and name the best one by validation.

    python -m pipeline.sweep [--address HOST:PORT] [--workers N] [--yes] [--apply]

Reads   params.yaml, data/prepared (training and validation digits; the test digits stay unread)
Writes  reports/sweep.csv, reports/sweep_parallel.png, reports/sweep_heatmap.png; with --apply the winner in params.yaml
Expect  the default grid: 27 trials on 9 trajectories, each trial with the model that `train` makes of its parameters.

Workers only compute: they stream epochs back, and this process, the driver, keeps them in .checkpoints/ and logs them
to MLflow. So a worker may die at any time, and so may the driver: what was trained is not trained again.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence

import yaml
from filelock import FileLock, Timeout

from pipeline import config, console, files, provenance, tracking
from pipeline.config import Params
from pipeline.console import UserError
from pipeline.learning import trajectory
from pipeline.learning.trajectory import Digits
from pipeline.store import Store, open_store
from pipeline.sweeps import charts, cluster, driver, leaderboard, trials
from pipeline.sweeps.leaderboard import Result
from pipeline.sweeps.trials import Trial
from pipeline.tracking import Run

TABLE, PARALLEL, HEATMAP = (files.REPORTS / name for name in ("sweep.csv", "sweep_parallel.png", "sweep_heatmap.png"))
HINT = "Nothing is lost: the same command resumes from the last finished epochs."


def main(arguments: Sequence[str]) -> int:
    """Run what is missing of the sweep, then show the table and the winner."""
    options = _parse(arguments)
    params = config.load()
    wanted = trials.expand(params, limit=None if options.yes else params.sweep.limit)
    digits = trajectory.load_digits(files.PREPARED)
    with _only_one():
        ranked = run(params, wanted, digits, options.address, workers=options.workers)
    print(leaderboard.shown(leaderboard.table(ranked, params.train.monitor)))
    failed = [result for result in ranked if result.error]
    for result in failed:
        print(f"failed: {result.trial.name}: {result.error}", file=sys.stderr)
    if len(failed) == len(ranked):
        raise UserError("every trial failed", status=1)
    print(f"\nThe best by validation becomes the project's own with\n\n    {leaderboard.command(ranked[0])}\n")
    if options.apply:
        apply(ranked[0])
    return 1 if failed else 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.sweep",
        description="Try every combination of params.yaml's `sweep` on Ray.",
        epilog="example: python -m pipeline.sweep --address 10.0.0.1:6379 --apply",
    )
    parser.add_argument("--address", default="", help="a Ray cluster, as host:port (or RAY_ADDRESS); else this machine")
    parser.add_argument("--workers", type=int, default=0, help="trials at once on this machine; else as many as fit")
    parser.add_argument("--yes", action="store_true", help="run a grid of more trials than sweep.limit")
    parser.add_argument("--apply", action="store_true", help="write the winner's parameters into params.yaml")
    return parser.parse_args(arguments)


@contextlib.contextmanager
def _only_one() -> Iterator[None]:
    path = files.workspace() / ".checkpoints" / "sweep.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path, timeout=0):
            yield
    except Timeout:
        raise UserError("another sweep is running in this project; expected one at a time") from None


def run(
    params: Params,
    wanted: Sequence[Trial],
    digits: Digits,
    address: str = "",
    *,
    train_trials: cluster.TrainTrials = trials.train_trials,
    workers: int = 0,
) -> list[Result]:
    """Run the trials that have not finished before, report on all, and return them, best first."""
    store = open_store()
    digests = provenance.digests(params, digits.sha256)
    del digests["params_sha256"]
    sweep_id = files.digest(sorted(trial.sha256 for trial in wanted), digests)[:16]
    results = _finished_before(store, sweep_id, wanted)
    done = {result.trial.number for result in results}
    trajectories = trials.group([trial for trial in wanted if trial.number not in done], digits.sha256)
    with contextlib.ExitStack() as stack:
        if trajectories:
            threads = max(trials.longest_training(group).threads for group in trajectories.values())
            ray = stack.enter_context(cluster.connected(address, digits, threads, train_trials, workers))
        origin = provenance.find_origin()
        parent = stack.enter_context(tracking.sweeping(store, params, {**digests, "sweep_id": sweep_id}, origin))
        if trajectories:
            _delete_unfinished(store, parent)
            recorder = driver.Recorder(store, params, digests, origin, parent)
            print(_announcement(wanted, list(trajectories.values()), ray.capacity(threads)), flush=True)
            results += driver.drive(recorder, ray, trajectories)
        ranked = leaderboard.rank(results, params.train.monitor)
        report(ranked, params, parent)
    return ranked


def _finished_before(store: Store, sweep_id: str, wanted: Sequence[Trial]) -> list[Result]:
    parent = tracking.find_sweep(store, sweep_id)
    found = tracking.finished_children(store, parent) if parent else {}
    return [_result_of(trial, found[trial.sha256]) for trial in wanted if trial.sha256 in found]


def _result_of(trial: Trial, run: tracking.MlflowRun) -> Result:
    metrics = run.data.metrics
    summary = {name: metrics[name] for name in leaderboard.FIGURES} | {"stopped_early": bool(metrics["stopped_early"])}
    summary |= {name: int(metrics[name]) for name in ("best_epoch", "epochs_run")}
    return Result(trial, summary, run.data.tags["model.sha256"], run_id=run.info.run_id)


def _delete_unfinished(store: Store, parent: Run) -> None:
    """Delete the runs that earlier attempts at this sweep did not finish: each trial is to have one."""
    for run in store.runs(f"tags.`mlflow.parentRunId` = '{parent.run_id}' and attributes.status != 'FINISHED'"):
        store.client.delete_run(run.info.run_id)


def _announcement(wanted: Sequence[Trial], trajectories: Sequence[Sequence[Trial]], capacity: int) -> str:
    epochs = max(trials.longest_training(group).epochs for group in trajectories)
    left = sum(map(len, trajectories))
    before = f" ({len(wanted) - left} of {len(wanted)} were done before)" if left < len(wanted) else ""
    many = f"{len(trajectories)} trajectories" if len(trajectories) > 1 else "1 trajectory"
    return f"sweep: {_count(left, 'trial')}{before} on {many} of at most {_count(epochs, 'epoch')}, {capacity} at once"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def report(ranked: Sequence[Result], params: Params, parent: Run) -> None:
    """Write the table and the pictures, and log them and the best trial to the sweep's own run."""
    monitor = params.train.monitor
    rows = leaderboard.table(ranked, monitor)
    files.write_csv(TABLE, rows, list(rows[0]))
    failed = sum(bool(result.error) for result in ranked)
    parent.log_files([TABLE], str(files.REPORTS))
    parent.log_summary({"trials": len(ranked), "failed_trials": failed})
    if failed == len(ranked):
        return
    files.write_bytes(PARALLEL, charts.parallel(ranked, monitor))
    files.write_bytes(HEATMAP, charts.heatmap(ranked, monitor))
    for picture in (PARALLEL, HEATMAP):
        parent.log_image(picture.stem, picture)
    parent.log_summary({name: value for name, value in ranked[0].summary.items() if name.startswith("best_")})
    note = f"```\n{leaderboard.shown(rows)}\n```\n\n`{leaderboard.command(ranked[0])}`"
    parent.tag({"best.run_id": ranked[0].run_id, "best.trial": ranked[0].trial.name, "mlflow.note.content": note})


def apply(best: Result) -> None:
    """Write a trial's parameters into params.yaml, its comments kept, and say which."""
    changes = {f"train.{name}": value for name, value in leaderboard.settings(best).items()}
    text = config.replaced(files.PARAMS.read_text("utf-8"), changes)
    params = config.check(Params, yaml.safe_load(text), str(files.PARAMS))
    if params.train != best.trial.train:
        raise UserError(f"{files.PARAMS} changed while the sweep ran; use the command above")
    files.write_text(files.PARAMS, text)
    print(f"{files.PARAMS}: {', '.join(f'{name}={config.written(value)}' for name, value in changes.items())}")


if __name__ == "__main__":
    console.run(main, hint=HINT)

"""The one process of a sweep that writes: epochs to disk, runs to MLflow; workers come and go around it."""

from __future__ import annotations

import signal
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline import console, files
from pipeline.config import Params
from pipeline.console import Stopped, UserError
from pipeline.learning import model, trajectory
from pipeline.learning.trajectory import CheckpointFolder, Epoch, Metrics
from pipeline.provenance import Origin
from pipeline.store import Store, StoreError
from pipeline.sweeps.cluster import Cluster, FailedError, LostError
from pipeline.sweeps.trials import Message, Packaged, Result, Started, Trial, label, longest_training, most_epochs
from pipeline.tracking import Run, start

RETRIES = 3  # of a trajectory, with no epoch gained in between
PRUNE_EVERY = 50  # trajectories between two looks at how much is kept
FINISHERS = 2  # threads that log models, which takes longer than all else: mostly they wait for the store
Key = tuple[int, int]  # of a trial
WAITS = "sweep.waits"  # tag of a run that halving has stopped, with its epoch
OTHER_KEYS = "other_keys"  # in a trajectory's folder: its keys on other kinds of processors and GPUs, one a line


@dataclass(frozen=True)
class Recorder:
    """Where the runs of a sweep go, and what they have in common; those that wait, by their parameters' digest."""

    store: Store
    params: Params
    digests: Mapping[str, str]
    origin: Origin
    parent: Run
    waiting: dict[str, str]

    def start_run(self, trial: Trial, **facts: str) -> Run:
        """Start the run of a trial, with more tags in ``facts``, in the place of one that waits."""
        if trial.sha256 in self.waiting:
            self.store.client.delete_run(self.waiting.pop(trial.sha256))
        params = self.params.model_copy(update={"train": trial.train})
        tags = {"sweep_setting": trial.setting.name, "sweep_seed": str(trial.seed)}  # for MLflow's "Group by"
        digests = {**self.digests, "params_sha256": trial.sha256, **tags, **facts}
        parent = self.parent.run_id
        return start(self.store, params, digests, name=trial.name, parent=parent, origin=self.origin)

    def wait(self, run: Run, trial: Trial, history: Sequence[Metrics]) -> Result:
        """End the run of a trial that waits, without a model."""
        summary = trajectory.summary(history, trial.train)
        run.log_summary(summary)
        run.tag({WAITS: str(len(history))})
        run.end("FINISHED")
        self.waiting[trial.sha256] = run.run_id
        return Result(trial, summary, run_id=run.run_id, history=history, waits=True)


@dataclass
class Task:
    """A trajectory that is being trained: the trials that have not ended, the epochs so far, the trials' runs.

    ``checkpoints`` holds, by the trajectory's key, the epochs that were kept before; ``histories``, by a trial's
    key, the metrics up to the epoch that the trial stopped at; ``models`` the packaged epochs.
    """

    trials: list[Trial]
    folder: Path
    checkpoints: dict[str, list[Epoch]] = field(default_factory=dict)
    key: str = ""
    history: list[Metrics] = field(default_factory=list)
    runs: dict[Key, Run] = field(default_factory=dict)
    histories: dict[Key, list[Metrics]] = field(default_factory=dict)
    models: dict[int, dict[str, bytes]] = field(default_factory=dict)
    parameters: int = 0
    logged: int = 0
    received: float = 0.0
    lost_workers: int = 0

    def __post_init__(self) -> None:
        self.epochs = max(trial.epochs for trial in self.trials)


def drive(
    recorder: Recorder,
    workers: Cluster,
    trajectories: Mapping[str, Sequence[Trial]],
    on_result: Callable[[Result], object],
    later: int | None = None,
) -> None:
    """Train every trajectory until its last trial stops; a trial that fails is recorded, and the others continue.

    ``later`` is how many epochs may follow in other rounds: with it, the time is estimated.
    """
    epochs = most_epochs(trajectories)
    with console.progress(epochs, "sweep", "epoch") as bar:
        driver = Driver(recorder, workers, bar, sum(map(len, trajectories.values())), on_result, later)
        try:
            driver.run(trajectories)
        except BaseException as error:
            driver.close(error)
            raise


class Driver:
    """Gives workers their tasks, receives what they yield, keeps the epochs and logs the trials."""

    def __init__(
        self,
        recorder: Recorder,
        workers: Cluster,
        bar: tqdm,
        trials: int,
        on_result: Callable[[Result], object],
        later: int | None,
    ) -> None:
        self.recorder = recorder
        self.workers = workers
        self.bar = bar
        self.trials = trials
        self.on_result = on_result
        self.ended = 0
        self.best: float | None = None
        self.waiting: deque[Task] = deque()
        self.running: dict[Any, Task] = {}
        self.pool = ThreadPoolExecutor(FINISHERS)
        self.finishing: dict[Future[Result], Run] = {}
        self.later = later or 0
        self.times: list[float] = []
        self.estimated = later is None

    def run(self, trajectories: Mapping[str, Sequence[Trial]]) -> None:
        """Train all trajectories."""
        root = files.workspace() / ".checkpoints"
        self.waiting.extend(Task(list(trials), root / key) for key, trials in trajectories.items())
        while self.waiting or self.running:
            self._submit()
            for stream in self.workers.ready(list(self.running)):
                self._receive(stream)
            self._collect_results([future for future in self.finishing if future.done()])
            self._show()
            if console.stopping.is_set():  # and some library has dropped what the signal raised: seen once in a sweep
                raise Stopped(signal.SIGINT)
        self._collect_results(list(self.finishing))

    def close(self, error: BaseException) -> None:
        """End the runs that are open, but for those that are being finished."""
        status = "KILLED" if isinstance(error, Stopped | KeyboardInterrupt | SystemExit) else "FAILED"
        self.pool.shutdown(cancel_futures=True)
        runs = [run for task in [*self.running.values(), *self.waiting] for run in task.runs.values()]
        for run in [*runs, *(run for future, run in self.finishing.items() if future.cancelled())]:
            run.end(status, error)

    def _submit(self) -> None:
        """Keep a few tasks more submitted than there is capacity for, so that no worker waits for this process."""
        if not self.waiting:
            return
        capacity = self.workers.capacity(longest_training(self.waiting[0].trials))
        while self.waiting and len(self.running) < 2 * capacity + 2:
            task = self.waiting.popleft()
            task.checkpoints = self._read_checkpoints(task)
            content = {key: [epoch.to_bytes() for epoch in epochs] for key, epochs in task.checkpoints.items()}
            self.running[self.workers.start(task.trials, content)] = task

    def _read_checkpoints(self, task: Task) -> dict[str, list[Epoch]]:
        task.folder.mkdir(parents=True, exist_ok=True)
        task.folder.touch()
        if len(self.waiting) % PRUNE_EVERY == 0:
            trajectory.prune(task.folder.parent, self.recorder.params.checkpoints, keep=task.folder)
        file = task.folder / OTHER_KEYS
        keys = [task.folder.name, *(file.read_text().split() if file.exists() else [])]
        return {key: CheckpointFolder(task.folder.with_name(key)).read_all()[: task.epochs] for key in keys}

    def _receive(self, stream: Any) -> None:
        task = self.running[stream]
        try:
            message = self.workers.next_message(stream)
            if message is not None:
                self._handle(task, message)
                self.running[stream] = self.running.pop(stream)  # at the end of the queue: each has its turn
                return
            if task.trials:
                raise LostError("the worker stopped early")  # noqa: TRY301
            self.bar.total = (self.bar.total or 0) - (task.epochs - len(task.history))
        except FailedError as error:
            self._fail(task, str(error))
        except StoreError:
            raise
        except UserError as error:  # a loss that is not a number in any epoch
            self._fail(task, str(error))
        except LostError as error:
            self._retry(task, str(error))
        del self.running[stream]

    def _handle(self, task: Task, message: Message) -> None:
        match message:
            case Started():
                self._start_runs(task, message)
            case Packaged(number, content):
                task.models[number] = content
            case bytes():
                epoch = Epoch.from_bytes(message)
                CheckpointFolder(task.folder.with_name(task.key)).write(epoch)
                task.lost_workers = 0
                self._log_epoch(task, epoch)
                self._estimate(task)
        self._finish_trials(task)

    def _estimate(self, task: Task) -> None:
        """Say once how long the rest takes at most, from the times between two epochs of as many workers as there are.

        The first of them alone would be too quick: it has a machine to itself while the others start.
        """
        now = time.monotonic()
        seconds, task.received = now - task.received, now
        if self.estimated or seconds == now:
            return
        self.times.append(seconds)
        left = [each.epochs - each.logged for each in [*self.running.values(), *self.waiting]]
        at_once = max(min(self.workers.capacity(longest_training(task.trials)), len(left)), 1)
        if len(self.times) < at_once:
            return
        self.estimated = True
        mean = statistics.fmean(self.times)
        now_left, all_left = (mean * max(epochs / at_once, *left) for epochs in (sum(left), sum(left) + self.later))
        rest = f", with all seeds {console.duration(all_left)}" if self.later else ""
        self.bar.write(f"sweep: an epoch takes {mean:.1f} s: at most about {console.duration(now_left)} more{rest}")

    def _start_runs(self, task: Task, worker: Started) -> None:
        """Start the runs of a task's trials, or keep those that a lost worker's have; log the epochs kept before."""
        key, facts = worker.key, {"worker_host": worker.host, "system_processor": worker.processor}
        if task.key not in ("", key):
            self._delete_runs(task)
        if key not in task.checkpoints:
            with (task.folder / OTHER_KEYS).open("a") as others:
                others.write(f"{key}\n")
        task.key, task.history, task.histories, task.received = key, [], {}, 0.0
        for trial in task.trials:
            if trial.key not in task.runs:
                task.runs[trial.key] = self.recorder.start_run(trial, trajectory=key, **facts)
        for epoch in task.checkpoints.get(key, []):
            self._log_epoch(task, epoch)

    def _delete_runs(self, task: Task) -> None:
        """Delete the runs of a task that continues on another kind of processor: its epochs have other bits."""
        for trial in task.trials:
            run = task.runs.pop(trial.key)
            run.client.delete_run(run.run_id)
        task.models.clear()
        self.bar.update(-task.logged)
        task.logged = 0

    def _log_epoch(self, task: Task, epoch: Epoch) -> None:
        """Log an epoch, once, to the runs of the trials that have not stopped before it."""
        task.history.append(epoch.metrics)
        task.parameters = sum(weight.size for weight in epoch.weights)
        for trial in task.trials:
            if trial.key in task.histories:
                continue
            if epoch.number > task.logged:
                task.runs[trial.key].log_epoch(epoch.number, epoch.metrics)
            if trial.has_stopped(task.history):
                task.histories[trial.key] = list(task.history)
        self.bar.update(max(epoch.number - task.logged, 0))
        task.logged = max(epoch.number, task.logged)

    def _finish_trials(self, task: Task) -> None:
        """Have the trials finished that have stopped and whose model is there."""
        for trial in [trial for trial in task.trials if trial.key in task.histories]:
            history = task.histories[trial.key]
            if not trajectory.is_finished(history, trial.train):
                task.trials.remove(trial)
                self._end(self.recorder.wait(task.runs.pop(trial.key), trial, history))
                continue
            content = task.models.get(trajectory.best_epoch(history, trial.train.monitor))
            if content:
                task.trials.remove(trial)
                run = task.runs.pop(trial.key)
                self.finishing[self.pool.submit(finish, run, trial, history, content, task.parameters)] = run

    def _collect_results(self, futures: Iterable[Future[Result]]) -> None:
        for future in futures:
            del self.finishing[future]
            self._end(future.result())

    def _end(self, result: Result) -> None:
        self.ended += 1
        if not result.error:
            metric = self.recorder.params.sweep.metric
            better, score = (min if metric.endswith("loss") else max), result.summary[f"best_{metric}"]
            self.best = score if self.best is None else better(self.best, score)
        self.on_result(result)

    def _fail(self, task: Task, reason: str) -> None:
        """Record the trials of a task that have not finished as failed."""
        for trial in task.trials:
            run = task.runs.get(trial.key) or self.recorder.start_run(trial, trajectory=task.folder.name)
            run.tag({"error": reason})
            run.end("FAILED")
            self._end(Result(trial, error=reason, run_id=run.run_id))
        task.trials.clear()
        task.runs.clear()

    def _retry(self, task: Task, reason: str) -> None:
        """Give a task that lost its worker to another one, unless it keeps losing them."""
        task.lost_workers += 1
        if task.lost_workers > RETRIES:
            self._fail(task, f"{task.lost_workers} workers in a row were lost: {reason}")
            return
        self.bar.write(f"sweep: {reason}; resuming from epoch {task.logged + 1}", file=sys.stderr)
        self.waiting.appendleft(task)

    def _show(self) -> None:
        best, metric = "-" if self.best is None else self.best, self.recorder.params.sweep.metric
        words = f"{self.ended} of {self.trials} trials, best {label(metric)} {best}"
        self.bar.set_postfix_str(words, refresh=False)


def finish(run: Run, trial: Trial, history: Sequence[Metrics], content: Mapping[str, bytes], parameters: int) -> Result:
    """Log a trial's model and summary, and end its run."""
    summary, sha256 = trajectory.summary(history, trial.train), model.sha256(content)
    try:
        with tempfile.TemporaryDirectory() as folder:
            model.write(content, Path(folder))
            run.log_trained({**summary, "parameters": parameters, "model_sha256": sha256}, Path(folder))
    except BaseException as error:
        run.end("FAILED", error)
        raise
    run.end("FINISHED")
    return Result(trial, summary, sha256, run_id=run.run_id, history=history)

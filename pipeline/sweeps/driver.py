"""The one process of a sweep that writes: epochs to disk, runs to MLflow; workers come and go around it."""

from __future__ import annotations

import sys
import tempfile
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline import console, files
from pipeline.config import Params
from pipeline.console import Stopped
from pipeline.learning import model, trajectory
from pipeline.learning.trajectory import Checkpointed, Epoch, Metrics
from pipeline.provenance import Origin
from pipeline.store import Store
from pipeline.sweeps.cluster import Cluster, FailedError, LostError
from pipeline.sweeps.leaderboard import Result
from pipeline.sweeps.trials import Message, Packaged, Started, Trial, longest, words
from pipeline.tracking import Run, start

RETRIES = 3  # of a path, with no epoch gained in between
PRUNED = 50  # paths between two looks at how much is kept
FINISHERS = 2  # threads that log models, which takes longer than all else: mostly they wait for the store
ELSEWHERE = "elsewhere"  # in a path's folder: the names of the same path as other kinds of processors walk it


@dataclass(frozen=True)
class Book:
    """Where the runs of a sweep go, and what they have in common."""

    store: Store
    params: Params
    digests: Mapping[str, str]
    origin: Origin
    parent: Run

    def open(self, trial: Trial, **facts: str) -> Run:
        """Start the run of a trial."""
        params = self.params.model_copy(update={"train": trial.train})
        digests = {**self.digests, "params_sha256": trial.sha256, **facts}
        parent = self.parent.run_id
        return start(self.store, params, digests, name=trial.name, parent=parent, origin=self.origin)


@dataclass
class Walk:
    """A path on its way: the trials that have not ended, the epochs so far, the runs that are told of them.

    ``left`` holds, by a trial's number, the history it left the path with; ``models`` the packaged epochs.
    """

    trials: list[Trial]
    home: Path
    known: dict[str, list[Epoch]] = field(default_factory=dict)
    path: str = ""
    history: list[Metrics] = field(default_factory=list)
    runs: dict[int, Run] = field(default_factory=dict)
    left: dict[int, list[Metrics]] = field(default_factory=dict)
    models: dict[int, dict[str, bytes]] = field(default_factory=dict)
    parameters: int = 0
    told: int = 0
    losses: int = 0

    def __post_init__(self) -> None:
        self.epochs = longest(self.trials).epochs


def drive(book: Book, workers: Cluster, paths: Mapping[str, Sequence[Trial]]) -> list[Result]:
    """Have every path walked to the end of its trials; a trial that fails is recorded, and the others go on."""
    with console.progress(sum(longest(path).epochs for path in paths.values()), "sweep", "epoch") as bar:
        driver = Driver(book, workers, bar, sum(map(len, paths.values())))
        try:
            driver.run(paths)
        except BaseException as error:
            driver.close(error)
            raise
        return driver.results


class Driver:
    """Sends workers on their ways, listens to all of them, and writes down what they say."""

    def __init__(self, book: Book, workers: Cluster, bar: tqdm, trials: int) -> None:
        self.book = book
        self.workers = workers
        self.bar = bar
        self.trials = trials
        self.results: list[Result] = []
        self.waiting: deque[Walk] = deque()
        self.walking: dict[Any, Walk] = {}
        self.pool = ThreadPoolExecutor(FINISHERS)
        self.finishing: dict[Future[Result], Run] = {}

    def run(self, paths: Mapping[str, Sequence[Trial]]) -> None:
        """Walk all paths."""
        root = files.workspace() / ".checkpoints"
        self.waiting.extend(Walk(list(trials), root / path) for path, trials in paths.items())
        while self.waiting or self.walking:
            self._send()
            for stream in self.workers.ready(list(self.walking)):
                self._listen(stream)
            self._collect([future for future in self.finishing if future.done()])
            self._show()
        self._collect(list(self.finishing))

    def close(self, error: BaseException) -> None:
        """Close the runs that are open, but for those that are being finished."""
        status = "KILLED" if isinstance(error, Stopped | KeyboardInterrupt | SystemExit) else "FAILED"
        self.pool.shutdown(cancel_futures=True)
        runs = [run for walk in [*self.walking.values(), *self.waiting] for run in walk.runs.values()]
        for run in [*runs, *(run for future, run in self.finishing.items() if future.cancelled())]:
            run.end(status, error)

    def _send(self) -> None:
        """Keep a few paths more on their way than there is room for, so that no worker waits for this process."""
        if not self.waiting:
            return
        room = self.workers.room(longest(self.waiting[0].trials).threads)
        while self.waiting and len(self.walking) < 2 * room + 2:
            walk = self.waiting.popleft()
            walk.known = self._known(walk)
            known = {path: [epoch.to_bytes() for epoch in epochs] for path, epochs in walk.known.items()}
            self.walking[self.workers.start(walk.trials, known)] = walk

    def _known(self, walk: Walk) -> dict[str, list[Epoch]]:
        walk.home.mkdir(parents=True, exist_ok=True)
        walk.home.touch()
        if len(self.waiting) % PRUNED == 0:
            trajectory.prune(walk.home.parent, self.book.params.checkpoints, keep=walk.home)
        file = walk.home / ELSEWHERE
        names = [walk.home.name, *(file.read_text().split() if file.exists() else [])]
        return {name: Checkpointed(walk.home.with_name(name)).read_all()[: walk.epochs] for name in names}

    def _listen(self, stream: Any) -> None:
        walk = self.walking[stream]
        try:
            message = self.workers.hear(stream)
            if message is not None:
                self._take(walk, message)
                self.walking[stream] = self.walking.pop(stream)  # at the end of the queue: each has its turn
                return
            if walk.trials:
                raise LostError("the worker stopped early")  # noqa: TRY301
            self.bar.total = (self.bar.total or 0) - (walk.epochs - len(walk.history))
        except FailedError as error:
            self._fail(walk, str(error))
        except LostError as error:
            self._lose(walk, str(error))
        del self.walking[stream]

    def _take(self, walk: Walk, message: Message) -> None:
        match message:
            case Started():
                self._begin(walk, message)
            case Packaged(number, content):
                walk.models[number] = content
            case bytes():
                epoch = Epoch.from_bytes(message)
                Checkpointed(walk.home.with_name(walk.path)).write(epoch)
                walk.losses = 0
                self._follow(walk, epoch)
        self._settle(walk)

    def _begin(self, walk: Walk, worker: Started) -> None:
        """Open the runs of a path's trials, or go on with those that a lost worker left; tell them what is known."""
        path, facts = worker.path, {"worker_host": worker.host, "system_processor": worker.processor}
        if walk.path not in ("", path):
            self._abandon(walk)
        if path not in walk.known:
            with (walk.home / ELSEWHERE).open("a") as others:
                others.write(f"{path}\n")
        walk.path, walk.history, walk.left = path, [], {}
        for trial in walk.trials:
            if trial.number not in walk.runs:
                walk.runs[trial.number] = self.book.open(trial, path=path, **facts)
        for epoch in walk.known.get(path, []):
            self._follow(walk, epoch)

    def _abandon(self, walk: Walk) -> None:
        """Close the runs of a path that goes on with another kind of processor: its epochs have other bits."""
        for trial in walk.trials:
            walk.runs.pop(trial.number).end("KILLED")
        walk.models.clear()
        self.bar.update(-walk.told)
        walk.told = 0

    def _follow(self, walk: Walk, epoch: Epoch) -> None:
        """Tell the runs of an epoch, once, until their trials leave the path."""
        walk.history.append(epoch.metrics)
        walk.parameters = sum(weight.size for weight in epoch.weights)
        for trial in walk.trials:
            if trial.number in walk.left:
                continue
            if epoch.number > walk.told:
                walk.runs[trial.number].log_epoch(epoch.number, epoch.metrics)
            if trajectory.finished(walk.history, trial.train):
                walk.left[trial.number] = list(walk.history)
        self.bar.update(max(epoch.number - walk.told, 0))
        walk.told = max(epoch.number, walk.told)

    def _settle(self, walk: Walk) -> None:
        """Have the trials finished that have left the path and whose model is there."""
        for trial in [trial for trial in walk.trials if trial.number in walk.left]:
            history = walk.left[trial.number]
            content = walk.models.get(trajectory.best_epoch(history, trial.train.monitor))
            if content:
                walk.trials.remove(trial)
                run = walk.runs.pop(trial.number)
                self.finishing[self.pool.submit(finish, run, trial, history, content, walk.parameters)] = run

    def _collect(self, futures: Iterable[Future[Result]]) -> None:
        for future in futures:
            del self.finishing[future]
            self.results.append(future.result())

    def _fail(self, walk: Walk, reason: str) -> None:
        """Record the trials still on a path as failed."""
        for trial in walk.trials:
            run = walk.runs.get(trial.number) or self.book.open(trial, path=walk.home.name)
            run.tag({"error": reason})
            run.end("FAILED")
            self.results.append(Result(trial, error=reason, run_id=run.run_id))
        walk.trials.clear()
        walk.runs.clear()

    def _lose(self, walk: Walk, reason: str) -> None:
        """Have a path that lost its worker walked on by another one, unless it keeps losing them."""
        walk.losses += 1
        if walk.losses > RETRIES:
            self._fail(walk, f"{walk.losses} workers in a row were lost: {reason}")
            return
        self.bar.write(f"sweep: {reason}; going on from epoch {walk.told + 1}", file=sys.stderr)
        self.waiting.appendleft(walk)

    def _show(self) -> None:
        monitor = f"best_{self.book.params.train.monitor}"
        scores = [result.summary[monitor] for result in self.results if not result.error]
        best = (max if monitor.endswith("accuracy") else min)(scores) if scores else "-"
        self.bar.set_postfix_str(f"{len(self.results)} of {self.trials} trials, {words(monitor)} {best}", refresh=False)


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
    return Result(trial, summary, sha256, run_id=run.run_id)

"""The settings of a sweep, their trials, the trajectories that trials share, and the training of one trajectory.

Nothing here knows of Ray, MLflow or the disk: a worker anywhere runs `train_trials`, the driver keeps what it yields.
"""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pipeline import config, files
from pipeline.config import Params, Train
from pipeline.console import UserError
from pipeline.learning import environment, model, trajectory
from pipeline.learning.trajectory import Digits, Epoch
from pipeline.sweeps import search, space

SECTION = "sweep.parameters"
Learn = Callable[[Digits, Train, Epoch | None], Iterator[Epoch]]
Package = Callable[[Epoch, Train, Digits], dict[str, bytes]]


@dataclass(frozen=True)
class Setting:
    """Parameters to compare: their place in the sweep, with the first seed, and those that the sweep varies.

    Number 0 is the project's own present parameters, which the others are compared with.
    """

    number: int
    train: Train
    varied: dict[str, Any]

    @property
    def name(self) -> str:
        """The parameters that vary, with their values."""
        return " · ".join(f"{label(name)} {value}" for name, value in self.varied.items())


@dataclass(frozen=True)
class Trial:
    """A setting, trained with a seed: to its end, or ``until`` an epoch at which it waits, 0 for none."""

    setting: Setting
    seed: int
    until: int = 0

    @functools.cached_property
    def train(self) -> Train:
        """The parameters of the training."""
        return self.setting.train.model_copy(update={"seed": self.seed})

    @property
    def key(self) -> tuple[int, int]:
        """What tells it from the sweep's other trials, in their order: seed by seed, and by setting."""
        return self.seed, self.setting.number

    @property
    def epochs(self) -> int:
        """How many epochs it takes at most."""
        return min(self.until or self.train.epochs, self.train.epochs)

    def has_stopped(self, history: trajectory.History) -> bool:
        """Tell whether it ends, or waits, after these epochs."""
        return len(history) == self.until or trajectory.is_finished(history, self.train)

    @property
    def name(self) -> str:
        """The parameters that vary, with their values, and the seed."""
        return f"{self.setting.name} · seed {self.seed}"

    @functools.cached_property
    def sha256(self) -> str:
        """The digest of the parameters, as in a run's tag ``params.sha256``."""
        return files.digest(self.train.model_dump())


@dataclass(frozen=True)
class Result:
    """What became of a trial: its summary (`trajectory.summary`) and its model, or the error that ended it.

    ``history`` holds its metrics, epoch by epoch, where halving needs them; ``waits`` tells that the trial has not
    ended, and has no model.
    """

    trial: Trial
    summary: Mapping[str, float] = field(default_factory=dict)
    model_sha256: str = ""
    error: str = ""
    run_id: str = ""
    history: trajectory.History = ()
    waits: bool = False


def label(name: str) -> str:
    """Return the name of a parameter or a metric for tables and charts."""
    return {"batch_size": "batch"}.get(name, name.replace("_", " "))


def seeds(params: Params) -> list[int]:
    """Return the seeds that every setting is trained with: ``train.seed`` and those that follow."""
    first, count = params.train.seed, params.sweep.seeds
    if first + count > MAX_SEED:
        raise UserError(f"params.yaml: train.seed is {first}; expected room for {count} seeds below {MAX_SEED}")
    return list(range(first, first + count))


def expand(params: Params, *, limit: int | None, scores: Mapping[Train, float] | None = None) -> list[Setting]:
    """Return the project's present parameters and every other combination of ``sweep.parameters``, checked.

    ``sweep.threads`` takes the place of ``train.threads``. ``limit`` None lifts the limit.
    ``scores`` are those known so far, higher is better: `search: tpe` returns the settings to its first round without.
    Raise ``UserError`` for a grid that cannot be run.
    """
    parameters, sweep = params.sweep.parameters, params.sweep
    if not parameters:
        raise UserError(f"params.yaml: {SECTION} names no parameter; expected lists such as `dropout: [0.1, 0.2]`")
    if "seed" in parameters:
        raise UserError(f"params.yaml: {SECTION}.seed: every setting is trained with the same seeds; set sweep.seeds")
    if "threads" in parameters:
        raise UserError(f"params.yaml: {SECTION}.threads: every count gives the same bits; set sweep.threads")
    if "device" in parameters:
        raise UserError(f"params.yaml: {SECTION}.device: a sweep trains on one kind of device; set train.device")
    if "augment" in parameters:
        raise UserError(f"params.yaml: {SECTION}.augment: expected one of its values, such as augment.rotation")
    base = params.train.model_dump() | {"threads": sweep.threads}
    axes = space.axes(parameters)
    for axis in axes:
        _check_values(base, axis.name, axis.examples())
    if limit is not None and (count := search.size(axes, sweep) * len(seeds(params))) > limit:
        raise UserError(
            f"params.yaml: {SECTION} makes {count} trials, sweep.limit is {limit}; shorten a list, or say --yes"
        )
    own = {axis.name: _value(base, axis.name) for axis in axes}
    found = {config.check(Train, base, "params.yaml"): own}
    for varied in search.combinations(axes, own, sweep, lambda each: (scores or {}).get(_with_values(base, each))):
        found.setdefault(_with_values(base, varied), varied)
    return [Setting(number, *each) for number, each in enumerate(found.items())]


MAX_SEED = 2**31  # as config.Seed


def _value(base: Mapping[str, Any], name: str) -> Any:
    section, _, key = name.rpartition(".")
    return base[section][key] if section else base[name]


def _check_values(base: dict[str, Any], name: str, values: Sequence[Any]) -> None:
    checked = [_with_values(base, {name: value}) for value in values]
    for number, each in enumerate(checked):
        if each in checked[:number]:
            raise UserError(f"params.yaml: {SECTION}.{name} holds {values[number]!r} twice; expected each value once")


def _with_values(base: dict[str, Any], varied: Mapping[str, Any]) -> Train:
    content = base | {"augment": dict(base["augment"])}
    for name, value in varied.items():
        *section, key = name.split(".")
        place = content["augment"] if section == ["augment"] else content
        place[key if section in ([], ["augment"]) else name] = value
    return config.check(Train, content, "params.yaml", f"{SECTION}.")


def group(trials: Sequence[Trial], data_sha256: str) -> dict[str, list[Trial]]:
    """Return the trials by the key of the trajectory that they share, seed by seed, the slowest trajectories first."""
    grouped: dict[str, list[Trial]] = {}
    for trial in trials:
        grouped.setdefault(_key(trial.train, data_sha256), []).append(trial)
    return dict(sorted(grouped.items(), key=lambda item: (item[1][0].seed, item[1][0].train.batch_size)))


_key = functools.cache(trajectory.trajectory_key)  # which reads the code


def longest_training(trials: Sequence[Trial]) -> Train:
    """Return the parameters to train a trajectory with, so that it is long enough for each of its trials."""
    return max((trial.train for trial in trials), key=lambda train: train.epochs)


def most_epochs(grouped: Mapping[str, Sequence[Trial]]) -> int:
    """Return how many epochs the trajectories take where none stops early."""
    return sum(max(trial.epochs for trial in group) for group in grouped.values())


class Started(NamedTuple):
    """A worker's first message: the trajectory's key by its own packages and processor, and where it runs."""

    key: str
    host: str
    processor: str


class Packaged(NamedTuple):
    """The model of an epoch, by file name."""

    epoch: int
    content: dict[str, bytes]


Message = Started | Packaged | bytes


def _package(epoch: Epoch, train: Train, digits: Digits) -> dict[str, bytes]:
    from pipeline.learning import network

    network.use_threads(train.threads)  # kept epochs may be packaged before any is trained, which would settle it
    return model.package(epoch, train, digits)


def train_trials(
    digits: Digits,
    trials: Sequence[Trial],
    checkpoints: Mapping[str, Sequence[bytes]],
    learn: Learn = trajectory.train_epochs,
    package: Package = _package,
) -> Iterator[Message]:
    """Train a trajectory until its last trial stops: yield every new epoch, and the model of each trial's best one.

    ``checkpoints`` holds epochs that were trained before, by trajectory key; only the worker's own are resumed.
    """
    train = longest_training(trials)
    environment.isolate(train.device, train.instructions)  # before `package`, which imports TensorFlow
    key = trajectory.trajectory_key(train, digits.sha256)
    yield Started(key, socket.gethostname(), " ".join(trajectory.processor(train.device)))
    epochs = [Epoch.from_bytes(content) for content in checkpoints.get(key, ())]
    old, waiting, packaged = len(epochs), list(trials), set[int]()
    for number, epoch in enumerate(_epochs(digits, train, epochs, learn), 1):
        if number > old:
            epochs.append(epoch)
            yield epoch.to_bytes()
        history = [each.metrics for each in epochs[:number]]
        stopping = [trial for trial in waiting if trial.has_stopped(history)]
        waiting = [trial for trial in waiting if trial not in stopping]
        ended = [trial for trial in stopping if trajectory.is_finished(history, trial.train)]
        for best in sorted({trajectory.best_epoch(history, trial.train.monitor) for trial in ended} - packaged):
            packaged.add(best)
            yield Packaged(best, package(epochs[best - 1], train, digits))
        if not waiting:
            return


def _epochs(digits: Digits, train: Train, epochs: Sequence[Epoch], learn: Learn) -> Iterator[Epoch]:
    yield from list(epochs)
    yield from learn(digits, train, epochs[-1] if epochs else None)

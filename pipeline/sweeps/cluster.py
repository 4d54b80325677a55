"""Ray as this project uses it: workers that train one trajectory each and stream its epochs, here or on a cluster."""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pipeline import console, files
from pipeline.config import Train
from pipeline.console import UserError
from pipeline.learning import environment
from pipeline.learning.trajectory import Digits
from pipeline.sweeps.trials import Message, Trial, longest_training, train_trials

TIMEOUT = 5  # seconds in which a cluster must answer
SHORT = 24  # bytes of a folder's name: ours and Ray's add 78, and a socket's name has 103 on a Mac, 107 on Linux
DIED = "sweep: this process was killed, or Ray on this machine died. Nothing is lost: the same command resumes."
STORE = 100_000_000  # bytes of shared memory, besides the digits, for what is on its way: an epoch is a megabyte
TOO_SLOW, STARTS = "timed out during startup", 3  # Ray gives a node 30 s, which a busy machine may not
TrainTrials = Callable[..., Iterator[Message]]


class LostError(Exception):
    """A worker, or the machine it was on, is gone: another one can resume."""


class FailedError(Exception):
    """The training itself failed: it would fail again."""


class Cluster:
    """Workers with ``digits`` at hand; ``ray`` is the module, connected.

    Its calls are undisturbed: what a signal raises, Ray's compiled code takes for an error of its own.
    """

    def __init__(self, ray: Any, digits: Digits, task: TrainTrials) -> None:
        self.ray = ray
        with console.undisturbed():
            self.digits = ray.put(digits)
        self.task = ray.remote(task)
        self.nodes: list[dict[str, float]] = []
        self.counted = float("-inf")

    def capacity(self, train: Train) -> int:
        """Return how many such trainings fit at once: as many as cores allow, also where they share GPUs."""
        return sum(int(node.get("CPU", 0)) // train.threads for node in self._nodes(train))

    def _nodes(self, train: Train) -> list[dict[str, float]]:
        """Return the resources of the machines that have what a training asks for."""
        if time.monotonic() > self.counted + 1:  # machines come and go, but not every millisecond
            with console.undisturbed():
                nodes = self.ray.nodes()
            self.nodes = [node["Resources"] for node in nodes if node["Alive"]]
            self.counted = time.monotonic()
        return [node for node in self.nodes if train.device == "cpu" or node.get("GPU", 0)]

    def _gpus(self, train: Train) -> float:
        """Return the share of a GPU that a training asks Ray for, so that as many fit as cores allow; 0 on the CPU."""
        if train.device == "cpu":
            return 0
        at_once = [(int(node.get("CPU", 0)) // train.threads, node["GPU"]) for node in self._nodes(train)]
        a_gpu = max((math.ceil(trials / gpus) for trials, gpus in at_once), default=1)
        return math.floor(1e4 / max(a_gpu, 1)) / 1e4  # Ray counts in ten-thousandths

    def start(self, trials: Sequence[Trial], checkpoints: Mapping[str, Sequence[bytes]]) -> Any:
        """Submit a task, which starts as soon as a worker is free; return the stream of its messages."""
        train = longest_training(trials)
        chosen = environment.DEVICES[train.device] | environment.INSTRUCTIONS[train.instructions]
        variables = {"OMP_NUM_THREADS": str(train.threads), **chosen}
        options = {
            "num_cpus": train.threads,
            "num_gpus": self._gpus(train),
            "num_returns": "streaming",
            "max_retries": 0,
            "runtime_env": {"env_vars": variables},  # one process cannot change them: other ones, another process
        }
        with console.undisturbed():
            return self.task.options(**options).remote(self.digits, list(trials), dict(checkpoints))

    def ready(self, streams: Sequence[Any]) -> list[Any]:
        """Return the streams that have a message, after a second at most."""
        with console.undisturbed():
            return list(self.ray.wait(list(streams), timeout=1)[0])

    def next_message(self, stream: Any) -> Message | None:
        """Return a stream's next message, or None at its end; raise ``LostError`` or ``FailedError``."""
        try:
            with console.undisturbed():
                message: Message | None = self.ray.get(next(stream))
        except StopIteration:
            return None
        except self.ray.exceptions.LocalRayletDiedError:
            raise UserError("Ray on this machine died; run the same command again, it resumes") from None
        except self.ray.exceptions.RayTaskError as error:
            raise FailedError(_one_line(f"{type(error.cause).__name__}: {error.cause}")) from None
        except self.ray.exceptions.RayError as error:
            raise LostError(_one_line(error)) from None
        return message


@contextlib.contextmanager
def connected(
    address: str, digits: Digits, train: Train, task: TrainTrials = train_trials, workers: int = 0
) -> Iterator[Cluster]:
    """Start Ray on this machine for ``workers`` at once (0: as many as fit), or join the one at ``address``.

    Raise ``UserError`` where none answers, where it is another version, or where no machine has what ``train`` needs.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    os.environ |= _settings(address)  # before the import, which reads some of them
    import ray
    import ray.exceptions

    cores = train.threads * workers or max(_cores(), train.threads)
    with _last_words(), socket_folder() if address == "local" else contextlib.nullcontext("") as folder:
        try:
            _init(ray, address, _local_options(digits, cores, folder) if folder else _cluster_options())
            cluster = Cluster(ray, digits, task)
            if not cluster.capacity(train):
                gpu = train.device == "gpu"
                missing = f"{train.threads} core{'s' * (train.threads > 1)}{' and a GPU' * gpu}"
                remedy = f"lower sweep.threads{' or set train.device: cpu' * gpu}"
                raise UserError(f"Ray at {address}: no machine has {missing}; {remedy}")
            yield cluster
        finally:
            ray.shutdown()


@contextlib.contextmanager
def _last_words() -> Iterator[None]:
    """Have another process print ``DIED`` when this one ends in the block: Ray ends it without running any handler."""
    script = 'read -r _ || printf "%s\\n" "$0" >&2'
    with subprocess.Popen(["sh", "-c", script, DIED], stdin=subprocess.PIPE, start_new_session=True) as watcher:
        try:
            yield
        finally:
            watcher.communicate(b"ended\n")


@contextlib.contextmanager
def socket_folder() -> Iterator[str]:
    """Make a folder for Ray of this user's own, whose name is short enough for sockets, and remove it at the end."""
    places = [os.environ.get("RAY_TMPDIR", ""), tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm"]  # noqa: S108
    for place in [place for place in places if place and len(os.fsencode(place)) <= SHORT]:
        with contextlib.suppress(OSError):
            folder = tempfile.TemporaryDirectory(prefix="ray_", dir=place, ignore_cleanup_errors=True)
            break
    else:
        raise UserError(f"RAY_TMPDIR: expected a folder that can be written, with a name of at most {SHORT} bytes")
    with folder as name:
        yield name


def _settings(address: str) -> dict[str, str]:
    remote = {"RAY_NUM_REDIS_GET_RETRIES": "1", "RAY_py_gcs_connect_timeout_s": str(TIMEOUT)}
    local = {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # there, and only there, Ray keeps to the loopback address
        "RAY_AUTH_MODE": "token",  # other users of this machine are not to run code here
        "RAY_AUTH_TOKEN": secrets.token_hex(32),  # else Ray leaves one in the home folder
    }
    wanted = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_BACKEND_LOG_LEVEL": "error",
        "RAY_worker_niceness": "0",  # as `train`; Ray's 15 starves on a busy machine
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        **(local if address == "local" else remote),
    }
    return {name: os.environ.get(name) or value for name, value in wanted.items()}


def _local_options(digits: Digits, cores: int, folder: str) -> dict[str, Any]:
    size = sum(array.nbytes for array in (digits.images, digits.labels, digits.val_images, digits.val_labels))
    options = {"num_cpus": cores, "include_dashboard": False, "object_store_memory": size + STORE, "_temp_dir": folder}
    python = shlex.quote(sys.executable)  # Ray writes it into a shell's command as it is: a space would end its name
    return options | ({"runtime_env": {"py_executable": python}} if python != sys.executable else {})


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cluster_options() -> dict[str, Any]:
    """Send the code along: machines of a cluster need the packages, but no copy of the project."""
    return {"runtime_env": {"py_modules": [str(files.ROOT / "pipeline")], "excludes": ["__pycache__", "*.html"]}}


def _init(ray: Any, address: str, options: dict[str, Any]) -> None:
    if address != "local":
        _check_reachable(address)
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with console.hushed():
        for _ in range(STARTS):
            reason = _attempt(ray, address, options)
            if TOO_SLOW not in reason:
                break
            ray.shutdown()
    for number, handler in signals.items():
        signal.signal(number, handler)  # Ray brings its own, which ends the process without closing anything
    # It would print twenty lines of a raylet's log for every machine that is lost; `next_message` says it in one line.
    ray._private.worker.print_to_stdstream = lambda *_, **__: None
    if reason:
        raise UserError(f"Ray at {address}: {reason}")


def _attempt(ray: Any, address: str, options: dict[str, Any]) -> str:
    """Connect; return why it failed, in one line, or nothing."""
    try:
        ray.init(address, log_to_driver=False, logging_level="critical", configure_logging=True, **options)
    except Exception as error:  # noqa: BLE001  # a node that starts too slowly is an `Exception`, and no less general
        return _explained(error)
    return ""


def _explained(error: BaseException) -> str:
    if TOO_SLOW in str(error):
        return f"{TOO_SLOW}, {STARTS} times: this machine has too much to do; run the same command again, it resumes"
    refused = isinstance(error.__cause__ or error.__context__, RuntimeError) and "token" in str(error.__cause__)
    if refused or "token" in str(error):
        return "it asks for a token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) as it does"
    return _one_line(error)


def _check_reachable(address: str) -> None:
    """Raise ``UserError`` within seconds where nothing answers; Ray itself takes minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if "//" in address or not host or not port.isdecimal():
        raise UserError(f"Ray at {address}: expected host:port, such as 192.168.0.1:6379, the address of the head node")
    try:
        socket.create_connection((host, int(port)), timeout=TIMEOUT).close()
    except OSError as error:
        raise UserError(f"Ray at {address}: no answer ({error}); start it with `ray start --head`") from None


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:300]

"""Ray as this project uses it: workers that walk one path each and stream what they find, here or on a cluster."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pipeline import console, files
from pipeline.console import UserError
from pipeline.learning import environment
from pipeline.learning.trajectory import Digits
from pipeline.sweeps.trials import Message, Trial, explore, longest

PATIENCE = 5  # seconds in which a cluster must answer
STORE = 100_000_000  # bytes of shared memory, besides the digits, for what is on its way: an epoch is a megabyte
Explore = Callable[..., Iterator[Message]]


class LostError(Exception):
    """A worker, or the machine it was on, is gone: another one can go on."""


class FailedError(Exception):
    """The training itself failed: it would fail again."""


class Cluster:
    """Workers with ``digits`` at hand; ``ray`` is the module, connected."""

    def __init__(self, ray: Any, digits: Digits, walk: Explore) -> None:
        self.ray = ray
        self.digits = ray.put(digits)
        self.walk = ray.remote(walk)
        self.cores: list[float] = []
        self.counted = float("-inf")

    def room(self, threads: int) -> int:
        """Return how many trials of so many threads fit at once."""
        if time.monotonic() > self.counted + 1:  # machines come and go, but not every millisecond
            self.cores = [node["Resources"].get("CPU", 0) for node in self.ray.nodes() if node["Alive"]]
            self.counted = time.monotonic()
        return sum(int(cores) // threads for cores in self.cores)

    def start(self, trials: Sequence[Trial], known: Mapping[str, Sequence[bytes]]) -> Any:
        """Send a worker on its way, as soon as there is one; return the stream of its messages."""
        train = longest(trials)
        apart = {"OMP_NUM_THREADS": str(train.threads), **environment.INSTRUCTIONS[train.instructions]}
        options = {
            "num_cpus": train.threads,
            "num_returns": "streaming",
            "max_retries": 0,
            "runtime_env": {"env_vars": apart},  # one process cannot change them: other ones, another process
        }
        return self.walk.options(**options).remote(self.digits, list(trials), dict(known))

    def ready(self, streams: Sequence[Any]) -> list[Any]:
        """Return the streams with something to hear, after a second at most."""
        with console.undisturbed():  # what a signal raises, Ray's compiled code takes for an error of its own
            return list(self.ray.wait(list(streams), timeout=1)[0])

    def hear(self, stream: Any) -> Message | None:
        """Return a stream's next message, or None at its end; raise ``LostError`` or ``FailedError``."""
        try:
            with console.undisturbed():
                message: Message | None = self.ray.get(next(stream))
        except StopIteration:
            return None
        except self.ray.exceptions.LocalRayletDiedError:
            raise UserError("Ray on this machine died; run the sweep again, it goes on where it was") from None
        except self.ray.exceptions.RayTaskError as error:
            raise FailedError(_one_line(f"{type(error.cause).__name__}: {error.cause}")) from None
        except self.ray.exceptions.RayError as error:
            raise LostError(_one_line(error)) from None
        return message


@contextlib.contextmanager
def connected(
    address: str, digits: Digits, threads: int, walk: Explore = explore, workers: int = 0
) -> Iterator[Cluster]:
    """Start Ray on this machine for ``workers`` at once (0: as many as fit), or join the one at ``address``; leave it.

    Raise ``UserError`` where none answers, where it is another version, or where no machine has enough cores.
    """
    address = address or os.environ.get("RAY_ADDRESS", "local")
    os.environ |= _settings(address)  # before the import, which reads some of them
    import ray
    import ray.exceptions

    cores = threads * workers or max(_cores(), threads)
    try:
        _join(ray, address, _alone(digits, cores) if address == "local" else _abroad())
        cluster = Cluster(ray, digits, walk)
        if not cluster.room(threads):
            raise UserError(f"Ray at {address}: no machine has {threads} cores; lower sweep.threads")
        yield cluster
    finally:
        ray.shutdown()


def _settings(address: str) -> dict[str, str]:
    quick = {"RAY_NUM_REDIS_GET_RETRIES": "1", "RAY_py_gcs_connect_timeout_s": str(PATIENCE)}
    alone = {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # there, and only there, Ray keeps to the loopback address
        "RAY_AUTH_MODE": "token",  # other users of this machine are not to run code here
        "RAY_AUTH_TOKEN": secrets.token_hex(32),  # else Ray leaves one in the home folder
    }
    wanted = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_BACKEND_LOG_LEVEL": "error",
        "RAY_worker_niceness": "0",  # as `train`; Ray's 15 starves on a busy machine
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        **(alone if address == "local" else quick),
    }
    return {name: os.environ.get(name, value) for name, value in wanted.items()}


def _alone(digits: Digits, cores: int) -> dict[str, Any]:
    size = sum(array.nbytes for array in (digits.images, digits.labels, digits.val_images, digits.val_labels))
    return {"num_cpus": cores, "include_dashboard": False, "object_store_memory": size + STORE}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _abroad() -> dict[str, Any]:
    """Take the code along: machines of a cluster need the packages, but no copy of the project."""
    return {"runtime_env": {"py_modules": [str(files.ROOT / "pipeline")], "excludes": ["__pycache__", "*.html"]}}


def _join(ray: Any, address: str, options: dict[str, Any]) -> None:
    if address != "local":
        _knock(address)
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    reason = ""
    with console.hushed():
        try:
            ray.init(address, log_to_driver=False, logging_level="critical", configure_logging=True, **options)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError, ray.exceptions.RayError) as error:
            reason = _explained(error)
    for number, handler in signals.items():
        signal.signal(number, handler)  # Ray brings its own, which ends the process without closing anything
    # It would print twenty lines of a raylet's log for every machine that is lost; `hear` says it in one.
    ray._private.worker.print_to_stdstream = lambda *_, **__: None
    if reason:
        raise UserError(f"Ray at {address}: {reason}")


def _explained(error: BaseException) -> str:
    refused = isinstance(error.__cause__ or error.__context__, RuntimeError) and "token" in str(error.__cause__)
    if refused or "token" in str(error):
        return "it asks for a token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) as it does"
    return _one_line(error)


def _knock(address: str) -> None:
    """Find out in seconds that nobody is there; Ray itself takes minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if "//" in address or not host or not port.isdecimal():
        raise UserError(f"Ray at {address}: expected host:port, such as 192.168.0.1:6379, the address of the head node")
    try:
        socket.create_connection((host, int(port)), timeout=PATIENCE).close()
    except OSError as error:
        raise UserError(f"Ray at {address}: no answer ({error}); start it with `ray start --head`") from None


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:300]

"""How the commands speak to people: one-line errors, exit statuses, signals and progress bars."""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

from tqdm import tqdm

Result = TypeVar("Result")


class UserError(Exception):
    """Something the user can put right: one line that names the thing, what was expected and what to do.

    ``status`` is the process's exit status, 2 unless said otherwise.
    """

    def __init__(self, message: str, *, status: int = 2) -> None:
        super().__init__(message)
        self.status = status


class Stopped(BaseException):
    """The process was asked to end by SIGINT or SIGTERM; ``signum`` says by which."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


def run(main: Callable[[Sequence[str]], int | None], *, hint: str = "") -> NoReturn:
    """Run ``main`` on the command line's arguments and end the process with its status.

    A ``UserError`` is one line and its status; what the file system refuses is one line and 2; SIGINT and SIGTERM
    unwind the stack (so that ``with`` blocks close what they hold), print ``hint``, and end with 128 + the signal.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        status = main(sys.argv[1:]) or 0
    except UserError as error:
        status = _say(f"error: {error}", error.status)
    except Stopped as stopped:
        status = _say(f"stopped by {stopped}. {hint}".rstrip(), 128 + stopped.signum)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except OSError as error:
        if not error.strerror or (error.filename is None and error.errno not in _FULL):
            raise
        remedy = _DISK.get(error.errno or 0, "expected a file or folder that the system lets this command use")
        status = _say(f"error: {error.filename or 'a file'}: {error.strerror}; {remedy}", 2)
    _end(status)


def _end(status: int) -> NoReturn:
    """End as ``sys.exit`` does, but without waiting for threads of ``in_background``, or tearing them.

    Python up to 3.13 ends a thread that asks for the interpreter by unwinding its stack: inside C++, as OpenCV and
    TensorFlow are, that aborts the process.
    """
    atexit._run_exitfuncs()  # what else `sys.exit` does
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def in_background(function: Callable[..., Result], *arguments: Any) -> Future[Result]:
    """Call a function in a thread that does not keep the process from ending, as one of an executor would."""
    future: Future[Result] = Future()

    def call() -> None:
        try:
            future.set_result(function(*arguments))
        except BaseException as error:  # noqa: BLE001  # raised where the result is asked for
            future.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return future


_FULL = dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space and run it again, nothing is half-written")
_DISK = {
    **_FULL,
    errno.EROFS: "expected a folder that can be written",
    errno.EACCES: "expected a file or folder that this user may read and write",
    errno.EPERM: "expected a file or folder that this user may read and write",
    errno.ENOENT: "expected it to exist; `dvc repro` makes what a stage reads",
    errno.EISDIR: "expected a file, found a folder",
    errno.ENOTDIR: "expected a folder, found a file",
}


stopping = threading.Event()  # set by SIGINT and SIGTERM, for threads that wait: Python raises in the main one only


def _stop(signum: int, _: FrameType | None) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the second Ctrl-C must not break what the first one is closing
    stopping.set()
    if _Undisturbed.depth:
        _Undisturbed.waiting = signum
        return
    raise Stopped(signum)


class _Undisturbed:
    depth = 0
    waiting = 0


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Hear of SIGINT and SIGTERM after the block: a transaction that is torn leaves its database locked.

    Python runs the handlers of signals in the main thread only: no other needs, or may take, this care.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _Undisturbed.depth += 1
    try:
        yield
    finally:
        _Undisturbed.depth -= 1
        if _Undisturbed.waiting and not _Undisturbed.depth:
            signum, _Undisturbed.waiting = _Undisturbed.waiting, 0
            raise Stopped(signum)


def _say(message: str, status: int) -> int:
    print(message, file=sys.stderr)
    return status


def no_arguments(arguments: Sequence[str]) -> None:
    """Refuse arguments for a stage that takes none: params.yaml says what it does, and ``--help`` its docstring."""
    if {"-h", "--help"} & set(arguments):
        stage = sys.modules["__main__"]
        print(f"{(stage.__doc__ or '').strip()}\n\nexample: python -m {getattr(stage.__spec__, 'name', '')}")
        sys.exit(0)
    if arguments:
        raise UserError(
            f"unexpected {' '.join(arguments)!r}: this stage has no arguments; params.yaml says what it does"
        )


LOG_SECONDS = 60  # between two lines of progress in a log


class _LogBar(tqdm):
    """Progress for a log: a whole line each time, where a terminal's bar is drawn over itself."""

    def clear(self, nolock: bool = False) -> None:
        """Leave the lines of a log as they are."""

    def refresh(self, nolock: bool = False, lock_args: Any = None) -> None:
        """Write a line, but not again after every line of others, for which tqdm asks with ``nolock``."""
        if not nolock:
            super().refresh(nolock, lock_args)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:  # noqa: ARG002
        """Write the bar's state as a line; an empty ``msg``, which clears a bar, clears nothing here."""
        if msg != "":
            print(msg or self, file=sys.stderr, flush=True)


def progress(total: int | None, what: str, unit: str, **options: Any) -> tqdm:
    """Return a progress bar on standard error: a bar in a terminal, at most a line a minute in a log."""
    if sys.stderr.isatty():
        return tqdm(total=total, desc=what, unit=unit, leave=False, dynamic_ncols=True, **options)
    line = "{desc}: {n_fmt} of {total_fmt} {unit}, {elapsed} so far, {remaining} left"
    pause: dict[str, Any] = dict.fromkeys(("delay", "mininterval", "maxinterval"), LOG_SECONDS)
    return _LogBar(total=total, desc=what, unit=unit, leave=False, bar_format=line, miniters=1, **pause, **options)


def log(message: str) -> None:
    """Write a line of progress where standard error is a log; a terminal has its bar."""
    if not sys.stderr.isatty():
        print(message, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Return a duration in the largest unit that it fills twice."""
    unit, size = next((each for each in (("hour", 3600), ("minute", 60)) if seconds >= 2 * each[1]), ("second", 1))
    number = max(round(seconds / size), 1)
    return f"{number} {unit}{'' if number == 1 else 's'}"


def shown(path: Path) -> str:
    """Return ``path`` as a person would type it from here: relative where that is shorter."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Hold back what libraries write to standard error below Python; show it after all when the block fails."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        except BaseException:
            said.seek(0)
            os.write(kept, said.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)

"""What all commands share in a terminal: one-line errors, exit statuses, signals and progress bars."""

from __future__ import annotations

import atexit
import contextlib
import errno
import io
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
    """An error that the user can correct: one line that names the thing, what was expected and what to do.

    ``status`` is the exit status of the process.
    """

    def __init__(self, message: str, *, status: int = 2) -> None:
        super().__init__(message)
        self.status = status


class Stopped(BaseException):
    """The process was asked to end by the signal ``signum``, SIGINT or SIGTERM."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


def run(main: Callable[[Sequence[str]], int | None], *, hint: str = "") -> NoReturn:
    """Run ``main`` on the command line's arguments and end the process with its status.

    A ``UserError`` is printed as one line and ends with its status, an error of the file system with 2. SIGINT and
    SIGTERM raise `Stopped`, so that ``with`` blocks close files and runs; then ``hint`` is printed, and the status is
    128 + the signal's number. Errors that are faults of the program keep their traceback.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    if isinstance(sys.stdout, io.TextIOWrapper):  # as standard error: a character that it cannot show is no failure
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = main(sys.argv[1:]) or 0
    except UserError as error:
        status = _print_error(f"error: {error}", error.status)
    except Stopped as stopped:
        status = _print_error(f"stopped by {stopped}. {hint}".rstrip(), 128 + stopped.signum)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except OSError as error:
        if not error.strerror or (error.filename is None and error.errno not in _NO_SPACE):
            raise
        remedy = _REMEDIES.get(error.errno or 0, "expected a file or folder that the system lets this command use")
        status = _print_error(f"error: {error.filename or 'a file'}: {error.strerror}; {remedy}", 2)
    _end(status)


def _end(status: int) -> NoReturn:
    """End as ``sys.exit`` does, but without waiting for the threads of ``in_background``.

    Up to 3.13, Python ends a thread that is still running by unwinding its stack. Inside C++ code, such as OpenCV's or
    TensorFlow's, that aborts the whole process.
    """
    atexit._run_exitfuncs()  # what else `sys.exit` does
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def in_background(function: Callable[..., Result], *arguments: Any) -> Future[Result]:
    """Call a function in a thread, which, unlike those of an executor, does not keep the process from ending."""
    future: Future[Result] = Future()

    def call() -> None:
        try:
            future.set_result(function(*arguments))
        except BaseException as error:  # noqa: BLE001  # raised where the result is asked for
            future.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return future


_NO_SPACE = dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space and run it again, nothing is half-written")
_REMEDIES = {
    **_NO_SPACE,
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
    """Delay SIGINT and SIGTERM until the end of the block: an interrupted transaction leaves its database locked.

    Python runs signal handlers in the main thread only, so in other threads this does nothing.
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


def _print_error(message: str, status: int) -> int:
    print(message, file=sys.stderr)
    return status


def no_arguments(arguments: Sequence[str]) -> None:
    """Raise ``UserError`` for arguments of a stage that takes none; ``--help`` prints the stage's docstring."""
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
    """A progress bar for a log file: each state is a new line, where a terminal's bar overwrites itself."""

    def clear(self, nolock: bool = False) -> None:
        """Leave the lines of a log as they are."""

    def refresh(self, nolock: bool = False, lock_args: Any = None) -> None:
        """Write a line; but not when ``nolock`` is set: tqdm then redraws the bar after another program's output."""
        if not nolock:
            super().refresh(nolock, lock_args)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:  # noqa: ARG002
        """Write the bar's state as a line; an empty ``msg``, with which tqdm clears a bar, writes nothing."""
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
    """Write a line of progress where standard error is a log file; in a terminal the progress bar shows it."""
    if not sys.stderr.isatty():
        print(message, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Return a duration in words: in hours from two hours on, in minutes from two minutes on, else in seconds."""
    unit, size = next((each for each in (("hour", 3600), ("minute", 60)) if seconds >= 2 * each[1]), ("second", 1))
    number = max(round(seconds / size), 1)
    return f"{number} {unit}{'' if number == 1 else 's'}"


def display_path(path: Path) -> str:
    """Return ``path`` for a message: relative to the current folder where it is inside it, else as it is."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Suppress what C and C++ libraries write to standard error; print it if the block raises an exception."""
    sys.stderr.flush()
    original = os.dup(2)
    with tempfile.TemporaryFile() as output:
        os.dup2(output.fileno(), 2)
        try:
            yield
        except BaseException:
            output.seek(0)
            os.write(original, output.read())
            raise
        finally:
            os.dup2(original, 2)
            os.close(original)

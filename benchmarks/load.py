"""Load `mlflow models serve` with photographs, beside the same network behind the plainest FastAPI page.

    python -m benchmarks.load --photos FOLDER [--seconds 300] [--clients 16] [--workers 2]

Each client sends one photograph after the other, each over a connection of its own, as curl does: a connection that
stays open stays with one worker, and one worker may get most of them. Between them come, to MLflow's server: a body of
100 MB, a client that takes half a minute for its body, a decompression bomb and 1,000 bad bodies. For Linux: the memory
is that of /proc.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import http.client
import io
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from PIL import Image

from pipeline import console, counts, files, tracking
from pipeline.learning.classifier import Classifier
from pipeline.photos import photo, reading
from pipeline.predict_photo import SUFFIXES

MODELS = "DIGITS_LOAD_MODELS"  # the variable that tells the page where the model's files are
TIMEOUT = 300  # seconds that a client waits
HUGE = 100_000_000  # bytes
BAD, BAD_CLIENTS = 1000, 4  # bodies, and who send them
PACE = 30  # seconds that the slow client takes for its body
MLFLOW, FASTAPI = "`mlflow models serve`", "FastAPI"


def page() -> FastAPI:
    """Return the plainest page with the same network: a picture's bytes in, its digits out."""
    classifier, lock, app = Classifier.load(Path(os.environ[MODELS])), threading.Lock(), FastAPI()

    def answer(content: bytes) -> dict[str, Any]:
        picture = photo.open_picture(content)
        with lock:
            return reading.read(picture, classifier).as_json(whole=True)

    @app.post("/")
    async def read(request: Request) -> dict[str, Any]:
        return await asyncio.to_thread(answer, await request.body())

    return app


def main(arguments: Sequence[str]) -> None:
    """Load one server after the other, and print a row for each and a line on what came in between."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--photos", type=Path, default=files.PHOTOS, help=f"pictures, also in folders ({files.PHOTOS})")
    parser.add_argument("--seconds", type=float, default=300, help="for the first server; a third for each other (300)")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="as many as there are cores")
    given = parser.parse_args(arguments)
    pictures = [path.read_bytes() for path in sorted(given.photos.rglob("*")) if path.suffix.lower() in SUFFIXES]
    rest = given.seconds / 3
    print(f"{given.clients} clients, {len(pictures)} photographs, {given.seconds:g} seconds, then {rest:g} each.\n")
    columns = ("workers", "n", "errors", "CPU ms each", "a second", "median ms", "99% ms", "MB, fifth by fifth")
    print(f"| | {' | '.join(columns)} |\n| --- |{' ---: |' * len(columns)}", flush=True)
    loads: list[Load] = []
    for name, workers in ((MLFLOW, given.workers), (FASTAPI, given.workers), (MLFLOW, 1)):
        with serving(name, workers) as server:
            load = Load(server, [body(name, picture) for picture in pictures])
            load.run(given.clients, rest if loads else given.seconds, with_others=not loads)
        print(load.row(name, workers), flush=True)
        loads.append(load)
    refusals = ", ".join(f"{status} ({times:,})" for status, times in loads[0].refusals.items())
    others = "; ".join(f"{what}: {status}" for what, status in loads[0].others.items())
    print(
        "\nTo the first server came other bodies in between; their CPU is in its figure. The statuses of the answers:"
    )
    print(f"{BAD:,} bad bodies: {refusals}; {others}.")


def body(name: str, picture: bytes) -> bytes:
    """Return what is posted to a server."""
    if name == FASTAPI:
        return picture
    return json.dumps({"dataframe_records": [{"image": base64.b64encode(picture).decode()}]}).encode()


@dataclass(frozen=True)
class Server:
    """A server that runs: the process that was started, its port and the path that answers."""

    process: subprocess.Popen[bytes]
    port: int
    path: str

    def post(self, connection: http.client.HTTPConnection, content: bytes) -> int:
        """Post ``content`` and return the status of the answer."""
        connection.request("POST", self.path, content, {"Content-Type": "application/json"})
        response = connection.getresponse()
        response.read()
        return response.status

    def connect(self) -> http.client.HTTPConnection:
        """Return a connection of one client."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)

    def memory(self) -> float:
        """Return the MB that the server and the processes that it started hold in memory."""
        return sum(_resident(number) for number in _family(self.process.pid)) / 1e6

    def cpu(self) -> float:
        """Return the seconds of CPU that the server and the processes that it started have had."""
        return sum(_cpu(number) for number in _family(self.process.pid))


@contextlib.contextmanager
def serving(name: str, workers: int) -> Iterator[Server]:
    """Start a server with the model in models/, and stop it after the block."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        saved = Path(folder, "model")
        if name == MLFLOW:
            tracking.save_model(files.MODELS, saved)
            command = f"mlflow models serve -m {shlex.quote(str(saved))} --env-manager local --timeout {TIMEOUT}"
        else:
            command = "uvicorn --factory benchmarks.load:page --no-access-log"
        variables = os.environ | {
            MODELS: str(files.MODELS.absolute()),
            counts.VARIABLE: str(Path(folder, "counts.db")),
            "OPENCV_FOR_THREADS_NUM": "1",
            "UVICORN_TIMEOUT_WORKER_HEALTHCHECK": "60",  # uvicorn's 5 seconds end workers that are starting, or busy
        }
        with Path(folder, "log").open("wb") as log:
            words = [*shlex.split(command), "--workers", str(workers), "--port", str(port)]
            started = subprocess.Popen(words, env=variables, stdout=log, stderr=log, process_group=0)
        try:
            _wait(started, workers, Path(folder, "log"))
            yield Server(started, port, "/invocations" if name == MLFLOW else "/")
        finally:
            os.killpg(started.pid, signal.SIGTERM)
            started.wait()


def _wait(started: subprocess.Popen[bytes], workers: int, log: Path) -> None:
    for _ in range(3000):
        said = log.read_text("utf-8", "replace")
        if said.count("Application startup complete") == workers:
            return
        if started.poll() is not None:
            break
        time.sleep(0.1)
    raise console.UserError(f"the server does not start: {' '.join(said.split())[-1000:]}", status=1)


def _family(root: int) -> set[int]:
    """Return a process and those that it started, directly or not."""
    above = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            above[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found = {root}
    while more := {number for number, parent in above.items() if parent in found} - found:
        found |= more
    return found


def _resident(process: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def _cpu(process: int) -> float:
    with contextlib.suppress(OSError):
        user, system = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return 0


@dataclass
class Load:
    """What a server is asked, and what came of it: seconds and status of each answer, and MB once a second."""

    server: Server
    bodies: Sequence[bytes]
    seconds: list[float] = field(default_factory=list)
    statuses: Counter[object] = field(default_factory=Counter)
    memory: list[float] = field(default_factory=list)
    others: dict[str, str] = field(default_factory=dict)
    refusals: Counter[int] = field(default_factory=Counter)
    lasted: float = 0
    cpu: float = 0

    def run(self, clients: int, seconds: float, *, with_others: bool) -> None:
        """Send photographs from so many clients for so many seconds, and with them what they must not notice."""
        start, cpu = time.monotonic(), self.server.cpu()
        with ThreadPoolExecutor(clients + BAD_CLIENTS + 2) as people:
            asking = [people.submit(self._ask, number, start + seconds) for number in range(clients)]
            running = [people.submit(self._watch, start + seconds)]
            if with_others:
                running += [people.submit(self._send_bad, seconds) for _ in range(BAD_CLIENTS)]
                running.append(people.submit(self._send_odd))
            for each in asking:
                each.result()
            self.lasted, self.cpu = time.monotonic() - start, self.server.cpu() - cpu
            for each in running:
                each.result()

    def _ask(self, first: int, end: float) -> None:
        for number in range(first, sys.maxsize, 7):  # each client begins elsewhere, and comes to all of them
            start = time.monotonic()
            if start >= end:
                return
            try:
                with contextlib.closing(self.server.connect()) as connection:
                    status: object = self.server.post(connection, self.bodies[number % len(self.bodies)])
            except (OSError, http.client.HTTPException) as error:
                status = type(error).__name__
            self.seconds.append(time.monotonic() - start)
            self.statuses[status] += 1

    def _watch(self, end: float) -> None:
        while time.monotonic() < end:
            self.memory.append(self.server.memory())
            time.sleep(1)

    def _send_bad(self, seconds: float) -> None:
        connection, number = self.server.connect(), BAD // BAD_CLIENTS
        wrong = b'{"dataframe_records": [{"picture": 1}]}'
        bad = [b"", b"\xff\xd8\xff", b"{", b"[]", wrong, body(MLFLOW, b"no picture")]
        for place in range(number):
            self.refusals[self.server.post(connection, bad[place % len(bad)])] += 1
            time.sleep(0.5 * seconds / number)

    def _send_odd(self) -> None:
        post, connect = self.server.post, self.server.connect
        self.others["a bomb of 400 million pixels"] = str(post(connect(), body(MLFLOW, _bomb())))
        self.others["a body of 100 MB"] = str(post(connect(), body(MLFLOW, b"a" * (HUGE * 3 // 4))))
        content = body(MLFLOW, b"slow")
        connection = connect()
        connection.putrequest("POST", self.server.path)
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str(len(content)))
        connection.endheaders()
        for byte in content:
            connection.send(bytes([byte]))
            time.sleep(PACE / len(content))
        self.others[f"a body in {PACE} seconds"] = str(connection.getresponse().status)

    def row(self, name: str, workers: int) -> str:
        """Return the row of the table."""
        errors = self.statuses.total() - self.statuses[200]
        median, late = (1000 * np.percentile(self.seconds, share) for share in (50, 99))
        held = ", ".join(f"{np.median(part):.0f}" for part in np.array_split(self.memory, 5) if part.size)
        number = self.statuses.total()
        speed = f"{1000 * self.cpu / number:.0f} | {number / self.lasted:.1f} | {median:.0f} | {late:.0f}"
        return f"| {name} | {workers} | {number:,} | {errors} | {speed} | {held} |"


def _bomb() -> bytes:
    """Return a PNG of 20,000 x 20,000 pixels in 50 kB."""
    stream = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(stream, "PNG")
    return stream.getvalue()


if __name__ == "__main__":
    console.run(main)

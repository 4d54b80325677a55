"""Demo: a page on this machine that reads the digits you draw or drop on it, and shows how.

    python -m pipeline.demo [--port 8000] [--host 0.0.0.0] [--no-corrections]

Other machines reach it only with --host, and only with the random token of the address that is printed then.

Reads   models/ and the pictures that the page sends; nothing leaves the machine
Writes  data/corrections/: a picture with the digits that it shows, when its reader says so on the page
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import errno
import functools
import html
import io
import ipaddress
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from pipeline import console, corrections, files, model_card
from pipeline.console import UserError
from pipeline.learning.classifier import Classifier
from pipeline.photos import photo, reading
from pipeline.photos.photo import UnreadableError
from pipeline.photos.reading import Digit

HOST = "127.0.0.1"  # an address that others could reach must be asked for
SHOWN = 480  # pixels of the longer side of a step's picture
THUMBNAIL = 160  # pixels of the longer side of a picture that is kept
PAGE = Path(__file__).with_name("demo.html")
HEADERS = {  # the page may speak to this server, and to nothing else
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def main(arguments: Sequence[str]) -> None:
    """Serve the page until Ctrl-C."""
    import uvicorn

    parser = argparse.ArgumentParser(
        prog="python -m pipeline.demo",
        description="Read the digits that you draw or drop on a page of this machine.",
        epilog="example: python -m pipeline.demo --port 8080",
    )
    parser.add_argument("--port", type=int, default=8000, help="default 8000; 0 takes a free one")
    parser.add_argument("--host", default=HOST, help=f"default {HOST}; 0.0.0.0 lets other machines in, with a token")
    parser.add_argument("--no-corrections", action="store_true", help="keep no picture, whatever the page is told")
    wanted = parser.parse_args(arguments)
    classifier, model = Classifier.load(files.MODELS), model_card.line()
    listener = listen(wanted.port, wanted.host)
    host, port = listener.getsockname()[:2]
    token = "" if host == HOST else secrets.token_urlsafe(16)
    app = make(classifier, model, token, None if wanted.no_corrections else files.CORRECTIONS)
    if token:
        words = "who has this address, or can read the network's traffic, which is not encrypted, can use the page"
        print(f"warning: --host {wanted.host}: {words}", file=sys.stderr, flush=True)
    address = f"http://{reached_at(host)}:{port}{f'/?token={token}' if token else ''}"
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    for number in (signal.SIGINT, signal.SIGTERM):  # before the address is known: being stopped is how a server ends
        signal.signal(number, server.handle_exit)
    print(f"Draw or drop a digit at {address} (Ctrl-C ends this)\n{model}", flush=True)
    with listener:
        server.run([listener])


def listen(port: int, host: str = HOST) -> socket.socket:
    """Return a socket that listens on ``host``; raise ``UserError`` where that is none of this machine, or not free."""
    try:
        family, _, _, _, place = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError):
        raise UserError(f"host {host}: {OWN}") from None
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((place[0], port, *place[2:]))
        listener.listen()  # before the address is printed, so that nobody is turned away
    except (OSError, OverflowError) as error:
        listener.close()
        if getattr(error, "errno", None) == errno.EADDRNOTAVAIL:
            raise UserError(f"host {host}: {OWN}") from None
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"port {port}: {reason}; take another one with PORT=8080 or --port 8080") from None
    return listener


OWN = "expected an address of this machine, or 0.0.0.0 for all that it has"


def reached_at(host: str) -> str:
    """Return the address under which others reach what listens on ``host``: 0.0.0.0 is that of this machine."""
    address = ipaddress.ip_address(host)
    if address.is_unspecified:
        return own_address()
    return f"[{host}]" if address.version == 6 else host


def own_address() -> str:
    """Return this machine's IPv4 address in its network: that of its default route, else of an interface that is up."""
    with contextlib.suppress(OSError), socket.socket(type=socket.SOCK_DGRAM) as route:
        route.connect(("192.0.2.1", 9))  # nobody's address (RFC 5737); connecting sends nothing in UDP
        return str(route.getsockname()[0])
    up = [name for name, state in psutil.net_if_stats().items() if state.isup]
    found = [each.address for name in up for each in psutil.net_if_addrs()[name] if each.family == socket.AF_INET]
    return next((address for address in found if not ipaddress.ip_address(address).is_loopback), HOST)


class RequireToken:
    """Answer 403 to every request that does not name the token, before anything of it is read."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http" or self._is_named(Request(scope)):
            return await self.app(scope, receive, send)
        reason = "expected the address with its token, as `make demo` printed it"
        return await _refused(403, reason)(scope, receive, send)

    def _is_named(self, request: Request) -> bool:
        return secrets.compare_digest(request.query_params.get("token", "").encode(), self.token.encode())


def make(classifier: Classifier, model: str, token: str = "", kept: Path | None = files.CORRECTIONS) -> Starlette:
    """Return the application: the page, and what reads a picture for it; ``model`` is said on the page.

    With a ``token`` all requests must name it. Without, they must name this machine by a loopback name. Corrections are
    kept in the folder ``kept``, or not at all.
    """
    alone = threading.Lock()  # a LiteRT interpreter answers one at a time

    async def page(_: Request) -> Response:
        text = PAGE.read_text("utf-8").replace("MODEL", html.escape(model))
        return HTMLResponse(text.replace("KEEPING", "off" if kept is None else "on"), headers=HEADERS)

    def answer(content: bytes, one: bool) -> dict[str, Any]:
        with alone:
            return look(content, classifier, one)

    async def read(request: Request) -> Response:
        content = await _picture(request)
        if isinstance(content, Response):
            return content
        try:
            return JSONResponse(await run_in_threadpool(answer, content, "one" in request.query_params))
        except UnreadableError as error:
            return _refused(422, str(error))

    # Another site's page could reach this server under a name of its own that points here; so only these names count,
    # or the token, which it does not know.
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    guard = Middleware(RequireToken, token=token) if token else hosts
    routes = [Route("/", page), Route("/read", read, methods=["POST"])]
    if kept is not None:
        routes += [Route("/corrections", keeping(kept, classifier.classes), methods=["GET", "POST", "DELETE"])]
    return Starlette(routes=routes, middleware=[guard])


def keeping(folder: Path, classes: Sequence[str]) -> Callable[[Request], Awaitable[Response]]:
    """Return what answers for the corrections in a folder: GET lists them, POST keeps one, DELETE deletes one.

    Another site's page can do nothing of it: a browser asks this server first, and gets no permission.
    """

    async def answer(request: Request) -> Response:
        named = request.query_params.get
        work: Callable[[], Any] = functools.partial(listed, folder, classes)
        if request.method == "POST":
            content = await _picture(request)
            if isinstance(content, Response):
                return content
            label, writer = named("label", ""), named("writer", "")
            work = functools.partial(corrections.keep, content, label, classes, writer=writer, folder=folder)
        elif request.method == "DELETE":
            work = functools.partial(corrections.delete, named("file", ""), classes, folder)
        try:
            found = await run_in_threadpool(work)
        except UserError as error:
            return _refused(422, str(error))
        except OSError as error:
            return _refused(507, f"{folder}: {error.strerror or error}; nothing has changed")
        return JSONResponse(vars(found) if isinstance(found, corrections.Correction) else found or [])

    return answer


def listed(folder: Path, classes: Sequence[str]) -> list[dict[str, str]]:
    """Return what is kept in a folder, the newest first, each with a small picture."""
    kept = corrections.load(folder, classes)
    return [vars(each) | {"picture": thumbnail(folder / each.file)} for each in reversed(kept)]


@functools.lru_cache(1000)  # named by their content
def thumbnail(path: Path) -> str:
    """Return a picture upright, grey and small, as the page shows it; nothing where it cannot be read."""
    try:
        return _embed(_small(photo.open_picture(path, longest=THUMBNAIL).grey))
    except UnreadableError:
        return ""


async def _picture(request: Request) -> bytes | Response:
    """Return the picture that a request brings, or the refusal of one that brings none."""
    if not request.headers.get("content-type", "").startswith("image/"):
        return _refused(415, "expected a picture")
    content = await _body(request)
    return _refused(413, f"more than {corrections.LIMIT // 10**6} MB") if content is None else content


async def _body(request: Request) -> bytes | None:
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > corrections.LIMIT:
            return None
    return bytes(content)


def _refused(status: int, reason: str) -> Response:
    return JSONResponse({"error": reason}, status)


def look(content: bytes, classifier: Classifier, one: bool) -> dict[str, Any]:
    """Read a picture's bytes and return the answer with the pictures of every step, as JSON holds them.

    With ``one`` the picture is about one digit; raises ``UnreadableError`` where the bytes are no picture.
    """
    start = time.perf_counter()
    picture = photo.open_picture(content)
    found = reading.read_one(picture, classifier) if one else reading.read(picture, classifier)
    taken = time.perf_counter() - start
    return {
        **found.as_json(),
        "milliseconds": round(1000 * taken),
        "size": picture.size,
        "upright": _embed(_small(picture.grey)),
        "ink": _embed(_small(ink(picture.paper if found.seen is None else found.seen))),
        "digits": [describe(digit) for digit in found.digits],
    }


def ink(grey: np.ndarray) -> np.ndarray:
    """Return the ink found in a picture uint8 [h, w], in its shape, dark on white."""
    strength = photo.extract_ink(grey).strength
    return (255 - 255 * strength / max(float(strength.max()), 1e-6)).astype(np.uint8)


def describe(digit: Digit) -> dict[str, Any]:
    """Return a digit that was found, with the runner-up, all probabilities and the field that was read."""
    second = int(np.argsort(-digit.probabilities, kind="stable")[1])
    return {
        **digit.as_json(whole=True),
        "runner_up": second,
        "classes": digit.classes,
        "runner_up_probability": round(float(digit.probabilities[second]), 4),
        "field": _embed(digit.field),
    }


def _small(grey: np.ndarray) -> Image.Image:
    image = Image.fromarray(grey)
    image.thumbnail((SHOWN, SHOWN))
    return image


def _embed(picture: np.ndarray | Image.Image) -> str:
    stream = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


if __name__ == "__main__":
    console.run(main)

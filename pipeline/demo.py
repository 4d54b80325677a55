"""Demo: a page on this machine that reads the digits you draw or drop on it, and shows how.

    python -m pipeline.demo [--port 8000]

Reads   models/ and the pictures that the page sends; nothing is kept, and nothing leaves the machine
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from pipeline import console, files
from pipeline.console import Stopped, UserError
from pipeline.learning.classifier import Classifier
from pipeline.photos import photo, reading
from pipeline.photos.photo import Picture, UnreadableError
from pipeline.photos.reading import Digit

HOST = "127.0.0.1"  # never an address that others could reach
LIMIT = 20_000_000  # bytes of a picture: more than a phone's camera makes
SHOWN = 480  # pixels of the longer side of a step's picture
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
    wanted = parser.parse_args(arguments)
    app = make(Classifier.load(files.MODELS))
    listener = listen(wanted.port)
    print(f"Draw or drop a digit at http://{HOST}:{listener.getsockname()[1]} (Ctrl-C ends this)", flush=True)
    with listener, contextlib.suppress(Stopped):  # being stopped is how a server ends
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run([listener])


def listen(port: int) -> socket.socket:
    """Return a socket that listens on the loopback address; raise ``UserError`` where the port is taken."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen()  # before the address is printed, so that nobody is turned away
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"port {port}: {reason}; take another one with PORT=8080 or --port 8080") from None
    return listener


def make(classifier: Classifier) -> Starlette:
    """Return the application: the page, and what reads a picture for it."""

    async def page(_: Request) -> Response:
        return HTMLResponse(PAGE.read_text("utf-8"), headers=HEADERS)

    async def read(request: Request) -> Response:
        if not request.headers.get("content-type", "").startswith("image/"):
            return _refused(415, "expected a picture")
        content = await _body(request)
        if content is None:
            return _refused(413, f"more than {LIMIT // 10**6} MB")
        try:
            return JSONResponse(await run_in_threadpool(look, content, classifier, "one" in request.query_params))
        except UnreadableError as error:
            return _refused(422, str(error))

    # Another site's page could reach this server under a name of its own that points here; so only these names count.
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    return Starlette(routes=[Route("/", page), Route("/read", read, methods=["POST"])], middleware=[hosts])


async def _body(request: Request) -> bytes | None:
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > LIMIT:
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
        "ink": _embed(_small(ink(picture))),
        "digits": [describe(digit) for digit in found.digits],
    }


def ink(picture: Picture) -> np.ndarray:
    """Return the ink found in a picture, uint8 [h, w], dark on white."""
    strength = photo.ink_of(picture.grey).strength
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

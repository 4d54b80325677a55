"""The demo answers pictures, refuses what is none, and speaks to this machine only."""

import base64
import io
import json
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator

import numpy as np
import pytest
from conftest import Project, environment
from PIL import Image, ImageDraw

from pipeline import demo
from pipeline.console import UserError
from pipeline.learning.classifier import Classifier
from pipeline.photos import photo

Answer = tuple[int, dict]


def picture(*strokes: list[tuple[int, int]], size: int = 200) -> bytes:
    sheet, content = Image.new("L", (size, size), 255), io.BytesIO()
    for stroke in strokes:
        ImageDraw.Draw(sheet).line(stroke, fill=0, width=size // 14)
    sheet.save(content, "PNG")
    return content.getvalue()


ONE = picture([(105, 30), (100, 170)])
TWO_ONES = picture([(65, 30), (60, 170)], [(145, 30), (140, 170)])


@pytest.fixture(scope="module")
def classifier(made_once: Project) -> Classifier:
    return Classifier.load(made_once.root / "models")


@pytest.fixture(scope="module")
def server(made_once: Project) -> Iterator[str]:
    """Return the address of a demo of a small project."""
    command = [sys.executable, "-m", "pipeline.demo", "--port", "0"]
    process = subprocess.Popen(
        command,
        cwd=made_once.root,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    said = process.stdout.readline()
    yield next(word for word in said.split() if word.startswith("http"))
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert (out, errors, process.returncode) == ("", "", 0)


def post(server: str, content: bytes, kind: str = "image/png", query: str = "") -> Answer:
    request = urllib.request.Request(f"{server}/read{query}", content, {"Content-Type": kind})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:  # noqa: S310
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


@pytest.mark.slow
def test_a_drawn_one_is_a_one_with_a_runner_up(classifier: Classifier) -> None:
    found = demo.look(ONE, classifier, one=False)
    (digit,) = found["digits"]
    assert found["text"] == "1"
    assert digit["digit"] == int(np.argmax(digit["probabilities"])) == 1
    ranked = sorted(digit["probabilities"], reverse=True)
    assert [digit["probability"], digit["runner_up_probability"]] == ranked[:2]
    assert digit["probabilities"][digit["runner_up"]] == ranked[1]
    assert sum(digit["probabilities"]) == pytest.approx(1, abs=1e-3)


@pytest.mark.slow
def test_the_steps_are_pictures_of_what_was_seen(classifier: Classifier) -> None:
    found = demo.look(ONE, classifier, one=False)
    sizes = [decoded(found[step]).size for step in ("upright", "ink")]
    assert sizes == [(200, 200), (200, 200)]
    assert decoded(found["digits"][0]["field"]).size == (28, 28)
    assert np.asarray(decoded(found["ink"]))[100, 103] < 64
    assert np.asarray(decoded(found["ink"]))[5, 5] > 192


def decoded(address: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(address.removeprefix("data:image/png;base64,"))))


@pytest.mark.slow
def test_several_digits_are_read_unless_the_picture_is_about_one(classifier: Classifier) -> None:
    assert len(demo.look(TWO_ONES, classifier, one=False)["digits"]) == 2
    assert len(demo.look(TWO_ONES, classifier, one=True)["digits"]) == 1


@pytest.mark.slow
def test_a_picture_is_read_over_http(server: str) -> None:
    status, found = post(server, ONE)
    assert (status, found["text"]) == (200, "1")
    assert post(server, TWO_ONES, query="?one=1")[1]["text"] == "1"


@pytest.mark.slow
def test_what_is_no_picture_is_refused_with_a_reason(server: str) -> None:
    assert post(server, b"five", "text/plain") == (415, {"error": "expected a picture"})
    assert post(server, b"five") == (422, {"error": "not a picture"})
    assert post(server, ONE[:-40])[0] == 422
    assert post(server, b"")[0] == 422


@pytest.mark.slow
def test_a_picture_of_too_many_bytes_is_refused_and_the_server_lives_on(server: str) -> None:
    assert post(server, bytes(demo.LIMIT + 1)) == (413, {"error": "more than 20 MB"})
    assert post(server, ONE)[0] == 200


@pytest.mark.slow
def test_the_page_may_load_nothing_and_speak_to_this_server_only(server: str) -> None:
    with urllib.request.urlopen(server, timeout=60) as reply:  # noqa: S310
        rules, page = reply.headers["Content-Security-Policy"], reply.read().decode()
    assert "default-src 'none'" in rules
    assert "connect-src 'self'" in rules
    assert "http" not in page


@pytest.mark.slow
def test_another_name_for_this_machine_is_refused(server: str) -> None:
    request = urllib.request.Request(server, headers={"Host": "elsewhere.example"})  # noqa: S310
    with pytest.raises(urllib.error.HTTPError, match="400") as refused:
        urllib.request.urlopen(request, timeout=60)  # noqa: S310
    refused.value.close()


def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as other:
        other.bind((demo.HOST, 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=rf"port {port}: .*in use; take another one with PORT="):
            demo.listen(port)


def test_a_port_that_cannot_be_is_named() -> None:
    with pytest.raises(UserError, match="port 70000: "):
        demo.listen(70000)


def test_ink_is_shown_dark_on_white_whatever_the_paper() -> None:
    dark = photo.open_picture(ONE)
    light = photo.open_picture(negative(ONE))
    for shown in (demo.ink(dark), demo.ink(light)):
        assert shown[100, 103] < 64
        assert np.median(shown) > 192


def negative(content: bytes) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(255 - np.asarray(Image.open(io.BytesIO(content)))).save(stream, "PNG")
    return stream.getvalue()

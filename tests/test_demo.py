"""The demo answers pictures, refuses what is none, and speaks to this machine only, unless it is asked to."""

import base64
import io
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import numpy as np
import pytest
from conftest import Project, environment
from PIL import Image, ImageDraw

from pipeline import corrections, demo, files
from pipeline.config import DIGITS
from pipeline.console import UserError
from pipeline.learning.classifier import Classifier
from pipeline.photos import photo

Answer = tuple[int, Any]


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


@contextmanager
def serving(project: Project, *arguments: str, warning: str = "") -> Iterator[str]:
    """Start a demo of a project and return the address that it prints; it ends without a word but the warning."""
    command = [sys.executable, "-m", "pipeline.demo", "--port", "0", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, cwd=project.root, env=environment(), text=True, **pipes)
    assert process.stdout
    said, model = process.stdout.readline(), process.stdout.readline()
    assert model.startswith(f"model {project.json('train.json')['model_sha256'][:12]}, test accuracy ")
    try:
        yield next(word for word in said.split() if word.startswith("http"))
    finally:
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=60)
    assert (out, process.returncode) == ("", 0)
    assert errors == warning


@pytest.fixture(scope="module")
def server(made_once: Project) -> Iterator[str]:
    """Return the address of a demo of a small project."""
    with serving(made_once) as address:
        yield address


def post(server: str, content: bytes, kind: str = "image/png", query: str = "") -> Answer:
    return ask(f"{server}/read{query}", content, {"Content-Type": kind})


def ask(address: str, content: bytes | None = None, headers: dict[str, str] | None = None, method: str = "") -> Answer:
    """Return the status of a reply, and the JSON in it; nothing where it is a page."""
    request = urllib.request.Request(address, content, headers or {}, method=method or None)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:  # noqa: S310
            return reply.status, json.load(reply) if reply.headers.get_content_subtype() == "json" else {}
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error) if error.headers.get_content_subtype() == "json" else {}


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
    assert post(server, bytes(corrections.LIMIT + 1)) == (413, {"error": "more than 20 MB"})
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


@pytest.mark.slow
def test_pictures_that_come_at_once_get_the_answers_that_they_get_alone(server: str) -> None:
    pictures = [ONE, TWO_ONES, picture([(60, 40), (150, 40), (90, 170)]), ONE_TURNED] * 6
    with ThreadPoolExecutor(8) as clients:
        found = list(clients.map(lambda content: post(server, content), pictures))
    untimed = [{**answer, "milliseconds": 0} for _, answer in found]
    assert [status for status, _ in found] == [200] * len(pictures)
    assert untimed == untimed[:4] * 6
    assert untimed[:4] == [{**post(server, content)[1], "milliseconds": 0} for content in pictures[:4]]


# Corrections


@pytest.fixture(scope="module")
def place(made_once: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return a project that has a model and nothing else."""
    root = tmp_path_factory.mktemp("place")
    for name in ("models", "pipeline", "reports"):
        (root / name).symlink_to(made_once.root / name)
    return Project(root)


@pytest.fixture(scope="module")
def keeper(place: Project) -> Iterator[str]:
    with serving(place) as address:
        yield f"{address}/corrections"


@pytest.fixture
def folder(place: Project) -> Iterator[Path]:
    """Return the folder of the corrections, which is not there yet."""
    yield place.root / files.CORRECTIONS
    shutil.rmtree(place.root / "data", ignore_errors=True)


def correct(keeper: str, content: bytes, label: str, writer: str = "", kind: str = "image/png") -> Answer:
    return ask(f"{keeper}?{urlencode({'label': label, 'writer': writer})}", content, {"Content-Type": kind})


def delete(keeper: str, file: str) -> Answer:
    return ask(f"{keeper}?{urlencode({'file': file})}", method="DELETE")


def labels_of(folder: Path) -> list[str]:
    return [each.label for each in corrections.load(folder, DIGITS)]


@pytest.mark.slow
def test_a_correction_is_kept_listed_and_deleted(keeper: str, folder: Path) -> None:
    status, kept = correct(keeper, ONE, "7", "Ada")
    assert (status, kept["label"], kept["writer"]) == (200, "7", "Ada")
    assert (folder / kept["file"]).read_bytes() == ONE
    correct(keeper, TWO_ONES, "11")
    newest, oldest = ask(keeper)[1]
    assert (newest["label"], oldest["label"]) == ("11", "7")
    assert oldest["file"] == kept["file"]
    assert decoded(oldest["picture"]).size == (160, 160)
    assert delete(keeper, kept["file"])[0] == 200
    assert labels_of(folder) == ["11"]
    assert not (folder / kept["file"]).exists()


@pytest.mark.slow
def test_reading_keeps_nothing(keeper: str, folder: Path) -> None:
    assert post(keeper.removesuffix("/corrections"), ONE)[0] == 200
    assert ask(keeper) == (200, [])
    assert not folder.exists()


@pytest.mark.slow
def test_what_cannot_be_kept_is_refused_with_a_reason(keeper: str, folder: Path) -> None:
    status, found = correct(keeper, ONE, "five")
    assert (status, found["error"][:46]) == (422, "label 'five': expected what the picture shows,")
    assert correct(keeper, ONE, "1" * 301)[1]["error"].startswith("label of 301 digits: expected at most 300")
    assert correct(keeper, b"", "1") == (422, {"error": "not kept: not a picture: the file is empty"})
    assert correct(keeper, b"1", "1", kind="text/plain") == (415, {"error": "expected a picture"})
    assert correct(keeper, bytes(corrections.LIMIT + 1), "1")[0] == 413
    assert delete(keeper, "../../five.png")[0] == 422
    assert labels_of(folder) == []


@pytest.mark.slow
def test_a_labels_csv_that_was_edited_badly_is_named_with_its_row(keeper: str, folder: Path) -> None:
    correct(keeper, ONE, "1")
    table = folder / "labels.csv"
    table.write_text(f"{table.read_text()}none.png,1,\n")
    for _, found in (correct(keeper, TWO_ONES, "11"), ask(keeper)):
        assert found["error"].startswith(f"{files.CORRECTIONS}/labels.csv, row 3: expected the name of a picture")
    assert len(list(folder.glob("*.png"))) == 1


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_one_line(keeper: str, folder: Path) -> None:
    folder.parent.mkdir()
    folder.write_text("a file where the folder should be")
    assert correct(keeper, ONE, "1") == (507, {"error": "data/corrections: File exists; nothing has changed"})


@pytest.mark.slow
@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_another_sites_page_is_not_permitted_to_keep_or_to_delete(keeper: str, method: str) -> None:
    asked = {"Origin": "http://elsewhere.example", "Access-Control-Request-Headers": "content-type"}
    asked |= {"Access-Control-Request-Method": method}
    assert ask(keeper, headers=asked, method="OPTIONS") == (405, {})


@pytest.mark.slow
def test_keeping_can_be_switched_off(place: Project, folder: Path) -> None:
    with serving(place, "--no-corrections") as address:
        assert ask(address)[0] == 200
        for method in ("GET", "POST", "DELETE"):
            assert ask(f"{address}/corrections?label=1", ONE, {"Content-Type": "image/png"}, method)[0] == 404
    assert not folder.exists()


# Other machines

ONE_TURNED = picture([(30, 105), (170, 100)])
WARNING = (
    "warning: --host 0.0.0.0: who has this address, or can read the network's traffic, which is not encrypted, "
    "can use the page\n"
)


@pytest.fixture(scope="module")
def shared(made_once: Project) -> Iterator[str]:
    """Return the address of a demo that other machines reach."""
    with serving(made_once, "--host", "0.0.0.0", warning=WARNING) as address:  # noqa: S104
        yield address


def elsewhere(address: str) -> list[str]:
    """Return a server's address without its query, by each address that this machine has."""
    port = urlsplit(address).port
    return [f"http://{host}:{port}" for host in ("127.0.0.1", "127.0.0.2", demo.own_address())]


@pytest.mark.slow
def test_with_its_token_the_page_is_read_from_elsewhere(shared: str) -> None:
    parts = urlsplit(shared)
    assert parts.hostname == demo.own_address()
    assert re.fullmatch(r"token=[\w-]{22}", parts.query)
    assert ask(shared)[0] == 200
    for base in elsewhere(shared):
        assert post(base, ONE, query=f"?{parts.query}")[1]["text"] == "1"
    assert post(elsewhere(shared)[0], TWO_ONES, query=f"?one=1&{parts.query}")[1]["text"] == "1"


@pytest.mark.slow
@pytest.mark.parametrize("query", ["", "?token=", "?token=\u00e9", "?token={token}x", "?Token={token}", "?one={token}"])
def test_without_its_token_nothing_is_answered(shared: str, query: str) -> None:
    named = query.format(token=urlsplit(shared).query.removeprefix("token=")).replace("\u00e9", "%C3%A9")
    refused = (403, {"error": "expected the address with its token, as `make demo` printed it"})
    for base in elsewhere(shared):
        assert [ask(f"{base}/{path}{named}") for path in ("", "read", "corrections", "none")] == [refused] * 4
        assert post(base, ONE, query=named) == refused
        for method in ("POST", "DELETE"):
            assert ask(f"{base}/corrections{named}", method=method) == refused


@pytest.mark.slow
def test_every_start_has_a_token_of_its_own(shared: str, made_once: Project) -> None:
    with serving(made_once, "--host", "0.0.0.0", warning=WARNING) as other:  # noqa: S104
        assert urlsplit(other).query != urlsplit(shared).query


@pytest.mark.slow
def test_unless_it_is_asked_to_it_listens_on_the_loopback_address_alone(server: str) -> None:
    assert "token" not in server
    own, *others = elsewhere(server)
    assert ask(own)[0] == 200
    for base in others:
        with pytest.raises(urllib.error.URLError, match="refused"):
            ask(base)


@pytest.mark.parametrize("host", ["203.0.113.9", "no.such.host.invalid", "", "a" * 64, "0.0.0.0:80"])
def test_an_address_that_is_not_this_machines_is_named(host: str) -> None:
    with pytest.raises(UserError, match=rf"^host {host}: expected an address of this machine, or 0\.0\.0\.0 "):
        demo.listen(0, host)


@pytest.mark.parametrize(("host", "address"), [("::1", "[::1]"), ("10.1.2.3", "10.1.2.3")])
def test_an_address_is_printed_as_a_browser_takes_it(host: str, address: str) -> None:
    assert demo.reached_at(host) == address


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
    for shown in (demo.ink(dark.grey), demo.ink(light.grey)):
        assert shown[100, 103] < 64
        assert np.median(shown) > 192


def negative(content: bytes) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(255 - np.asarray(Image.open(io.BytesIO(content)))).save(stream, "PNG")
    return stream.getvalue()

"""The registered model answers to photographs and fields, in Python and over HTTP, without TensorFlow."""

import base64
import contextlib
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import Project, environment
from PIL import Image

from pipeline import corrections, counts, files, serving, tracking
from pipeline.config import DIGITS
from pipeline.learning.classifier import Classifier

REGISTER = """
from pipeline import registry, tracking
from pipeline.store import open_store
store = open_store()
registry.challenge(store, tracking.run_of_model(store))
registry.promote(store, {"verdict": "pass"})
"""
LOAD = """
import json, sys
import mlflow.pyfunc
model = mlflow.pyfunc.load_model("models:/digits@champion")
field = json.load(sys.stdin)
answer, = model.predict([{"image": field}])
modules = {name: sys.modules[name].__file__ for name in sys.modules if name.split(".")[0] == "pipeline"}
print(json.dumps([answer, "tensorflow" in sys.modules, "keras" in sys.modules, modules]))
"""


def png(grey: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(grey).save(stream, "PNG")
    return stream.getvalue()


def text(content: bytes) -> str:
    return base64.b64encode(content).decode()


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
def test_base64_may_come_as_a_data_url(prefix: str) -> None:
    assert serving.decode(prefix + text(b"picture")) == b"picture"


@pytest.mark.parametrize("wrong", ["no base64 %%%", "YWJj\u00e9", "abc"])
def test_what_is_not_base64_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="not base64; expected an image file"):
        serving.decode(wrong)


@pytest.mark.parametrize("kind", [list, np.asarray])
def test_a_field_may_be_a_list_or_an_array(kind: Any) -> None:
    field = np.arange(784).reshape(28, 28) % 256
    checked = serving.check_field(kind(field.tolist()))
    assert checked.dtype == np.uint8
    assert np.array_equal(checked, field)


@pytest.mark.parametrize(
    "wrong", [None, 5, {"a": 1}, [[0] * 28] * 27, [[0] * 28] * 27 + [[0]], [["x"] * 28] * 28, [[10**400] * 28] * 28]
)
def test_what_is_no_field_is_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match="28 rows of 28 numbers"):
        serving.check_field(wrong)


@pytest.mark.parametrize("value", [0.5, -1, 256, float("nan")])
def test_values_that_no_pixel_has_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"whole numbers from 0 \(paper\) to 255 \(ink\)"):
        serving.check_field(np.full((28, 28), value))


@pytest.fixture(scope="module")
def served(made_once: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return a project whose model is champion."""
    project = made_once.copy(tmp_path_factory.mktemp("served") / "project")
    project.run(sys.executable, "-m", "pipeline.doctor", "--fix")
    project.run(sys.executable, "-c", REGISTER)
    return project


def variables(project: Project) -> dict[str, str]:
    """Return the environment of somebody who only has the store."""
    return environment() | {"MLFLOW_TRACKING_URI": f"sqlite:///{project.root}/mlruns/mlflow.db"}


@pytest.fixture(scope="module")
def surest(served: Project) -> tuple[np.ndarray, int]:
    """Return the test digit that the model is most sure of and right, uint8 [28, 28], and its label."""
    rows = files.read_csv(served.root / "reports" / "predictions.csv")
    right = [row for row in rows if row["label"] == row["prediction"]]
    best = max(right, key=lambda row: float(row["probability"]))
    return np.load(served.root / "data/prepared/test-images.npy")[int(best["index"])], int(best["label"])


@pytest.mark.slow
def test_the_model_loads_anywhere_without_tensorflow_and_with_its_own_code(
    served: Project, surest: tuple[np.ndarray, int], tmp_path: Path
) -> None:
    field, label = surest
    done = subprocess.run(
        [sys.executable, "-c", LOAD],
        cwd=tmp_path,
        env=variables(served),
        input=json.dumps(field.tolist()),
        capture_output=True,
        text=True,
        check=True,
    )
    answer, tensorflow, keras, modules = json.loads(done.stdout)
    assert answer["text"] == str(label)
    assert not tensorflow
    assert not keras
    assert {Path(file).parent.name + Path(file).stem for file in modules.values()} == {
        path.parent.name + path.stem for path in tracking.SERVED.values()
    }
    assert not any(Path(file).is_relative_to(served.root / "pipeline") for file in modules.values())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder in which the server runs."""
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def address(served: Project, folder: Path) -> Iterator[str]:
    """Start ``mlflow models serve`` as the documentation does, in a folder of its own, and return its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["mlflow", "models", "serve", "-m", "models:/digits@champion", "--env-manager", "local", "-p", str(port)]
    command += ["--workers", "2"]
    settings = variables(served) | {"OPENCV_FOR_THREADS_NUM": "1", "UVICORN_TIMEOUT_WORKER_HEALTHCHECK": "60"}
    settings |= {counts.VARIABLE: "counts.db", corrections.VARIABLE: "kept"}
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            command, cwd=folder, env=settings, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        wait_for(f"http://127.0.0.1:{port}", server, folder / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def wait_for(address: str, server: subprocess.Popen[bytes], log: Path, page: str = "ping") -> None:
    for _ in range(1500):
        assert server.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(f"{address}/{page}", timeout=5).close()  # noqa: S310
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise AssertionError(log.read_text())


def post(address: str, content: object) -> tuple[int, Any]:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    request = urllib.request.Request(f"{address}/invocations", body, {"Content-Type": "application/json"})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
            return response.status, json.load(response)["predictions"]
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)["message"]


@pytest.mark.slow
def test_a_photograph_posted_over_http_gets_its_digit(address: str, surest: tuple[np.ndarray, int]) -> None:
    field, label = surest
    photograph = np.pad(255 - np.kron(field, np.ones((8, 8), np.uint8)), 60, constant_values=255)
    records = [{"image": text(png(photograph))}, {"image": field.tolist()}]
    status, answers = post(address, {"dataframe_records": records, "params": {"one": True}})
    assert status == 200
    assert [answer["text"] for answer in answers] == [str(label)] * 2
    found = answers[1]["digits"][0]
    assert found["digit"] == label
    assert found["probability"] == max(found["probabilities"])
    assert found["verdict"] in ("digit", "unsure")


@pytest.mark.slow
def test_every_way_that_mlflow_knows_to_send_an_image_is_understood(
    address: str, surest: tuple[np.ndarray, int]
) -> None:
    field, label = surest
    rows = field.tolist()
    for content in (
        {"dataframe_split": {"columns": ["image"], "data": [[rows]]}},
        {"instances": [{"image": rows}]},
        {"inputs": {"image": [rows]}},
        {"inputs": [{"image": rows}]},
    ):
        status, answers = post(address, content)
        assert (status, [answer["text"] for answer in answers]) == (200, [str(label)])
    photograph = text(png(np.full((80, 80), 255, np.uint8)))
    for content in ({"inputs": {"image": [photograph, photograph]}}, {"instances": [{"image": photograph}] * 2}):
        status, answers = post(address, content)
        assert (status, [answer["verdict"] for answer in answers]) == (200, ["no digit"] * 2)


@pytest.mark.slow
def test_people_who_ask_at_once_get_their_own_answers(address: str, served: Project) -> None:
    images = np.load(served.root / "data/prepared/test-images.npy")[:24]
    requests = [{"dataframe_records": [{"image": image.tolist()}] * 20} for image in images]
    alone = [post(address, request) for request in requests]
    with ThreadPoolExecutor(8) as people:
        assert list(people.map(lambda request: post(address, request), requests)) == alone


@pytest.mark.slow
def test_bad_bytes_get_a_reason_and_the_server_keeps_running(address: str, surest: tuple[np.ndarray, int]) -> None:
    picture = png(np.zeros((50, 50), np.uint8))
    blank = [[0] * 28] * 28
    for images, reason in (
        (["%%%"], "image 1: not base64"),
        ([blank, text(b"not a picture at all")], "image 2: not a picture"),
        ([text(picture[: len(picture) // 2])], "image 1: damaged picture"),
        ([""], "image 1: not a picture"),
        ([None], "image 1: expected an image file as bytes or base64"),
        ([[[0.5] * 28] * 28], "image 1: expected whole numbers"),
    ):
        status, said = post(address, {"dataframe_records": [{"image": image} for image in images]})
        assert (status, reason in said) == (400, True), said
    assert post(address, b"\xff\xd8\xff")[0] == 400
    assert post(address, {"dataframe_records": [{"picture": 1}]})[0] == 400
    assert post(address, {"dataframe_records": [{"image": surest[0].tolist()}]})[0] == 200


def bomb() -> bytes:
    """Return a picture of 400 million pixels in 50 kB."""
    stream = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(stream, "PNG")
    return stream.getvalue()


def slowly(address: str, body: bytes, seconds: float) -> int:
    """Post a body byte by byte and return the status."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
    connection.putrequest("POST", "/invocations")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(len(body)))
    connection.endheaders()
    for byte in body:
        connection.send(bytes([byte]))
        time.sleep(seconds / len(body))
    with contextlib.closing(connection):
        return connection.getresponse().status


@pytest.mark.slow
def test_who_sends_too_much_too_slowly_or_nonsense_is_refused_and_nobody_else_notices(
    address: str, surest: tuple[np.ndarray, int]
) -> None:
    field, label = surest

    def image(content: bytes) -> dict[str, Any]:
        return {"dataframe_records": [{"image": text(content)}]}

    with ThreadPoolExecutor(8) as people:
        odd = [people.submit(post, address, image(content)) for content in (bomb(), bytes(15_000_000))]
        odd += [people.submit(post, address, b"\xff" * 20) for _ in range(40)]
        slow = people.submit(slowly, address, json.dumps(image(b"no picture")).encode(), 2)
        others = [people.submit(post, address, {"dataframe_records": [{"image": field.tolist()}]}) for _ in range(40)]
        answers = [each.result() for each in others]
        assert [(status, answer[0]["text"]) for status, answer in answers] == [(200, str(label))] * 40
        assert {each.result()[0] for each in odd} | {slow.result()} == {400}
        assert "more than 60 million pixels" in odd[0].result()[1]


@pytest.mark.slow
def test_what_several_workers_read_is_counted_in_one_file(
    address: str, folder: Path, surest: tuple[np.ndarray, int]
) -> None:
    def count(quantity: str, bin_: str) -> int:
        found = counts.read(folder / "counts.db") if (folder / "counts.db").exists() else []
        return sum(row.pictures for row in found if (row.quantity, row.bin) == (quantity, bin_))

    wanted = (("kind", "field"), ("verdict", "refused"), ("refused", "not base64"))
    before = [count(*each) for each in wanted]
    with ThreadPoolExecutor(8) as people:
        fields = {"dataframe_records": [{"image": surest[0].tolist()}] * 3}
        list(people.map(lambda _: post(address, fields), range(20)))
        list(people.map(lambda _: post(address, {"dataframe_records": [{"image": "%"}]}), range(5)))
    assert [count(*each) for each in wanted] == [before[0] + 60, before[1] + 5, before[2] + 5]


def most_memory() -> int:
    """Return the most kB that this process has held since the last call."""
    most = re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0]
    Path("/proc/self/clear_refs").write_text("5")
    return int(most)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells how much memory was held")
def test_large_pictures_that_come_at_once_are_decoded_one_after_the_other(served: Project) -> None:
    service = serving.Service(Classifier.load(served.root / "models"))
    large = png(np.full((1000, 1000), 60_000, np.uint16))
    most_memory()
    before = most_memory()
    service.predict(pd.DataFrame({"image": [large]}))
    one = most_memory() - before
    with ThreadPoolExecutor(6) as people:
        list(people.map(lambda _: service.predict(pd.DataFrame({"image": [large]})), range(6)))
    assert most_memory() - before < 2 * one


# Corrections


def sheet(number: int) -> bytes:
    """Return a picture, another one for every number."""
    return png(np.pad(np.full((60, 8 + number), 20, np.uint8), 40, constant_values=245))


def corrected(number: int, label: object = "1", **more: object) -> dict[str, object]:
    """Return the row of a request that corrects a picture."""
    return {"image": text(sheet(number)), "label": label, **more}


def kept_in(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder of corrections but the lock."""
    return {path.name: path.read_bytes() for path in folder.glob("*") if path.name != ".lock"}


@pytest.fixture
def kept(folder: Path) -> Iterator[Path]:
    """Return the folder in which the server keeps corrections, empty before and after the test."""
    yield folder / "kept"
    for path in (folder / "kept").glob("*"):
        path.unlink()


@pytest.mark.slow
def test_a_photograph_with_its_digits_is_answered_as_always_and_kept(address: str, kept: Path) -> None:
    rows = [corrected(1, "007", writer="Ada"), {"image": text(sheet(2))}, corrected(3, "8")]
    _, before = post(address, {"dataframe_records": [{"image": row["image"]} for row in rows]})
    assert not kept_in(kept)
    status, answers = post(address, {"dataframe_records": rows})
    files_of = [answer.pop("kept", None) for answer in answers]
    assert (status, answers) == (200, before)
    assert [(kept / name).read_bytes() if name else None for name in files_of] == [sheet(1), None, sheet(3)]
    assert [(each.label, each.writer) for each in corrections.load(kept, DIGITS)] == [("007", "Ada"), ("8", "")]


@pytest.mark.slow
def test_a_correction_comes_in_every_way_that_mlflow_knows(address: str, kept: Path) -> None:
    image = text(sheet(1))
    for label, content in (
        ("01", {"dataframe_split": {"columns": ["image", "label"], "data": [[image, "01"]]}}),
        ("02", {"instances": [{"image": image, "label": "02"}]}),
        ("03", {"inputs": {"image": [image], "label": ["03"]}}),
        ("04", {"inputs": [{"image": image, "label": "04"}]}),
    ):
        assert post(address, content)[0] == 200
        assert [each.label for each in corrections.load(kept, DIGITS)] == [label]


@pytest.mark.slow
def test_a_correction_that_cannot_be_is_refused_with_all_of_its_request(address: str, kept: Path) -> None:
    large = io.BytesIO()
    Image.new("L", (80, 80), 255).save(large, "JPEG")
    for wrong, reason in (
        (corrected(2, "five"), "label 'five': expected what the picture shows"),
        (corrected(2, ""), "label ''"),
        (corrected(2, "../1"), "label '../1'"),
        (corrected(2, "1" * 301), "label of 301 digits: expected at most 300"),
        (corrected(2, 7), 'expected a label as text, such as "07"'),
        (corrected(2, ["7"]), 'expected a label as text, such as "07"'),
        (corrected(2, None, writer="Ada"), 'expected a label as text, such as "07"'),
        (corrected(2, "7", writer="=cmd()"), "writer '=cmd()': expected at most 40 letters"),
        (corrected(2, "7", writer=5), "a writer as text"),
        ({"image": [[0] * 28] * 28, "label": "7"}, "a label needs an image file of at most 20 MB"),
        (
            {"image": text(large.getvalue() + bytes(corrections.LIMIT)), "label": "7"},
            "a label needs an image file of at most 20 MB",
        ),
        ({"image": text(b"no picture"), "label": "7"}, "not a picture"),
    ):
        status, said = post(address, {"dataframe_records": [corrected(1), wrong]})
        assert (status, "image 2: " in said and reason in said) == (400, True), said
        assert not kept_in(kept)


@pytest.mark.slow
def test_a_service_that_keeps_no_corrections_says_so(served: Project) -> None:
    service = serving.Service(Classifier.load(served.root / "models"))
    with pytest.raises(serving.BadImageError, match="keeps no label; DIGITS_CORRECTIONS names a folder") as error:
        service.predict(pd.DataFrame([corrected(1)]))
    assert error.value.get_http_status_code() == 400


@pytest.mark.slow
def test_people_who_correct_at_once_lose_nothing(address: str, kept: Path) -> None:
    with ThreadPoolExecutor(8) as people:
        done = list(people.map(lambda n: post(address, {"dataframe_records": [corrected(n, str(n))]}), range(24)))
    assert {status for status, _ in done} == {200}
    found = {each.label: (kept / each.file).read_bytes() for each in corrections.load(kept, DIGITS)}
    assert found == {str(number): sheet(number) for number in range(24)}


@pytest.mark.slow
def test_a_folder_that_takes_no_correction_is_told_to_who_runs_the_service(
    address: str, kept: Path, folder: Path
) -> None:
    post(address, {"dataframe_records": [corrected(1)]})
    with (kept / "labels.csv").open("a") as table:
        table.write("none.png,1,\n")
    before = kept_in(kept)
    status, said = post(address, {"dataframe_records": [corrected(2)]})
    assert (status, said.rpartition("Error: ")[2]) == (
        503,
        "image 1: read, but not kept; the log of the service says why",
    )
    assert kept_in(kept) == before
    assert "labels.csv, row 3: expected the name of a picture" in (folder / "log").read_text()
    assert post(address, {"dataframe_records": [{"image": text(sheet(2))}]})[0] == 200

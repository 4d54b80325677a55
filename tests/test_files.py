"""files writes whole files or nothing, and names contents by sha256."""

import json
import math
import os
import stat
import subprocess
import sys
import threading

import numpy as np
import pytest

from pipeline import files
from pipeline.console import UserError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_and_the_folders_above_it_are_made(tmp_path):
    files.write_text(tmp_path / "a/b/c.txt", "ä\n")
    assert (tmp_path / "a/b/c.txt").read_bytes() == b"\xc3\xa4\n"


def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "kept"
    files.write_bytes(path, b"old")
    with pytest.raises(TypeError), files.atomic_write(path) as stream:
        stream.writelines([b"new", "not bytes"])
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["kept"]


def test_a_disk_that_takes_no_more_is_an_error_that_names_the_file(tmp_path):
    path = tmp_path / "kept"
    files.write_bytes(path, b"old")
    script = (
        "import resource, sys; from pathlib import Path; from pipeline import console, files\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "console.run(lambda arguments: files.write_bytes(Path(arguments[0]), bytes(2000)))"
    )
    said = subprocess.run(
        [sys.executable, "-c", script, str(path)], cwd=files.ROOT, stderr=subprocess.PIPE, text=True
    ).stderr
    assert said.startswith(f"error: {path}: ")
    assert said.count("\n") == 1
    assert (names(tmp_path), path.read_bytes()) == (["kept"], b"old")


def test_a_killed_process_leaves_the_old_file(tmp_path):
    path = tmp_path / "kept"
    files.write_bytes(path, b"old")
    script = (
        "import os, signal, sys; from pathlib import Path; from pipeline import files\n"
        "with files.atomic_write(Path(sys.argv[1])) as stream:\n"
        "    stream.write(b'new'); stream.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", script, str(path)], cwd=files.ROOT)
    assert path.read_bytes() == b"old"


def test_a_reader_never_sees_half_a_file(tmp_path):
    path = tmp_path / "swapped"
    contents = [bytes([number]) * 100_000 for number in range(20)]
    files.write_bytes(path, contents[0])
    seen = []
    done = threading.Event()

    def read():
        while not done.is_set():
            seen.append(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for content in contents:
        files.write_bytes(path, content)
    done.set()
    reader.join()
    assert seen
    assert all(content in contents for content in seen)


def test_a_new_file_has_the_permissions_that_the_umask_leaves(tmp_path):
    before = os.umask(0o027)
    try:
        files.write_bytes(tmp_path / "shared", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "shared").stat().st_mode) == 0o640


def test_json_is_the_same_bytes_whatever_the_order_of_the_keys(tmp_path):
    files.write_json(tmp_path / "one", {"b": 1, "a": [0.1, "ä"]})
    files.write_json(tmp_path / "two", {"a": [0.1, "ä"], "b": 1})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert files.read_json(tmp_path / "one") == {"a": [0.1, "ä"], "b": 1}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_json_cannot_hold_are_refused_and_no_file_is_written(tmp_path, value):
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "report.json", {"loss": value})
    assert names(tmp_path) == []


def test_a_table_is_read_as_it_was_written(tmp_path):
    rows = [{"name": 'a "b", c', "count": 1}, {"name": "two\nlines", "count": 2}]
    files.write_csv(tmp_path / "table.csv", rows, ["name", "count"])
    assert (tmp_path / "table.csv").read_bytes().startswith(b"name,count\n")
    assert files.read_csv(tmp_path / "table.csv") == [{**row, "count": str(row["count"])} for row in rows]


def test_an_array_is_the_same_bytes_however_it_lies_in_memory(tmp_path):
    array = np.arange(12, dtype=np.uint8).reshape(3, 4)
    files.write_array(tmp_path / "c.npy", array)
    files.write_array(tmp_path / "f.npy", np.asfortranarray(array))
    assert (tmp_path / "c.npy").read_bytes() == (tmp_path / "f.npy").read_bytes()
    assert np.array_equal(np.load(tmp_path / "c.npy"), array)


def test_an_array_of_objects_is_refused(tmp_path):
    with pytest.raises(ValueError, match="pickle"):
        files.write_array(tmp_path / "objects.npy", np.array([{}]))
    assert names(tmp_path) == []


def test_a_sha256_is_that_of_the_bytes(tmp_path):
    files.write_bytes(tmp_path / "abc", b"abc")
    assert files.sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_digest_depends_on_the_content_and_not_on_the_order_of_keys():
    assert files.digest({"a": 1, "b": 2}) == files.digest(json.loads('{"b": 2, "a": 1}'))
    assert files.digest({"a": 1}) != files.digest({"a": 1.5})
    assert files.digest("a", "b") != files.digest("ab")


def test_a_digest_of_files_knows_their_names_and_bytes_but_not_their_folder_or_order(tmp_path):
    for folder in ("one", "two"):
        for name in ("a", "b"):
            files.write_text(tmp_path / folder / name, name)
    one, two = ([tmp_path / folder / name for name in "ab"] for folder in ("one", "two"))
    assert files.digest_files(one) == files.digest_files(reversed(two))
    files.write_text(two[0], "other")
    assert files.digest_files(one) != files.digest_files(two)


def test_the_workspace_is_dvc_s_root_where_dvc_runs_and_the_project_elsewhere(tmp_path, monkeypatch):
    assert files.workspace() == files.ROOT
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    assert files.workspace() == tmp_path.resolve()


CONFLICT = '{\n<<<<<<< HEAD\n  "model_sha256": "a"\n=======\n  "model_sha256": "b"\n>>>>>>> other\n}\n'


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (CONFLICT, "Expecting property name"),
        ('{"model_sha256": "a', "Unterminated string"),
        ("", "Expecting value"),
        ("[1]", "expected an object, found list"),
        ('"a"', "expected an object, found str"),
        ("null", "expected an object, found NoneType"),
        ("{}", "expected model_sha256"),
        ('{"model_sha256": 1}', "expected model_sha256"),
        ("\udcff", "can't decode byte"),
    ],
)
def test_a_report_that_cannot_be_read_is_one_line_that_names_it(tmp_path, content, reason):
    (tmp_path / "train.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=rf"train\.json: not as a stage wrote it \(.*{reason}.*`dvc repro`") as caught:
        files.read_report(tmp_path / "train.json", "model_sha256")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        "a,b\n<<<<<<< HEAD\n1,2\n=======\n3,4\n>>>>>>> other\n",
        "a,b\n1\n",
        "a,b\n1,2,3\n",
        "a,b\n1,\udcff\n",
        'a,b\n"1,2',
    ],
)
def test_a_table_that_cannot_be_read_is_one_line_that_names_it(tmp_path, content):
    (tmp_path / "history.csv").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"history\.csv: not as a stage wrote it"):
        files.read_table(tmp_path / "history.csv")

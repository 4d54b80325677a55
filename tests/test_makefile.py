"""The Makefile sets up once, refuses what cannot work in one line, and describes its verbs."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from pipeline import files


@pytest.fixture
def folder(tmp_path):
    """Return a folder with the Makefile and the lock, in a place that has a space in its name."""
    folder = tmp_path / "a project"
    folder.mkdir()
    for name in ("Makefile", "requirements.lock", "requirements-extras.lock", "pyproject.toml"):
        shutil.copy(files.ROOT / name, folder)
    return folder


def make(folder, *words, **variables):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(["make", *words], cwd=folder, env=kept | variables, capture_output=True, text=True)


def make_ready(folder):
    """Make the folder look set up, as far as the Makefile can see."""
    planned = make(folder, "--dry-run", "check").stdout
    stamp = folder / next(word for word in planned.split() if word.startswith(".venv/ready-") and "*" not in word)
    stamp.parent.mkdir(exist_ok=True)
    stamp.touch()


def test_nothing_is_set_up_twice(folder):
    assert "pip sync" in make(folder, "--dry-run", "check").stdout
    make_ready(folder)
    assert "pip sync" not in make(folder, "--dry-run", "check").stdout


def test_another_lock_is_installed(folder):
    make_ready(folder)
    with (folder / "requirements.lock").open("a") as lock:
        lock.write("# another\n")
    assert "pip sync" in make(folder, "--dry-run", "check").stdout


def test_a_project_that_was_moved_is_set_up_anew(folder):
    make_ready(folder)
    moved = folder.rename(folder.with_name("elsewhere"))
    assert "pip sync" in make(moved, "--dry-run", "check").stdout


def test_a_python_that_cannot_work_is_named_in_one_line(folder):
    old = folder / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.10.4\nexit 1\n')
    old.chmod(0o755)
    done = make(folder, "check", "PYTHON=./python3")
    assert done.returncode == 2
    assert "error: python: expected 3.11 to 3.13, found Python 3.10.4; make PYTHON=" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / ".venv/bin").exists()


def test_a_photo_is_asked_for(folder):
    make_ready(folder)
    done = make(folder, "photo")
    assert done.returncode == 2
    assert done.stderr.startswith("error: FILE: expected a picture; make photo FILE=five.jpg\n")


def test_a_share_is_passed_on_to_learn(folder):
    make_ready(folder)
    assert make(folder, "--dry-run", "learn").stdout.strip() == "python -m pipeline.learn"
    assert make(folder, "--dry-run", "learn", "SHARE=0.1").stdout.strip() == 'python -m pipeline.learn --share "0.1"'


def test_the_demo_listens_elsewhere_only_when_the_command_line_says_so(folder):
    make_ready(folder)
    everywhere = ".".join("0000")
    assert '--host "127.0.0.1"' in make(folder, "--dry-run", "demo", HOST=everywhere).stdout  # some shells export it
    assert f'--host "{everywhere}"' in make(folder, "--dry-run", "demo", f"HOST={everywhere}").stdout


def test_help_needs_no_set_up_and_has_a_line_a_verb(folder):
    done = make(folder, "help")
    assert done.returncode == 0
    assert all(f"make {verb} " in done.stdout for verb in ("repro", "test", "check", "ui", "photo", "clean", "help"))
    assert not (folder / ".venv").exists()


def test_clean_keeps_the_record_of_the_runs(folder):
    kept = ["mlruns/mlflow.db", ".venv/bin/python", "data/photos/five.jpg", "models/digits.tflite", "Makefile"]
    made = ["data/raw/x", "data/prepared/x", "models/digits.keras", ".dvc/cache/x", "pipeline/__pycache__/x"]
    for name in [*kept[:-1], *made]:
        files.write_bytes(folder / name, b"")
    assert make(folder, "clean").returncode == 0
    assert [name for name in [*kept, *made] if (folder / name).exists()] == kept


@pytest.mark.slow
@pytest.mark.parametrize("in_git", [True, False])
def test_dvc_is_configured_for_a_folder_without_git(folder, in_git):
    make_ready(folder)
    variables = {"GIT_CEILING_DIRECTORIES": str(folder.parent), "DVC_NO_ANALYTICS": "true"}
    dvc = Path(sys.executable).with_name("dvc")
    (folder / ".venv/bin").mkdir()
    (folder / ".venv/bin/dvc").symlink_to(dvc)
    if in_git:
        subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    subprocess.run([dvc, "init", "--quiet", "--no-scm"], cwd=folder, check=True, env=os.environ | variables)
    (folder / ".dvc/config").write_text("")  # as the project's
    said = make(folder, "repro", **variables).stderr
    assert ("note: no git here" in said) is not in_git
    assert "is not a git repository" not in said
    assert (folder / ".dvc/config.local").exists() is not in_git


# --- what a remote or a tracking URI needs --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "extra"),
    [
        ("s3://bucket/digits", "s3"),
        ("gs://bucket", "gs"),
        ("azure://container/path", "azure"),
        ("ssh://user@host:22/path", "ssh"),
        ("postgresql+psycopg2://user@host/mlflow", "postgresql"),
        ("postgresql://user@host/mlflow", "postgresql"),
    ],
)
def test_what_a_uri_needs_is_installed_and_kept(folder, uri, extra):
    make_ready(folder)
    files.write_text(folder / ".dvc/config.local", f"['remote \"team\"']\n    url = {uri}\n")
    assert f" --extra {extra} " in make(folder, "--dry-run", "check").stdout
    files.write_text(folder / ".dvc/config.local", "")
    assert " --extra " not in make(folder, "--dry-run", "check").stdout
    assert f" --extra {extra} " in make(folder, "--dry-run", "check", MLFLOW_TRACKING_URI=uri).stdout
    files.write_text(folder / ".venv/extras", f"{extra}\n")
    assert f" --extra {extra} " in make(folder, "--dry-run", "check").stdout


def test_extras_that_no_uri_names_can_be_asked_for(folder):
    assert " --extra s3 --extra gs " in make(folder, "--dry-run", "setup", "EXTRAS=s3 gs").stdout


def test_two_uris_need_two_extras_and_others_need_none(folder):
    files.write_text(folder / ".dvc/config", "url = s3://bucket\n")
    variables = {"MLFLOW_TRACKING_URI": "http://host:5000", "MLFLOW_BACKEND_STORE_URI": "postgresql://host/mlflow"}
    planned = make(folder, "--dry-run", "check", **variables).stdout
    assert re.findall(r"--extra (\w+)", planned) == ["postgresql", "s3"]


# --- machines that are not the usual one ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["50%", "a#b", "caf\u00e9", "\u6570\u5b57"])
def test_a_path_that_mlflow_or_dvc_cannot_handle_is_refused_first(folder, name):
    moved = folder.rename(folder.with_name(name))
    done = make(moved, "setup")
    assert done.returncode == 2
    assert done.stderr.startswith(
        f"error: {moved}: expected a folder without %, # and letters beyond ASCII in its path;"
    )
    assert not (moved / ".venv").exists()


def fake_python(folder, script):
    path = folder / "python3"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return "PYTHON=./python3"


def test_a_python_without_venv_is_named_with_its_remedy(folder):
    done = make(folder, "setup", fake_python(folder, 'case "$2" in *ensurepip*) exit 1;; esac'))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ./python3: expected the modules venv and ensurepip; on Debian and Ubuntu: ")


def test_an_interrupted_set_up_is_made_anew(folder):
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/pip").write_text(f"#!{folder}/.venv/bin/python\n")
    (folder / ".venv/bin/python").symlink_to(shutil.which("true"))
    python = fake_python(folder, 'case "$*" in *venv\\ --clear*) echo made anew;; esac')
    assert "made anew" not in make(folder, "setup", python).stdout
    assert (folder / ".venv/incomplete").exists()
    assert "made anew" in make(folder, "setup", python).stdout


@pytest.mark.slow
def test_a_set_up_takes_pips_index_and_none_of_its_other_settings(folder, tmp_path):
    """Set up a project of two packages, with what a pip.conf and the variables of a shell may hold."""
    project = tomllib.loads((files.ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    content = f'requires-python = "{project["requires-python"]}"\ndependencies = ["filelock"]\n'
    extras = '[project.optional-dependencies]\npostgresql = ["psycopg2-binary"]\n[dependency-groups]\ndev = []\n'
    (folder / "pyproject.toml").write_text(f'[project]\nname = "digits"\nversion = "1"\n{content}{extras}')
    hostile = {
        "PIP_USER": "1",
        "PIP_TARGET": str(tmp_path / "target"),
        "PIP_REQUIRE_HASHES": "1",
        "PYTHONPATH": "/none",
        "PYTHONSAFEPATH": "1",
        "PYTHONOPTIMIZE": "2",
        "PYTHONWARNINGS": "error",
    }
    uri = "postgresql://user@host/mlflow"
    done = make(folder, "setup", f"PYTHON={sys.executable}", MLFLOW_TRACKING_URI=uri, **hostile)
    assert done.returncode == 0, done.stderr
    code = "import filelock, psycopg2, sys; print(filelock.__file__.startswith(sys.prefix))"
    said = subprocess.run([folder / ".venv/bin/python", "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "True\n"
    assert not (tmp_path / "target").exists()
    assert "Nothing to be done" in make(folder, "setup").stdout

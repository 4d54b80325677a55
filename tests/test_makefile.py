"""The Makefile sets up once, refuses what cannot work in one line, and describes its verbs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import files


@pytest.fixture
def folder(tmp_path):
    """Return a folder with the Makefile and the lock, in a place that has a space in its name."""
    folder = tmp_path / "a project"
    folder.mkdir()
    for name in ("Makefile", "requirements.lock"):
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


def test_help_needs_no_set_up_and_has_a_line_a_verb(folder):
    done = make(folder, "help")
    assert done.returncode == 0
    assert all(f"make {verb} " in done.stdout for verb in ("repro", "test", "check", "ui", "photo", "clean", "help"))
    assert not (folder / ".venv").exists()


def test_clean_keeps_the_record_of_the_runs(folder):
    kept = ["mlruns/mlflow.db", ".venv/bin/python", "data/photos/five.jpg", "Makefile"]
    made = ["data/raw/x", "data/prepared/x", "models/x", ".dvc/cache/x", "pipeline/__pycache__/x"]
    for name in [*kept[:-1], *made]:
        files.write_bytes(folder / name, b"")
    assert make(folder, "clean").returncode == 0
    assert [name for name in [*kept, *made] if (folder / name).exists()] == kept


@pytest.mark.slow
@pytest.mark.parametrize("in_git", [True, False])
def test_dvc_is_told_where_there_is_no_git(folder, in_git):
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

"""A clone has what answers: it reads photographs at once, and `make` still trains there and leaves it as it was."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Project, environment
from test_makefile import make_ready

from pipeline import files
from pipeline.store import open_store

pytestmark = pytest.mark.slow
PICTURE = "data/photos/single_06.jpg"
LARGEST = 1_000_000  # bytes of a model in git


@pytest.fixture(scope="module")
def clone(made_once: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """Return a clone that is set up, in which nothing has run: no data, no cache, no Keras archive."""
    project = Project(tmp_path_factory.mktemp("clone") / "work" / "digits of grace")
    made_once.git("clone", "--quiet", str(made_once.root), str(project.root))
    make_ready(project.root)
    there = [name for name in ("data/raw", ".dvc/cache", "models/digits.keras") if (project.root / name).exists()]
    assert there == []
    yield project
    assert project.git("status", "--porcelain") == ""


@pytest.fixture(scope="module")
def model(clone: Project) -> str:
    """Return the line that names the model."""
    metrics = clone.json("metrics.json")
    commit = clone.git("rev-parse", "HEAD")
    digest, accuracy = metrics["model_sha256"][:12], metrics["test_accuracy"]
    return f"model {digest}, test accuracy {accuracy}, commit {commit[:12]}"


def test_git_holds_a_small_model_and_not_its_keras_archive(clone: Project) -> None:
    names = clone.git("ls-files", "models").split()
    assert names == ["models/calibration.json", "models/digits.tflite"]
    assert sum((clone.root / name).stat().st_size for name in names) < LARGEST


def test_a_clone_reads_a_photograph_and_says_which_model_answers(
    clone: Project, made_once: Project, model: str
) -> None:
    done = clone.run("make", "photo", f"FILE={PICTURE}")
    assert done.stderr == f"{model}\n"
    assert done.stdout == made_once.stage("predict_photo", PICTURE).stdout
    assert PICTURE in done.stdout


def test_a_clone_serves_the_demo_and_says_which_model_answers(clone: Project, model: str) -> None:
    command = ["make", "demo", "PORT=0"]
    with subprocess.Popen(
        command, cwd=clone.root, env=environment(), stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as server:
        try:
            assert server.stdout
            address = next(word for word in server.stdout.readline().split() if word.startswith("http"))
            assert server.stdout.readline() == f"{model}\n"
            content = (clone.root / PICTURE).read_bytes()
            wanted = urllib.request.Request(f"{address}/read", content, {"Content-Type": "image/jpeg"})  # noqa: S310
            with urllib.request.urlopen(wanted, timeout=60) as reply:  # noqa: S310
                assert b'"digits"' in reply.read()
            with urllib.request.urlopen(address, timeout=60) as reply:  # noqa: S310
                assert model in reply.read().decode()
        finally:
            os.killpg(server.pid, signal.SIGINT)


def test_a_clone_of_somebody_else_trains_logs_its_run_and_ends_with_the_same_lock_and_reports(
    clone: Project, made_once: Project, raw_mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "Running stage 'train'" in repeat_as_another(clone, raw_mnist, tmp_path)
    assert clone.git("status", "--porcelain") == ""
    assert (clone.root / "dvc.lock").read_bytes() == (made_once.root / "dvc.lock").read_bytes()
    assert reports(clone) == reports(made_once)
    assert len(reports(clone)) > 3
    assert clone.dvc("status", "--json") == "{}\n"
    monkeypatch.setenv("DVC_ROOT", str(clone.root))
    (run,) = open_store().runs("attributes.status = 'FINISHED'")
    assert run.data.tags["model.sha256"] == files.sha256(clone.root / "models/digits.keras")
    assert run.data.tags["git.dirty"] == "false"


def repeat_as_another(clone: Project, raw_mnist: Path, home: Path) -> str:
    """Run the pipeline with the home, name, clock, time zone, locale and permissions of somebody else."""
    (home / "tmp").mkdir()
    variables = {"HOME": str(home), "TMPDIR": str(home / "tmp"), "LOGNAME": "grace", "USER": "grace"}
    variables |= {"TZ": "America/Anchorage", "PYTHONHASHSEED": "2", "LC_ALL": "C"}
    commands = f"""
        umask 077
        {shlex.quote(sys.executable)} -m pipeline.fetch --from {shlex.quote(str(raw_mnist))}
        dvc commit --quiet --force fetch
        dvc repro
    """
    clock = ["faketime", "-1000 days"] if shutil.which("faketime") else []
    return clone.run(*clock, "sh", "-e", "-c", commands, **variables).stdout


def reports(project: Project) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (project.root / "reports").iterdir() if path.name != ".gitignore"}


def test_clean_removes_nothing_that_git_holds(clone: Project) -> None:
    files.write_bytes(clone.root / "models/digits.keras", b"archive")
    clone.run("make", "clean")
    assert not (clone.root / "models/digits.keras").exists()
    assert clone.git("status", "--porcelain") == ""

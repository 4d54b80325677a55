"""What several test modules stand on: real MNIST, and small projects of their own to run DVC in."""

from __future__ import annotations

import os
import pty
import re
import shutil
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock
from hypothesis import settings

from pipeline import config, fetch, files

settings.register_profile("repeatable", derandomize=True)  # the same examples at every run, as everything here
settings.load_profile("repeatable")
SMALL = {"preprocess.train": 1000, "preprocess.validation": 300, "preprocess.test": 500, "train.epochs": 3}

DURATION = "digits/minutes"  # of the last whole run of the suite, in pytest's cache
LONGEST = (  # by seconds of CPU: they start first, so that no worker is alone with one of them at the end
    "sweep", "make_it_yours", "experiments", "train", "browser", "cluster", "serving", "trajectory", "gate", "network",
    "refusals", "reproduce", "clone", "learn", "study", "merge",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first; `make test` has pytest-xdist keep this order."""
    places = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


def pytest_report_header(config: pytest.Config) -> str:
    """Say how long the suite takes here."""
    cache = getattr(config, "cache", None)  # `-p no:cacheprovider` has none
    minutes = cache.get(DURATION, None) if cache else None
    known = f"{minutes} minutes, as the last time" if minutes else "about a quarter of an hour on two cores"
    return f"the whole suite takes {known}; `make test-fast` about two"


def pytest_sessionstart(session: pytest.Session) -> None:
    """Start the clock."""
    session.config.stash[STARTED] = time.monotonic()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Keep how long a whole run took; after one that broke off, let `--last-failed` run all."""
    whole = not session.config.option.markexpr and not session.config.option.keyword and session.testscollected > 900
    cache = getattr(session.config, "cache", None)
    if not cache or hasattr(session.config, "workerinput"):
        return
    if exitstatus == pytest.ExitCode.INTERNAL_ERROR:  # as pytest-xdist has when it loses its workers
        cache.set("cache/lastfailed", {})
    elif whole:
        cache.set(DURATION, round((time.monotonic() - session.config.stash[STARTED]) / 60))


STARTED: pytest.StashKey[float] = pytest.StashKey()


def inherited() -> list[str]:
    """Return the variables that would tell DVC and MLflow of another project, and `make` that `make test` called it."""
    return [name for name in os.environ if name.startswith(("DVC_", "MLFLOW_", "_MLFLOW_", "MAKE", "MFLAGS"))]


def environment() -> dict[str, str]:
    """Return the environment for a project of its own: nothing of DVC, MLflow or make from outside, the .venv first."""
    kept = {name: value for name, value in os.environ.items() if name not in inherited()}
    kept["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
    return kept | {"DVC_NO_ANALYTICS": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}


@pytest.fixture(autouse=True)
def _nothing_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in inherited():
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


def without_progress(said: str) -> str:
    """Return what a command said but for its lines of progress, which a slow machine gets and a fast one does not."""
    return re.sub(r"^\S+: \d+ of \d+ [^\n]* so far, [^\n]* left\n|^train: about [^\n]*\n", "", said, flags=re.MULTILINE)


@dataclass(frozen=True)
class Project:
    """A working copy of the project with a git history, a DVC cache and an MLflow store of its own."""

    root: Path

    def run(self, *command: str | Path, status: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command here and return what it said; fail the test unless it ends with ``status``."""
        done = subprocess.run(
            [str(word) for word in command],
            cwd=self.root,
            env=environment() | variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        done.stderr = without_progress(done.stderr)
        said = f"{' '.join(map(str, command))} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert done.returncode == status, said
        return done

    def in_terminal(self, *command: str) -> str:
        """Run a command with its standard error in a terminal, and return what a person sees there."""
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (24, 120))
        with open(ours, "rb", buffering=0) as screen, ThreadPoolExecutor(1) as reader:
            seen = reader.submit(lambda: b"".join(iter(lambda: _read(screen), b"")))
            with subprocess.Popen(command, cwd=self.root, env=environment(), stderr=theirs, stdout=theirs) as process:
                os.close(theirs)
            assert process.returncode == 0, seen.result()
            return seen.result().decode()

    def stage(self, module: str, *arguments: str | Path, status: int = 0) -> subprocess.CompletedProcess[str]:
        """Run ``python -m pipeline.<module>``."""
        return self.run(sys.executable, "-m", f"pipeline.{module}", *arguments, status=status)

    def dvc(self, *arguments: str, status: int = 0) -> str:
        """Run DVC and return what it printed."""
        return self.run("dvc", *arguments, status=status).stdout

    def git(self, *arguments: str) -> str:
        """Run git and return what it printed."""
        return self.run("git", *arguments).stdout.strip()

    def set(self, **values: Any) -> None:
        """Write parameters by their dotted names."""
        path = self.root / "params.yaml"
        content = yaml.safe_load(path.read_text("utf-8"))
        for name, value in values.items():
            *above, last = name.split(".")
            section = content
            for part in above:
                section = section[part]
            section[last] = value
        path.write_text(yaml.safe_dump(content, sort_keys=False), "utf-8")

    def json(self, name: str) -> Any:
        """Read one of the reports."""
        return files.read_json(self.root / "reports" / name)

    def copy(self, root: Path) -> Project:
        """Return a copy, which shares only DVC's cache."""
        shutil.copytree(self.root, root, symlinks=True)
        return Project(root)


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of what all workers of pytest-xdist have in common."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def make_once(folder: Path, make: Callable[[Path], object]) -> Path:
    """Return a folder that ``make`` fills, in the first worker that asks for it."""
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            try:
                make(folder)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
    return folder


@pytest.fixture(scope="session")
def raw_mnist(run_folder: Path) -> Path:
    """Return a folder with the four files: the project's own where they are whole, else freshly fetched ones."""
    params = config.load(files.ROOT / files.PARAMS)
    if fetch.present(files.ROOT / files.RAW, fetch.sums_of(params.data.sha256.model_dump())):
        return files.ROOT / files.RAW
    return make_once(run_folder / "mnist", fetch_mnist) / files.RAW


def fetch_mnist(folder: Path) -> None:
    folder.mkdir()
    shutil.copy(files.ROOT / files.PARAMS, folder)
    variables = os.environ | {"PYTHONPATH": str(files.ROOT)}
    subprocess.run([sys.executable, "-m", "pipeline.fetch"], cwd=folder, env=variables, check=True)


@pytest.fixture(scope="session")
def empty_store(run_folder: Path) -> Path:
    """Return the file of an MLflow store without a run, for copying only: making its schema takes 2.6 s of CPU."""
    from pipeline.store import open_store  # imports MLflow, which most tests do without

    return make_once(run_folder / "empty", lambda folder: open_store(f"sqlite:///{folder}/mlflow.db")) / "mlflow.db"


@pytest.fixture(scope="session")
def template(run_folder: Path, raw_mnist: Path, empty_store: Path) -> Project:
    """Return the working tree as a project with few digits and epochs, its raw data in place; for copying only."""
    make_once(run_folder / "template", lambda folder: make_template(folder / "project", raw_mnist, empty_store))
    return Project(run_folder / "template" / "project")


def make_template(root: Path, raw_mnist: Path, empty_store: Path) -> None:
    project = Project(root)
    for name in tracked(files.ROOT):
        target = project.root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(files.ROOT / name, target)
    keep_a_quarter(project.root / files.PHOTOS)
    project.set(**SMALL)
    project.git("init", "--quiet", "--initial-branch=main")
    project.git("config", "user.name", "Test")
    project.git("config", "user.email", "test@example.org")
    project.dvc("cache", "dir", "--local", str(project.root.parent / "cache"))
    project.stage("fetch", "--from", raw_mnist)
    project.dvc("commit", "--force", "fetch")
    project.git("add", ".")
    project.git("commit", "--quiet", "--message", "Start")
    files.write_bytes(project.root / "mlruns" / "mlflow.db", empty_store.read_bytes())


def keep_a_quarter(photos: Path) -> None:
    """Remove three of four pictures, of each kind: reading all of them takes 8 s of CPU in every ``dvc repro``."""
    rows = [row for row in files.read_csv(photos / "labels.csv") if int(Path(row["file"]).stem[-2:]) % 4 == 2]
    files.write_csv(photos / "labels.csv", rows, list(rows[0]))
    for path in photos.glob("*.jpg"):
        if path.name not in {row["file"] for row in rows}:
            path.unlink()


def _read(screen: RawIOBase) -> bytes:
    try:
        return screen.read(10_000) or b""
    except OSError:  # the last process that wrote there is gone
        return b""


def tracked(root: Path) -> list[str]:
    """Return the files that git has or would add."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.split("\0")
    return [name for name in names if name and (root / name).is_file()]


@pytest.fixture
def small_project(template: Project, tmp_path: Path) -> Iterator[Project]:
    """Return a small project in which nothing but fetch has run; the test may do to it what it likes."""
    project = template.copy(tmp_path / "small")
    yield project
    shutil.rmtree(project.root)


@pytest.fixture(scope="session")
def made_once(template: Project, run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return a small project after ``dvc repro``, committed; for reading and copying only."""

    def make(folder: Path) -> None:
        project = template.copy(folder / "project")
        project.dvc("repro")
        project.git("add", ".")
        project.git("commit", "--quiet", "--message", "Make")

    made = Project(make_once(run_folder / "made", make) / "project")
    return made.copy(tmp_path_factory.mktemp("made") / "project")  # a worker's own: some tests start DVC in it


@pytest.fixture
def made_project(made_once: Project, tmp_path: Path) -> Iterator[Project]:
    """Return a copy of a small project after ``dvc repro``; the test may do to it what it likes."""
    project = made_once.copy(tmp_path / "made")
    yield project
    shutil.rmtree(project.root)

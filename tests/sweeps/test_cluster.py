"""Sweeps beyond one machine: a cluster of two nodes, an MLflow server on PostgreSQL, and addresses that are wrong."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from conftest import Project, environment
from mlflow import MlflowClient

ROOT_USER = os.geteuid() == 0
POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def until(true: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def listening(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all that came of it, as a machine that loses its power does."""
    try:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for each in family:
        try:
            each.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()


@dataclass
class Nodes:
    """Ray nodes on this machine that share no folder; each with one core."""

    folder: Path
    port: int = field(default_factory=free_port)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    token: dict[str, str] = field(
        default_factory=lambda: {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex * 2}
    )

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self, command: str = "import sys; from ray.scripts.scripts import main; sys.exit(main())") -> None:
        """Start a node, the first one as the head; ``command`` is what Python runs as ``ray``."""
        place = self.folder / str(len(self.processes))
        place.mkdir()
        join = ["--address", self.address] if self.processes else ["--head", "--port", str(self.port)]
        short = [] if self.processes else ["--temp-dir", str(self.folder / "ray"), "--include-dashboard", "false"]
        words = [sys.executable, "-c", command, "start", *join, *short, "--num-cpus", "1", "--block"]
        words += ["--object-store-memory", "200000000", "--disable-usage-stats"]
        with (place / "said").open("wb") as said:
            self.processes.append(
                subprocess.Popen(
                    words, cwd=place, env=environment() | self.token, stdout=said, stderr=subprocess.STDOUT
                )
            )
        until(lambda: b"terminate the Ray runtime" in (place / "said").read_bytes(), 300)


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    if " " in sys.executable:
        pytest.skip(f"{sys.executable}: Ray starts no node of a cluster from a folder with a space in its path")
    with tempfile.TemporaryDirectory(prefix="nodes", ignore_cleanup_errors=True) as folder:  # sockets need short names
        nodes = Nodes(Path(folder))
        yield nodes
        for process in nodes.processes:
            kill(process)


def as_postgres(*words: object) -> list[str]:
    """Return a command for a user that PostgreSQL agrees to run as: anyone but root."""
    command = [str(word) for word in words]
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", *command] if ROOT_USER else command


@pytest.fixture
def server() -> Iterator[str]:
    """Run an MLflow server on PostgreSQL that keeps the artifacts too; return its address."""
    folder = Path(tempfile.mkdtemp(prefix="server"))
    folder.chmod(0o755)
    database, port = free_port(), free_port()
    (folder / "data").mkdir()
    if ROOT_USER:
        shutil.chown(folder / "data", "postgres", "postgres")
    said = (folder / "said").open("wb")
    started: list[subprocess.Popen[bytes]] = []

    def start(*words: str) -> None:
        started.append(subprocess.Popen(words, cwd=folder, env=environment(), stdout=said, stderr=subprocess.STDOUT))

    def answers(port: int) -> Callable[[], bool]:
        return lambda: listening(port) or bool(started[-1].poll())

    binaries = POSTGRES[-1].parent
    making = as_postgres(binaries / "initdb", "-D", folder / "data", "-U", "mlflow", "-A", "trust")
    try:
        subprocess.run(making, check=True, stdout=said)
        options = f"-p {database} -c listen_addresses=127.0.0.1 -c unix_socket_directories="
        start(*as_postgres(binaries / "postgres", "-D", folder / "data", *options.split()))
        until(answers(database), 120)
        store = f"postgresql+psycopg2://mlflow@127.0.0.1:{database}/postgres"
        words = ["--backend-store-uri", store, "--artifacts-destination", str(folder / "artifacts"), "--workers", "1"]
        start(
            sys.executable,
            "-m",
            "mlflow",
            "server",
            *words,
            "--host",
            "127.0.0.1",
            "--allowed-hosts",
            f"127.0.0.1:{port}",
            "--port",
            str(port),
        )
        until(answers(port), 300)
        assert listening(port), (folder / "said").read_text()
        yield f"http://127.0.0.1:{port}"
    finally:
        for process in reversed(started):
            kill(process)
        said.close()
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def project(template: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return a project with a small sweep; for copying, and for sweeps that are refused."""
    project = template.copy(tmp_path_factory.mktemp("cluster") / "project")
    project.set(**{"sweep.parameters": {"batch_size": [32, 64], "dropout": [0.1, 0.2]}, "sweep.seeds": 1})
    project.set(**{"train.batch_size": 32, "train.dropout": 0.1, "train.epochs": 4})
    project.stage("preprocess")
    return project


@pytest.mark.slow
@pytest.mark.skipif(not POSTGRES, reason="PostgreSQL is not installed (Debian: apt-get install postgresql)")
def test_four_trials_finish_once_each_though_one_of_two_nodes_dies(
    project: Project, nodes: Nodes, server: str, tmp_path: Path
) -> None:
    project = project.copy(tmp_path / "project")
    (project.root / "mlruns" / "mlflow.db").unlink()
    nodes.start()
    nodes.start()
    running = subprocess.Popen(
        [sys.executable, "-m", "pipeline.sweep"],
        cwd=project.root,
        env=environment() | nodes.token | {"RAY_ADDRESS": nodes.address, "MLFLOW_TRACKING_URI": server},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    kept = project.root / ".checkpoints"
    until(lambda: len({file.parent for file in kept.glob("*/*.epoch")}) >= 2 or running.poll() is not None, 600)
    kill(nodes.processes[1])
    said = running.communicate(timeout=600)
    assert running.returncode == 0, said
    assert "resuming from epoch" in said[1]
    client = MlflowClient(server)
    runs = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    trials = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert [run.info.status for run in runs] == ["FINISHED"] * 5
    assert sorted((run.data.params["train.batch_size"], run.data.params["train.dropout"]) for run in trials) == [
        ("32", "0.1"), ("32", "0.2"), ("64", "0.1"), ("64", "0.2"),
    ]  # fmt: skip
    assert all(
        [each.step for each in client.get_metric_history(run.info.run_id, "val_loss")] == [1, 2, 3, 4] for run in trials
    )
    kept = Path(client.download_artifacts(trials[0].info.run_id, "params.yaml", str(project.root)))
    assert kept.stat().st_size > 0
    assert not (project.root / "mlruns" / "mlflow.db").exists()


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:1", "error: Ray at 127.0.0.1:1: no answer ("),
        ("ray://127.0.0.1:10001", "error: Ray at ray://127.0.0.1:10001: expected host:port"),
        ("auto", "error: Ray at auto: "),
    ],
)
def test_an_address_where_no_ray_answers_is_named(project: Project, address: str, words: str) -> None:
    begun = time.monotonic()
    said = project.stage("sweep", "--address", address, status=2)
    assert said.stderr.startswith(words)
    assert said.stderr.count("\n") == 1
    assert time.monotonic() - begun < 300
    assert not (project.root / ".checkpoints").is_dir() or not list((project.root / ".checkpoints").glob("*/*"))


@pytest.mark.slow
def test_a_sweep_on_a_gpu_is_refused_where_no_machine_has_one(project: Project) -> None:
    project.set(**{"train.device": "gpu"})
    said = project.run(sys.executable, "-m", "pipeline.sweep", status=2, CUDA_VISIBLE_DEVICES="")
    assert said.stderr == (
        "error: Ray at local: no machine has 1 core and a GPU; lower sweep.threads or set train.device: cpu\n"
    )


@pytest.mark.slow
def test_something_that_is_not_ray_is_found_out(project: Project) -> None:
    port = free_port()
    other = subprocess.Popen(
        [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until(lambda: listening(port), 300)
        said = project.stage("sweep", "--address", f"127.0.0.1:{port}", status=2)
    finally:
        kill(other)
    assert said.stderr.startswith(f"error: Ray at 127.0.0.1:{port}: Failed to connect")
    assert said.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_cluster_of_another_version_or_without_the_token_is_refused(project: Project, nodes: Nodes) -> None:
    older = "import ray, sys; ray.__version__ = '2.0.0'; from ray.scripts.scripts import main; sys.exit(main())"
    nodes.start(older)
    words = [sys.executable, "-m", "pipeline.sweep", "--address", nodes.address]
    said = project.run(*words, status=2, **nodes.token).stderr
    assert "Version mismatch" in said
    assert "2.0.0" in said
    assert said.count("\n") == 1
    said = project.run(*words, status=2).stderr
    assert said.startswith(
        f"error: Ray at {nodes.address}: it asks for a token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
    )
    assert said.count("\n") == 1

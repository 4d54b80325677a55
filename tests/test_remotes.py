"""A team's S3 storage, on a server of this machine: what one clone sends there, a second clone gets."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Project, environment
from test_serving import LOAD, REGISTER, wait_for

from pipeline import files

MOTO = "moto[server]==5.2.5"  # an S3 server for tests; in no lock, since nothing else needs it
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
SERVE = """
import boto3, sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
address = "http://%s:%d" % server.get_host_and_port()
boto3.client("s3", endpoint_url=address).create_bucket(Bucket="bucket")
print(address, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def extras(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return variables that add the extra `s3`, as `make` installs it from its lock, and the S3 server to the .venv."""
    folder, uv = tmp_path_factory.mktemp("extras"), Path(sys.executable).with_name("uv")
    command = [uv, "pip", "install", "--quiet", "--python", sys.executable, "--target", folder]
    lock = ["--constraints", files.ROOT / "requirements-extras.lock"]
    try:
        done = subprocess.run([*command, *lock, "dvc-s3", "boto3", MOTO], capture_output=True, text=True, timeout=100)
    except (OSError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"dvc-s3 and {MOTO} could not be installed: {error}")
    if done.returncode:
        pytest.skip(f"dvc-s3 and {MOTO} could not be installed: {done.stderr.strip()}")
    return KEYS | {"PYTHONPATH": str(folder)}


@pytest.fixture(scope="module")
def s3(extras: dict[str, str]) -> Iterator[dict[str, str]]:
    """Start the S3 server with the bucket `bucket`, and return the variables by which boto3 finds it."""
    words = [sys.executable, "-c", SERVE]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(words, env=environment() | extras, text=True, **pipes) as server:
        assert server.stdout
        yield extras | {"AWS_ENDPOINT_URL": server.stdout.readline().strip()}
        server.communicate("")


@contextlib.contextmanager
def mlflow_server(folder: Path, variables: dict[str, str], *options: str) -> Iterator[str]:
    """Run ``mlflow server`` for the block, with its store in ``folder``; yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    store = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--workers", "1"]
    command = [sys.executable, "-m", "mlflow", "server", "--port", port, *store, *options]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            command, cwd=folder, env=variables, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        wait_for(f"http://127.0.0.1:{port}", server, folder / "log", "health")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # it would wait for its clients' connections
        server.wait()


@pytest.fixture(scope="module")
def clones(made_once: Project, s3: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> list[Project]:
    """Return a project that has pushed what it made to its remote, and a fresh clone of it."""
    folder = tmp_path_factory.mktemp("clones")
    first, second = made_once.copy(folder / "first"), Project(folder / "second")
    first.run("dvc", "remote", "add", "--default", "team", "s3://bucket/digits")
    first.git("commit", "--quiet", "--all", "--message", "Share what is made")
    first.run("dvc", "push", **s3)
    first.run("git", "clone", "--quiet", first.root, second.root)
    return [first, second]


@pytest.mark.slow
def test_what_one_clone_pushes_to_s3_another_one_pulls(clones: list[Project], s3: dict[str, str]) -> None:
    first, second = clones
    second.run("dvc", "pull", **s3)
    assert files.sha256(second.root / "models/digits.keras") == files.sha256(first.root / "models/digits.keras")
    assert second.run("dvc", "status").stdout == "Data and pipelines are up to date.\n"


@pytest.mark.slow
def test_a_champion_whose_artifacts_are_on_s3_loads_anywhere(
    clones: list[Project], s3: dict[str, str], tmp_path: Path
) -> None:
    _, second = clones
    options = ["--artifacts-destination", "s3://bucket/mlflow"]
    with mlflow_server(tmp_path, environment() | s3, *options) as address:
        second.run(sys.executable, "-c", REGISTER, MLFLOW_TRACKING_URI=address)
        variables = environment() | {"MLFLOW_TRACKING_URI": address}  # without what S3 needs: the server has it
        field = np.load(second.root / "data/prepared/test-images.npy")[0].tolist()
        done = subprocess.run(
            [sys.executable, "-c", LOAD],
            cwd=tmp_path,
            env=variables,
            input=json.dumps(field),
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["verdict"] in ("digit", "unsure", "no digit")

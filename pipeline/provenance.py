"""Where a run comes from: git, DVC, the machine, and the digests of data, parameters and code."""

from __future__ import annotations

import functools
import getpass
import os
import platform
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import psutil
import yaml

from pipeline import files
from pipeline.config import Params

PACKAGES = ("tensorflow", "keras", "numpy", "opencv-python-headless", "ai-edge-litert", "mlflow", "dvc")


@dataclass(frozen=True)
class Origin:
    """Where runs of this process come from: commit, DVC experiment, machine, process; and what is not committed."""

    tags: dict[str, str]
    patch: bytes


def find_origin() -> Origin:
    """Return where a run that starts now comes from."""
    patch, commit = uncommitted(), _git("rev-parse", "HEAD").decode().strip()
    tags = {
        "git.commit": commit,
        "mlflow.source.git.commit": commit,
        "mlflow.source.name": Path(sys.argv[0]).name,
        "mlflow.source.type": "LOCAL",
        "mlflow.user": getpass.getuser(),
        "git.dirty": str(bool(patch)).lower(),
        **_dvc_tags(),
        **_process_tags(),
    }
    return Origin(tags, patch)


def digests(params: Params, data_sha256: str) -> dict[str, str]:
    """Return what a model is made of, by sha256: data, parameters, and the code of the stage ``train``."""
    return {
        "code_sha256": code_sha256("train"),
        "data_sha256": data_sha256,
        "params_sha256": files.digest(params.train.model_dump()),
    }


def code_sha256(stage: str) -> str:
    """Return the digest of the modules that dvc.yaml names for a stage."""
    stages = yaml.safe_load((files.ROOT / "dvc.yaml").read_text("utf-8"))["stages"]
    return files.digest_files(files.ROOT / path for path in stages[stage]["deps"] if path.endswith(".py"))


def _process_tags() -> dict[str, str]:
    process = psutil.Process()
    return {
        "process.host": socket.gethostname(),
        "process.pid": str(process.pid),
        "process.started": f"{process.create_time():.0f}",
        "system.platform": platform.platform(),
        "system.cores": str(os.cpu_count()),
        "system.memory_gb": f"{psutil.virtual_memory().total / 1e9:.0f}",
        "system.python": platform.python_version(),
        "system.packages": " ".join(pinned(PACKAGES)),
    }


@functools.cache  # a sweep asks a thousand times, and each answer is read from a file
def pinned(names: tuple[str, ...]) -> list[str]:
    """Return packages with their versions, as pip takes them."""
    return [f"{name}=={version(name)}" for name in names]


def _dvc_tags() -> dict[str, str]:
    names = {"dvc.exp_name": "DVC_EXP_NAME", "dvc.baseline_rev": "DVC_EXP_BASELINE_REV"}
    return {tag: os.environ[name] for tag, name in names.items() if os.environ.get(name)}


def uncommitted() -> bytes:
    """Return what differs from the last commit, new files too, as a patch without the outputs of the stages."""
    with tempfile.TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": str(Path(folder, "index"))}
        _git("read-tree", "HEAD", env=index)
        _git("add", "--all", "--", ".", *OUTPUTS, env=index)
        return _git("diff-index", "--cached", "--binary", "HEAD", "--", ".", *OUTPUTS, env=index)


OUTPUTS = (":!dvc.lock", ":!reports")


PATCH = "uncommitted.patch"


def _git(*words: str, env: Mapping[str, str] | None = None) -> bytes:
    done = subprocess.run(["git", *words], capture_output=True, check=False, env={**os.environ, **(env or {})})
    return done.stdout if done.returncode == 0 else b""

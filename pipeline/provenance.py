"""Where a run comes from: git, DVC, the machine, and the digests of data, parameters and code."""

from __future__ import annotations

import fnmatch
import functools
import getpass
import os
import platform
import re
import stat
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import psutil
import yaml

from pipeline import files, git
from pipeline.config import Params
from pipeline.console import UserError

PACKAGES = ("tensorflow", "keras", "numpy", "opencv-python-headless", "ai-edge-litert", "mlflow", "dvc")


@dataclass(frozen=True)
class Origin:
    """Where runs of this process come from: commit, DVC experiment, machine, process; and what is not committed."""

    tags: dict[str, str]
    patch: bytes


def find_origin() -> Origin:
    """Return where a run that starts now comes from, and say on standard error what of it is not kept.

    Outside git, or before the first commit, a run has no ``git.commit``. Where git is there and fails, as in a clone of
    another user, that is a ``UserError``: a run that silently came from nowhere could not be reproduced.
    """
    tags = {
        "mlflow.source.name": Path(sys.argv[0]).name,
        "mlflow.source.type": "LOCAL",
        "mlflow.user": getpass.getuser(),
        **_dvc_tags(),
        **_machine_tags(),
    }
    try:
        commit = git.last_commit()
        reason = "" if commit else "there is no commit yet"
    except git.NoRepositoryError as error:
        commit, reason = "", str(error)
    if not commit:
        _say(f"{reason}: this run names no commit, and `reproduce` cannot make it again")
        return Origin(tags | {"git.dirty": "unknown"}, b"")
    changes = find_changes()
    dirty = "true" if changes.is_dirty else "unknown" if changes.left_out else "false"
    tags |= {"git.commit": commit, "mlflow.source.git.commit": commit, "git.dirty": dirty}
    if changes.left_out:
        tags[LEFT_OUT] = _listed(changes.left_out)[:4000]  # MLflow refuses tags over 5,000 characters
        _say(f"not committed, and not kept with this run: {tags[LEFT_OUT]}")
    return Origin(tags, changes.patch)


LEFT_OUT = "git.left_out"  # the tag of a run


def _say(words: str) -> None:
    print(f"note: {words}", file=sys.stderr)


def digests(params: Params, data_sha256: str) -> dict[str, str]:
    """Return what a model is made of, by sha256: data, parameters, and the code of the stage ``train``."""
    return {
        "code_sha256": code_sha256("train"),
        "data_sha256": data_sha256,
        "params_sha256": files.digest(params.train.model_dump()),
    }


def code_sha256(stage: str) -> str:
    """Return the digest of the modules that dvc.yaml names for a stage."""
    try:
        deps = yaml.safe_load((files.ROOT / "dvc.yaml").read_text("utf-8"))["stages"][stage]["deps"]
        paths = [files.ROOT / path for path in deps if path.endswith(".py")]
    except (yaml.YAMLError, UnicodeDecodeError, LookupError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"dvc.yaml: expected the stage {stage} and its deps; settle conflicts in it: {reason}"
        ) from None
    return files.digest_files(paths)


def _machine_tags() -> dict[str, str]:
    return {
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


@dataclass(frozen=True)
class Changes:
    """What differs from the last commit: a patch of what is kept with a run, and why the other files are left out."""

    patch: bytes
    left_out: dict[str, str]
    is_dirty: bool


OUTPUTS = (":!dvc.lock", ":!models", ":!reports")  # what stages write is no change of the code
PATCH = "uncommitted.patch"
CODE = (
    *("*.py", "*.pyi", "*.ipynb", "*.sh", "*.yaml", "*.yml", "*.toml", "*.cfg", "*.ini", "*.md", "*.html", "*.css"),
    *("*.js", "*.dvc", "Makefile", "*.mk", "Dockerfile", ".gitignore", ".gitattributes", ".dvcignore"),
)
SECRETS = (
    *(".env*", "*.env", "*.pem", "*.key", "*.p12", "*.pfx", "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "*.ppk"),
    *("*secret*", "*credential*", "*password*", ".netrc", "_netrc", ".pgpass", ".pypirc", ".npmrc", ".ssh", ".aws"),
)
LARGEST, LARGEST_SUM = 1_000_000, 5_000_000  # bytes of a new file, and of all of them


def find_changes() -> Changes:
    """Return what differs from the last commit in the current folder, apart from what stages write.

    The rule of what is kept: every change of a file that the last commit has, and new files of code and configuration
    (``CODE``) of at most 1 MB each and 5 MB in all, those nearest to the project's folder first. Never kept is what
    looks like a secret by its name or its folder's (``SECRETS``), also where the last commit has it: the key in it may
    be new. Links, repositories within this one and what cannot be read are left out too. Files that are left out are
    not read. Git's own folder is not written to.
    """
    top = Path(git.text("rev-parse", "--show-toplevel"))
    prefix = git.text("rev-parse", "--show-prefix")
    words = ("status", "--porcelain", "-z", "--no-renames", "--untracked-files=all", "--", ".", *OUTPUTS)
    found = git.run(*words)
    entries = [(os.fsdecode(entry[:2]), os.fsdecode(entry[3:])) for entry in found.stdout.split(b"\0") if entry]
    left_out = {os.fsdecode(name): "cannot be read" for name in _UNREADABLE.findall(found.stderr)}
    kept, room = [], LARGEST_SUM
    for code, name in sorted(entries, key=lambda entry: (entry[1].count("/"), entry[1])):
        is_new = code == "??" or "A" in code
        inner = name.removeprefix(prefix)
        is_there = "D" not in code and os.path.lexists(top / name)
        reason = _unfit(top / name, inner, room if is_new else None) if is_there else ""
        if reason:
            left_out[inner] = reason
            continue
        kept.append(name)
        room -= (top / name).lstat().st_size if is_new and is_there else 0
    with tempfile.TemporaryDirectory() as folder:
        patch, refused = _patch(kept, top, Path(folder))
    left_out |= {name.removeprefix(prefix): "cannot be read" for name in refused}
    return Changes(patch, {_printable(name): reason for name, reason in left_out.items()}, bool(entries))


_UNREADABLE = re.compile(rb"could not open directory '(.*)'")


def _unfit(path: Path, name: str, room: int | None) -> str:
    """Return why a change is not kept, or nothing; ``room`` is what new files may still have in bytes."""
    if any(fnmatch.fnmatch(part.lower(), pattern) for part in Path(name).parts for pattern in SECRETS):
        return "looks like a secret"
    if path.is_dir() and not path.is_symlink():
        return "another git repository"
    if room is None:
        return ""
    if not any(fnmatch.fnmatchcase(path.name, pattern) for pattern in CODE) or not stat.S_ISREG(path.lstat().st_mode):
        return "not code or configuration"
    size = path.lstat().st_size
    if size > LARGEST:
        return f"over {LARGEST // 1_000_000} MB"
    return f"over {LARGEST_SUM // 1_000_000} MB in all" if size > room else ""


def _patch(names: Sequence[str], top: Path, folder: Path) -> tuple[bytes, list[str]]:
    """Return a patch of these files, and those that git cannot take; index and new objects lie in ``folder``."""
    if not names:
        return b"", []
    objects = git.text("rev-parse", "--path-format=absolute", "--git-path", "objects")
    quoted = objects.replace("\\", "\\\\").replace('"', '\\"')
    apart = {
        "GIT_INDEX_FILE": str(folder / "index"),
        "GIT_OBJECT_DIRECTORY": str(folder),
        "GIT_ALTERNATE_OBJECT_DIRECTORIES": f'"{quoted}"',
    }
    git.run(*_AS_IT_IS, "read-tree", "HEAD", cwd=top, variables=apart)
    refused = _add(names, top, apart)
    words = ("diff-index", "--cached", "--binary", "--no-renames", "--no-ext-diff", "HEAD")
    return git.run(*_AS_IT_IS, *words, cwd=top, variables=apart).stdout, refused


_AS_IT_IS = (  # every byte, and every file of the commit
    *("-c", "core.autocrlf=false", "-c", "core.sparseCheckout=false", "-c", "core.splitIndex=false"),
    *("-c", "core.fsmonitor=false", "-c", "core.quotePath=true"),
)


def _add(names: Sequence[str], top: Path, variables: Mapping[str, str]) -> list[str]:
    """Add files to the index and return those that git cannot take: it takes none of a list that holds one of them."""
    listed = b"\0".join(map(os.fsencode, names))
    try:
        words = ("update-index", "--add", "--remove", "-z", "--stdin")
        git.run(*_AS_IT_IS, *words, cwd=top, given=listed, variables=variables)
    except git.GitError:
        half = len(names) // 2
        return [*_add(names[:half], top, variables), *_add(names[half:], top, variables)] if half else list(names)
    return []


def _printable(name: str) -> str:
    """Return a file's name as UTF-8, whatever its bytes are."""
    return os.fsencode(name).decode("utf-8", "replace")


def _listed(left_out: Mapping[str, str], most: int = 20) -> str:
    """Return files that are left out, with the reason, as one line."""
    shown = [f"{name} ({reason})" for name, reason in list(left_out.items())[:most]]
    return ", ".join(shown) + (f", and {len(left_out) - most} more" if len(left_out) > most else "")

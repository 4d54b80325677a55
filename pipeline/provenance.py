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
    """The origin of a run: tags for commit, DVC experiment and machine, and a patch of the uncommitted changes."""

    tags: dict[str, str]
    patch: bytes


def find_origin() -> Origin:
    """Return the origin of a run that starts now, and print on standard error which changes are not kept with it.

    Outside git, or before the first commit, a run has no tag ``git.commit``. Raises ``UserError`` where git fails, as
    in a clone that another user owns: a run without a commit could not be reproduced, and nobody would notice.
    """
    tags = {
        "mlflow.source.name": Path(sys.argv[0]).name,
        "mlflow.source.type": "LOCAL",
        "mlflow.user": user(),
        **_dvc_tags(),
        **_machine_tags(),
    }
    try:
        commit = git.last_commit()
        reason = "" if commit else "there is no commit yet"
    except git.NoRepositoryError as error:
        commit, reason = "", str(error)
    if not commit:
        _note(f"{reason}: this run names no commit, and `reproduce` cannot make it again")
        return Origin(tags | {"git.dirty": "unknown"}, b"")
    changes = find_changes()
    dirty = "true" if changes.is_dirty else "unknown" if changes.left_out else "false"
    tags |= {"git.commit": commit, "mlflow.source.git.commit": commit, "git.dirty": dirty}
    if changes.left_out:
        tags[LEFT_OUT] = _join_left_out(changes.left_out)[:4000]  # MLflow refuses tags over 5,000 characters
        _note(f"not committed, and not kept with this run: {tags[LEFT_OUT]}")
    return Origin(tags, changes.patch)


def user() -> str:
    """Return the name of the user, or the number where the system knows no name for it, as in many containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # the second since Python 3.13
        return str(os.getuid())


LEFT_OUT = "git.left_out"  # the tag of a run


def _note(words: str) -> None:
    print(f"note: {words}", file=sys.stderr)


def digests(params: Params, data_sha256: str) -> dict[str, str]:
    """Return the sha256 of all that a model depends on: data, parameters, and the code of the stage ``train``."""
    return {
        "code_sha256": code_sha256("train"),
        "data_sha256": data_sha256,
        "params_sha256": files.digest(params.train.model_dump()),
    }


def code_sha256(stage: str) -> str:
    """Return the digest of the modules that dvc.yaml names for a stage; raise ``UserError`` if it has no such stage."""
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
    """Return the installed versions of packages as requirements for pip, such as ``numpy==2.4.6``."""
    return [f"{name}=={version(name)}" for name in names]


def _dvc_tags() -> dict[str, str]:
    names = {"dvc.exp_name": "DVC_EXP_NAME", "dvc.baseline_rev": "DVC_EXP_BASELINE_REV"}
    return {tag: os.environ[name] for tag, name in names.items() if os.environ.get(name)}


@dataclass(frozen=True)
class Changes:
    """Uncommitted changes: a patch of those that are kept with a run, and for each other file why it is left out."""

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
NEW = 1_000_000, 5_000_000  # bytes of a new file at most, and of all of them
CHANGED = 10_000_000, 20_000_000  # of a changed or removed one, before or after: a binary patch holds both


def find_changes() -> Changes:
    """Return the uncommitted changes in the current folder, without the outputs of stages.

    Kept are changes of files that the last commit has, of at most 10 MB each and 20 MB in all, and new files of code
    and configuration (``CODE``) of at most 1 MB each and 5 MB in all, those nearest to the project's folder first.
    Never kept are files that look like secrets by their name or their folder's (``SECRETS``), even if the last commit
    has them, since the key in them may be new. Links, nested repositories and files that cannot be read are left out
    too. Files that are left out are not read. Git's own folder is not written to.
    """
    top = Path(git.text("rev-parse", "--show-toplevel"))
    prefix = git.text("rev-parse", "--show-prefix")
    words = ("status", "--porcelain", "-z", "--no-renames", "--untracked-files=all", "--", ".", *OUTPUTS)
    found = git.run(*words)
    entries = [(os.fsdecode(entry[:2]), os.fsdecode(entry[3:])) for entry in found.stdout.split(b"\0") if entry]
    left_out = {os.fsdecode(name): "cannot be read" for name in _UNREADABLE.findall(found.stderr)}
    before, kept, capacity = _sizes_in_last_commit(), [], {NEW: NEW[1], CHANGED: CHANGED[1]}
    for code, name in sorted(entries, key=lambda entry: (entry[1].count("/"), entry[1])):
        is_new = code == "??" or "A" in code
        inner = name.removeprefix(prefix)
        is_there = "D" not in code and os.path.lexists(top / name)
        limits = NEW if is_new else CHANGED
        size = max(before.get(name, 0), (top / name).lstat().st_size if is_there else 0)
        reason = _reason_left_out(top / name, inner) if is_there else ""
        if not reason and is_new and is_there and not _is_code(top / name):
            reason = "not code or configuration"
        reason = reason or _reason_too_large(size, limits, capacity[limits])
        if reason:
            left_out[inner] = reason
            continue
        kept.append(name)
        capacity[limits] -= size
    with tempfile.TemporaryDirectory() as folder:
        patch, refused = _patch(kept, top, Path(folder))
    left_out |= {name.removeprefix(prefix): "cannot be read" for name in refused}
    return Changes(patch, {_printable(name): reason for name, reason in left_out.items()}, bool(entries))


_UNREADABLE = re.compile(rb"could not open directory '(.*)'")


def _sizes_in_last_commit() -> dict[str, int]:
    """Return the bytes of the files that the last commit has in the current folder, by their names from the top."""
    found = git.run("ls-tree", "-r", "-l", "-z", "--full-name", "HEAD").stdout.split(b"\0")
    entries = [entry.partition(b"\t") for entry in found if entry]
    sizes = {os.fsdecode(name): about.split()[3] for about, _, name in entries}
    return {name: int(size) for name, size in sizes.items() if size.isdigit()}  # a repository within has none


def _reason_left_out(path: Path, name: str) -> str:
    """Return why a change is not kept whatever its size, or nothing."""
    if any(fnmatch.fnmatch(part.lower(), pattern) for part in Path(name).parts for pattern in SECRETS):
        return "looks like a secret"
    return "another git repository" if path.is_dir() and not path.is_symlink() else ""


def _is_code(path: Path) -> bool:
    return any(fnmatch.fnmatchcase(path.name, pattern) for pattern in CODE) and stat.S_ISREG(path.lstat().st_mode)


def _reason_too_large(size: int, limits: tuple[int, int], capacity: int) -> str:
    """Return why a change of ``size`` bytes is not kept, or nothing; ``capacity`` is what may still be kept."""
    if size > limits[0]:
        return f"over {limits[0] // 1_000_000} MB"
    return f"over {limits[1] // 1_000_000} MB in all" if size > capacity else ""


def _patch(names: Sequence[str], top: Path, folder: Path) -> tuple[bytes, list[str]]:
    """Return a patch of these files, and the names of those that git cannot add.

    The index and the new objects are written to ``folder``, not to the repository.
    """
    if not names:
        return b"", []
    objects = git.text("rev-parse", "--path-format=absolute", "--git-path", "objects")
    quoted = objects.replace("\\", "\\\\").replace('"', '\\"')
    separate = {
        "GIT_INDEX_FILE": str(folder / "index"),
        "GIT_OBJECT_DIRECTORY": str(folder),
        "GIT_ALTERNATE_OBJECT_DIRECTORIES": f'"{quoted}"',
    }
    git.run(*_AS_IT_IS, "read-tree", "HEAD", cwd=top, variables=separate)
    refused = _add(names, top, separate)
    words = ("diff-index", "--cached", "--binary", "--no-renames", "--no-ext-diff", "HEAD")
    return git.run(*_AS_IT_IS, *words, cwd=top, variables=separate).stdout, refused


_AS_IT_IS = (  # every byte, and every file of the commit
    *("-c", "core.autocrlf=false", "-c", "core.sparseCheckout=false", "-c", "core.splitIndex=false"),
    *("-c", "core.fsmonitor=false", "-c", "core.quotePath=true"),
)


def _add(names: Sequence[str], top: Path, variables: Mapping[str, str]) -> list[str]:
    """Add files to the index and return those that git cannot add.

    Git adds no file of a list if it cannot add one of them; so the list is halved until that one is alone.
    """
    listed = b"\0".join(map(os.fsencode, names))
    try:
        words = ("update-index", "--add", "--remove", "-z", "--stdin")
        git.run(*_AS_IT_IS, *words, cwd=top, stdin=listed, variables=variables)
    except git.GitError:
        half = len(names) // 2
        return [*_add(names[:half], top, variables), *_add(names[half:], top, variables)] if half else list(names)
    return []


def _printable(name: str) -> str:
    """Return a file's name as UTF-8, whatever its bytes are."""
    return os.fsencode(name).decode("utf-8", "replace")


def _join_left_out(left_out: Mapping[str, str], most: int = 20) -> str:
    """Return one line that names the files that are left out, with the reasons; at most ``most`` of them."""
    shown = [f"{name} ({reason})" for name, reason in list(left_out.items())[:most]]
    return ", ".join(shown) + (f", and {len(left_out) - most} more" if len(left_out) > most else "")

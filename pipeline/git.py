"""Run git commands; the one place where git's failures become a one-line error or a documented default."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from pipeline.console import UserError

# Variables that make git use another repository than that of the folder: git sets them for its hooks. They are removed.
# GIT_CONFIG_* stay, since people set `safe.directory` with them.
REPOSITORY_VARIABLES = {
    *("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_COMMON_DIR", "GIT_NAMESPACE"),
    *("GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_SHALLOW_FILE", "GIT_QUARANTINE_PATH"),
    *("GIT_LITERAL_PATHSPECS", "GIT_GLOB_PATHSPECS", "GIT_NOGLOB_PATHSPECS", "GIT_ICASE_PATHSPECS"),
    *("GIT_EXTERNAL_DIFF", "GIT_DIFF_OPTS"),
}
SETTINGS = {
    "LC_ALL": "C",  # messages in English, which `run` looks for
    "GIT_OPTIONAL_LOCKS": "0",  # reading must not lock the index while another process commits
    "GIT_TERMINAL_PROMPT": "0",
}
NOT_FOUND = 1  # exit status of git commands that did not find what was asked for; failures have other ones


class GitError(UserError):
    """Git failed: the message is git's own, with its remedy."""


class NoRepositoryError(GitError):
    """There is no git, or the folder is in no repository, as when the project was downloaded as a ZIP file."""


def run(
    *words: str,
    cwd: Path | None = None,
    stdin: bytes = b"",
    variables: Mapping[str, str] | None = None,
    none_found: bool = False,
) -> subprocess.CompletedProcess[bytes]:
    """Run a git command on the repository of ``cwd``, by default the current folder; raise ``GitError`` if it fails.

    With ``none_found``, exit status 1 is no failure: it means that what was asked for does not exist. ``stdin`` is the
    command's input, and ``variables`` are added to its environment.
    """
    kept = {name: value for name, value in os.environ.items() if name not in REPOSITORY_VARIABLES}
    environment = kept | SETTINGS | dict(variables or {})
    try:
        done = subprocess.run(["git", *words], cwd=cwd, env=environment, input=stdin, capture_output=True, check=False)
    except (FileNotFoundError, PermissionError):
        if cwd and not cwd.is_dir():
            raise GitError(f"git: {cwd}: expected a folder") from None
        raise NoRepositoryError("git is not installed") from None
    if done.returncode and not (none_found and done.returncode == NOT_FOUND):
        reason = " ".join(done.stderr.decode("utf-8", "replace").split())[:500] or f"status {done.returncode}"
        if "not a git repository (or any" in reason:
            raise NoRepositoryError(f"{cwd or Path.cwd()} is not a git repository")
        command = next((word for word in words if word.islower() and word[0] != "-" and "=" not in word), "")
        raise GitError(f"git {command}: {reason}")
    return done


def text(*words: str, cwd: Path | None = None) -> str:
    """Return what a git command prints, without its last newline; "" where what was asked for does not exist."""
    return os.fsdecode(run(*words, cwd=cwd, none_found=True).stdout).removesuffix("\n")


def commit(revision: str, cwd: Path | None = None) -> str:
    """Return the commit of ``revision``, in 40 hexadecimal digits; "" where this repository has no such commit."""
    return text("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}", cwd=cwd)


def last_commit() -> str:
    """Return the commit that is checked out in the current folder; "" before the first commit."""
    found = commit("HEAD")
    if not found:
        run("symbolic-ref", "HEAD")  # fails where HEAD is broken, which `rev-parse` takes for no commit too
    return found


def read(revision: str, path: str) -> bytes | None:
    """Return a file's bytes at ``revision``, by its path from the current folder; None where there is none."""
    if not run("ls-tree", "-z", revision, "--", path).stdout:
        return None
    return run("show", f"{revision}:./{path}").stdout


def is_shallow(cwd: Path | None = None) -> bool:
    """Tell whether the clone lacks older commits (``git clone --depth``, as CI services make it)."""
    return text("rev-parse", "--is-shallow-repository", cwd=cwd) == "true"

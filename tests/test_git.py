"""Git is asked in one place; what fails there is one line with git's own reason, and never an empty answer."""

import subprocess
from pathlib import Path

import pytest

from pipeline import files, git


@pytest.fixture(autouse=True)
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a repository with one commit, as the current folder."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.chdir(tmp_path)
    files.write_text(tmp_path / "inner" / "kept.txt", "one\n")
    names = ("-c", "user.name=Test", "-c", "user.email=test@example.org")
    for words in (["init", "--quiet"], ["add", "--all"], [*names, "commit", "--quiet", "--message", "One"]):
        subprocess.run(["git", *words], check=True)
    return tmp_path


def test_no_other_module_starts_git() -> None:
    package = files.ROOT / "pipeline"
    starting = [path.name for path in package.rglob("*.py") if '["git"' in path.read_text("utf-8")]
    assert starting == ["git.py"]


def test_what_is_not_there_is_an_empty_answer_and_no_failure() -> None:
    assert git.commit("HEAD") == git.last_commit() != ""
    assert git.commit("nowhere") == git.commit("0" * 40) == git.commit("--all") == git.commit("") == ""
    assert git.text("config", "no.such") == ""


@pytest.mark.parametrize("cwd", ["", "inner"])
def test_a_file_is_read_by_its_path_from_the_current_folder(
    repository: Path, monkeypatch: pytest.MonkeyPatch, cwd: str
) -> None:
    monkeypatch.chdir(repository / cwd)
    assert git.read("HEAD", "kept.txt" if cwd else "inner/kept.txt") == b"one\n"
    assert git.read("HEAD", "other.txt") is None


def test_every_failure_is_one_line_with_git_s_reason() -> None:
    for words, reason in (
        (["no-such-command"], "git no-such-command: git: 'no-such-command' is not a git command"),
        (["-c", "core.autocrlf=false", "show", "nowhere"], "git show: fatal: ambiguous argument 'nowhere'"),
        (["update-index", "--add", "missing"], "git update-index: error: missing: does not exist"),
    ):
        with pytest.raises(git.GitError, match=reason) as caught:
            git.run(*words)
        assert "\n" not in str(caught.value)


def test_a_lost_object_is_no_missing_file(repository: Path) -> None:
    for path in (repository / ".git/objects").glob("??/*"):
        if git.run("cat-file", "-t", path.parent.name + path.name).stdout == b"blob\n":
            path.unlink()
    with pytest.raises(git.GitError, match="git show: "):
        git.read("HEAD", "inner/kept.txt")


def test_the_remedy_of_git_is_obeyed_also_where_the_environment_gives_it(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    with pytest.raises(git.GitError, match=r"git config --global --add safe\.directory"):
        git.last_commit()
    for name, value in {"COUNT": "1", "KEY_0": "safe.directory", "VALUE_0": str(repository)}.items():
        monkeypatch.setenv(f"GIT_CONFIG_{name}", value)
    assert git.last_commit()


def test_a_missing_git_and_a_missing_repository_have_an_error_of_their_own(
    repository: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    with pytest.raises(git.NoRepositoryError, match="is not a git repository"):
        git.text("status", cwd=elsewhere)
    with pytest.raises(git.GitError, match="expected a folder"):
        git.text("status", cwd=elsewhere / "nowhere")
    monkeypatch.setenv("PATH", str(repository))
    with pytest.raises(git.NoRepositoryError, match="git is not installed"):
        git.text("status")

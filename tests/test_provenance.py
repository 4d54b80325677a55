"""A run says where it comes from: what can be kept of it is kept, and what cannot be known is said."""

import os
import pwd
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline import files, git, provenance
from pipeline.console import UserError
from pipeline.provenance import find_changes, find_origin

PASSWORD = "correct horse battery staple"  # noqa: S105
STAGES_WROTE = ("reports/train.json", "models/digits.tflite", "dvc.lock")
COMMITTED = ("params.yaml", *STAGES_WROTE, "code.py", "picture.png", ".env", "data/photos/a.png")


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a repository with one commit; for copying only."""
    root = tmp_path_factory.mktemp("started")
    start(root, *COMMITTED)
    return root


@pytest.fixture
def repository(started: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a repository with one commit, as the current folder, and no git configuration but its own."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    root = shutil.copytree(started, tmp_path / "project")
    monkeypatch.chdir(root)
    return root


def start(root: Path, *names: str) -> None:
    call("init", "--quiet", "--initial-branch=main", root=root)
    for name in ("user.name", "user.email"):
        call("config", name, "test@example.org", root=root)
    for name in names:
        files.write_text(root / name, "one\n")
    call("add", "--all", root=root)
    call("commit", "--quiet", "--allow-empty", "--message", "One", root=root)


def call(*words: str, root: Path = Path()) -> str:
    return subprocess.run(["git", *words], cwd=root, check=True, capture_output=True, text=True).stdout


def apply(patch: bytes, clone: Path) -> None:
    """Apply a patch to a fresh clone of the current repository."""
    call("clone", "--quiet", call("rev-parse", "--show-toplevel").strip(), str(clone))
    subprocess.run(["git", "apply", "--whitespace=nowarn", "-"], cwd=clone, input=patch, check=True)


def names(patch: bytes) -> list[str]:
    return [line.split(" b/")[1] for line in patch.decode().splitlines() if line.startswith("diff")]


@pytest.mark.usefixtures("repository")
def test_the_patch_holds_what_people_changed_and_not_what_stages_wrote() -> None:
    assert find_changes() == provenance.Changes(b"", {}, is_dirty=False)
    for name in ("params.yaml", *STAGES_WROTE, "new.py", "picture.png"):
        Path(name).write_text("two\n")
    changes = find_changes()
    assert names(changes.patch) == ["new.py", "params.yaml", "picture.png"]
    assert changes.left_out == {}
    assert "?? new.py" in call("status", "--short")  # the index is as it was


def test_finding_changes_does_not_write_to_git_s_folder(repository: Path) -> None:
    Path("code.py").write_text("two\n")
    before = {path: path.stat().st_mtime_ns for path in (repository / ".git").rglob("*")}
    assert find_changes().patch
    assert {path: path.stat().st_mtime_ns for path in (repository / ".git").rglob("*")} == before


def nested_with_a_commit(name: str) -> None:
    Path(name).mkdir()
    start(Path(name), "inner.py")


def nested_without_a_commit(name: str) -> None:
    call("init", "--quiet", name)
    files.write_text(Path(name, "inner.py"), PASSWORD)


def linked(name: str) -> None:
    Path(name).symlink_to("/dev/zero")


def secret(name: str) -> None:
    files.write_text(Path(name), f"KEY={PASSWORD}\n")


def staged(name: str) -> None:
    secret(name)
    call("add", "--force", name)


def large(name: str) -> None:
    with files.atomic_write(Path(name)) as stream:
        stream.truncate(300_000_000)


@pytest.mark.parametrize(
    ("name", "make", "reason"),
    [
        ("holiday.mp4", large, "not code or configuration"),
        ("data.py", large, "over 1 MB"),
        ("picture.png", large, "over 10 MB"),  # the last commit has it
        ("tables.csv", secret, "not code or configuration"),
        ("zero.py", linked, "not code or configuration"),
        ("nested/", nested_with_a_commit, "another git repository"),
        ("nested/", nested_without_a_commit, "another git repository"),
        (".env", secret, "looks like a secret"),  # the last commit has it, without the key
        (".env.local", secret, "looks like a secret"),
        ("deploy/production.env", secret, "looks like a secret"),
        ("server.pem", staged, "looks like a secret"),
        ("secrets.toml", secret, "looks like a secret"),
        ("Secrets/settings.yaml", secret, "looks like a secret"),
        ("credentials.yaml", staged, "looks like a secret"),
        ("id_rsa.sh", secret, "looks like a secret"),
        (".netrc", secret, "looks like a secret"),
    ],
)
@pytest.mark.usefixtures("repository")
def test_what_is_left_out_is_named_and_all_else_is_kept(
    name: str, make: Callable[[str], None], reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    make(name)
    Path("code.py").write_text("two\n")
    Path("new.py").write_text("new\n")
    origin = find_origin()
    assert names(origin.patch) == ["code.py", "new.py"]
    assert PASSWORD.encode() not in origin.patch
    assert origin.tags["git.dirty"] == "true"
    assert origin.tags["git.left_out"] == f"{name} ({reason})"
    assert capfd.readouterr().err == f"note: not committed, and not kept with this run: {name} ({reason})\n"


@pytest.mark.usefixtures("repository")
def test_new_files_have_a_bound_in_all_and_those_nearest_to_the_project_come_first() -> None:
    for name in ("a/deep/environment/library", "pipeline/new"):
        for number in range(3):
            files.write_text(Path(f"{name}{number}.py"), f"# {number}{name}".ljust(999_999) + "\n")
    changes = find_changes()
    assert sorted(names(changes.patch))[-3:] == [f"pipeline/new{number}.py" for number in range(3)]
    assert changes.left_out == {"a/deep/environment/library2.py": "over 5 MB in all"}


@pytest.mark.usefixtures("repository")
def test_changes_of_files_of_the_last_commit_have_a_bound_in_all_before_and_after() -> None:
    for number, size in enumerate((9_000_000, 9_000_000, 9_000_000, 11_000_000)):
        files.write_bytes(Path(f"{number}.bin"), bytes(size))
    call("add", "--all")
    call("commit", "--quiet", "--message", "Two")
    for number in range(4):
        Path(f"{number}.bin").unlink() if number % 2 else Path(f"{number}.bin").write_text("small\n")
    changes = find_changes()
    assert names(changes.patch) == ["0.bin", "1.bin"]
    assert changes.left_out == {"2.bin": "over 20 MB in all", "3.bin": "over 10 MB"}
    assert changes.is_dirty


@pytest.mark.usefixtures("repository")
def test_many_files_that_are_left_out_are_counted() -> None:
    for number in range(200):
        files.write_text(Path(f"pictures/{number:03}.raw"), "")
    said = find_origin().tags["git.left_out"]
    assert said.startswith("pictures/000.raw (not code or configuration), pictures/001.raw")
    assert said.endswith(", and 180 more")


@pytest.fixture
def owned_by_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Return a repository, as the current folder, whose owner this process has become: root may read everything."""
    if os.geteuid():
        pytest.skip("only root can become somebody else")
    root, nobody = Path(f"/tmp/{tmp_path.parent.name}-{tmp_path.name}"), pwd.getpwnam("nobody").pw_uid
    root.mkdir()
    try:
        os.chown(root, nobody, -1)
        os.seteuid(nobody)
        monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
        monkeypatch.chdir(root)
        start(root, *COMMITTED)
        yield root
    finally:
        os.seteuid(0)
        shutil.rmtree(root)


@pytest.mark.usefixtures("owned_by_nobody")
def test_a_file_that_cannot_be_read_is_left_out_and_named(capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("code.py", "params.yaml", "a.py", "b.py", "closed/inner.py", "holiday.mp4"):
        files.write_text(Path(name), "two\n")
    for name in ("code.py", "a.py", "closed", "holiday.mp4"):
        Path(name).chmod(0)
    origin = find_origin()
    assert names(origin.patch) == ["b.py", "params.yaml"]
    assert set(origin.tags["git.left_out"].split(", ")) == {
        "closed/ (cannot be read)",
        "holiday.mp4 (not code or configuration)",  # nobody tried to
        "a.py (cannot be read)",
        "code.py (cannot be read)",
    }
    assert "a.py" in capfd.readouterr().err


@pytest.mark.usefixtures("owned_by_nobody")
def test_a_folder_that_cannot_be_read_is_no_clean_tree() -> None:
    files.write_text(Path("closed/inner.py"), "two\n")
    Path("closed").chmod(0)
    assert find_origin().tags["git.dirty"] == "unknown"


NAMES = (
    *("grün.py", "gru\u0308n.py", 'a "quoted" name.py', "two\nlines.py", " b/c -> d.py", "caf\udce9.py"),
    *("-rf.py", ":!.py", "code.py"),
)


@pytest.mark.usefixtures("repository")
@pytest.mark.parametrize("content", [b"one\ntwo\n", b"one\r\ntwo\r\n", b"no end", b"\xff\x00binary", b""])
def test_the_patch_gives_every_byte_again_whatever_the_name(tmp_path: Path, content: bytes) -> None:
    for name in NAMES:
        files.write_bytes(Path(name), content)
    apply(find_changes().patch, tmp_path / "clone")
    assert {name: (tmp_path / "clone" / name).read_bytes() for name in NAMES} == dict.fromkeys(NAMES, content)


@pytest.mark.usefixtures("repository")
def test_a_name_that_is_not_utf_8_can_be_printed(capfd: pytest.CaptureFixture[str]) -> None:
    Path("caf\udce9.mp4").touch()
    assert find_origin().tags["git.left_out"] == "caf\ufffd.mp4 (not code or configuration)"
    assert "caf" in capfd.readouterr().err


def removed(_: Path) -> None:
    call("rm", "--quiet", "code.py")


def renamed(_: Path) -> None:
    call("mv", "code.py", "renamed.py")


def executable(_: Path) -> None:
    Path("code.py").chmod(0o755)


def relinked(_: Path) -> None:
    Path("code.py").unlink()
    Path("code.py").symlink_to("params.yaml")


def a_folder_for_a_file(_: Path) -> None:
    Path("code.py").unlink()
    files.write_text(Path("code.py/inner.py"), "two\n")


@pytest.mark.parametrize("change", [removed, renamed, executable, relinked, a_folder_for_a_file])
def test_changes_other_than_of_content_are_kept(
    repository: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    change(repository)
    apply(find_changes().patch, tmp_path / "clone")
    kinds = [
        {
            path.relative_to(root): (path.is_dir(), path.is_symlink(), path.stat().st_mode)
            for path in root.rglob("*.py*")
        }
        for root in (repository, tmp_path / "clone")
    ]
    assert kinds[0] == kinds[1]


@pytest.mark.parametrize(
    "variables",
    [
        {"GIT_DIR": ".git"},
        {"GIT_DIR": "/nowhere/.git", "GIT_WORK_TREE": "/nowhere"},
        {"GIT_INDEX_FILE": "/nowhere/index"},
        {"GIT_OBJECT_DIRECTORY": "/nowhere"},
        {"GIT_LITERAL_PATHSPECS": "1"},
        {"GIT_EXTERNAL_DIFF": "false"},
        {"LANG": "de_DE.UTF-8", "LANGUAGE": "de", "LC_ALL": "C.UTF-8"},
    ],
    ids=lambda variables: "+".join(variables),
)
@pytest.mark.usefixtures("repository")
def test_the_variables_of_git_s_hooks_and_the_language_change_nothing(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    Path("code.py").write_text("two\n")
    Path("new.py").write_text("new\n")
    expected = find_origin()
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert find_origin() == expected


@pytest.mark.parametrize(
    "setting",
    [
        "core.autocrlf=true",
        "core.safecrlf=true",
        "diff.noprefix=true",
        "diff.external=false",
        "color.ui=always",
        "core.quotePath=false",
        "status.showUntrackedFiles=no",
        "status.relativePaths=true",
        "diff.renames=copies",
    ],
)
@pytest.mark.usefixtures("repository")
def test_a_person_s_own_settings_of_git_change_nothing(setting: str) -> None:
    Path("code.py").write_bytes(b"two\r\n")
    Path("ünew.py").write_bytes(b"new\r\n")
    expected = find_changes()
    call("config", "--global", *setting.split("="))
    assert find_changes() == expected


@pytest.mark.usefixtures("repository")
def test_a_sparse_checkout_has_removed_nothing() -> None:
    call("status")  # git knows the copied files
    call("sparse-checkout", "set", "reports")
    assert not Path("data/photos/a.png").exists()
    Path("code.py").write_text("two\n")
    assert names(find_changes().patch) == ["code.py"]


@pytest.mark.parametrize("kind", ["worktree", "detached", "link", "folder"])
def test_where_the_project_lies_in_git_changes_nothing(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    place = repository
    if kind == "worktree":
        place = tmp_path / "other"
        call("worktree", "add", "--quiet", "-b", "other", str(place))
    elif kind == "detached":
        call("checkout", "--quiet", "--detach")
    elif kind == "link":
        place = tmp_path / "link"
        place.symlink_to(repository)
    else:
        place = repository / "top secret" / "digits"
        place.mkdir(parents=True)
        (repository / "beside.py").write_text("of another project\n")
    monkeypatch.chdir(place)
    Path("code.py").write_text("two\n")
    Path("holiday.mp4").write_text("two\n")
    origin = find_origin()
    assert names(origin.patch) == [str(place.relative_to(repository) / "code.py") if kind == "folder" else "code.py"]
    assert origin.tags["git.left_out"] == "holiday.mp4 (not code or configuration)"
    assert origin.tags["git.commit"] == call("rev-parse", "HEAD").strip()


def test_without_git_a_run_names_no_commit_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    for reason in ("is not a git repository", "git is not installed"):
        origin = find_origin()
        assert "git.commit" not in origin.tags
        assert origin.tags["git.dirty"] == "unknown"
        assert origin.patch == b""
        (said,) = capfd.readouterr().err.splitlines()
        assert f"{reason}: this run names no commit, and `reproduce` cannot make it again" in said
        monkeypatch.setenv("PATH", str(tmp_path))


def test_before_the_first_commit_a_run_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    call("init", "--quiet")
    assert "git.commit" not in find_origin().tags
    assert capfd.readouterr().err.startswith("note: there is no commit yet: this run names no commit")


def of_another_user(_: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")


def with_a_broken_head(root: Path, _: pytest.MonkeyPatch) -> None:
    (root / ".git/refs/heads/main").write_text("nothing\n")


def with_a_broken_index(root: Path, _: pytest.MonkeyPatch) -> None:
    (root / ".git/index").write_text("nothing\n")


def with_broken_settings(root: Path, _: pytest.MonkeyPatch) -> None:
    (root / ".git/config").write_text("[core\n")


def of_a_worktree_that_is_gone(root: Path, _: pytest.MonkeyPatch) -> None:
    shutil.rmtree(root / ".git")
    (root / ".git").write_text("gitdir: /nowhere/.git/worktrees/project\n")


@pytest.mark.parametrize(
    ("breaks", "said"),
    [
        (of_another_user, "detected dubious ownership in repository at .* git config --global --add safe.directory"),
        (with_a_broken_head, "git symbolic-ref: fatal: No such ref: HEAD"),
        (with_a_broken_index, "git status: .*index"),
        (with_broken_settings, "git rev-parse: .*bad config"),
        (of_a_worktree_that_is_gone, "git rev-parse: .*/nowhere/.git/worktrees/project"),
    ],
)
def test_where_git_fails_there_is_no_origin_but_its_own_reason(
    repository: Path, monkeypatch: pytest.MonkeyPatch, breaks: Callable[..., None], said: str
) -> None:
    breaks(repository, monkeypatch)
    with pytest.raises(git.GitError, match=said) as caught:
        find_origin()
    assert "\n" not in str(caught.value)


CONFLICT = "<<<<<<< HEAD\n{a}=======\n{b}>>>>>>> other\n"


@pytest.mark.parametrize("content", [CONFLICT, "", "stages:\n", "[1]", "stages: {train: 1}", "a: \udcff", "stages: {}"])
def test_a_dvc_yaml_that_cannot_be_read_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setattr(files, "ROOT", tmp_path)
    (tmp_path / "dvc.yaml").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"^dvc.yaml: expected the stage train and its deps") as caught:
        provenance.code_sha256("train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [KeyError("getpwuid(): uid not found: 12345"), OSError("No username set")])
def test_a_user_without_a_name_is_its_number(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> str:
        raise error

    monkeypatch.setattr(provenance.getpass, "getuser", unknown)
    assert provenance.user() == str(os.getuid())

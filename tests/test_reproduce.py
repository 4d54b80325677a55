"""A run comes out the same again, anywhere; where it does not, reproduce says so and why."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Project

from pipeline import config, files, provenance, registry, reproduce, tracking
from pipeline.console import UserError
from pipeline.learning import model
from pipeline.reproduce import CLOSE, OTHER, SAME, Outcome
from pipeline.store import Store, open_store

MADE_OF = dict.fromkeys(("data", "params", "code", "model", "metrics"), ("d" * 64, "d" * 64))
FIGURES = {"test_accuracy": (0.99, 0.99), "test_loss": (0.03, 0.03)}
IMAGES = {"test": 10000, "validation": 12000}
OTHER_BITS = {"model": ("a" * 64, "b" * 64), "metrics": ("a" * 64, "b" * 64)}


def outcome(digests=None, figures=None, reasons=()):
    return Outcome(MADE_OF | (digests or {}), FIGURES | (figures or {}), IMAGES, reasons)


def test_the_same_digests_and_figures_are_a_reproduction() -> None:
    assert outcome().status == SAME
    assert reproduce.verdict(outcome()) == "reproduced bit for bit"


def test_other_bits_with_metrics_within_the_sampling_error_have_their_own_status() -> None:
    found = outcome(OTHER_BITS, {"test_accuracy": (0.99, 0.9905)}, ["another processor: x86_64 avx2"])
    assert found.status == CLOSE
    assert reproduce.verdict(found).endswith("within sampling error, other bits: another processor: x86_64 avx2")


def test_figures_beyond_sampling_error_are_no_reproduction() -> None:
    assert outcome(OTHER_BITS, {"test_accuracy": (0.99, 0.98)}).status == OTHER


def test_other_bits_without_an_accuracy_to_compare_are_no_reproduction() -> None:
    assert Outcome(MADE_OF | OTHER_BITS, {"test_loss": (0.03, 0.04)}, IMAGES, ()).status == OTHER


@pytest.mark.parametrize("name", ["data", "params", "code"])
def test_a_run_of_other_data_or_code_is_never_a_reproduction(name: str) -> None:
    found = outcome({name: ("a" * 64, "b" * 64)})
    assert found.status == OTHER
    assert reproduce.verdict(found) == f"not reproduced: other {name}"


def test_one_digit_in_twenty_thousand_is_chance_and_a_hundred_are_not() -> None:
    assert reproduce.close(0.9920, 0.9921, 10000)
    assert not reproduce.close(0.9920, 0.9820, 10000)
    assert reproduce.close(1.0, 1.0, 10000)


def test_the_reasons_are_the_processor_and_the_packages_that_differ() -> None:
    before = {"system.processor": "x86_64 avx2", "system.packages": "keras==3.14 numpy==2.4", "system.python": "3.11.7"}
    now = {"system.processor": "x86_64 avx2 avx512f", "system.packages": "keras==3.15 numpy==2.4"} | {
        "system.python": "3.11.7"
    }
    assert list(reproduce.reasons(before, now)) == [
        "another processor: x86_64 avx2, here x86_64 avx2 avx512f",
        "other packages: keras 3.14, here 3.15",
    ]
    assert list(reproduce.reasons(now, now)) == []


def test_a_later_reading_by_other_code_is_a_reason_too() -> None:
    now = {"evaluate.code.sha256": "a" * 64, "predict-photo.code.sha256": "b" * 64}
    assert list(reproduce.reasons(now | {"predict-photo.code.sha256": "c" * 64}, now)) == [
        "the photographs of the run were read by other code than its commit's"
    ]
    assert list(reproduce.reasons({}, now)) == []


@pytest.fixture(scope="module")
def store(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("workspace")
    files.write_bytes(folder / "mlruns" / "mlflow.db", empty_store.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_ROOT", str(folder))
        return open_store()


def run_of(store: Store, name: str, model: str = "") -> str:
    """Return the id of a run that is called so, and made this model."""
    with tracking.ending(tracking.start(store, config.load(), {"data_sha256": "d" * 64}, name=name)) as run:
        if model:
            run.tag({"model.sha256": model})
    return run.run_id


def test_a_run_is_found_by_id_by_its_beginning_and_by_name(store: Store) -> None:
    run_id = run_of(store, "by name", "a" * 64)
    for name in (run_id, run_id[:12], "by name"):
        assert reproduce.find(store, name).info.run_id == run_id


def test_a_registered_version_stands_for_its_run(store: Store, tmp_path: Path) -> None:
    model.write(dict.fromkeys((model.ARCHIVE, model.NETWORK, model.CALIBRATION), b"model"), tmp_path)
    run_id = run_of(store, "registered", files.sha256(tmp_path / model.ARCHIVE))
    registry.challenge(store, tracking.Run(store, run_id), tmp_path)
    for name in ("models:/digits@challenger", "models:/digits/1"):
        assert reproduce.find(store, name).info.run_id == run_id


def test_of_runs_that_made_the_same_model_the_newest_is_meant(store: Store) -> None:
    run_of(store, "twice", "b" * 64)
    newest = run_of(store, "twice", "b" * 64)
    assert reproduce.find(store, "twice").info.run_id == newest


def test_an_unknown_or_ambiguous_name_is_a_one_line_error(store: Store) -> None:
    for sha256 in ("c" * 64, "d" * 64):
        run_of(store, "ambiguous", sha256)
    run_of(store, "without a model")
    for name, words in (
        ("ambiguous", "2 runs are called so; name one by its id"),
        ("without a model", "made no model"),
        ("nothing", "no such run; expected an id"),
        ("models:/digits@champion", "no such version"),
    ):
        with pytest.raises(UserError, match=words):
            reproduce.find(store, name)


def test_a_commit_that_is_not_here_is_named(store: Store, tmp_path: Path) -> None:
    run_id = run_of(store, "elsewhere", "e" * 64)
    run = tracking.Run(store, run_id)
    run.tag({"git.commit": "0" * 40})
    with pytest.raises(UserError, match=r"commit 000000000000 of run \w+ is not here; `git fetch` its branch"):
        reproduce.check_out(run, tmp_path / "clone")


def test_a_patch_that_is_gone_is_missed(store: Store, tmp_path: Path) -> None:
    origin = provenance.Origin({"git.commit": _head(), "git.dirty": "true"}, b"")
    run = tracking.start(store, config.load(), {"data_sha256": "d" * 64}, origin=origin)
    with pytest.raises(UserError, match="what was not committed is gone with its artifact"):
        reproduce.check_out(run, tmp_path / "clone")


def as_it_is(root: Path) -> Path:
    return root


def shallow(root: Path) -> Path:
    return clone(root, "--depth=1", url=f"file://{root}")


def a_worktree(root: Path) -> Path:
    call("worktree", "add", "--quiet", "--detach", str(root.parent / "worktree"), root=root)
    return root.parent / "worktree"


def a_submodule(root: Path) -> Path:
    outer = root.parent / "outer"
    call("init", "--quiet", str(outer), root=root)
    call("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(root), "inner", root=outer)
    return outer / "inner"


def borrowing(root: Path) -> Path:
    return clone(root, "--shared", url=str(root))


def sparse(root: Path) -> Path:
    call("sparse-checkout", "set", "papers", root=root)
    return root


def clone(root: Path, *words: str, url: str) -> Path:
    call("clone", "--quiet", *words, url, str(root.parent / "cloned"), root=root)
    return root.parent / "cloned"


def call(*words: str, root: Path) -> str:
    names = ("-c", "user.name=Test", "-c", "user.email=test@example.org")
    return subprocess.run(["git", *names, *words], cwd=root, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("kept_as", [as_it_is, shallow, a_worktree, a_submodule, borrowing, sparse])
@pytest.mark.parametrize("inner", ["", "papers/grün digits"])
def test_a_run_is_checked_out_wherever_its_project_lies_in_git(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept_as: Callable[[Path], Path], inner: str
) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    first = tmp_path / "repository"
    for name in ("dvc.yaml", "code.py", "removed.py"):
        files.write_bytes(first / inner / name, b"one\r\n")
    files.write_text(first / "beside.py", "one\n")
    for words in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "One"]):
        call(*words, root=first)
    project = kept_as(first) / inner
    monkeypatch.chdir(project)
    monkeypatch.setattr(files, "ROOT", project)
    files.write_bytes(project / "code.py", b"two\r\n")
    files.write_text(project / "folder/new.py", "new\n")
    (project / "removed.py").unlink()
    run = tracking.start(store, config.load(HERE / "params.yaml"), {"data_sha256": "d" * 64})
    call("config", "--global", "core.autocrlf", "true", root=project)
    found = reproduce.check_out(run, tmp_path / "clone")
    assert found == tmp_path / "clone" / inner
    assert (found / "code.py").read_bytes() == b"two\r\n"
    assert {path.name for path in found.rglob("*.*") if ".git" not in path.parts} >= {"new.py", "params.yaml"}
    assert not (found / "removed.py").exists()
    assert (tmp_path / "clone" / "beside.py").read_text() == "one\n"


def test_a_commit_that_a_shallow_clone_lacks_is_missed_with_the_remedy(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tmp_path / "repository"
    call("init", "--quiet", str(first), root=tmp_path)
    for number in range(2):
        call("commit", "--quiet", "--allow-empty", "--message", str(number), root=first)
    run = tracking.Run(store, run_of(store, "older", "f" * 64))
    run.tag({"git.commit": call("rev-parse", "HEAD~1", root=first).strip()})
    monkeypatch.setattr(files, "ROOT", shallow(first))
    with pytest.raises(UserError, match="is not here; `git fetch --unshallow`, this clone is shallow"):
        reproduce.check_out(run, tmp_path / "clone")


def test_what_a_run_did_not_keep_is_a_reason() -> None:
    before = {"git.left_out": "data/photos/new.png (not code or configuration)"}
    assert list(reproduce.reasons(before, {})) == [
        "not committed then, and not kept: data/photos/new.png (not code or configuration)"
    ]


HERE = files.ROOT


def _head() -> str:
    words = ["git", "rev-parse", "HEAD"]
    return subprocess.run(words, cwd=files.ROOT, capture_output=True, text=True, check=True).stdout.strip()


def state(project: Project) -> dict[str, bytes]:
    """Return what a person would miss: the working tree, the checkpoints, the model and git's own state."""
    paths = [path for path in project.root.rglob("*") if path.is_file() and not {".git", "mlruns"} & set(path.parts)]
    kept = {str(path): path.read_bytes() for path in paths if "__pycache__" not in path.parts}
    return kept | {"git": project.git("status", "--porcelain").encode() + project.git("show-ref").encode()}


@pytest.mark.slow
def test_an_experiment_with_uncommitted_code_is_reproduced_and_the_workspace_is_not_touched(
    made_project: Project,
) -> None:
    network = made_project.root / "pipeline" / "learning" / "network.py"
    committed = network.read_text("utf-8")
    network.write_bytes(committed.replace("GlorotUniform", "HeUniform").encode() + b"# other weights\r\n")
    (made_project.root / "notes.md").write_bytes(b"caf\xe9 \r\n")
    made_project.dvc("exp", "run", "--temp", "--set-param", "train.dropout=0.3", "--set-param", "train.patience=3")
    network.write_text(committed, "utf-8")
    files.write_bytes(made_project.root / "params.yaml", b"broken: since")
    before = state(made_project)
    done = made_project.stage("reproduce", "batch 128 · dropout 0.3 · patience 3")
    assert "reproduced bit for bit" in done.stdout
    assert "Running stage 'train'" in done.stderr
    assert state(made_project) == before

"""Evidence is read from the workspace or from git alone, whole or not at all; a base is found, or its lack is said."""

import json
import subprocess

import numpy as np
import pytest

from pipeline import evidence, files
from pipeline.console import UserError
from pipeline.evidence import IncomparableError


class Repository:
    """A git repository with the reports of one model after another."""

    def __init__(self, root):
        self.root = root
        self.commits = 0

    def git(self, *words):
        return subprocess.run(["git", *words], cwd=self.root, check=True, capture_output=True, text=True).stdout.strip()

    def commit(self, *names):
        self.git("add", "--all", *names)
        self.commits += 1  # two empty commits of one second would be one
        self.git("commit", "--quiet", "--allow-empty", "--message", f"Change {self.commits}")
        return self.git("rev-parse", "HEAD")

    def report(self, model, predictions=(0, 1, 2, 3), **changes):
        reports = {
            "metrics": {"model_sha256": model, "test_accuracy": np.mean(np.equal(predictions, range(4)))},
            "train": {"model_sha256": model},
            "photos": {"model_sha256": model},
        }
        for name, content in reports.items():
            files.write_json(self.root / f"reports/{name}.json", content | changes.get(name, {}))
        rows = [
            {"index": index, "label": index, "prediction": prediction, "probability": 0.9}
            for index, prediction in enumerate(predictions)
        ]
        files.write_csv(self.root / "reports/predictions.csv", rows, list(rows[0]))
        files.write_text(self.root / "params.yaml", "train:\n  augment: {shift: 1}\n  dropout: 0.2\n")


@pytest.fixture
def repository(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.chdir(tmp_path)
    made = Repository(tmp_path)
    made.git("init", "--quiet", "--initial-branch=main")
    made.git("config", "user.name", "Test")
    made.git("config", "user.email", "test@example.org")
    return made


def test_a_revision_is_read_from_git_alone(repository):
    repository.report("first", predictions=(0, 1, 2, 4))
    first = repository.commit()
    repository.report("second")
    assert evidence.of_workspace().metrics["model_sha256"] == "second"
    side = evidence.of_revision("main")
    assert side.name == f"main ({first[:10]})"
    assert side.predictions.tolist() == [0, 1, 2, 4]
    assert side.is_correct.tolist() == [True, True, True, False]
    assert side.params == {"train.augment.shift": 1, "train.dropout": 0.2}
    assert not list(side.mismatches())


def test_a_project_in_a_folder_of_a_repository_finds_its_own_reports(repository, monkeypatch):
    inner = Repository(repository.root / "digits")
    inner.root.mkdir()
    monkeypatch.chdir(inner.root)
    inner.report("inner")
    repository.commit()
    assert evidence.of_revision("HEAD").metrics["model_sha256"] == "inner"


@pytest.mark.parametrize("revision", ["elsewhere", "--all", ""])
def test_what_is_no_revision_is_a_users_mistake(repository, revision):
    repository.commit()
    with pytest.raises(UserError, match="expected a revision of this git repository") as caught:
        evidence.of_revision(revision)
    assert caught.value.status == 2


@pytest.mark.parametrize("path", ["metrics.json", "train.json", "photos.json", "predictions.csv"])
def test_a_missing_report_is_named_and_nothing_can_be_compared(repository, path):
    repository.report("only")
    (repository.root / "reports" / path).unlink()
    with pytest.raises(IncomparableError, match=rf"the workspace has no reports/{path}; `dvc repro`") as caught:
        evidence.of_workspace()
    assert caught.value.status == 4


@pytest.mark.parametrize(
    ("path", "content", "said"),
    [
        ("metrics.json", '{"test_accuracy": NaN}', "reports/metrics.json holds NaN"),
        ("metrics.json", '{"test_accuracy": -Infinity}', "reports/metrics.json holds -Infinity"),
        ("metrics.json", '{"test_acc', "reports/metrics.json cannot be read"),
        ("photos.json", "[1]", "reports/photos.json cannot be read"),
        ("predictions.csv", "index,label,prediction,probability\n", "holds no answers"),
        ("predictions.csv", "index,label,prediction,probability\n0,1,1,nan\n", "holds NaN"),
        ("predictions.csv", "index,label,prediction,probability\n0,1,x,0.9\n", "cannot be read"),
        ("predictions.csv", "index,label,prediction,probability\n0,1,-1,0.9\n", "cannot be read"),
        ("predictions.csv", "index,label,prediction,probability\n0,1\n", "cannot be read"),
        ("predictions.csv", "index,label\n0,1\n", "cannot be read"),
        ("predictions.csv", "\udcff", "cannot be read"),
    ],
)
def test_unreadable_reports_cannot_be_compared(repository, path, content, said):
    repository.report("only")
    (repository.root / "reports" / path).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(IncomparableError, match=said):
        evidence.of_workspace()


def test_a_report_of_another_model_is_a_mismatch(repository):
    repository.report("mine", train={"model_sha256": "other"})
    assert list(evidence.of_workspace().mismatches()) == [
        "reports/train.json is of model other, reports/metrics.json of mine"
    ]


def test_reports_of_a_model_that_is_not_the_one_in_models_stray(repository):
    files.write_bytes(files.MODELS / "digits.keras", b"weights")
    model = files.sha256(files.MODELS / "digits.keras")
    repository.report("mine")
    strays = list(evidence.of_workspace().mismatches())
    assert strays == [f"models/digits.keras is of model {model[:12]}, reports/metrics.json of mine"]
    repository.report(model)
    assert not list(evidence.of_workspace().mismatches())


def test_predictions_of_another_accuracy_stray(repository):
    repository.report("mine", predictions=(0, 1, 2, 9), metrics={"test_accuracy": 1.0})
    assert list(evidence.of_workspace().mismatches()) == [
        "reports/predictions.csv has another accuracy than reports/metrics.json"
    ]


def test_metrics_that_name_no_model_stray(repository):
    repository.report("mine")
    path = repository.root / "reports/metrics.json"
    path.write_text(json.dumps({"test_accuracy": 1.0}))
    assert list(evidence.of_workspace().mismatches()) == ["reports/metrics.json names no model"]


def test_the_base_of_a_branch_is_its_merge_base_with_main(repository):
    fork = repository.commit()
    repository.git("switch", "--quiet", "--create", "change")
    repository.commit()
    change = repository.commit()
    repository.git("switch", "--quiet", "main")
    repository.commit()
    assert evidence.default_base(change) == fork
    repository.git("switch", "--quiet", "change")
    assert evidence.default_base() == fork


def test_the_base_of_changes_on_main_is_the_last_commit_and_of_none_the_one_before(repository):
    repository.report("one")
    first = repository.commit()
    repository.report("two")
    assert evidence.default_base() == first
    second = repository.commit()
    assert evidence.default_base() == first
    repository.report("three")
    assert evidence.default_base() == second


def test_files_that_git_does_not_know_are_no_change(repository):
    first = repository.commit()
    repository.commit()
    (repository.root / "notes.txt").write_text("to do")
    assert evidence.default_base() == first


def test_a_clone_for_a_pull_request_has_only_origins_main(repository):
    fork = repository.commit()
    repository.git("update-ref", "refs/remotes/origin/main", fork)
    repository.git("switch", "--quiet", "--create", "change")
    repository.git("branch", "--delete", "--force", "main")
    repository.commit()
    assert evidence.default_base() == fork


def test_a_first_commit_has_no_baseline(repository):
    repository.commit()
    with pytest.raises(IncomparableError, match="no baseline: there is no commit before this one"):
        evidence.default_base()


def test_a_history_without_main_asks_for_a_base(repository):
    repository.git("switch", "--quiet", "--orphan", "trunk")
    repository.commit()
    with pytest.raises(IncomparableError, match="name a base: --against REVISION"):
        evidence.default_base()


def test_histories_without_a_common_commit_ask_for_a_base(repository):
    repository.commit()
    repository.git("switch", "--quiet", "--orphan", "other")
    repository.commit()
    with pytest.raises(IncomparableError, match="no common commit with main here"):
        evidence.default_base()


def test_a_folder_without_git_has_no_base(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(IncomparableError, match="name a base"):
        evidence.default_base()


def test_a_main_that_was_not_pulled_gives_no_older_base_than_origin_s(repository):
    repository.commit()
    pulled = repository.commit()
    repository.git("update-ref", "refs/remotes/origin/main", pulled)
    repository.git("switch", "--quiet", "--create", "change")
    repository.git("branch", "--force", "main", "HEAD~1")
    repository.commit()
    assert evidence.default_base() == pulled


def test_a_main_that_was_not_pushed_gives_its_own_newer_base(repository):
    repository.git("update-ref", "refs/remotes/origin/main", repository.commit())
    unpushed = repository.commit()
    repository.git("switch", "--quiet", "--create", "change")
    repository.commit()
    assert evidence.default_base() == unpushed


@pytest.mark.parametrize("branch", ["main", "change"])
def test_a_shallow_clone_asks_for_the_whole_history(repository, monkeypatch, branch):
    repository.commit()
    repository.git("branch", "change")
    repository.commit()
    words = ["clone", "--quiet", "--depth=1", "--no-single-branch", "--branch", branch]
    repository.git(*words, f"file://{repository.root}", "shallow")
    monkeypatch.chdir(repository.root / "shallow")
    with pytest.raises(IncomparableError, match=r"fetch the whole history \(this clone is shallow: `git fetch --unsh"):
        evidence.default_base()


def test_a_clone_of_another_user_is_git_s_reason_with_its_remedy(repository, monkeypatch):
    repository.commit()
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    for ask in (evidence.default_base, lambda: evidence.of_revision("HEAD")):
        with pytest.raises(UserError, match=r"dubious ownership.* git config --global --add safe.directory") as caught:
            ask()
        assert not isinstance(caught.value, IncomparableError)

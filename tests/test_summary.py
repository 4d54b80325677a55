"""The summary says what there is, and nothing of what there is not."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from pipeline import files, summary


def test_without_reports_the_summary_lists_commands(tmp_path):
    lines = summary.summarize(tmp_path)
    assert any("make ui" in line for line in lines)
    assert not any("accuracy" in line for line in lines)


def test_each_report_is_one_line(tmp_path):
    files.write_json(
        tmp_path / "metrics.json",
        {"test_accuracy": 0.99412, "test_accuracy_low": 0.9925, "test_accuracy_high": 0.9954, "test_loss": 0.0182},
    )
    files.write_bytes(tmp_path / "mistakes.png", b"")
    lines = summary.summarize(tmp_path)
    assert "test accuracy 0.9941 (95%: 0.9925 to 0.9954), loss 0.0182" in lines
    assert f"See {tmp_path / 'mistakes.png'} (the mistakes)" in lines


@pytest.mark.parametrize("value", [None, "", "0.99", [], {}])
@pytest.mark.parametrize("report", summary.FACTS)
def test_a_figure_that_a_report_lacks_is_left_out(tmp_path, report, value):
    names = re.findall(r"{(\w+)", summary.FACTS[report])
    for kept in (names[1:], names, []):  # without the first figure, with a wrong first one, with none at all
        files.write_json(tmp_path / report, dict.fromkeys(kept, value))
        lines = summary.summarize(tmp_path)
        assert lines[-len(summary.NEXT) :] == summary.summarize(tmp_path / "nothing")[-len(summary.NEXT) :]
        assert not any(word in "".join(lines) for word in ("accuracy", "0.99", "epochs", "images"))


def test_photographs_without_labels_are_counted(tmp_path):
    files.write_json(tmp_path / "photos.json", {"photos_read": 3, "photos_scored": 0, "photos_unsure": 1})
    assert "3 pictures read, none with a label in labels.csv" in summary.summarize(tmp_path)


@pytest.fixture
def committed(tmp_path, monkeypatch):
    """Return the committed metrics of a folder with git, whose commit holds them and dvc.lock."""
    monkeypatch.chdir(tmp_path)
    lock(model="committed")
    metrics = {"test_accuracy": 0.99, "test_accuracy_low": 0.98, "test_accuracy_high": 0.995}
    files.write_json(tmp_path / "reports" / "metrics.json", metrics)
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "Make"]):
        subprocess.run(["git", "-c", "user.name=T", "-c", "user.email=t@example.org", *words], check=True)
    return metrics


def lock(*, model, epochs=5, **more):
    """Write a dvc.lock whose stage train made ``model``."""
    train = {
        "cmd": "python -m pipeline.train",
        "deps": [],
        "params": {"train.epochs": epochs},
        "outs": [{"path": "models/digits.keras", "md5": model, **more}],
    }
    Path("dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": {"train": train}}))


@pytest.mark.parametrize(("accuracy", "words"), [(0.991, "within"), (0.99, "within"), (0.97, "outside")])
def test_other_bits_than_the_committed_ones_are_explained_in_a_line(committed, accuracy, words):
    lock(model="other")
    files.write_json(files.REPORTS / "metrics.json", committed | {"test_accuracy": accuracy})
    note = summary.explain_difference()
    assert f"test accuracy {accuracy:.4f}, {words} the committed interval (0.9800 to 0.9950)" in note
    assert "other bits than the committed ones, in train: " in note
    assert "git checkout dvc.lock models reports" in note
    assert "\n" not in note


def test_what_edited_parameters_changed_needs_no_explanation(committed):
    files.write_json(files.REPORTS / "metrics.json", committed | {"test_accuracy": 0.97})
    lock(model="other", epochs=1)
    assert summary.explain_difference() == ""


@pytest.mark.usefixtures("committed")
def test_a_file_system_on_which_all_files_are_executable_makes_no_other_bits():
    lock(model="committed", isexec=True)
    assert summary.explain_difference() == ""


@pytest.mark.usefixtures("committed")
def test_the_committed_bits_need_no_explanation():
    assert summary.explain_difference() == ""


def test_without_git_nothing_is_explained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert summary.explain_difference() == ""

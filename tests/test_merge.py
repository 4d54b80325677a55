"""Two branches that both trained can be merged as DVC's guide says: settle params.yaml, remove dvc.lock, repro."""

import subprocess

import pytest
from conftest import Project, environment

from pipeline import files

MODEL = ("models/calibration.json", "models/digits.tflite")
REPORTS = {"reports/train.json", "reports/metrics.json", "reports/history.csv"}
CONFLICTING = {"params.yaml", "dvc.lock", *MODEL, *REPORTS}
pytestmark = pytest.mark.slow


def train_elsewhere(project: Project, branch: str) -> None:
    """Commit on a new branch what a training leaves in git: other parameters, and other figures in lock and reports."""
    project.git("switch", "--quiet", "--create", branch, "main")
    project.set(**{"train.dropout": float(f"0.{branch}"), "train.epochs": 1})
    reports = (project.root / "reports").glob("*.[cj]s*")
    for path in (*reports, project.root / "dvc.lock"):
        files.write_text(path, path.read_text("utf-8").replace("0.", f"0.{branch}"))
    for name in MODEL:  # at opposite ends, which git would merge as text into a model of both
        content, change = (project.root / name).read_bytes(), f"{branch}\n".encode()
        files.write_bytes(project.root / name, change + content if branch == "1" else content + change)
    project.git("commit", "--quiet", "--all", "--message", branch)


def test_a_merge_of_two_trained_branches_is_finished_by_repro(made_project: Project) -> None:
    project = made_project
    train_elsewhere(project, "1")
    train_elsewhere(project, "3")
    merge = ["git", "merge", "1"]
    merged = subprocess.run(merge, cwd=project.root, env=environment(), capture_output=True, text=True)
    assert "CONFLICT" in merged.stdout
    assert set(project.git("diff", "--name-only", "--diff-filter=U").split()) >= CONFLICTING
    ours = [project.git("rev-parse", f"HEAD:{name}") for name in MODEL]
    assert [project.git("hash-object", name) for name in MODEL] == ours
    project.git("checkout", "--ours", "params.yaml")
    (project.root / "dvc.lock").unlink()
    project.dvc("repro")
    assert project.json("metrics.json")["model_sha256"] == project.json("train.json")["model_sha256"]
    project.git("add", "--all")
    project.git("commit", "--quiet", "--message", "Merge")
    assert project.dvc("status", "--json") == "{}\n"

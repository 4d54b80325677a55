"""The doctor finds what is no longer true in a real store, and mends what can be mended."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Project

from pipeline import config, doctor, files, tracking
from pipeline.learning import model
from pipeline.store import Store, connect, open_store
from pipeline.tracking import Run


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a workspace with a store in which one run trained a model."""
    folder = tmp_path_factory.mktemp("original")
    store = open_in(folder)
    model.write(dict.fromkeys((model.ARCHIVE, model.NETWORK, model.CALIBRATION), b"model"), folder / "models")
    with tracking.training(store, config.load(), "d" * 64) as run:
        run.log_trained({"model_sha256": "a" * 64}, folder / "models")
    return folder


def open_in(folder: Path) -> Store:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_ROOT", str(folder))
        return open_store()


@pytest.fixture
def database(original: Path, tmp_path: Path) -> Path:
    """Return the file of a store that was moved: what it is a copy of is somewhere else."""
    shutil.copytree(original / "mlruns", tmp_path / "here" / "mlruns")
    return tmp_path / "here" / "mlruns" / "mlflow.db"


def the_run(database: Path) -> Run:
    store = connect(f"sqlite:///{database}")
    return Run(store, store.runs("tags.`model.sha256` != ''")[0].info.run_id)


def words(findings) -> list[str]:
    return [finding.words for finding in findings]


def mend(findings) -> None:
    for finding in findings:
        assert doctor.treat(finding, fix=True)


def test_a_store_that_stayed_where_it_was_made_is_well(original: Path) -> None:
    database = original / "mlruns" / "mlflow.db"
    assert words(doctor.moved(database)) == words(doctor.orphans(database)) == []


def test_examining_a_store_does_not_change_it(database: Path) -> None:
    before = database.read_bytes()
    assert words(doctor.moved(database)) == words(doctor.moved(database)) != []
    list(doctor.orphans(database))
    assert database.read_bytes() == before


def test_a_moved_store_finds_its_own_artifacts_again(database: Path) -> None:
    assert "/original" in the_run(database).client.get_run(the_run(database).run_id).info.artifact_uri
    mend(doctor.moved(database))
    run = the_run(database)
    logged = run.client.get_logged_model(run.find_model() or "")
    for location in (run.client.get_run(run.run_id).info.artifact_uri, logged.artifact_location):
        assert location.startswith(f"{database.parent.as_uri()}/artifacts/")
    assert b"batch_size" in (run.read("params.yaml") or b"")
    assert words(doctor.moved(database)) == []


def test_a_copy_writes_nothing_into_the_original(database: Path, original: Path) -> None:
    before = sorted((original / "mlruns").rglob("*"))
    with tracking.training(open_store(f"sqlite:///{database}"), config.load(), "d" * 64) as run:
        run.log_bytes(b"new", "new.txt")
    assert (database.parent / "artifacts" / run.run_id / "artifacts" / "new.txt").read_bytes() == b"new"
    assert sorted((original / "mlruns").rglob("*")) == before


def test_artifacts_without_a_run_are_named_and_not_deleted(database: Path) -> None:
    for name in ("0" * 32, "models/m-0"):
        files.write_text(database.parent / "artifacts" / name / "artifacts" / "file", "")
    found = words(doctor.orphans(database))
    assert [("0" * 32 in found[0], "of no run" in found[0]), ("m-0" in found[1], "of no model" in found[1])] == [
        (True, True)
    ] * 2
    assert not any(doctor.treat(finding, fix=True) for finding in doctor.orphans(database))
    assert (database.parent / "artifacts" / "models" / "m-0").exists()


def test_runs_and_models_whose_artifacts_are_gone_are_named(database: Path) -> None:
    run = the_run(database)
    logged = run.find_model() or ""
    shutil.rmtree(database.parent / "artifacts" / run.run_id)
    shutil.rmtree(database.parent / "artifacts" / "models" / logged)
    found = words(doctor.orphans(database))
    assert [words.split(",")[0] for words in found] == [
        f"gone: the artifacts of run {run.run_id}",
        f"gone: the artifacts of model {logged}",
    ]


def test_a_deleted_run_is_neither_gone_nor_are_its_artifacts_stray(database: Path) -> None:
    run = the_run(database)
    run.client.delete_run(run.run_id)
    assert words(doctor.orphans(database)) == []
    shutil.rmtree(database.parent / "artifacts" / run.run_id)
    assert words(doctor.orphans(database)) == []


def test_a_run_whose_process_died_is_closed_without_fix(database: Path) -> None:
    store = open_store(f"sqlite:///{database}")
    run = tracking.start(store, config.load(), {"data_sha256": "d" * 64})
    assert words(doctor.stale(store)) == []
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    run.tag({"process.pid": process.pid, "process.started": "0"})
    (finding,) = doctor.stale(store)
    assert finding.words == f"stale: run {run.run_id} is RUNNING, but its process {process.pid} is dead"
    assert doctor.treat(finding, fix=False)
    assert store.client.get_run(run.run_id).info.status == "KILLED"


def test_a_deleted_experiment_is_found_and_restored_with_its_runs(database: Path) -> None:
    run = the_run(database)
    run.client.delete_experiment(run.store.experiment_id)
    (finding,) = doctor.deleted(connect(f"sqlite:///{database}"))
    assert finding.words == "deleted: the experiment digits, and with it all its runs"
    assert not doctor.treat(finding, fix=False)
    mend([finding])
    assert the_run(database).run_id == run.run_id


@pytest.mark.slow
def test_a_moved_project_and_an_empty_store_are_found_and_mended(made_project: Project) -> None:
    said = made_project.stage("doctor", status=1).stdout
    assert "moved: the store's locations are those of file:///" in said
    assert "--fix mends it" in said
    assert "1 left" in said
    assert "all is well" in made_project.stage("doctor", "--fix").stdout

    shutil.rmtree(made_project.root / "mlruns")
    assert "missing: the store has no run of model" in made_project.stage("doctor", status=1).stdout
    assert not (made_project.root / "mlruns").exists()  # looking makes nothing
    assert "all is well" in made_project.stage("doctor", "--fix").stdout
    store = open_store(f"sqlite:///{made_project.root}/mlruns/mlflow.db")
    (run,) = store.runs("")
    metrics = made_project.json("metrics.json")
    assert run.data.tags["restored"] == "true"
    assert run.data.tags["model.sha256"] == made_project.json("train.json")["model_sha256"]
    assert run.data.metrics["test_accuracy"] == metrics["test_accuracy"]
    kept = Run(store, run.info.run_id).read("reports/metrics.json")
    assert kept == (made_project.root / "reports" / "metrics.json").read_bytes()

"""Versions and aliases in a real registry: what passes is offered, promoted, and taken back in one command."""

from pathlib import Path

import pytest

from pipeline import config, files, registry, tracking
from pipeline.console import UserError
from pipeline.learning import model
from pipeline.registry import CHALLENGER, CHAMPION, PREVIOUS
from pipeline.store import Store, open_store
from pipeline.tracking import Run

DATA = "d" * 64
PASS = {"verdict": "pass", "base": "4d98a24"}


@pytest.fixture
def store(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Return a store of its own."""
    files.write_bytes(tmp_path / "mlruns" / "mlflow.db", empty_store.read_bytes())
    with monkeypatch.context() as patch:
        patch.setenv("DVC_ROOT", str(tmp_path))
        return open_store()


def trained(store: Store, models: Path, content: bytes) -> Run:
    """Return the run of a model of these bytes, which lie in ``models``."""
    model.write(dict.fromkeys((model.ARCHIVE, model.NETWORK, model.CALIBRATION), content), models)
    with tracking.training(store, config.load(), DATA) as run:
        run.log_trained({"model_sha256": files.sha256(models / model.ARCHIVE)}, models)
    return run


def number(store: Store, alias: str) -> str | None:
    version = registry.find(store, alias)
    return version.number if version else None


def aliases(store: Store) -> tuple[str | None, ...]:
    return tuple(number(store, alias) for alias in (CHALLENGER, CHAMPION, PREVIOUS))


@pytest.fixture
def promoted(store: Store, tmp_path: Path) -> Store:
    """Return a store in which version 2 is champion and version 1 was."""
    for content in (b"first", b"second"):
        registry.challenge(store, trained(store, tmp_path / "models", content), tmp_path / "models")
        registry.promote(store, PASS)
    return store


def test_a_model_that_passes_becomes_the_challenger_and_nothing_else(store: Store, tmp_path: Path) -> None:
    run = trained(store, tmp_path / "models", b"first")
    version = registry.challenge(store, run, tmp_path / "models")
    assert aliases(store) == (version.number, None, None) == ("1", None, None)
    assert version.run_id == run.run_id
    assert version.tags["model.sha256"] == files.sha256(tmp_path / "models" / model.ARCHIVE)


def test_the_same_model_is_registered_once(store: Store, tmp_path: Path) -> None:
    run = trained(store, tmp_path / "models", b"first")
    for _ in range(2):
        assert registry.challenge(store, run, tmp_path / "models").number == "1"


def test_code_that_reads_photographs_otherwise_makes_a_new_version(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(store, tmp_path / "models", b"first")
    registry.challenge(store, run, tmp_path / "models")
    edited = tmp_path / "serving.py"
    files.write_text(edited, (files.ROOT / "pipeline" / "serving.py").read_text() + "\n# read otherwise\n")
    monkeypatch.setitem(tracking.SERVED, "serving.py", edited)
    assert registry.challenge(store, run, tmp_path / "models").number == "2"


def test_a_model_is_not_registered_for_the_run_of_another(store: Store, tmp_path: Path) -> None:
    run = trained(store, tmp_path / "models", b"first")
    trained(store, tmp_path / "models", b"second")
    with pytest.raises(UserError, match="not the model of run"):
        registry.challenge(store, run, tmp_path / "models")


def test_the_first_champion_has_no_previous(store: Store, tmp_path: Path) -> None:
    registry.challenge(store, trained(store, tmp_path / "models", b"first"), tmp_path / "models")
    registry.promote(store, PASS)
    assert aliases(store) == ("1", "1", None)


def test_the_old_champion_is_kept_as_previous(promoted: Store) -> None:
    assert aliases(promoted) == ("2", "2", "1")


def test_promoting_twice_does_not_forget_the_previous_champion(promoted: Store) -> None:
    registry.promote(promoted, PASS)
    assert aliases(promoted) == ("2", "2", "1")


def test_a_champion_has_tags_of_who_promoted_it_and_why(promoted: Store) -> None:
    champion = registry.need(promoted, CHAMPION)
    run = promoted.client.get_run(champion.run_id)
    assert champion.tags["gate.verdict"] == "pass"
    assert champion.tags["gate.base"] == "4d98a24"
    assert champion.tags["git.commit"] == run.data.tags["git.commit"]
    assert champion.tags["promoted.over"] == "1"
    assert champion.tags["promoted.by"]
    assert champion.tags["promoted.at"].endswith("+00:00")


def test_a_rollback_is_one_call_and_a_second_one_undoes_it(promoted: Store) -> None:
    assert registry.rollback(promoted).number == "1"
    assert aliases(promoted) == ("2", "1", "2")
    assert "rolled_back.at" in registry.need(promoted, "2").tags
    assert registry.rollback(promoted).number == "2"


def test_a_missing_version_is_a_one_line_error(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="models:/digits@challenger: no such version"):
        registry.promote(store, PASS)
    registry.challenge(store, trained(store, tmp_path / "models", b"first"), tmp_path / "models")
    registry.promote(store, PASS)
    with pytest.raises(UserError, match="models:/digits@previous: no version was champion before"):
        registry.rollback(store)


def test_the_champions_reports_are_read_by_the_paths_they_have_here(promoted: Store, tmp_path: Path) -> None:
    champion = registry.need(promoted, CHAMPION)
    report = tmp_path / "metrics.json"
    files.write_json(report, {"test_accuracy": 0.99})
    Run(promoted, champion.run_id).log_files([report], "reports")
    read = registry.reports_of(promoted, champion)
    assert read("reports/metrics.json") == report.read_bytes()
    assert b"batch_size" in (read("params.yaml") or b"")
    assert read("reports/photos.json") is None

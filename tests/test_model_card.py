"""A line and a card say what is known of the model; where its files are not of one training, the line says that."""

import subprocess

import pytest

from pipeline import files, model_card

MODEL = "a" * 64
PARAMS = {"train.dropout": "0.05", "train.batch_size": "128", "train.threads": "2"}
TAGS = {"data.sha256": "d" * 64, "model.sha256": "m" * 64, "git.commit": "c" * 40}


def git(*words):
    command = ["git", "-c", "user.name=T", "-c", "user.email=t@example.org", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def commit(tmp_path, monkeypatch):
    """Return the commit that made a model, in a repository with a later one, as the current folder."""
    monkeypatch.chdir(tmp_path)
    for path in model_card.KEPT.values():
        files.write_bytes(path, path.name.encode())
    digests = {name: files.sha256(path) for name, path in model_card.KEPT.items()}
    files.write_json(model_card.MADE, {"model_sha256": MODEL, **digests})
    files.write_json(model_card.METRICS, {"model_sha256": MODEL, "test_accuracy": 0.99})
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "Train")
    made = git("rev-parse", "HEAD")
    git("commit", "--quiet", "--allow-empty", "--message", "Explain")
    return made


def test_a_model_is_named_by_digest_accuracy_and_the_commit_that_made_it(commit):
    assert model_card.line() == f"model aaaaaaaaaaaa, test accuracy 0.99, commit {commit[:12]}"


@pytest.mark.usefixtures("commit")
def test_a_model_that_was_trained_since_has_no_commit():
    path = model_card.KEPT["network_sha256"]
    files.write_bytes(path, b"trained since")
    made = files.read_json(model_card.MADE) | {"network_sha256": files.sha256(path)}
    files.write_json(model_card.MADE, made)
    assert model_card.line() == "model aaaaaaaaaaaa, test accuracy 0.99, not committed"


@pytest.mark.usefixtures("commit")
def test_without_git_a_model_has_no_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    (tmp_path / ".git").rename(tmp_path / "gone")
    assert model_card.line() == (
        f"model aaaaaaaaaaaa, test accuracy 0.99, commit unknown ({tmp_path} is not a git repository)"
    )


@pytest.mark.usefixtures("commit")
@pytest.mark.parametrize("path", [*model_card.KEPT.values(), model_card.METRICS], ids=str)
def test_a_file_of_another_training_is_named(path):
    files.write_text(path, '{"model_sha256": "b"}')
    assert model_card.line() == (
        f"model: unknown, {path}: not of the training in {model_card.MADE}; `dvc repro` makes them agree"
    )


@pytest.mark.usefixtures("commit")
@pytest.mark.parametrize("path", [model_card.MADE, model_card.METRICS], ids=str)
@pytest.mark.parametrize("content", ["<<<<<<< HEAD", "{}", "[]"])
def test_a_report_that_says_nothing_is_named(path, content):
    files.write_text(path, content)
    assert model_card.line().startswith(f"model: unknown, {path}: not as a stage wrote it")
    path.unlink()
    assert model_card.line() == f"model: unknown, there is no {path}; `dvc repro` makes it"


def test_the_card_names_what_the_model_was_made_of() -> None:
    card = model_card.card(PARAMS, {}, TAGS)
    made = f"data `{'d' * 12}`, model `{'m' * 12}`, commit `{'c' * 12}`."
    assert f"Trained with batch_size 128, dropout 0.05; {made}" in card.splitlines()


@pytest.mark.parametrize("missing", TAGS)
def test_the_card_leaves_out_what_is_not_known(missing: str) -> None:
    card = model_card.card(PARAMS, {}, {name: value for name, value in TAGS.items() if name != missing})
    assert f"{model_card.DIGESTS[missing]} `" not in card
    assert "``" not in card


def test_the_card_lists_only_metrics_of_the_run() -> None:
    card = model_card.card(PARAMS, {"test_accuracy": 0.99461, "loss": 0.1}, TAGS)
    assert "| accuracy on the test images | 0.9946 |" in card.splitlines()
    assert "calibration" not in card

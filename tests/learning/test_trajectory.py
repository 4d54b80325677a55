"""The epochs of a trajectory outlive the process that trains them, and stopping is a function of the history alone."""

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from pipeline import config, files, preprocess
from pipeline.console import UserError
from pipeline.learning import trajectory
from pipeline.learning.trajectory import CheckpointFolder, Digits, Epoch

LOSSES = [0.9, 0.5, 0.6, 0.4, 0.45, 0.41, 0.4, 0.39]


@pytest.fixture
def train() -> config.Train:
    params = config.load().train
    return params.model_copy(update={"epochs": 4, "batch_size": 64, "patience": 3, "threads": 1})


@pytest.fixture(scope="session")
def digits(raw_mnist: Path) -> Digits:
    images, labels = preprocess.read_pair(raw_mnist, "t10k")
    return Digits(images[:640], labels[:640], images[700:900], labels[700:900], sha256="few")


def history(losses: list[float]) -> list[dict[str, float]]:
    return [{"val_loss": loss, "val_accuracy": 1 - loss} for loss in losses]


def epoch(number: int) -> Epoch:
    return Epoch(number, {"val_loss": 1 / number}, {"average.00": np.full((2, 3), number, np.float32)})


def bits(epoch: Epoch) -> str:
    return hashlib.sha256(b"".join(epoch.state[name].tobytes() for name in sorted(epoch.state))).hexdigest()


def test_an_epoch_comes_back_from_its_bytes() -> None:
    back = Epoch.from_bytes(epoch(3).to_bytes())
    assert (back.number, back.metrics) == (3, {"val_loss": 1 / 3})
    np.testing.assert_array_equal(back.weights[0], epoch(3).weights[0])


@pytest.mark.parametrize("length", [0, 20, 99, -1])
def test_truncated_bytes_are_no_epoch(length: int) -> None:
    with pytest.raises(ValueError, match="truncated or altered"):
        Epoch.from_bytes(epoch(3).to_bytes()[:length])


def test_altered_bytes_are_no_epoch() -> None:
    content = bytearray(epoch(3).to_bytes())
    content[99] ^= 1
    with pytest.raises(ValueError, match="truncated or altered"):
        Epoch.from_bytes(bytes(content))


def test_a_run_ends_patience_epochs_after_its_best(train: config.Train) -> None:
    ends = {}
    for patience in (1, 2, 3, 5):
        patient = train.model_copy(update={"patience": patience, "epochs": 100})
        ends[patience] = next(
            n for n in range(1, 99) if trajectory.is_finished(history((LOSSES + [1] * 99)[:n]), patient)
        )
    assert ends == {1: 3, 2: 6, 3: 7, 5: 13}


def test_a_run_ends_at_its_last_epoch(train: config.Train) -> None:
    falling = history([0.9, 0.8, 0.7, 0.6])
    assert [trajectory.is_finished(falling[:n], train) for n in range(5)] == [False, False, False, False, True]


def test_of_equal_epochs_the_first_is_the_best() -> None:
    assert trajectory.best_epoch(history([0.5, 0.4, 0.4, 0.6]), "val_loss") == 2
    assert trajectory.best_epoch(history([0.5, 0.4, 0.4, 0.6]), "val_accuracy") == 2


def test_the_summary_is_that_of_the_best_epoch(train: config.Train) -> None:
    assert trajectory.summary(history([0.5, 0.25, 0.4]), train) == {
        "epochs_run": 3,
        "best_epoch": 2,
        "stopped_early": True,
        "best_val_accuracy": 0.75,
        "best_val_loss": 0.25,
    }


def test_patience_what_is_monitored_and_threads_do_not_change_the_trajectory(train: config.Train) -> None:
    other = train.model_copy(update={"patience": 9, "monitor": "val_accuracy", "threads": 8})
    assert trajectory.trajectory_key(train, "data") == trajectory.trajectory_key(other, "data")


def test_more_epochs_are_the_same_trajectory_only_at_a_constant_rate(train: config.Train) -> None:
    for schedule, same in (("constant", True), ("cosine", False)):
        short = train.model_copy(update={"schedule": schedule})
        long = short.model_copy(update={"epochs": 9})
        assert (trajectory.trajectory_key(short, "data") == trajectory.trajectory_key(long, "data")) is same


@pytest.mark.parametrize(
    "change",
    [{"batch_size": 65}, {"dropout": 0.3}, {"seed": 2}, {"average": 0.0}, {"corrections": 0.1}, {"device": "gpu"}],
)
def test_every_other_parameter_makes_another_trajectory(train: config.Train, change: dict[str, object]) -> None:
    assert trajectory.trajectory_key(train, "data") != trajectory.trajectory_key(
        train.model_copy(update=change), "data"
    )
    assert trajectory.trajectory_key(train, "data") != trajectory.trajectory_key(train, "other data")


@pytest.mark.parametrize("package", ["tensorflow", "keras", "numpy", "opencv-python-headless", "pillow", "matplotlib"])
def test_another_version_of_what_makes_the_bits_makes_another_trajectory(
    train: config.Train, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = trajectory.trajectory_key(train, "data")
    monkeypatch.setattr(trajectory, "version", lambda name: "0" if name == package else version(name))
    assert trajectory.trajectory_key(train, "data") != before


def corrected(digits: Digits, count: int = 7) -> Digits:
    """Return digits with corrections, each of which has a mark of its own in its first pixel."""
    fields = np.zeros((count, 28, 28), np.uint8)
    fields[:, 0, 0] = np.arange(1, count + 1)
    return replace(digits, corrected=(fields, np.arange(count).astype(np.uint8)))


def test_corrections_take_the_place_of_their_share_of_an_epoch(digits: Digits, train: config.Train) -> None:
    some = train.model_copy(update={"corrections": 0.1})
    images, labels = trajectory.with_corrections(corrected(digits), some, epoch=1)
    assert images.shape == digits.images.shape
    replaced = np.flatnonzero((images != digits.images).any(axis=(1, 2)))
    assert len(replaced) == 64
    assert sorted(np.bincount(images[replaced, 0, 0], minlength=8)[1:]) == [9] * 6 + [10]
    np.testing.assert_array_equal(labels[replaced], images[replaced, 0, 0] - 1)
    np.testing.assert_array_equal(np.delete(labels, replaced), np.delete(digits.labels, replaced))


def test_an_epoch_has_as_many_steps_with_corrections_as_without(digits: Digits, train: config.Train) -> None:
    sizes = {len(trajectory.epoch_data(corrected(digits), changed, 1)[1]) for changed in shares(train, 0.0, 0.1, 0.5)}
    assert len(sizes) == 1


def shares(train: config.Train, *values: float) -> list[config.Train]:
    return [train.model_copy(update={"corrections": value}) for value in values]


def test_of_more_corrections_than_their_share_other_ones_are_in_each_epoch(digits: Digits, train: config.Train) -> None:
    (some,) = shares(train, 0.1)
    many = corrected(digits, 200)
    first, again, second = (trajectory.with_corrections(many, some, epoch)[1] for epoch in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != second).any()


def test_without_their_share_corrections_change_nothing(digits: Digits, train: config.Train) -> None:
    (none,) = shares(train, 0.0)
    for plain, other in zip(
        *(trajectory.epoch_data(each, none, 1) for each in (digits, corrected(digits))), strict=True
    ):
        np.testing.assert_array_equal(plain, other)


def test_a_share_of_no_corrections_is_refused(digits: Digits, train: config.Train) -> None:
    (some,) = shares(train, 0.1)
    with pytest.raises(
        UserError, match=r"train\.corrections is 0\.1, but data/corrections has no digits to learn from"
    ):
        trajectory.epoch_data(digits, some, 1)


def test_corrections_are_part_of_the_digest_of_the_digits_where_there_are_any(tmp_path: Path) -> None:
    images, labels = np.zeros((3, 28, 28), np.uint8), np.zeros(3, np.uint8)
    for part in ("train", "validation"):
        files.write_array(tmp_path / f"{part}-images.npy", images)
        files.write_array(tmp_path / f"{part}-labels.npy", labels)
    files.write_json(tmp_path / "classes.json", ["0", "1"])
    digests = [trajectory.load_digits(tmp_path, tmp_path / "none").sha256]
    for count in (0, 1, 2):
        files.write_array(tmp_path / "kept/images.npy", images[:count])
        files.write_array(tmp_path / "kept/labels.npy", labels[:count])
        found = trajectory.load_digits(tmp_path, tmp_path / "kept")
        assert len(found.corrected[1]) == count
        digests.append(found.sha256)
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_a_trajectory_on_disk_is_not_trained_again(train: config.Train, tmp_path: Path) -> None:
    kept = CheckpointFolder(tmp_path)
    for number in range(1, 5):
        kept.write(epoch(number))
    nothing = Digits(*[np.empty(0, np.uint8)] * 4, sha256="")  # training on this would fail
    assert [each.number for each in trajectory.load_or_train(nothing, train, kept)] == [1, 2, 3, 4]


def test_a_truncated_checkpoint_is_ignored_with_a_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = CheckpointFolder(tmp_path)
    kept.write(epoch(1))
    kept.write(epoch(2))
    file = tmp_path / "0002.epoch"
    file.write_bytes(file.read_bytes()[:-7])
    assert [each.number for each in kept.read_all()] == [1]
    assert "0002.epoch: not usable as a checkpoint (truncated or altered)" in capsys.readouterr().err


def test_another_epoch_under_this_number_is_ignored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "0001.epoch").write_bytes(epoch(2).to_bytes())
    assert CheckpointFolder(tmp_path).read(1) is None
    assert "holds epoch 2" in capsys.readouterr().err


def used(root: Path, name: str, days_ago: float, megabytes: float = 0.001) -> Path:
    folder = root / name
    folder.mkdir()
    (folder / "0001.epoch").write_bytes(b"0" * int(megabytes * 1e6))
    then = folder.stat().st_mtime - days_ago * 86400
    os.utime(folder, (then, then))
    return folder


def test_old_trajectories_are_removed_and_young_ones_stay(tmp_path: Path) -> None:
    old, young = used(tmp_path, "old", 31), used(tmp_path, "young", 29)
    trajectory.prune(tmp_path, config.Checkpoints(max_mb=1, max_days=30), keep=tmp_path)
    assert (old.exists(), young.exists()) == (False, True)


def test_the_trajectories_used_longest_ago_are_removed_first(tmp_path: Path) -> None:
    for days in (3, 1, 2):
        used(tmp_path, f"{days}", days, megabytes=0.4)
    trajectory.prune(tmp_path, config.Checkpoints(max_mb=1, max_days=30), keep=tmp_path)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["1", "2"]


def test_a_trajectory_in_training_is_never_removed(tmp_path: Path) -> None:
    training, own = used(tmp_path, "training", 99), used(tmp_path, "own", 99)
    with FileLock(training / "lock"):
        trajectory.prune(tmp_path, config.Checkpoints(max_mb=1, max_days=30), keep=own)
    assert training.exists()
    assert own.exists()


def test_an_epoch_shows_every_digit_and_the_non_digits(train: config.Train, digits: Digits) -> None:
    images, labels = trajectory.epoch_data(digits, train.model_copy(update={"non_digits": 0.1}), epoch=1)
    assert images.shape == (704, 28, 28)
    np.testing.assert_array_equal(labels[:640], digits.labels)
    assert (labels[640:] == 10).all()


def test_the_data_of_epochs_differ_and_repeat_by_seed(train: config.Train, digits: Digits) -> None:
    first, again, second = (trajectory.epoch_data(digits, train, epoch=number)[0] for number in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != second).any()


@pytest.mark.slow
def test_a_resumed_training_ends_with_the_bits_of_an_unbroken_one(train: config.Train, digits: Digits) -> None:
    unbroken = list(trajectory.train_epochs(digits, train))
    resumed = list(trajectory.train_epochs(digits, train, after=Epoch.from_bytes(unbroken[1].to_bytes())))
    assert [bits(each) for each in resumed] == [bits(each) for each in unbroken[2:]]
    assert [each.metrics for each in resumed] == [each.metrics for each in unbroken[2:]]


@pytest.mark.slow
def test_a_training_resumes_at_the_rate_that_cosine_had(train: config.Train, digits: Digits) -> None:
    cosine = train.model_copy(update={"schedule": "cosine", "average": 0.0})
    unbroken = list(trajectory.train_epochs(digits, cosine))
    resumed = list(trajectory.train_epochs(digits, cosine, after=unbroken[2]))
    assert bits(resumed[-1]) == bits(unbroken[-1])


TRAINER = """
import sys
import numpy as np
from pathlib import Path
from pipeline import config
from pipeline.learning import trajectory
arrays = [np.load(Path(sys.argv[1], f"{n}.npy")) for n in range(4)]
train = config.Train.model_validate_json(sys.argv[3])
digits, kept = trajectory.Digits(*arrays, sha256=""), trajectory.CheckpointFolder(Path(sys.argv[2]))
for epoch in trajectory.load_or_train(digits, train, kept):
    print(epoch.metrics)
"""


@pytest.mark.slow
def test_two_processes_share_the_training_of_one_trajectory(
    train: config.Train, digits: Digits, tmp_path: Path
) -> None:
    for number, array in enumerate((digits.images, digits.labels, digits.val_images, digits.val_labels)):
        np.save(tmp_path / f"{number}.npy", array)
    command = [sys.executable, "-c", TRAINER, tmp_path, tmp_path / "kept", train.model_dump_json()]
    trainers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [trainer.communicate()[0] for trainer in trainers]
    assert said[0] == said[1]
    assert said[0].count("val_loss") == 4
    alone = list(trajectory.train_epochs(digits, train))
    assert [bits(each) for each in CheckpointFolder(tmp_path / "kept").read_all()] == [bits(each) for each in alone]


@pytest.mark.slow
def test_the_decision_is_that_of_keras_early_stopping(train: config.Train) -> None:
    from pipeline.learning.network import keras

    rng = np.random.default_rng(5)
    for patience in (1, 2, 4):
        losses = rng.random(60).round(2).tolist()
        theirs = keras.callbacks.EarlyStopping(monitor="val_loss", patience=patience)
        theirs.set_model(keras.Sequential([keras.layers.Dense(1)]))
        theirs.model.stop_training = False
        theirs.on_train_begin()
        for number, loss in enumerate(losses):
            theirs.on_epoch_end(number, {"val_loss": loss})
            if theirs.model.stop_training:
                break
        patient = train.model_copy(update={"patience": patience, "epochs": 100})
        ours = next(n for n in range(1, 61) if trajectory.is_finished(history(losses[:n]), patient))
        assert ours == theirs.stopped_epoch + 1
        assert trajectory.best_epoch(history(losses[:ours]), "val_loss") == theirs.best_epoch + 1

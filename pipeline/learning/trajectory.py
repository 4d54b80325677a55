"""A trajectory: the epochs that training parameters determine, resumable with the same bits; and when to stop.

Runs that differ only in patience share a trajectory and stop at different epochs of it: stopping is a pure function of
the history. The trajectory is a generator of epochs, keyed by all that determines it (data, code, parameters without
patience and threads, versions, kind of processor and GPU) and kept epoch by epoch on disk, so that a killed run resumes
after its last epoch, and a run with another patience trains nothing that was trained before.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from pipeline import files
from pipeline.config import DIGITS, Checkpoints, Train
from pipeline.console import UserError, in_background
from pipeline.learning import augmentation, environment, non_digits

CODE = (
    "augmentation.py",
    "environment.py",
    "handwriting.py",
    "network.py",
    "non_digits.py",
    "trajectory.py",
)  # what a trajectory's bits depend on, besides the packages
STOPPING = {"patience", "monitor"}  # parameters that decide when to stop, and nothing else
# TensorFlow and Keras train; NumPy, OpenCV and Pillow change digits and draw what is none, in Matplotlib's fonts.
PACKAGES = ("tensorflow", "keras", "numpy", "opencv-python-headless", "pillow", "matplotlib")
WITHOUT_EFFECT = STOPPING | {"threads"}  # parameters that change no bit of an epoch
Metrics = dict[str, float]
OnSteps = Callable[[int], object] | None
History = Sequence[Metrics]


@dataclass(frozen=True)
class Digits:
    """The images to learn from and those that decide: uint8 [n, 28, 28], labels uint8 [n]; and their digest.

    ``classes`` are the names of the labels 0, 1...; ``corrected`` are the images of corrections, and their labels.
    """

    images: np.ndarray
    labels: np.ndarray
    val_images: np.ndarray
    val_labels: np.ndarray
    sha256: str
    classes: tuple[str, ...] = DIGITS
    corrected: tuple[np.ndarray, np.ndarray] = (np.empty((0, 28, 28), np.uint8), np.empty(0, np.uint8))


def load_digits(folder: Path, corrections: Path = files.PREPARED_CORRECTIONS) -> Digits:
    """Read what `preprocess` and `prepare-corrections` wrote; the test digits stay unread."""
    names = [f"{part}-{kind}.npy" for part in ("train", "validation") for kind in ("images", "labels")]
    names.append("classes.json")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder / missing[0]}: expected prepared data; run `dvc repro preprocess`")
    arrays = [np.load(folder / name, allow_pickle=False) for name in names[:-1]]
    classes = tuple(files.read_json(folder / names[-1]))
    paths = [folder / name for name in names]
    extra = [path for path in (corrections / "images.npy", corrections / "labels.npy") if path.is_file()]
    corrected = tuple(np.load(path, allow_pickle=False) for path in extra)
    if len(corrected) < 2 or not len(corrected[1]):
        return Digits(arrays[0], arrays[1], arrays[2], arrays[3], files.digest_files(paths), classes)
    digest = files.digest_files([*paths, *extra])
    return Digits(arrays[0], arrays[1], arrays[2], arrays[3], digest, classes, (corrected[0], corrected[1]))


@dataclass(frozen=True)
class Epoch:
    """One epoch of a trajectory: its number from 1, its metrics, and all that the next one depends on."""

    number: int
    metrics: Metrics
    state: dict[str, np.ndarray]

    @property
    def weights(self) -> list[np.ndarray]:
        """The weights that the epoch is scored by, in the network's order."""
        return [self.state[name] for name in sorted(self.state) if name.startswith("average.")]

    def to_bytes(self) -> bytes:
        """Return the epoch as bytes that know when they are damaged."""
        body = io.BytesIO()
        about = json.dumps({"number": self.number, "metrics": self.metrics}).encode()
        np.savez(body, allow_pickle=False, about=np.frombuffer(about, np.uint8), **self.state)
        return hashlib.sha256(body.getvalue()).digest() + body.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> Epoch:
        """Return the epoch that ``to_bytes`` wrote; raise ``ValueError`` for anything else."""
        if hashlib.sha256(content[32:]).digest() != content[:32]:
            raise ValueError("truncated or altered")
        with np.load(io.BytesIO(content[32:]), allow_pickle=False) as arrays:
            state = {name: arrays[name] for name in arrays.files}
        about = json.loads(state.pop("about").tobytes())
        return cls(about["number"], about["metrics"], state)


def train_epochs(digits: Digits, train: Train, after: Epoch | None = None, on_steps: OnSteps = None) -> Iterator[Epoch]:
    """Train the epochs from ``after`` (or the start) to ``train.epochs``: pure, from digits and parameters to epochs.

    ``on_steps`` is called after every few steps with their number.
    """
    environment.isolate(train.device, train.instructions)
    from pipeline.learning.network import Trainer  # which takes seconds: only who trains waits for it

    trainer = Trainer(train, steps_per_epoch(train, len(digits.labels)), len(digits.classes))
    if after:
        trainer.restore(after.state)
    first = after.number + 1 if after else 1
    data = in_background(epoch_data, digits, train, first)
    for number in range(first, train.epochs + 1):
        images, labels = data.result()
        if number < train.epochs:  # a third of an epoch's time, while the other core trains
            data = in_background(epoch_data, digits, train, number + 1)
        metrics = trainer.train_epoch(images, labels, number, on_steps)
        metrics |= trainer.evaluate(digits.val_images, digits.val_labels)
        yield Epoch(number, {name: round(value, 6) for name, value in metrics.items()}, trainer.state())


def epoch_data(digits: Digits, train: Train, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the images and labels of one epoch: digits changed as photographs do, and non-digits.

    The label of those is the number of classes: the network is to find each class equally unlikely.
    """
    images, labels = with_corrections(digits, train, epoch)
    changed = augmentation.augment(images, labels, seed=train.seed, epoch=epoch, settings=train.augment)
    extra = count_non_digits(train, len(labels))
    if not extra:
        return changed, labels
    others = non_digits.draw(extra, seed=train.seed, epoch=epoch, images=digits.images)
    return np.concatenate([changed, others]), np.append(labels, np.full(extra, len(digits.classes), np.uint8))


def with_corrections(digits: Digits, train: Train, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images and labels of an epoch with corrections in the place of a share of the digits, others each epoch.

    Each correction is there as often as any other, to within one. They replace and do not add, so that an epoch has as
    many steps as without them. Raises ``UserError`` where there are none.
    """
    count = round(train.corrections * len(digits.labels))
    if not count:
        return digits.images, digits.labels
    corrected, their_labels = digits.corrected
    if not len(their_labels):
        raise UserError(f"train.corrections is {train.corrections}, but {NO_CORRECTIONS}; expected some, or 0")
    rng = np.random.default_rng([train.seed, epoch, 3])
    places = rng.permutation(len(digits.labels))[:count]
    chosen = np.resize(rng.permutation(len(their_labels)), count)
    images, labels = digits.images.copy(), digits.labels.copy()
    images[places], labels[places] = corrected[chosen], their_labels[chosen]
    return images, labels


NO_CORRECTIONS = f"{files.CORRECTIONS} has no digits to learn from"


def count_non_digits(train: Train, digits: int) -> int:
    """Return how many non-digits an epoch over so many digits holds."""
    return round(train.non_digits * digits)


def steps_per_epoch(train: Train, digits: int) -> int:
    """Return the number of steps in an epoch over so many digits."""
    return -(-(digits + count_non_digits(train, digits)) // train.batch_size)


class CheckpointFolder:
    """The epochs of one trajectory that are on disk, one file each, in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = FileLock(folder / "lock")

    def read(self, number: int) -> Epoch | None:
        """Return an epoch that is there and whole; say so where one cannot be used."""
        file = self._file(number)
        try:
            epoch = Epoch.from_bytes(file.read_bytes())
            if epoch.number != number:
                raise ValueError(f"it holds epoch {epoch.number}")  # noqa: TRY301
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, OSError) as error:
            print(f"{file}: not usable as a checkpoint ({error}); training that epoch again", file=sys.stderr)
            return None
        return epoch

    def write(self, epoch: Epoch) -> None:
        """Keep an epoch."""
        files.write_bytes(self._file(epoch.number), epoch.to_bytes())

    def read_all(self) -> list[Epoch]:
        """Return the epochs from the first to the last without a gap."""
        epochs: list[Epoch] = []
        while epoch := self.read(len(epochs) + 1):
            epochs.append(epoch)
        return epochs

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:04d}.epoch"


def load_or_train(digits: Digits, train: Train, kept: CheckpointFolder, on_steps: OnSteps = None) -> Iterator[Epoch]:
    """Yield the trajectory's epochs: loaded from disk where they are there, trained and kept where they are not.

    Processes that train one trajectory together share the work: who holds the lock trains the next epoch, the others
    wait for it and read it.
    """
    kept.folder.mkdir(parents=True, exist_ok=True)
    training: Iterator[Epoch] | None = None
    last: Epoch | None = None
    for number in range(1, train.epochs + 1):
        epoch = kept.read(number)
        if epoch is None:
            with kept.lock:
                epoch = kept.read(number)
                if epoch is None:
                    training = training or train_epochs(digits, train, last, on_steps)
                    epoch = next(training)
                    kept.write(epoch)
                else:
                    training = None
        else:
            training = None
        yield epoch
        last = epoch


def improvements(history: History, monitor: str) -> list[int]:
    """Return the numbers of the epochs, from 1, that were better than all before them."""
    sign = -1 if monitor.endswith("loss") else 1
    scores = [sign * metrics[monitor] for metrics in history]
    return [number for number, score in enumerate(scores, 1) if score > max(scores[: number - 1], default=-np.inf)]


def best_epoch(history: History, monitor: str) -> int:
    """Return the number of the best epoch: the first, where several are equal; raise ``UserError`` where none is."""
    if numbers := improvements(history, monitor):
        return numbers[-1]
    raise UserError(f"{monitor} was not a number in any of {len(history)} epochs; lower train.learning_rate")


def is_finished(history: History, train: Train) -> bool:
    """Tell whether a run with these parameters ends here: at its last epoch, or ``patience`` epochs after the best."""
    if len(history) >= train.epochs:
        return True
    return len(history) > 0 and len(history) - best_epoch(history, train.monitor) >= train.patience


def summary(history: History, train: Train) -> dict[str, int | float | bool]:
    """Return the flat facts of a run that ended: `reports/train.json` without the model's own."""
    best = best_epoch(history, train.monitor)
    return {
        "epochs_run": len(history),
        "best_epoch": best,
        "stopped_early": len(history) < train.epochs,
        "best_val_accuracy": history[best - 1]["val_accuracy"],
        "best_val_loss": history[best - 1]["val_loss"],
    }


def trajectory_key(train: Train, data_sha256: str) -> str:
    """Return the name of the trajectory: a digest of all that its bits depend on."""
    training = train.model_dump(exclude=WITHOUT_EFFECT | ({"epochs"} if train.schedule == "constant" else set()))
    code = files.digest_files(Path(__file__).with_name(name) for name in CODE)
    packages = {name: version(name) for name in PACKAGES}
    machine = [unit for unit in processor() if train.instructions == "native" or unit in (platform.machine(), "avx2")]
    if train.device == "gpu":
        machine.append(environment.gpu())
        packages |= environment.gpu_packages()
    return files.digest(training, data_sha256, code, packages, machine)[:16]


def processor(device: str = "cpu") -> list[str]:
    """Return what of this processor changes the bits: its architecture and the vector units that kernels choose by.

    Where the ``device`` is a GPU, its name follows.
    """
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        flags = set()
    units = [unit for unit in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if unit in flags]
    return [platform.machine(), *units, *([environment.gpu()] if device == "gpu" else [])]


def open_checkpoints(train: Train, data_sha256: str, limits: Checkpoints) -> CheckpointFolder:
    """Return the trajectory's checkpoints in the main workspace, after old trajectories made room."""
    root = files.workspace() / ".checkpoints"
    folder = root / trajectory_key(train, data_sha256)
    folder.mkdir(parents=True, exist_ok=True)
    folder.touch()
    prune(root, limits, keep=folder)
    return CheckpointFolder(folder)


def prune(root: Path, limits: Checkpoints, keep: Path) -> None:
    """Remove the trajectories used longest ago until the rest is within limits; never ``keep``, nor one in training."""
    used = sorted((folder for folder in root.iterdir() if folder.is_dir()), key=lambda each: -each.stat().st_mtime)
    total = 0
    for folder in used:
        total += sum(file.stat().st_size for file in folder.glob("*.epoch"))
        old = time.time() - folder.stat().st_mtime > limits.max_days * 86400
        if folder != keep and (old or total > limits.max_mb * 1e6) and _free(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _free(folder: Path) -> bool:
    try:
        with FileLock(folder / "lock", timeout=0):
            return True
    except Timeout:
        return False

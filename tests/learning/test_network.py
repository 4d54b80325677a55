"""One network is the article's, a step is that of Keras, and an export is the same bytes each time."""

import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from pipeline import config
from pipeline.console import UserError
from pipeline.learning import trajectory
from pipeline.learning.classifier import Calibration, Classifier

pytestmark = pytest.mark.slow  # TensorFlow takes seconds to import
ARTICLE = {  # the summary that the article prints, less the rows and columns that its pooling drops
    "conv2d": (24, 24, 64),
    "max_pooling2d": (12, 12, 64),
    "dropout": (12, 12, 64),
    "conv2d_1": (10, 10, 64),
    "max_pooling2d_1": (5, 5, 64),
    "dropout_1": (5, 5, 64),
    "flatten": (1600,),
    "dense": (10,),
}


@pytest.fixture(scope="module")
def network():
    from pipeline.learning import network

    network.use_threads(1)  # before the first operation settles the count
    return network


@pytest.fixture
def train() -> config.Train:
    changes = {"epochs": 2, "batch_size": 32, "threads": 1, "average": 0.9, "precision": "float32"}
    return config.load().train.model_copy(update=changes)


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (96, 28, 28), np.uint8)


@pytest.fixture
def labels() -> np.ndarray:
    return (np.arange(96) % 10).astype(np.uint8)


@pytest.fixture(params=["article", "deep"])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def weights_of(model) -> list[np.ndarray]:
    return [weight.numpy() for weight in model.trainable_variables]


def test_the_articles_has_the_articles_layers_and_shapes(network) -> None:
    model = network.build("article", 0.2)
    shapes = {layer.name: layer.output.shape[1:] for layer in model.layers if layer.name in ARTICLE}
    assert shapes == ARTICLE
    assert list(shapes) == list(ARTICLE)


def test_every_network_has_as_many_parameters_as_the_articles(network, name: str) -> None:
    assert set(network.NETWORKS) == set(get_args(config.Train.model_fields["network"].annotation))
    assert network.build(name, 0.2).count_params() == network.PARAMETERS == 53_578


def test_a_step_is_that_of_keras_adam(
    network, name: str, train: config.Train, images: np.ndarray, labels: np.ndarray
) -> None:
    adam = {"optimizer": "adam", "learning_rate": 0.004, "weight_decay": 0.0}
    train = train.model_copy(update=adam | {"network": name, "dropout": 0.0, "batch_size": 96, "average": 0.0})
    model = network.build(name, 0.0, seed=train.seed)
    model.compile(network.keras.optimizers.Adam(train.learning_rate), "sparse_categorical_crossentropy")
    model.fit(images[..., None], labels, batch_size=96, epochs=1, verbose=0)
    trainer = network.Trainer(train, steps=1)
    trainer.train_epoch(images, labels, epoch=1)
    for ours, theirs in zip(trainer.weights, weights_of(model), strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, atol=2e-4)
    moved = np.abs(trainer.weights[2].numpy() - weights_of(network.build(name, 0.0, seed=train.seed))[2]).max()
    assert moved > 9e-4  # Adam's first step is one rate long


def test_muon_moves_hidden_convolutions_by_orthogonal_matrices_and_the_rest_by_adam(
    network, name: str, train: config.Train, images: np.ndarray, labels: np.ndarray
) -> None:
    muon = {"optimizer": "muon", "learning_rate": 0.01, "weight_decay": 0.0, "schedule": "constant"}
    train = train.model_copy(update=muon | {"network": name, "dropout": 0.0, "batch_size": 96})
    trainer = network.Trainer(train, steps=1)
    start = [weight.numpy() for weight in trainer.weights]
    trainer.train_epoch(images, labels, epoch=1)
    for before, weight in zip(start, trainer.weights, strict=True):
        update = weight.numpy() - before
        if update.ndim == 4 and update.shape[2] > 1:
            matrix = update.reshape(-1, update.shape[-1])
            lengths = np.linalg.svd(matrix, compute_uv=False) / (0.01 * 0.2 * max(matrix.shape) ** 0.5)
            assert np.median(lengths) == pytest.approx(1, abs=0.3), (weight.path, lengths)  # unused filters stay at 0
            assert lengths.max() < 1.3, (weight.path, lengths)
        else:
            assert np.abs(update).max() == pytest.approx(0.01, rel=0.02)  # Adam's first step is one rate long


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_weight_decay_shrinks_kernels_and_leaves_biases(network, optimizer: str) -> None:
    model = network.build("article", seed=1)
    for weight in model.trainable_variables:
        weight.assign(network.tf.ones_like(weight))
    still = [network.tf.zeros_like(weight) for weight in model.trainable_variables]
    network.optimizer(optimizer, 0.1, 0.5).apply(still, model.trainable_variables)
    for weight in model.trainable_variables:
        np.testing.assert_allclose(weight.numpy(), 1.0 if "bias" in weight.path else 0.95, rtol=1e-6)


def test_fields_without_a_digit_pull_towards_equal_answers(network, train: config.Train, images: np.ndarray) -> None:
    train = train.model_copy(update={"learning_rate": 0.01, "average": 0.0})
    trainer = network.Trainer(train, steps=3)
    labels = np.full(96, 10, np.uint8)
    labels[0] = 5  # the loss is that of the digits, and there must be one
    for epoch in range(1, 6):
        trainer.train_epoch(images, labels, epoch)
    answers = trainer.network.predict(images[1:, ..., None], verbose=0)
    assert answers.max() < 0.3


@pytest.mark.parametrize("classes", [2, 26])
def test_a_network_has_an_answer_for_each_class(network, train: config.Train, images: np.ndarray, classes: int) -> None:
    train = train.model_copy(update={"learning_rate": 0.003, "average": 0.0})
    trainer = network.Trainer(train, steps=3, classes=classes)
    labels = (np.arange(96) % (classes + 1)).astype(np.uint8)  # the last label is that of no class
    found = [trainer.train_epoch(images, labels, epoch)["loss"] for epoch in (1, 2, 3)]
    assert found[-1] < found[0] < 1.2 * np.log(classes)
    weights = [weight.numpy() for weight in trainer.average]
    assert len(weights[-1]) == classes
    assert network.export(train.network, weights, 0.2)[1]


def test_the_same_seed_gives_the_same_bits_and_another_does_not(
    network, train: config.Train, images: np.ndarray, labels: np.ndarray
) -> None:
    def trained(seed: int) -> bytes:
        trainer = network.Trainer(train.model_copy(update={"seed": seed}), steps=3)
        trainer.train_epoch(images, labels, epoch=1)
        return b"".join(value.tobytes() for value in trainer.state().values())

    assert trained(1) == trained(1)
    assert trained(1) != trained(2)


def test_the_average_trails_the_weights(network, train: config.Train, images: np.ndarray, labels: np.ndarray) -> None:
    trainer = network.Trainer(train, steps=3)
    trainer.train_epoch(images, labels, epoch=1)
    start = np.concatenate(
        [weight.ravel() for weight in weights_of(network.build(train.network, train.dropout, seed=train.seed))]
    )
    weights, average = (
        np.concatenate([each.numpy().ravel() for each in variables]) for variables in (trainer.weights, trainer.average)
    )
    assert 0 < np.linalg.norm(average - start) < np.linalg.norm(weights - start)


def test_an_export_repeats_to_the_byte_and_holds_no_date(network, name: str) -> None:
    weights = weights_of(network.build(name, 0.2, seed=1))
    assert network.export(name, weights, 0.2) == network.export(name, weights, 0.2)
    archive = zipfile.ZipFile(io.BytesIO(network.export(name, weights, 0.2)[0]))
    assert json.loads(archive.read("metadata.json"))["date_saved"] == ""
    assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_the_exports_answer_as_the_network_does(network, name: str, images: np.ndarray, tmp_path) -> None:
    model = network.build(name, 0.2, seed=1)
    archive, exported = network.export(name, weights_of(model), 0.2)
    answers = model.predict(images[..., None], verbose=0)
    lite = Classifier(exported, Calibration(temperature=1, certain=0, possible=0)).raw(images)
    np.testing.assert_allclose(lite, answers, atol=1e-5)
    (tmp_path / "digits.keras").write_bytes(archive)
    again = network.keras.models.load_model(tmp_path / "digits.keras").predict(images[..., None], verbose=0)
    np.testing.assert_array_equal(again, answers)


AVX2 = """
import hashlib, sys
import numpy as np
from pipeline import config
from pipeline.learning import trajectory
rng = np.random.default_rng(7)
images, labels = rng.integers(0, 256, (600, 28, 28), np.uint8), rng.integers(0, 10, 600, np.uint8)
changes = {"instructions": "avx2", "precision": "float32", "epochs": 1, "batch_size": 128, "dropout": 0.2}
changes |= {"threads": int(sys.argv[1])}
train = config.load().train.model_copy(update=changes | {"average": 0.99, "learning_rate": 1e-3, "non_digits": 0.0})
unchanged = train.augment.model_copy(update={"share": 0.0, "moved": 0.0})
train = train.model_copy(update={"augment": unchanged, "seed": 1, "schedule": "constant", "weight_decay": 0.0})
digits = trajectory.Digits(images, labels, images[:99], labels[:99], sha256="")
for recipe in sys.argv[2:]:
    name, optimizer = recipe.split()
    changed = train.model_copy(update={"network": name, "optimizer": optimizer})
    (epoch,) = trajectory.train_epochs(digits, changed)
    print(hashlib.sha256(b"".join(epoch.state[name].tobytes() for name in sorted(epoch.state))).hexdigest()[:16])
"""


BITS = {"article adam": "7d02956520419884", "deep muon": "9886a0c43220d113"}
CPUINFO = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []


@pytest.mark.skipif("avx2" not in trajectory.processor(), reason="only x86-64 with AVX2 promises these bits")
@pytest.mark.parametrize("threads", [1, 2])
def test_every_processor_with_avx2_trains_these_bits_with_any_number_of_threads(threads: int) -> None:
    assert trained_bits(threads) == list(BITS.values())


def trained_bits(threads: int, **variables: str) -> list[str]:
    """Return the bits that a process trains by each recipe."""
    command = [sys.executable, "-c", AVX2, str(threads), *BITS]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | variables)
    return done.stdout.split()


@pytest.mark.skipif(
    not shutil.which("cc") or not {"avx512f", "cpuid_fault"} <= set(CPUINFO),
    reason="needs a C compiler, and a processor with AVX-512 whose cpuid can be answered in its place",
)
def test_a_processor_that_has_no_avx512_trains_these_bits(tmp_path: Path) -> None:
    library = str(tmp_path / "avx2_only.so")
    source = Path(__file__).with_name("avx2_only.c")
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, source], check=True)
    features = "import cv2; print(cv2.getCPUFeaturesLine())"  # OpenCV asks the processor itself
    said = subprocess.run(
        [sys.executable, "-c", features], capture_output=True, text=True, check=True, env={"LD_PRELOAD": library}
    )
    assert "*AVX2 *AVX512-SKX?" in said.stdout  # has the one, and lacks the other
    assert trained_bits(2, LD_PRELOAD=library) == list(BITS.values())


def test_other_instructions_in_one_process_are_refused(network, train: config.Train) -> None:
    with pytest.raises(UserError, match=r"train\.instructions: this process already computes with avx2, not native"):
        network.Trainer(train.model_copy(update={"instructions": "native"}), steps=1)


def test_another_thread_count_in_one_process_is_refused(network) -> None:
    network.tf.constant(0) + 1
    with pytest.raises(UserError, match=r"train\.threads: this process already computes with another count than 3"):
        network.use_threads(3)

"""Networks of 53,578 parameters in Keras, one deterministic training step after another, and their export."""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipeline.config import Train
from pipeline.console import UserError, hushed
from pipeline.learning import environment

CHOSEN = environment.isolate()  # as `train_epochs` asked for; TensorFlow reads the environment when it is imported
with hushed(), environment.without_unused():  # TensorFlow says what it was built with whatever the settings say
    import keras
    import tensorflow as tf

PARAMETERS = 53_578  # of every network here, for ten classes: the article's count
CHUNK = 8  # steps a call: few enough that a signal is heard within a second
State = dict[str, np.ndarray]


@dataclass(frozen=True)
class Convolution:
    """A convolution of 3 x 3, then 2 x 2 pooling where ``pooled``, then ReLU, then dropout where ``pooled``."""

    filters: int
    padding: Literal["valid", "same"] = "valid"
    pooled: bool = False


@dataclass(frozen=True)
class Network:
    """The convolutions, and how many of the 28 rows and columns can reach an answer: pooling drops what is odd."""

    convolutions: tuple[Convolution, ...]
    seen: int = 28


NETWORKS = {
    "article": Network((Convolution(64, pooled=True), Convolution(64, pooled=True)), seen=26),
    "deep": Network(
        (
            Convolution(19, pooled=True),
            Convolution(32, "same"),
            Convolution(46, "same"),
            Convolution(52, pooled=True),
        )
    ),
}


def use_threads(threads: int) -> None:
    """Compute ``threads`` operations at once, each in one thread: the same bits for every count.

    An operation that is divided among threads sums in an order that depends on their count, and on the sizes of the
    processor's caches.
    """
    if tf.config.threading.get_inter_op_parallelism_threads() == threads:
        return
    try:
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    except RuntimeError:
        raise UserError(f"train.threads: this process already computes with another count than {threads}") from None


def use_device(device: str, instructions: str) -> None:
    """Compute on the CPU, or the same bits each time on a GPU.

    Raise ``UserError`` where there is no GPU, or where TensorFlow was imported for another device or other
    instructions: it chooses its kernels only once.
    """
    for name, wanted, chosen in zip(("device", "instructions"), (device, instructions), CHOSEN, strict=True):
        if wanted != chosen:
            raise UserError(f"train.{name}: this process already computes with {chosen}, not {wanted}")
    if device == "gpu":
        if not tf.config.list_physical_devices("GPU"):
            raise UserError(
                "train.device is gpu, but TensorFlow finds none; expected an NVIDIA GPU and "
                "`pip install 'tensorflow[and-cuda]'`, or cpu"
            )
        tf.config.experimental.enable_op_determinism()


def build(
    name: str,
    dropout: float = 0.0,
    precision: str = "float32",
    seed: int = 0,
    *,
    classes: int = 10,
    dropout_layer: Callable[..., keras.layers.Layer] = keras.layers.Dropout,
) -> keras.Sequential:
    """Build one of ``NETWORKS``, from uint8 images [n, 28, 28, 1] to probabilities [n, classes].

    Pooling comes before the ReLU, and rows and columns that no answer depends on are cropped: the same function for
    less work (a step of the article's network takes 0.84 of the time).
    """
    policy = {"float32": "float32", "bfloat16": "mixed_bfloat16"}[precision]

    def about(kind: str, number: int) -> dict[str, str]:  # names that Keras chose would count on from model to model
        return {"name": f"{kind}_{number}" if number else kind, "dtype": policy}

    network, unseen = NETWORKS[name], 28 - NETWORKS[name].seen
    start = [keras.initializers.GlorotUniform(seed + number) for number in range(len(network.convolutions) + 1)]
    layers = [keras.Input((28, 28, 1), dtype="uint8", name="image")]
    if unseen:
        layers.append(keras.layers.Cropping2D(((0, unseen), (0, unseen)), name="seen", dtype=policy))
    layers.append(keras.layers.Rescaling(1 / 255, name="scale", dtype=policy))
    for number, each in enumerate(network.convolutions):
        layers.append(
            keras.layers.Conv2D(
                each.filters,
                3,
                padding=each.padding,
                kernel_initializer=start[number],
                **about("conv2d", number),
            )
        )
        if each.pooled:
            layers.append(keras.layers.MaxPooling2D(**about("max_pooling2d", number)))
        layers.append(keras.layers.ReLU(**about("relu", number)))
        if each.pooled and dropout:
            layers.append(dropout_layer(dropout, seed=seed, **about("dropout", number)))
    layers += [
        keras.layers.Flatten(name="flatten", dtype=policy),
        keras.layers.Dense(classes, kernel_initializer=start[-1], name="dense", dtype=policy),
        keras.layers.Softmax(name="probability", dtype="float32"),
    ]
    return keras.Sequential(layers, name="digits")


class ByteDropout(keras.layers.Dropout):
    """Keras' Dropout with one random byte a value instead of four: 8 to 16% of a step, measured on both networks.

    What is dropped is a function of (seed, name, step), so that training resumes with the same bits. ``rate`` is
    rounded to the nearest 1/256.

    Parameters
    ----------
    step
        Returns the number of the training step, an integer tensor.
    """

    def __init__(self, rate: float, *, step: Callable[[], tf.Tensor], **options: Any) -> None:
        super().__init__(rate, **options)
        self.step = step
        self.number = zlib.crc32(self.name.encode())

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Return ``inputs`` with a share of them at 0 and the others enlarged, in training."""
        dropped = round(256 * self.rate)
        if not training or dropped == 0:
            return inputs
        seed = tf.stack([tf.constant(self.seed + self.number, tf.int64), tf.cast(self.step(), tf.int64)])
        size = tf.size(inputs)
        words = tf.random.stateless_uniform([(size + 3) // 4], seed, None, None, tf.uint32, alg="philox")
        kept = tf.reshape(tf.reshape(tf.bitcast(words, tf.uint8), [-1])[:size], tf.shape(inputs)) >= dropped
        return inputs * (tf.cast(kept, inputs.dtype) * (256 / (256 - dropped)))


class Muon(keras.optimizers.Muon):
    """Keras' Muon for the hidden convolutions: each kernel is a matrix, a filter a column; the rest learns by Adam.

    Keras' own takes matrices alone, and here the one matrix is the last layer's, which Muon is not meant for, nor is
    the first layer's.
    Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; the scale of the update is that of
    Liu et al. 2025, arXiv:2502.16982.
    """

    def _should_use_adamw(self, variable: keras.Variable) -> bool:
        return len(variable.shape) != 4 or variable.shape[2] == 1

    def zeropower_via_newtonschulz5(self, x: tf.Tensor, steps: int) -> tf.Tensor:
        """Return the update, a matrix near an orthogonal one, in the shape of the kernel."""
        matrix = tf.reshape(x, [-1, x.shape[-1]])
        return tf.reshape(super().zeropower_via_newtonschulz5(matrix, steps), x.shape)

    def lr_adjust(self, x: tf.Tensor) -> tf.Tensor:
        """Return the update times 0.2 times the root of the matrix' longer side: about as long as Adam's."""
        rows = x.shape.num_elements() // x.shape[-1]
        return x * (self.rms_rate * max(rows, x.shape[-1]) ** 0.5)


def optimizer(
    name: str, rate: float | keras.optimizers.schedules.LearningRateSchedule, weight_decay: float
) -> keras.optimizers.Optimizer:
    """Return Adam or ``Muon``; kernels shrink by ``weight_decay`` times the rate a step, biases do not."""
    if name == "adam":
        result = keras.optimizers.Adam(rate, weight_decay=weight_decay or None)
    else:
        result = Muon(rate, weight_decay=weight_decay or None, adam_weight_decay=weight_decay or None)
    result.exclude_from_weight_decay(var_names=["bias"])
    return result


class Trainer:
    """A network in training, whose every random choice is a function of (seed, epoch, step).

    ``state`` and ``restore`` carry all that the next epoch depends on.

    Parameters
    ----------
    steps
        Steps in an epoch.
    """

    def __init__(self, params: Train, steps: int, classes: int = 10) -> None:
        use_threads(params.threads)
        use_device(params.device, params.instructions)
        self.params, self.classes = params, classes
        rate = params.learning_rate
        if params.schedule == "cosine":
            rate = keras.optimizers.schedules.CosineDecay(rate, steps * params.epochs)
        self.optimizer = optimizer(params.optimizer, rate, params.weight_decay)
        dropout_layer = partial(ByteDropout, step=lambda: self.optimizer.iterations.value)
        start = params.network, params.dropout, params.precision, params.seed
        self.network, self.averaged = (build(*start, classes=classes, dropout_layer=dropout_layer) for _ in range(2))
        self.weights, self.average = self.network.trainable_variables, self.averaged.trainable_variables
        self.optimizer.build(self.weights)
        digits = [tf.TensorSpec([None, 28, 28, 1], tf.uint8), tf.TensorSpec([None], tf.int32)]
        self._train = tf.function(self._take_steps, input_signature=[*digits, tf.TensorSpec([None], tf.int32)])
        self._evaluate = tf.function(self._evaluate_batch, input_signature=digits)

    def train_epoch(
        self, images: np.ndarray, labels: np.ndarray, epoch: int, on_steps: Callable[[int], object] | None = None
    ) -> dict[str, float]:
        """Train one epoch; return the mean ``loss`` and ``accuracy`` of its digits, as Keras does.

        Parameters
        ----------
        images
            uint8 [n, 28, 28].
        labels
            uint8 [n]; one equal to ``classes`` marks a field of no class: all answers are to be equally likely there.
        epoch
            Its number, from 1.
        on_steps
            Called after every few steps with their number.
        """
        size = self.params.batch_size
        order = np.random.default_rng([self.params.seed, epoch]).permutation(len(labels)).astype(np.int32)
        sums = np.zeros(2)
        pixels, answers = tf.constant(images[..., None]), tf.constant(labels.astype(np.int32))
        for first in range(0, len(order), size * CHUNK):
            part = order[first : first + size * CHUNK]
            sums += self._train(pixels, answers, tf.constant(part)).numpy()
            if on_steps:
                on_steps(-(-len(part) // size))
        loss, correct = sums / np.count_nonzero(labels < self.classes)
        return {"loss": float(loss), "accuracy": float(correct)}

    def _take_steps(self, images: tf.Tensor, labels: tf.Tensor, order: tf.Tensor) -> tf.Tensor:
        size = self.params.batch_size
        sums = tf.zeros(2)
        for first in tf.range(0, tf.size(order), size):
            batch = order[first : first + size]
            sums += self._take_step(tf.gather(images, batch), tf.gather(labels, batch))
        return sums

    def _take_step(self, images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        digit = tf.cast(labels < self.classes, tf.float32)
        targets = tf.one_hot(labels, self.classes) + (1 - digit[:, None]) / self.classes
        with tf.GradientTape() as tape:
            logits = _logits(self.network, images, training=True)
            losses = tf.nn.softmax_cross_entropy_with_logits(targets, logits)
            loss = tf.reduce_mean(losses)
        done = tf.cast(self.optimizer.iterations.value, tf.float32)
        self.optimizer.apply(tape.gradient(loss, [weight.value for weight in self.weights]))
        keep = tf.minimum(self.params.average, (1 + done) / (10 + done))  # a young average must forget its start
        for average, weight in zip(self.average, self.weights, strict=True):
            average.assign(keep * average + (1 - keep) * weight)
        return tf.stack([tf.reduce_sum(digit * losses), _correct(logits, labels)])

    def evaluate(self, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Return ``val_loss`` and ``val_accuracy`` of the averaged weights on these digits."""
        sums = np.zeros(2)
        for first in range(0, len(labels), 500):
            part = slice(first, first + 500)
            sums += self._evaluate(
                tf.constant(images[part][..., None]), tf.constant(labels[part].astype(np.int32))
            ).numpy()
        return {"val_loss": float(sums[0]) / len(labels), "val_accuracy": float(sums[1]) / len(labels)}

    def _evaluate_batch(self, images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        logits = _logits(self.averaged, images, training=False)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        return tf.stack([tf.reduce_sum(losses), _correct(logits, labels)])

    def state(self) -> State:
        """Return copies of all that the next epoch depends on; ``average.*`` are the weights that are evaluated."""
        return {name: np.array(variable) for name, variable in self._named().items()}

    def restore(self, state: State) -> None:
        """Resume from a ``state``."""
        for name, variable in self._named().items():
            variable.assign(state[name])

    def _named(self) -> dict[str, keras.Variable]:
        groups = {"weight": self.weights, "average": self.average, "optimizer": self.optimizer.variables}
        return {f"{group}.{number:02d}": each for group in groups for number, each in enumerate(groups[group])}


def _logits(network: keras.Sequential, images: tf.Tensor, *, training: bool) -> tf.Tensor:
    """Return the logits, float32 [n, classes], that the network's softmax would turn into probabilities."""
    values = images
    for layer in network.layers[:-1]:
        values = layer(values, training=training) if isinstance(layer, keras.layers.Dropout) else layer(values)
    return tf.cast(values, tf.float32)


def _assign(variables: list[keras.Variable], values: list[np.ndarray]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _correct(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.cast(tf.equal(tf.argmax(logits, 1, tf.int32), labels), tf.float32))


def export(name: str, weights: list[np.ndarray], dropout: float) -> tuple[bytes, bytes]:
    """Return one of ``NETWORKS`` with these weights as a Keras archive and as LiteRT: same weights, same bytes."""
    network = build(name, dropout, classes=len(weights[-1]))
    _assign(network.trainable_variables, weights)
    with tempfile.TemporaryDirectory() as folder:
        network.save(Path(folder, "digits.keras"))
        network.export(Path(folder, "digits.tflite"), format="litert", verbose=False)
        return _canonical(Path(folder, "digits.keras").read_bytes()), Path(folder, "digits.tflite").read_bytes()


def _canonical(archive: bytes) -> bytes:
    """Return a ``.keras`` archive without its dates: they are the only thing that differs from save to save."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as source, zipfile.ZipFile(result, "w") as target:
        for name in sorted(source.namelist()):
            content = source.read(name)
            if name == "metadata.json":
                content = json.dumps(json.loads(content) | {"date_saved": ""}, sort_keys=True).encode()
            target.writestr(zipfile.ZipInfo(name), content)
    return result.getvalue()

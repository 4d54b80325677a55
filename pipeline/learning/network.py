"""Networks of 53,578 parameters in Keras, one deterministic training step after another, and their export."""

from __future__ import annotations

import io
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.config import Train
from pipeline.console import UserError, hushed

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow reads these when it is imported, not later
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
with hushed():  # and says what it was built with whatever they say
    import keras
    import tensorflow as tf

PARAMETERS = 53_578  # of every network here, for ten classes: the article's count
CHUNK = 8  # steps a call: few enough that a signal is heard within a second
INSTRUCTIONS = "avx2" if os.environ.get("ONEDNN_MAX_CPU_ISA") == "AVX2" else "native"
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
    seen: int


NETWORKS = {
    "article": Network((Convolution(64, pooled=True), Convolution(64, pooled=True)), seen=26),
    "deep": Network(
        (
            Convolution(19, pooled=True),
            Convolution(32, "same"),
            Convolution(46, "same"),
            Convolution(52, pooled=True),
        ),
        seen=28,
    ),
}


def use_threads(threads: int) -> None:
    """Give one operation ``threads`` threads; another count sums in another order, and gives other bits."""
    if tf.config.threading.get_intra_op_parallelism_threads() == threads:
        return
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    except RuntimeError:
        raise UserError(f"train.threads: this process already computes with another count than {threads}") from None


def check_instructions(instructions: str) -> None:
    """Raise ``UserError`` where TensorFlow was imported for other instructions: it chooses its kernels only once."""
    if instructions != INSTRUCTIONS:
        raise UserError(f"train.instructions: this process already computes with {INSTRUCTIONS}, not {instructions}")


def build(name: str, dropout: float, precision: str = "float32", seed: int = 0, *, classes: int = 10) -> keras.Model:
    """Return one of ``NETWORKS``, from uint8 images [n, 28, 28, 1] to probabilities [n, classes].

    Pooling comes before the ReLU: the same function, on a quarter of the values. The scaling by 1/255 is a layer.
    """
    policy = {"float32": "float32", "bfloat16": "mixed_bfloat16"}[precision]

    def about(kind: str, number: int) -> dict[str, str]:  # names that Keras chose would count on from model to model
        return {"name": f"{kind}_{number}" if number else kind, "dtype": policy}

    layers = [
        keras.Input((28, 28, 1), dtype="uint8", name="image"),
        keras.layers.Rescaling(1 / 255, name="scale", dtype=policy),
    ]
    convolutions = NETWORKS[name].convolutions
    start = [keras.initializers.GlorotUniform(seed + number) for number in range(len(convolutions) + 1)]
    for number, each in enumerate(convolutions):
        convolution = keras.layers.Conv2D(
            each.filters, 3, padding=each.padding, kernel_initializer=start[number], **about("conv2d", number)
        )
        pooling = keras.layers.MaxPooling2D(**about("max_pooling2d", number))
        relu = keras.layers.ReLU(**about("relu", number))
        dropped = keras.layers.Dropout(dropout, seed=seed, **about("dropout", number))
        layers += [convolution, pooling, relu, dropped] if each.pooled else [convolution, relu]
    layers += [
        keras.layers.Flatten(name="flatten", dtype=policy),
        keras.layers.Dense(classes, kernel_initializer=start[-1], name="dense", dtype=policy),
        keras.layers.Softmax(name="probability", dtype="float32"),
    ]
    return keras.Sequential(layers, name="digits")


class Learner:
    """A network in training, whose every random choice is a function of (seed, epoch): it forgets nothing it needs.

    ``images`` uint8 [n, 28, 28] and ``labels`` uint8 [n] are given to each epoch; ``state`` and ``restore`` carry all
    that the next epoch depends on.
    """

    def __init__(self, params: Train, steps: int, classes: int = 10) -> None:
        use_threads(params.threads)
        check_instructions(params.instructions)
        self.params, self.network, self.classes = params, NETWORKS[params.network], classes
        model = build(params.network, params.dropout, seed=params.seed, classes=classes)
        start = [weight.numpy() for weight in model.trainable_variables]
        self.weights, self.average = _variables(start), _variables(start)
        self.mean, self.square = _variables(0 * weight for weight in start), _variables(0 * weight for weight in start)
        self.step = tf.Variable(0, dtype=tf.int64)
        self.total = float(steps * params.epochs)
        digits = [tf.TensorSpec([None, 28, 28, 1], tf.uint8), tf.TensorSpec([None], tf.int32)]
        self._learn = tf.function(self._learn_steps, input_signature=[*digits, tf.TensorSpec([None], tf.int32)])
        self._score = tf.function(self._score_batch, input_signature=digits)

    def learn(
        self, images: np.ndarray, labels: np.ndarray, epoch: int, heard: Callable[[int], object] | None = None
    ) -> dict[str, float]:
        """Walk one epoch, numbered from 1; return the mean ``loss`` and ``accuracy`` of its digits, as Keras does.

        A label equal to ``classes`` marks a field that is of no class: all answers are to be equally likely there.
        ``heard`` is told of every few steps done.
        """
        size = self.params.batch_size
        order = np.random.default_rng([self.params.seed, epoch]).permutation(len(labels)).astype(np.int32)
        sums = np.zeros(2)
        pixels, answers = tf.constant(images[..., None]), tf.constant(labels.astype(np.int32))
        for first in range(0, len(order), size * CHUNK):
            part = order[first : first + size * CHUNK]
            sums += self._learn(pixels, answers, tf.constant(part)).numpy()
            if heard:
                heard(-(-len(part) // size))
        loss, correct = sums / np.count_nonzero(labels < self.classes)
        return {"loss": float(loss), "accuracy": float(correct)}

    def _learn_steps(self, images: tf.Tensor, labels: tf.Tensor, order: tf.Tensor) -> tf.Tensor:
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
            logits = forward(self.network, self.weights, images, self.params.precision, self._drop)
            losses = tf.nn.softmax_cross_entropy_with_logits(targets, logits)
            loss = tf.reduce_mean(losses)
        gradients = tape.gradient(loss, self.weights)
        done = tf.cast(self.step, tf.float32)
        for place, gradient in zip(zip(self.weights, self.mean, self.square, strict=True), gradients, strict=True):
            _adam(*place, gradient, self._rate(done), done + 1)
        keep = tf.minimum(self.params.average, (1 + done) / (10 + done))  # a young average must forget its start
        for average, weight in zip(self.average, self.weights, strict=True):
            average.assign(keep * average + (1 - keep) * weight)
        self.step.assign_add(1)
        return tf.stack([tf.reduce_sum(digit * losses), _correct(logits, labels)])

    def _drop(self, values: tf.Tensor, layer: int) -> tf.Tensor:
        """Drop a share of ``values``, to the nearest 1/256, by bytes that are a function of (seed, layer, step)."""
        dropped = round(256 * self.params.dropout)
        if dropped == 0:
            return values
        seed = tf.stack([tf.constant(2 * self.params.seed + layer, tf.int64), self.step])
        size = tf.size(values)
        words = tf.random.stateless_uniform([(size + 3) // 4], seed, None, None, tf.uint32, alg="philox")
        kept = tf.reshape(tf.reshape(tf.bitcast(words, tf.uint8), [-1])[:size], tf.shape(values)) >= dropped
        return values * (tf.cast(kept, values.dtype) * (256 / (256 - dropped)))

    def _rate(self, step: tf.Tensor) -> tf.Tensor:
        if self.params.schedule == "constant":
            return tf.constant(self.params.learning_rate)
        return self.params.learning_rate * 0.5 * (1 + tf.cos(np.pi * step / self.total))

    def score(self, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Return ``val_loss`` and ``val_accuracy`` of the averaged weights on these digits."""
        sums = np.zeros(2)
        for first in range(0, len(labels), 500):
            part = slice(first, first + 500)
            sums += self._score(
                tf.constant(images[part][..., None]), tf.constant(labels[part].astype(np.int32))
            ).numpy()
        return {"val_loss": float(sums[0]) / len(labels), "val_accuracy": float(sums[1]) / len(labels)}

    def _score_batch(self, images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        logits = forward(self.network, self.average, images, self.params.precision)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        return tf.stack([tf.reduce_sum(losses), _correct(logits, labels)])

    def state(self) -> State:
        """Return copies of all that the next epoch depends on; ``average.*`` are the weights that are scored."""
        return {name: np.array(variable) for name, variable in self._named().items()}

    def restore(self, state: State) -> None:
        """Continue from a ``state``."""
        for name, variable in self._named().items():
            variable.assign(state[name])

    def _named(self) -> dict[str, tf.Variable]:
        groups = {"weight": self.weights, "average": self.average, "mean": self.mean, "square": self.square}
        named = {f"{group}.{number:02d}": each for group in groups for number, each in enumerate(groups[group])}
        return named | {"step": self.step}


def forward(
    network: Network,
    weights: list[tf.Variable],
    images: tf.Tensor,
    precision: str = "float32",
    drop: Callable[[tf.Tensor, int], tf.Tensor] = lambda values, _: values,
) -> tf.Tensor:
    """Return the logits, float32 [n, classes], of `build`'s network with these weights, in the fastest order.

    Bias and ReLU come after the pooling, which commutes with both: the same function on a quarter of the values. Rows
    and columns that no answer depends on are left out.
    """
    *filters, kernel, bias = (tf.cast(weight, precision) for weight in weights)
    values, dropped = tf.cast(images[:, : network.seen, : network.seen], precision) * (1 / 255), 0
    for layer, each in enumerate(network.convolutions):
        values = tf.nn.conv2d(values, filters[2 * layer], 1, each.padding.upper())
        if each.pooled:
            values = tf.nn.max_pool2d(values, 2, 2, "VALID")
        values = tf.nn.relu(tf.nn.bias_add(values, filters[2 * layer + 1]))
        if each.pooled:
            values, dropped = drop(values, dropped), dropped + 1
    values = tf.reshape(values, [-1, kernel.shape[0]])
    return tf.cast(tf.nn.bias_add(tf.matmul(values, kernel), bias), tf.float32)


def _adam(
    weight: tf.Variable, mean: tf.Variable, square: tf.Variable, gradient: tf.Tensor, rate: tf.Tensor, step: tf.Tensor
) -> None:
    """Move ``weight`` as Adam does at ``step``, counted from 1 (Kingma & Ba 2015; the constants of Keras)."""
    tf.raw_ops.ResourceApplyAdam(
        var=weight.handle,
        m=mean.handle,
        v=square.handle,
        beta1_power=0.9**step,
        beta2_power=0.999**step,
        lr=rate,
        beta1=0.9,
        beta2=0.999,
        epsilon=1e-7,
        grad=gradient,
    )


def _variables(values: Iterable[np.ndarray]) -> list[tf.Variable]:
    return [tf.Variable(value) for value in values]


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

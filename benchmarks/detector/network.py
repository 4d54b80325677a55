"""A small fully convolutional network that says of each pixel of ink whether it is a digit's, and where digits lie.

Two maps come out. At half of the side: the logit that ink belongs to a digit, and the way to that digit's middle
(compare Neven et al. 2019). At a quarter: the logit that a digit's middle is here, and the logarithms of its width and
height (Zhou et al. 2019, "Objects as points"). It sees digits of ``LEAST`` to ``MOST`` pixels; larger and smaller ones
are background to it, so that a picture is looked at in several sizes and the one in which most is found is taken.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from benchmarks.detector import pages
from benchmarks.detector.glyphs import Writer
from benchmarks.detector.pages import Page
from pipeline.photos import photo

SIDE = 160  # pixels of a crop
LEAST, MOST = 13.0, 44.0  # pixels of the longer side of a digit
UNIT, REACH = 24.0, 16.0  # pixels: what sizes and ways are measured in
CROPS = 4  # of a page
WEAK = 0.15  # of full ink: what is fainter is paper


class Crop(NamedTuple):
    """What the network sees and what it should say, all of one crop.

    ``ink`` uint8 [160, 160]; ``digit`` uint8 [80, 80]: 1 a digit's, 0 not, 2 either; ``way`` int8 [80, 80, 2] to its
    middle, x and y, in half pixels; ``middle`` uint8 [40, 40]: 255 in the middle of a digit, falling around it;
    ``either`` uint8 [40, 40]: 1 where a middle may be said or not; ``size`` float16 [40, 40, 2], logarithms.
    """

    ink: np.ndarray
    digit: np.ndarray
    way: np.ndarray
    middle: np.ndarray
    either: np.ndarray
    size: np.ndarray


def normal_ink(ink: photo.Ink) -> np.ndarray:
    """Return what the network sees of ink: uint8 [h, w], 255 for full ink."""
    peak = max(photo.peak_darkness(ink), 0.03)
    return np.rint(255 * np.sqrt(np.clip(ink.strength / peak, 0, 1))).astype(np.uint8)


def crops(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    pages_wanted: int,
    seed: int,
    on_page: Callable[[], object] = lambda: None,
) -> Iterator[Crop]:
    """Yield the crops of pages that are written with ``images`` uint8 [n, 28, 28]; small ones four in one."""
    waiting: list[Crop] = []
    for number in range(pages_wanted):
        if number % 1000 == 0:
            rng = np.random.default_rng([seed, number, 1])
            chosen = rng.choice(len(images), min(3000, len(images)), replace=False)
            writer = Writer(images[chosen], labels[chosen], rng, european=0.5)
        rng = np.random.default_rng([seed, number])
        page = pages.draw(rng, writer)
        ink = normal_ink(photo.extract_ink(page.grey))
        for _ in range(CROPS):
            crop = cut(rng, page, ink)
            if crop.ink[SIDE // 2 :].any() or crop.ink[:, SIDE // 2 :].any():
                yield crop
            elif crop.ink.any():
                waiting.append(crop)
        if len(waiting) >= 4:
            yield Crop(*(_four(parts) for parts in zip(*waiting[:4], strict=True)))
            waiting = waiting[4:]
        on_page()


def _four(parts: tuple[np.ndarray, ...]) -> np.ndarray:
    half = len(parts[0]) // 2
    corner = [part[:half, :half] for part in parts]
    return np.vstack([np.hstack(corner[:2]), np.hstack(corner[2:])])


def cut(rng: np.random.Generator, page: Page, ink: np.ndarray) -> Crop:
    """Cut a crop out of a page in a random size: three of four times one in which the network sees its digits."""
    usual = float(np.median(page.boxes[:, 2:].max(1))) if len(page.boxes) else 40.0
    least, most = (LEAST, MOST) if rng.random() < 0.75 else (5, 160)
    scale = float(np.clip(least * (most / least) ** rng.random() / usual, SIDE / 8 / max(ink.shape), 1.6))
    small = resized(ink, scale)
    height, width = small.shape
    x, y = (int(rng.integers(min(0, side - SIDE), max(0, side - SIDE) + 1)) for side in (width, height))
    if max(height, width) <= SIDE // 2 - 4:
        x, y = (-int(rng.integers(0, SIDE // 2 - side)) for side in (width, height))
    elif len(page.boxes) and min(height, width) > SIDE and rng.random() < 0.6:
        box, place = scale * page.boxes[rng.integers(len(page.boxes))], SIDE * rng.uniform(0.2, 0.8, 2)
        x = int(np.clip(box[0] + box[2] / 2 - place[0], 0, width - SIDE))
        y = int(np.clip(box[1] + box[3] / 2 - place[1], 0, height - SIDE))
    seen = np.zeros((SIDE, SIDE), np.uint8)
    rows, columns = (slice(max(0, start), min(side, start + SIDE)) for start, side in ((y, height), (x, width)))
    seen[rows.start - y : rows.stop - y, columns.start - x : columns.stop - x] = small[rows, columns]
    return _with_truth(seen, page, scale, (x, y))


def resized(ink: np.ndarray, scale: float) -> np.ndarray:
    """Return ink in another size."""
    shape = max(4, round(ink.shape[1] * scale)), max(4, round(ink.shape[0] * scale))
    return cv2.resize(ink, shape, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def _with_truth(seen: np.ndarray, page: Page, scale: float, corner: tuple[int, int]) -> Crop:
    """Say what the network should of a crop with its top left at ``corner`` of the page in this ``scale``."""
    half, quarter = SIDE // 2, SIDE // 4
    reach = max(1, round(1.5 / scale))
    owners = cv2.dilate(page.owner, np.ones((reach, reach), np.uint8))  # or a thin stroke would lie between samples
    (h, w), (x, y) = owners.shape, corner
    down, across = (((2 * np.arange(half) + 1 + start) / scale).astype(int) for start in (y, x))
    inside = ((down >= 0) & (down < h))[:, None] & ((across >= 0) & (across < w))
    owner = np.where(inside, owners[down.clip(0, h - 1)][:, across.clip(0, w - 1)], 0)
    top, left, bottom, right = (max(0, int(value / scale)) for value in (y, x, y + SIDE, x + SIDE))
    whole, shown = (
        np.bincount(part.ravel(), minlength=len(page.boxes) + 1)
        for part in (page.owner, page.owner[top:bottom, left:right])
    )
    crop = Crop(
        seen,
        np.zeros((half, half), np.uint8),
        np.zeros((half, half, 2), np.int8),
        np.zeros((quarter, quarter), np.uint8),
        np.zeros((quarter, quarter), np.uint8),
        np.zeros((quarter, quarter, 2), np.float16),
    )
    for number, box in enumerate(page.boxes, 1):
        if shown[number] < 4:
            continue
        uncut = np.prod((np.minimum((w, h), box[:2] + box[2:]) - np.maximum(0, box[:2])) / box[2:])
        share = max(0.0, float(uncut)) * shown[number] / whole[number]
        own = owner == number
        place = scale * box - (x, y, 0, 0)
        size = place[2:].max()
        if share < 0.5 or not 0.8 * LEAST < size < 1.25 * MOST:
            continue  # background: less than half of a digit, or none of this size
        if share < 0.8 or not LEAST <= size <= MOST:
            crop.digit[own] = 2
            _allow(crop.either, place)
        else:
            crop.digit[own] = 1
            _teach(crop, own, place)
    return crop


def _allow(either: np.ndarray, place: np.ndarray) -> None:
    column, row = np.clip((place[:2] + place[2:] / 2) / 4, 0, len(either) - 1).astype(int)
    near = max(1, int(place[2:].max() / 8))
    either[max(0, row - near) : row + near + 1, max(0, column - near) : column + near + 1] = 1


def _teach(crop: Crop, own: np.ndarray, place: np.ndarray) -> None:
    """Write the truth of one digit, at ``place`` (x, y, width, height in pixels of the crop), into the maps."""
    x, y = place[:2] + place[2:] / 2
    rows, columns = np.nonzero(own)
    crop.way[rows, columns, 0] = np.clip(np.rint(2 * (x - 2 * columns - 1)), -127, 127)
    crop.way[rows, columns, 1] = np.clip(np.rint(2 * (y - 2 * rows - 1)), -127, 127)
    if not (0 <= x < SIDE and 0 <= y < SIDE):
        return
    steps, (wide, high) = 4 * np.arange(SIDE // 4) + 2, np.maximum(2.5, 0.14 * place[2:])
    hill = np.exp(-(((steps - x) / wide) ** 2 + ((steps[:, None] - y) / high) ** 2) / 2)
    hill[int(y / 4), int(x / 4)] = 1
    np.maximum(crop.middle, np.rint(255 * hill).astype(np.uint8), out=crop.middle)
    crop.size[hill > 0.3] = np.log(np.maximum(2, place[2:]) / UNIT)


def build() -> Any:
    """Return the network, 82,518 parameters: float32 [n, h, w, 1], sides divisible by 4, to its two maps."""
    import keras
    import tensorflow as tf

    layers: Any = keras.layers

    class Doubled(layers.Layer):
        """Each pixel four times: an upsampling that LiteRT does in any size."""

        def call(self, x: Any) -> Any:
            return tf.nn.depth_to_space(tf.concat([x] * 4, -1), 2)

    def block(x: Any, filters: int, kernel: int = 3, **options: int) -> Any:
        x = layers.Conv2D(filters, kernel, padding="same", use_bias=False, **options)(x)
        return layers.ReLU()(layers.BatchNormalization(momentum=0.97, epsilon=1e-3)(x))

    seen = keras.Input((None, None, 1))
    fine = block(block(seen, 16, strides=2), 24)
    x = block(block(fine, 40, strides=2), 40)
    x = block(block(block(x, 40, dilation_rate=2), 40, dilation_rate=4), 40)
    start = keras.initializers.Constant([-3, 0, 0])
    middles = layers.Conv2D(3, 1, bias_initializer=start, dtype="float32", name="middles")(x)
    x = layers.Concatenate()([Doubled()(block(x, 24, kernel=1)), fine])
    pixels = layers.Conv2D(3, 1, dtype="float32", name="pixels")(block(x, 24))
    return keras.Model(seen, [pixels, middles])


def losses(network: Any, crop: Crop, *, training: bool) -> Any:
    """Return the four losses of a batch: of digits or not, of ways, of middles (CenterNet's focal loss), of sizes."""
    import tensorflow as tf

    ink = tf.cast(crop.ink, tf.float32)[..., None] / 255
    pixels, middles = network(ink, training=training)
    inked = tf.cast(tf.nn.max_pool2d(ink, 2, 2, "VALID")[..., 0] > np.sqrt(WEAK), tf.float32)
    digit, known = (tf.cast(each, tf.float32) for each in (crop.digit == 1, crop.digit != 2))
    rim = tf.nn.max_pool2d(digit[..., None], 3, 1, "SAME")[..., 0] - digit
    weight = (0.03 + 0.97 * inked) * known * (1 - 0.8 * rim)
    of_digits = tf.nn.sigmoid_cross_entropy_with_logits(digit, pixels[..., 0])
    ways = tf.cast(crop.way, tf.float32) / (2 * REACH)
    own = digit * inked
    hill, logit = tf.cast(crop.middle, tf.float32) / 255, middles[..., 0]
    allowed = 1 - tf.cast(crop.either, tf.float32)
    top, likely = tf.cast(hill > 0.99, tf.float32), tf.sigmoid(logit)
    right = (1 - likely) ** 2 * tf.math.log_sigmoid(logit) * top
    wrong = (1 - hill) ** 4 * likely**2 * tf.math.log_sigmoid(-logit) * (1 - top) * allowed
    near = tf.cast(hill > 0.3, tf.float32) * allowed
    sizes = tf.abs(middles[..., 1:] - tf.cast(crop.size, tf.float32))
    return tf.stack(
        [
            tf.reduce_sum(of_digits * weight) / tf.reduce_sum(weight),
            tf.reduce_sum(tf.abs(pixels[..., 1:] - ways) * own[..., None]) / (tf.reduce_sum(own) + 1),
            -(tf.reduce_sum(right) + tf.reduce_sum(wrong)) / (tf.reduce_sum(top) + 1),
            tf.reduce_sum(sizes * near[..., None]) / (tf.reduce_sum(near) + 1),
        ]
    )


WEIGHTS = (1.0, 1.0, 0.5, 0.5)  # of the four losses


def train(
    data: Crop,
    *,
    steps: int,
    batch: int,
    rate: float,
    seed: int,
    bfloat16: bool,
    on_step: Callable[[int, np.ndarray], None],
) -> Any:
    """Train the network on crops, stacked, with Adam and a rate that rises for 200 steps and falls as a cosine."""
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(seed)
    keras.mixed_precision.set_global_policy("mixed_bfloat16" if bfloat16 else "float32")
    network, warm = build(), min(200, steps // 4)
    falling = keras.optimizers.schedules.CosineDecay(
        0.05 * rate, steps - warm, warmup_target=rate, warmup_steps=warm, alpha=0.01
    )
    optimizer = keras.optimizers.Adam(falling, epsilon=1e-6, clipnorm=5.0)

    @tf.function
    def step(*parts: Any) -> Any:
        with tf.GradientTape() as tape:
            each = losses(network, Crop(*parts), training=True)
            loss = tf.tensordot(each, tf.constant(WEIGHTS), 1)
        weights = network.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        return each

    rng = np.random.default_rng([seed, 9])
    orders = (rng.permutation(len(data.ink)) for _ in itertools.count())
    order = itertools.chain.from_iterable(orders)
    for number in range(steps):
        chosen = np.sort(list(itertools.islice(order, batch)))
        on_step(number + 1, step(*(tf.constant(part[chosen]) for part in data)).numpy())
    keras.mixed_precision.set_global_policy("float32")
    plain = build()
    plain.set_weights(network.get_weights())
    return plain


def export(network: Any, path: Path) -> None:
    """Write the network for LiteRT, its normalisations folded into its convolutions."""
    import tensorflow as tf

    path.write_bytes(tf.lite.TFLiteConverter.from_keras_model(network).convert())

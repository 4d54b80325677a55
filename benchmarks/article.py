"""The article's script, brought to Keras 3 and otherwise left alone: what people use instead of this project.

    python -m benchmarks.article [--epochs 12] [--seed 1] [--threads 2] [--autolog FOLDER]

Learns from the digits that `preprocess` prepared, stops early with patience 3, and prints accuracy and loss on the test
digits, and the seconds from the start of the process to the end of training. ``--autolog`` adds the one line that
MLflow's documentation recommends, with its store in FOLDER.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import psutil

from pipeline import console, files

DROPOUT, BATCH = 0.2, 128


def main(arguments: Sequence[str]) -> None:
    """Train and print one line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.article", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--autolog", type=Path, metavar="FOLDER")
    given = parser.parse_args(arguments)
    if given.autolog:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{given.autolog.resolve()}/mlflow.db"
    from pipeline.learning import network

    network.use_threads(given.threads)
    keras = network.keras
    if given.autolog:
        import mlflow

        mlflow.set_experiment(experiment_id=mlflow.create_experiment("article", given.autolog.resolve().as_uri()))
        mlflow.keras.autolog()
    keras.utils.set_random_seed(given.seed)
    images, labels, val_images, val_labels, test_images, test_labels = _digits()
    model = build(keras)
    model.fit(
        _scaled(images),
        keras.utils.to_categorical(labels, 10),
        batch_size=BATCH,
        epochs=given.epochs,
        validation_data=(_scaled(val_images), keras.utils.to_categorical(val_labels, 10)),
        callbacks=[keras.callbacks.EarlyStopping(patience=3, restore_best_weights=True)],
        verbose=0,
    )
    seconds = alive()
    loss, accuracy = model.evaluate(_scaled(test_images), keras.utils.to_categorical(test_labels, 10), verbose=0)
    print(f"test accuracy {accuracy:.4f}, loss {loss:.4f}, {seconds:.1f} s")


def alive() -> float:
    """Return the seconds since this process was started."""
    return time.time() - psutil.Process().create_time()


def build(keras: ModuleType) -> Any:
    """Return the article's network as the article writes it, compiled; ``keras`` is the module."""
    model = keras.Sequential([
        keras.Input((28, 28, 1)),
        keras.layers.Conv2D(64, 3, activation="relu"),
        keras.layers.MaxPooling2D(),
        keras.layers.Dropout(DROPOUT),
        keras.layers.Conv2D(64, 3, activation="relu"),
        keras.layers.MaxPooling2D(),
        keras.layers.Dropout(DROPOUT),
        keras.layers.Flatten(),
        keras.layers.Dense(10, activation="softmax"),
    ])  # fmt: skip
    model.compile(optimizer="adam", loss="categorical_crossentropy", metrics=["accuracy"])
    return model


def _digits() -> list[np.ndarray]:
    parts = [f"{part}-{kind}.npy" for part in ("train", "validation", "test") for kind in ("images", "labels")]
    return [np.load(files.PREPARED / part) for part in parts]


def _scaled(images: np.ndarray) -> np.ndarray:
    return images[..., None].astype(np.float32) / 255


if __name__ == "__main__":
    console.run(main)

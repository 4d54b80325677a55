"""The three files of a model, from the weights of an epoch: Keras archive, LiteRT network, calibration."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from pipeline import files
from pipeline.config import Train
from pipeline.learning import augmentation
from pipeline.learning.classifier import Calibration, Classifier, fit_calibration
from pipeline.learning.trajectory import Digits, Epoch

ARCHIVE, NETWORK, CALIBRATION = "digits.keras", "digits.tflite", "calibration.json"


def package(epoch: Epoch, train: Train, digits: Digits) -> dict[str, bytes]:
    """Return the content of the model's files by name: the same epoch gives the same bytes.

    Temperature and thresholds are fitted on the validation digits, as they are and degraded as by photographs.
    """
    from pipeline.learning import network

    archive, exported = network.export(train.network, epoch.weights, train.dropout)
    degraded = augmentation.degrade(digits.val_images, digits.val_labels, seed=train.seed, settings=train.augment)
    network_alone = Classifier(exported, Calibration(temperature=1, certain=0, possible=0, classes=digits.classes))
    clean_logits, logits = (network_alone.log_probabilities(images) for images in (digits.val_images, degraded))
    calibration = fit_calibration(clean_logits, logits, digits.val_labels, digits.classes)
    return {
        ARCHIVE: archive,
        NETWORK: exported,
        CALIBRATION: (json.dumps(asdict(calibration), indent=2, sort_keys=True) + "\n").encode(),
    }


def sha256(content: Mapping[str, bytes]) -> str:
    """Return the digest that names the model everywhere: that of its Keras archive."""
    return hashlib.sha256(content[ARCHIVE]).hexdigest()


def digests(content: Mapping[str, bytes]) -> dict[str, str]:
    """Return the digests that a report names a model by: that of its Keras archive, and those of the files in git."""
    names = {"model_sha256": ARCHIVE, "network_sha256": NETWORK, "calibration_sha256": CALIBRATION}
    return {key: hashlib.sha256(content[name]).hexdigest() for key, name in names.items()}


def write(content: Mapping[str, bytes], folder: Path) -> None:
    """Write the model's files into ``folder``."""
    for name, data in content.items():
        files.write_bytes(folder / name, data)

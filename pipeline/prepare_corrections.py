"""Stage prepare-corrections: the fields of the corrections that are learned from, with their labels.

Reads   data/corrections, params.yaml's `data.classes` and `train.corrections`
Writes  data/prepared-corrections/images.npy (uint8 [n, 28, 28]) and labels.npy (uint8 [n]); none of them, where
        `train.corrections` is 0, so that nothing is trained anew for a picture that nothing learns from

A picture whose ink falls into as many digits as its label has is learned from. That is decided without the network: it
is learned from these fields, and must not depend on itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline import config, console, corrections, files
from pipeline.corrections import Correction
from pipeline.photos import photo, reading
from pipeline.photos.photo import Page, Picture, Piece

OVERLAP = 0.4  # of the narrower one's width: ink that lies so far above or below other ink is of the same digit


def main(arguments: Sequence[str]) -> None:
    """Make data/prepared-corrections."""
    console.no_arguments(arguments)
    params = config.load()
    kept = corrections.load(files.CORRECTIONS, params.data.classes)
    halves = corrections.split(kept)
    images, labels, used = prepare(halves.learned if params.train.corrections else [], params.data.classes)
    files.write_array(files.PREPARED_CORRECTIONS / "images.npy", images)
    files.write_array(files.PREPARED_CORRECTIONS / "labels.npy", labels)
    print(
        f"prepare-corrections: {len(kept)} kept, {len(halves.measured)} of them to measure on, "
        f"{len(labels)} digits of {used} to learn from"
        + ("" if params.train.corrections else ": train.corrections is 0")
    )


def prepare(
    learned: Sequence[Correction], classes: Sequence[str], folder: Path = files.CORRECTIONS
) -> tuple[np.ndarray, np.ndarray, int]:
    """Return fields uint8 [n, 28, 28], their labels uint8 [n], and how many pictures they are from."""
    images: list[np.ndarray] = []
    labels: list[int] = []
    used = 0
    for correction in learned:
        names = corrections.names_of(correction.label, classes)
        with corrections.naming(folder / correction.file):
            found = fields_of(photo.open_picture(folder / correction.file), len(names))
        if len(found) == len(names):
            images += found
            labels += [classes.index(name) for name in names]
            used += 1
    return np.array(images, np.uint8).reshape(-1, photo.FIELD, photo.FIELD), np.array(labels, np.uint8), used


def fields_of(picture: Picture, digits: int) -> list[np.ndarray]:
    """Return the field of each digit that a picture's ink falls into, in reading order: of ``digits``, or of others.

    Of 71 photographs of several digits it finds as many as there are in 50 (the reader, which asks the network, in 58);
    of 358 of one digit in all. The network reads 47 of the 50 and 349 of the 358 as they are labelled.
    """
    page = photo.segment_ink(photo.extract_ink(picture.paper), reading.SHARES[1:2])[0]
    if digits == 1:
        main = reading.main_piece(page)
        return [] if main is None else [field(page, reading.near_pieces(page, main, *reading.REACHES[0]))]
    return [field(page, pieces) for row in reading.find_rows(page) for pieces in stacks(row)]


def stacks(row: Sequence[Piece]) -> list[list[Piece]]:
    """Join the pieces of a row, from left to right, that lie above each other."""
    found: list[list[Piece]] = []
    for piece in row:
        if found and _overlap(photo.bounding_box([each.box for each in found[-1]]), piece.box) > OVERLAP:
            found[-1].append(piece)
        else:
            found.append([piece])
    return found


def _overlap(one: photo.Box, other: photo.Box) -> float:
    left, right = max(one[0], other[0]), min(one[0] + one[2], other[0] + other[2])
    return (right - left) / min(one[2], other[2])


def field(page: Page, pieces: list[Piece]) -> np.ndarray:
    """Return the field of the digit that pieces of ink make."""
    return photo.prepare_field(photo.crop_ink(page, pieces))


if __name__ == "__main__":
    console.run(main)

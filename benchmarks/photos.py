"""Measure how photographs are read: ours, the article's method and the common recipe, side by side.

    python -m benchmarks.photos DIR

DIR holds pictures and ``labels.csv`` with the columns file, label (digits in reading order, empty where there are none)
and, where known, kind (single, multi, none) and group (pictures of one photograph or one hand). Prints accuracy
with its 95% Wilson interval by kind and group, and the confusions; ``--failures OUT.png`` draws every misread picture.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from pipeline import console, files, scoring
from pipeline.learning.classifier import Classifier
from pipeline.photos import photo, reading
from pipeline.photos.photo import Picture
from pipeline.photos.reading import Reading

TILE = 150  # pixels of a failure on the picture of all failures


@dataclass(frozen=True)
class Answer:
    """One labelled picture and what was made of it; ``one`` and the two recipes only where it shows a single digit."""

    file: str
    label: str
    kind: str
    group: str
    picture: Picture
    free: Reading
    one: Reading | None
    article: str
    common: str


def article_field(grey: np.ndarray) -> np.ndarray:
    """Prepare a picture as the article does: ``np.resize``, which cuts or repeats and never resamples, not inverted."""
    return np.resize(grey, (28, 28)).astype(np.uint8)


def common_field(grey: np.ndarray) -> np.ndarray:
    """Prepare a picture by the common recipe: invert if the border is bright, Otsu, box to 20, centre of mass."""
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    ink = 255 - grey if border.mean() > 127 else grey
    _, mask = cv2.threshold(np.ascontiguousarray(ink), 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    return photo.prepare_field(np.where(mask > 0, ink, 0).astype(np.float32) / 255)


def answers(folder: Path, classifier: Classifier) -> Iterable[Answer]:
    """Read every labelled picture of a folder in every way."""
    rows = files.read_csv(folder / "labels.csv")
    with console.progress(len(rows), "read", "picture") as bar:
        for row in rows:
            picture = photo.open_picture(folder / row["file"])
            kind = row.get("kind") or ("none" if not row["label"] else "single" if len(row["label"]) == 1 else "multi")
            single = kind == "single"
            fields = np.stack([article_field(picture.grey), common_field(picture.grey)])
            plain = [str(best) for best in classifier.probabilities(fields).argmax(1)]
            yield Answer(
                file=row["file"],
                label=row["label"],
                kind=kind,
                group=(row.get("group") or row.get("paper") or kind).split(":")[0],
                picture=picture,
                free=reading.read(picture, classifier),
                one=reading.read_one(picture, classifier) if kind != "multi" else None,
                article=plain[0] if single else "",
                common=plain[1] if single else "",
            )
            bar.update()


def table(found: list[Answer]) -> list[tuple[str, int, int]]:
    """Return (what, right, of how many) for every goal, over all and by group."""
    single = [answer for answer in found if answer.kind == "single"]
    multi = [answer for answer in found if answer.kind == "multi"]
    none = [answer for answer in found if answer.kind == "none"]
    measures: list[tuple[str, list[Answer], Callable[[Answer], bool]]] = [
        ("single: --one", single, one_right),
        ("single: the article's method", single, lambda answer: answer.article == answer.label),
        ("single: the common recipe", single, lambda answer: answer.common == answer.label),
        ("single: right number of digits without --one", single, lambda answer: len(answer.free.text) == 1),
        ("single: accepted as a digit (--one)", single, is_accepted),
        ("single: right, of those accepted (--one)", [each for each in single if is_accepted(each)], one_right),
        ("multi: whole string right", multi, lambda answer: answer.free.text == answer.label),
        ("multi: right number of digits", multi, lambda answer: len(answer.free.text) == len(answer.label)),
        ("multi: accepted as digits", multi, is_accepted),
        ("multi: whole string right, of those accepted", [each for each in multi if is_accepted(each)], is_right),
        ("none: refused", none, lambda answer: answer.free.verdict != "digit"),
        ("none: refused (--one)", none, lambda answer: not is_accepted(answer)),
    ]
    groups: list[tuple[str, list[Answer], Callable[[Answer], bool]]] = [
        (f"  {group}, {kind}", [answer for answer in part if answer.group == group], is_right)
        for kind, part in (("single --one", single), ("multi string", multi))
        for group in sorted({answer.group for answer in part})
    ]
    return [(what, sum(map(test, part)), len(part)) for what, part, test in measures + groups if part]


def one_right(answer: Answer) -> bool:
    """Tell whether ``--one`` gives the label."""
    return answer.one is not None and answer.one.text == answer.label


def is_accepted(answer: Answer) -> bool:
    """Tell whether a picture is called `digit`: one of several digits as a whole, others with ``--one``."""
    return (answer.one or answer.free).verdict == "digit"


def is_right(answer: Answer) -> bool:
    """Tell whether a picture is read as it should be: one digit, a string, or nothing with certainty."""
    if answer.kind == "single":
        return one_right(answer)
    return answer.free.text == answer.label if answer.label else answer.free.verdict != "digit"


def confusions(found: list[Answer]) -> Counter[str]:
    """Count label -> answer of the misread single digits."""
    wrong = [answer for answer in found if answer.kind == "single" and not one_right(answer)]
    return Counter(f"{answer.label}->{answer.one.text if answer.one and answer.one.text else '-'}" for answer in wrong)


def failures(found: list[Answer]) -> np.ndarray:
    """Draw every misread picture with label, answer and the fields that the network saw: uint8 [h, w, 3]."""
    tiles = [_tile(answer) for answer in found if not is_right(answer)]
    if not tiles:
        return np.full((TILE, 6 * TILE, 3), 255, np.uint8)
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % 6)
    return np.vstack([np.hstack(tiles[start : start + 6]) for start in range(0, len(tiles), 6)])


def _tile(answer: Answer) -> np.ndarray:
    tile = np.full((TILE + 50, TILE, 3), 255, np.uint8)
    grey = answer.picture.grey
    scale = (TILE - 6) / max(grey.shape)
    shape = max(1, round(grey.shape[1] * scale)), max(1, round(grey.shape[0] * scale))
    small = cv2.resize(grey, shape, interpolation=cv2.INTER_AREA)
    tile[: small.shape[0], : small.shape[1]] = small[..., None]
    said = answer.one if answer.one is not None else answer.free
    for number, digit in enumerate(said.digits[:5]):
        tile[TILE : TILE + 28, number * 30 : number * 30 + 28] = digit.field[..., None]
    words = f"{answer.label or 'none'} > {said.text or said.verdict}"
    cv2.putText(tile, words, (0, TILE + 45), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (160, 30, 30), 1, cv2.LINE_AA)
    return tile


def main(arguments: Sequence[str]) -> None:
    """Read the folder, print the table, draw the failures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.photos", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--models", type=Path, default=files.MODELS, help="folder of digits.tflite and calibration.json"
    )
    parser.add_argument("--failures", type=Path, metavar="OUT.png", help="draw every misread picture")
    options = parser.parse_args(arguments)
    found = list(answers(options.folder, Classifier.load(options.models)))
    for what, right, of in table(found):
        low, high = scoring.wilson(right, of)
        print(f"{what:48} {right:5d} / {of:<5d} {100 * right / of:6.2f}%  [{100 * low:.2f}, {100 * high:.2f}]")
    print("confusions:", ", ".join(f"{pair} x{count}" for pair, count in confusions(found).most_common()) or "none")
    if options.failures:
        files.write_bytes(options.failures, cv2.imencode(".png", failures(found)[..., ::-1])[1].tobytes())


if __name__ == "__main__":
    console.run(main)

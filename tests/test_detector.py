"""The pages that teach the detector say the truth, and what is taught can be exported and used."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.detector import glyphs, network, pages, reading
from benchmarks.detector.glyphs import Writer
from benchmarks.detector.network import SIDE, UNIT, Crop
from benchmarks.detector.reading import Detector, digits_of
from pipeline import fetch, files, preprocess


@pytest.fixture(scope="module")
def writer(raw_mnist: Path) -> Writer:
    images, labels = (
        preprocess.read_idx(raw_mnist / fetch.FILES[f"train_{kind}"], kind) for kind in ("images", "labels")
    )
    return Writer(images[:400], labels[:400], np.random.default_rng(1), european=0.5)


@pytest.fixture(scope="module")
def drawn(writer: Writer) -> list[pages.Page]:
    return [pages.draw(np.random.default_rng([1, number]), writer) for number in range(40)]


def test_the_same_numbers_draw_the_same_page(writer: Writer, drawn: list[pages.Page]) -> None:
    again = pages.draw(np.random.default_rng([1, 3]), writer)
    assert again.grey.tobytes() == drawn[3].grey.tobytes()
    assert again.owner.tobytes() == drawn[3].owner.tobytes()


def test_the_ink_of_a_digit_lies_in_its_box(drawn: list[pages.Page]) -> None:
    for page in drawn:
        for number, (x, y, w, h) in enumerate(page.boxes, 1):
            rows, columns = np.nonzero(page.owner == number)
            margin = 3 + 0.15 * max(w, h)  # in perspective a box is not upright
            assert ((rows >= y - margin) & (rows <= y + h + margin)).all()
            assert ((columns >= x - margin) & (columns <= x + w + margin)).all()


def test_a_digit_s_ink_differs_from_the_paper_around_it(drawn: list[pages.Page]) -> None:
    differences = []
    for page in drawn:
        x = page.grey.astype(float)
        own, paper = page.owner > 0, page.owner == 0
        if own.sum() > 100:
            differences.append(abs(np.median(x[own]) - np.median(x[paper])))
    assert np.median(differences) > 40


@pytest.mark.parametrize("pen", [0.02, 0.06])
def test_a_pen_is_as_broad_as_asked(writer: Writer, pen: float) -> None:
    one = int(np.flatnonzero(writer.labels == 1)[0])
    cover = glyphs._with_pen(writer._lines[one], 10 * np.eye(2), np.zeros(2), np.array([280, 280]), pen * 200)
    widths = [np.count_nonzero(row > 127) for row in cover if (row > 127).any()]
    assert np.median(widths) == pytest.approx(2 * pen * 200, rel=0.4)


def test_joined_writing_is_about_as_high_as_asked_and_broader() -> None:
    covers = [glyphs.draw_cursive(np.random.default_rng(number), 60, 3) for number in range(20)]
    heights, widths = zip(*(cover.shape for cover in covers if cover is not None), strict=True)
    assert 25 < min(heights) <= max(heights) < 80
    assert np.median(widths) > 60


def test_thinning_leaves_a_line_of_one_pixel_where_a_stroke_was() -> None:
    bar = np.zeros((1, 28, 28), np.uint8)
    bar[0, 4:24, 11:16] = 255
    on_line = glyphs.distances(bar)[0] == 0
    assert set(on_line[20:36].sum(1)) == {1}


def test_ink_that_is_taken_for_a_digit_s_explains_a_picture_and_a_guess_over_paper_does_not() -> None:
    ink, sure = np.zeros((40, 60), np.uint8), np.full((20, 32, 3), 9.0, np.float32)
    assert reading._explained(ink, sure) == 0
    ink[10:20, 10:30] = 255
    assert reading._explained(ink, sure) == pytest.approx(5 * 10, abs=0.1)
    assert reading._explained(ink, -sure) == pytest.approx(0, abs=0.1)


def test_a_way_leads_from_a_digit_s_ink_to_its_middle(writer: Writer) -> None:
    page = next(page for page in iter_pages(writer) if len(page.boxes) == 1 and (page.owner == 1).sum() > 200)
    scale = 30 / page.boxes[0, 2:].max()
    crop = network._with_truth(np.zeros((SIDE, SIDE), np.uint8), page, scale, (0, 0))
    rows, columns = np.nonzero(crop.digit == 1)
    ends = np.stack([2 * columns + 1, 2 * rows + 1], 1) + crop.way[rows, columns] / 2
    middle = scale * (page.boxes[0, :2] + page.boxes[0, 2:] / 2)
    assert np.abs(ends - middle).max() < 1
    assert crop.middle.max() == 255


@pytest.mark.parametrize("size", [6, 70])
def test_a_digit_too_small_or_too_large_is_background(writer: Writer, size: float) -> None:
    page = next(page for page in iter_pages(writer) if len(page.boxes) == 1)
    crop = network._with_truth(np.zeros((SIDE, SIDE), np.uint8), page, size / page.boxes[0, 2:].max(), (0, 0))
    assert not crop.digit.any()
    assert not crop.middle.any()


def iter_pages(writer: Writer) -> Iterator[pages.Page]:
    return (pages.draw(np.random.default_rng([2, number]), writer) for number in range(200))


def test_of_middles_beside_each_other_the_best_is_kept_with_its_size() -> None:
    middles = np.full((20, 20, 3), -9.0)
    middles[5, 6] = 3.0, np.log(18 / UNIT), np.log(30 / UNIT)
    middles[7, 6] = 1.0, np.log(18 / UNIT), np.log(30 / UNIT)
    middles[15, 15] = 2.0, 0, 0
    found = digits_of(middles)
    assert len(found) == 2
    assert found[0, 1:] == pytest.approx([26, 22, 18, 30], abs=0.6)


TEACH = """
import sys, numpy as np
from pathlib import Path
from benchmarks.detector import network
from benchmarks.detector.network import Crop
from pipeline.learning import environment
environment.isolate("native")
data = Crop(*np.load(sys.argv[1]).values())
seen = []
options = {"steps": 30, "batch": 8, "rate": 4e-3, "seed": 1, "bfloat16": False}
trained = network.train(data, **options, on_step=lambda _, losses: seen.append(losses.sum()))
assert np.mean(seen[-5:]) < np.mean(seen[:5]), seen
network.export(trained, Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_what_was_taught_is_exported_and_looks_at_any_size(writer: Writer, tmp_path: Path) -> None:
    found = list(network.crops(writer.images, writer.labels, pages_wanted=15, seed=3))
    np.savez(
        tmp_path / "crops.npz",
        **{name: np.stack(part) for name, part in zip(Crop._fields, zip(*found, strict=True), strict=True)},
    )
    command = [sys.executable, "-c", TEACH, str(tmp_path / "crops.npz"), str(tmp_path / "detector.tflite")]
    subprocess.run(command, check=True, cwd=files.ROOT)
    detector = Detector(tmp_path / "detector.tflite")
    assert (tmp_path / "detector.tflite").stat().st_size < 500_000
    for shape in ((64, 64), (131, 77)):
        pixels, middles = detector._maps(np.zeros(shape, np.uint8))
        assert pixels.shape[0] == 2 * middles.shape[0] == -(-shape[0] // 4) * 2
    found_there = detector.find(np.full((90, 120), 255, np.uint8))
    assert found_there is None or found_there.pixels.shape == (90, 120, 3)

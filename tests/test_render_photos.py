import cv2
import numpy as np
import pytest
from PIL import Image

from benchmarks import photos, render_photos, rendered
from pipeline import files
from pipeline.photos import photo


@pytest.fixture(scope="module")
def digits():
    rng = np.random.default_rng(1)
    images = np.zeros((20, 28, 28), np.uint8)
    images[:, 4:24, 9:19] = rng.integers(100, 256, (20, 20, 10))
    return images, (np.arange(20) % 10).astype(np.uint8)


def test_the_same_seed_draws_the_same_pictures(digits, tmp_path):
    for name in ("one", "two"):
        render_photos.render(*digits, 8, 3, tmp_path / name)
    first, second = (sorted((tmp_path / name).iterdir()) for name in ("one", "two"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_another_seed_draws_others(digits):
    scenes = [render_photos.draw(*digits, np.random.default_rng([seed, 0]), "single") for seed in (1, 2)]
    assert scenes[0].pixels.shape != scenes[1].pixels.shape or (scenes[0].pixels != scenes[1].pixels).any()


@pytest.mark.parametrize(("kind", "lengths"), [("single", {1}), ("multi", {2, 3, 4, 5, 6}), ("none", {0})])
def test_labels_are_as_long_as_the_kind_says(digits, kind, lengths):
    rng = np.random.default_rng(5)
    assert {len(render_photos.draw(*digits, rng, kind).label) for _ in range(12)} <= lengths


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_picture_is_stored_as_it_was_held_and_read_upright(orientation):
    pixels = np.zeros((60, 100, 3), np.uint8)
    pixels[:20, :30] = 255
    scene = render_photos.Scene(pixels, "1", "single", "plain", orientation, 95)
    grey = photo.open_picture(render_photos.encode(scene), longest=100).grey
    assert grey.shape[0] < grey.shape[1]
    assert grey[5, 5] > 200 > 50 > grey[-5, -5]


def test_the_shipped_labels_name_the_shipped_pictures():
    folder = files.ROOT / files.PHOTOS
    rows = files.read_csv(folder / "labels.csv")
    assert len(rows) == render_photos.SHIPPED
    assert {row["file"] for row in rows} == {path.name for path in folder.glob("*.jpg")}
    for row in rows:
        with Image.open(folder / row["file"]) as image:
            assert max(image.size) < 1000


@pytest.mark.parametrize("seed", range(5))
def test_a_drawn_pair_is_of_two_digits_that_hang_together(digits, seed):
    pair = rendered.draw_pair(digits[0][:2], np.random.default_rng(seed))
    count, _, stats, _ = cv2.connectedComponentsWithStats((pair < 140).astype(np.uint8))
    assert count == 2
    assert stats[1, cv2.CC_STAT_WIDTH] > 1.5 * 0.5 * rendered.HEIGHT  # each is half as wide as it is high


def test_the_articles_method_cuts_and_never_resamples():
    seven = np.full((280, 280), 0, np.uint8)
    seven[60:220, 90:200] = 255
    assert not photos.article_field(seven).any()


def test_the_common_recipe_inverts_bright_paper():
    page = np.full((100, 100), 220, np.uint8)
    page[20:80, 45:55] = 30
    assert photos.common_field(page).max() > 150

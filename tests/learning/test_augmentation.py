import hashlib

import cv2
import numpy as np
import pytest

from pipeline import config
from pipeline.learning import augmentation, non_digits
from pipeline.learning.augmentation import augment, degrade

OFF = dict.fromkeys(config.Augment.model_fields, 0.0)
ALL = config.load().train.augment
EFFECTS = {
    "rotation": 0.3, "shear": 0.3, "scale": 0.2, "narrow": 0.4, "shift": 2.0, "ripple": 1.0, "stroke": 1.0,
    "uneven": 0.5, "grain": 0.5, "gaps": 1.0, "blur": 1.0, "contrast": 0.5, "lines": 1.0, "neighbours": 1.0,
}  # fmt: skip


def settings(**strengths: float) -> config.Augment:
    return config.Augment.model_validate(OFF | {"share": 1.0} | strengths)


def labels_of(fields: np.ndarray) -> np.ndarray:
    """Call rings eights, and bars ones, in turn sevens."""
    return np.resize(np.array([8, 1, 8, 7], np.uint8), len(fields))


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    """Rings and bars, about as large and as bright as MNIST's digits."""
    y, x = np.mgrid[:28, :28]
    ring = np.abs(np.hypot(x - 14, y - 14) - 7) < 1.6
    bar = (np.abs(x - 14) < 2) & (np.abs(y - 14) < 10)
    return np.array([ring, bar, ring | bar, bar.T] * 50, np.uint8) * 250


def centres(images: np.ndarray) -> np.ndarray:
    weights = images.astype(float)
    total = weights.sum((1, 2))
    return np.stack([(weights.sum(axis) @ np.arange(28)) / total for axis in (1, 2)], axis=1)


def test_the_same_seed_and_epoch_give_the_same_digits(digits: np.ndarray) -> None:
    first = augment(digits, labels_of(digits), seed=1, epoch=2, settings=ALL)
    assert np.array_equal(first, augment(digits, labels_of(digits), seed=1, epoch=2, settings=ALL))


@pytest.mark.parametrize(("seed", "epoch"), [(1, 3), (2, 2)])
def test_another_seed_or_epoch_gives_other_digits(digits: np.ndarray, seed: int, epoch: int) -> None:
    first = augment(digits, labels_of(digits), seed=1, epoch=2, settings=ALL)
    assert not np.array_equal(first, augment(digits, labels_of(digits), seed=seed, epoch=epoch, settings=ALL))


def test_every_machine_draws_these_bits(digits: np.ndarray) -> None:
    everything = np.concatenate([
        augment(digits, labels_of(digits), seed=1, epoch=1, settings=settings(**EFFECTS, european=1.0)),
        non_digits.draw(300, seed=1, epoch=1, images=digits),
    ])  # fmt: skip
    assert hashlib.sha256(everything.tobytes()).hexdigest()[:16] == "3608ff5630647a71"


def test_without_a_share_the_digits_stay_as_they_are(digits: np.ndarray) -> None:
    assert np.array_equal(
        augment(digits, labels_of(digits), seed=1, epoch=1, settings=settings(**EFFECTS, share=0.0)), digits
    )


def test_with_every_strength_at_0_the_digits_stay_as_they_are(digits: np.ndarray) -> None:
    assert np.array_equal(augment(digits, labels_of(digits), seed=1, epoch=1, settings=settings()), digits)


def test_the_share_is_that_of_the_digits_changed(digits: np.ndarray) -> None:
    many = np.tile(digits, (10, 1, 1))
    changed = augment(many, labels_of(many), seed=1, epoch=1, settings=settings(**EFFECTS, share=0.25)) != many
    assert changed.any((1, 2)).mean() == pytest.approx(0.25, abs=0.03)


def test_the_others_are_moved_and_nothing_else_is_done_to_them(digits: np.ndarray) -> None:
    changed = augment(digits, labels_of(digits), seed=1, epoch=1, settings=settings(**EFFECTS, share=0.0, moved=0.5))
    assert (changed != digits).any((1, 2)).mean() == pytest.approx(0.5, abs=0.1)
    only = {name: EFFECTS[name] for name in ("rotation", "shear", "scale", "shift")}
    alike = augment(digits, labels_of(digits), seed=1, epoch=1, settings=settings(**only, share=0.0, moved=0.5))
    assert np.array_equal(changed, alike)


@pytest.mark.parametrize("effect", EFFECTS)
def test_each_effect_alone_changes_digits_but_leaves_their_ink_to_be_seen(digits: np.ndarray, effect: str) -> None:
    changed = augment(digits, labels_of(digits), seed=1, epoch=1, settings=settings(**{effect: EFFECTS[effect]}))
    assert (changed != digits).any((1, 2)).mean() > 0.9
    assert (changed.astype(int).sum((1, 2)) > 0.3 * digits.astype(int).sum((1, 2))).all()


def test_a_shift_moves_the_ink_at_most_so_far(digits: np.ndarray) -> None:
    moved = centres(augment(digits, labels_of(digits), seed=1, epoch=1, settings=settings(shift=2.0))) - centres(digits)
    assert 1.9 < np.abs(moved).max() < 2.05
    assert np.abs(moved.mean(0)).max() < 0.3


def test_a_rotation_keeps_the_centre_and_the_amount_of_ink(digits: np.ndarray) -> None:
    turned = augment(digits, labels_of(digits), seed=1, epoch=1, settings=settings(rotation=0.3))
    assert np.abs(centres(turned) - centres(digits)).max() < 0.3
    ratio = turned.astype(float).sum((1, 2)) / digits.astype(float).sum((1, 2))
    assert np.abs(ratio - 1).max() < 0.15


def test_digits_do_not_run_into_the_next_field() -> None:
    fields = np.zeros((300, 28, 28), np.uint8)
    fields[::2] = 255
    bent = augment(
        fields, labels_of(fields), seed=1, epoch=1, settings=settings(shift=8.0, stroke=1.0, blur=1.0, ripple=2.0)
    )
    assert not bent[1::2].any()


def test_a_broken_stroke_only_loses_ink(digits: np.ndarray) -> None:
    broken = augment(digits, labels_of(digits), seed=1, epoch=1, settings=settings(gaps=1.0))
    assert (broken <= digits).all()


@pytest.mark.parametrize("effect", ["lines", "neighbours"])
def test_remains_only_add_ink_to_their_share_of_the_digits(digits: np.ndarray, effect: str) -> None:
    many = np.tile(digits, (10, 1, 1))
    marked = augment(many, labels_of(many), seed=1, epoch=1, settings=settings(**{effect: 0.3}))
    assert (marked >= many).all()
    assert (marked != many).any((1, 2)).mean() == pytest.approx(0.3, abs=0.04)


def test_only_ones_sevens_and_nines_are_written_in_the_european_way(digits: np.ndarray) -> None:
    labels = labels_of(digits)
    written = augment(digits, labels, seed=1, epoch=1, settings=settings(european=1.0))
    changed = (written != digits).any((1, 2))
    assert not changed[labels == 8].any()
    assert changed[(labels == 1) | (labels == 7)].mean() > 0.95


def european(bars: np.ndarray, label: int) -> np.ndarray:
    """Write bars as if they were this digit; their centre must stay where photographs have it."""
    written = augment(bars, np.full(len(bars), label, np.uint8), seed=1, epoch=1, settings=settings(european=1.0))
    assert np.abs(centres(written) - 14).max() <= 0.51
    return written


def test_a_european_one_has_more_ink_to_the_upper_left(digits: np.ndarray) -> None:
    bars = digits[1::4]
    written = european(bars, 1)
    assert (written.astype(int).sum((1, 2)) > bars.astype(int).sum((1, 2))).all()
    assert (written[:, :14, :12].sum((1, 2)) > written[:, 14:, :12].sum((1, 2))).mean() > 0.7


def test_a_european_nine_has_more_ink_to_the_lower_left(digits: np.ndarray) -> None:
    bars = digits[1::4]
    written = european(bars, 9)
    assert (written.astype(int).sum((1, 2)) >= bars.astype(int).sum((1, 2))).all()
    assert (written[:, 14:, :12].sum((1, 2)) > written[:, :14, :12].sum((1, 2))).mean() > 0.9


def test_a_european_seven_has_a_bar_that_crosses_its_stem(digits: np.ndarray) -> None:
    written = european(digits[1::4], 7)
    right_of_the_stem = written[:, 10:22, 18:].max((1, 2)) > 127
    assert 0.5 < right_of_the_stem.mean() < 0.9


def test_no_stroke_of_a_european_seven_closes_a_loop_and_makes_it_a_nine() -> None:
    seven = np.zeros((28, 28), np.uint8)
    cv2.polylines(seven, [np.array([(7, 11), (7, 5), (20, 5), (14, 23)])], False, 250, 2)  # its tick is a long one
    sevens = np.repeat(seven[None], 300, axis=0)
    written = augment(sevens, np.full(300, 7, np.uint8), seed=1, epoch=1, settings=settings(european=1.0))
    loops = [
        cv2.connectedComponents((np.pad(each, 1) < 128).astype(np.uint8), connectivity=4)[0] - 2 for each in written
    ]
    assert max(loops) == 0
    same = (written == sevens).all((1, 2))
    assert 0.1 < same.mean() < 0.9


def test_a_curled_tail_does_not_come_out_at_the_other_side() -> None:
    edge = np.zeros((200, 28, 28), np.uint8)
    edge[:, 2:26, 1:4] = 250
    edge[:, 2:8, 20:22] = 250
    written = augment(edge, np.full(200, 9, np.uint8), seed=1, epoch=1, settings=settings(european=1.0))
    assert not written[:, 20:, 24:].any()


def test_the_digits_given_are_not_written_to(digits: np.ndarray) -> None:
    before = digits.copy()
    augment(digits, labels_of(digits), seed=1, epoch=1, settings=ALL)
    non_digits.draw(50, seed=1, epoch=1, images=digits)
    assert np.array_equal(digits, before)


def test_degrading_changes_every_digit_whatever_the_share(digits: np.ndarray) -> None:
    degraded = degrade(digits, labels_of(digits), seed=1, settings=ALL.model_copy(update={"share": 0.0}))
    assert (degraded != digits).any((1, 2)).all()


def test_no_digits_become_no_digits(digits: np.ndarray) -> None:
    assert augment(digits[:0], labels_of(digits[:0]), seed=1, epoch=1, settings=ALL).shape == (0, 28, 28)
    assert non_digits.draw(0, seed=1, epoch=1, images=digits).shape == (0, 28, 28)


def test_more_digits_than_one_chunk_are_all_changed(digits: np.ndarray) -> None:
    many = np.tile(digits, (13, 1, 1))
    assert len(many) > 2 * augmentation.CHUNK
    assert (degrade(many, labels_of(many), seed=1, settings=ALL) != many).any((1, 2)).all()


def test_non_digits_are_seeded_and_new_in_each_epoch(digits: np.ndarray) -> None:
    first, again, later = (non_digits.draw(60, seed=1, epoch=epoch, images=digits) for epoch in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, later)


@pytest.mark.parametrize("kind", dict.fromkeys(non_digits.KINDS), ids=lambda kind: kind.__name__)
def test_each_kind_of_non_digit_is_a_field(digits: np.ndarray, kind: non_digits.Kind) -> None:
    rng = np.random.default_rng(1)
    fields = np.array([kind(rng, digits) for _ in range(20)])
    assert fields.shape == (20, 28, 28)
    assert fields.dtype == np.uint8
    assert len(np.unique(fields, axis=0)) > 5


def test_letters_come_in_several_fonts_and_fill_the_box() -> None:
    glyphs = non_digits._glyphs()
    assert len(glyphs) >= 8 * len(non_digits.LETTERS)
    for glyph in glyphs:
        rows, columns = np.flatnonzero(glyph.any(1)), np.flatnonzero(glyph.any(0))
        assert 18 <= max(np.ptp(rows), np.ptp(columns)) + 1 <= 20

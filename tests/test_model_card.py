"""The model card says what is known of a model, and leaves out the rest."""

import pytest

from pipeline import model_card

PARAMS = {"train.dropout": "0.05", "train.batch_size": "128", "train.threads": "2"}
TAGS = {"data.sha256": "d" * 64, "model.sha256": "m" * 64, "git.commit": "c" * 40}


def test_it_names_what_the_model_was_made_of() -> None:
    card = model_card.card(PARAMS, {}, TAGS)
    made = f"data `{'d' * 12}`, model `{'m' * 12}`, commit `{'c' * 12}`."
    assert f"Trained with batch_size 128, dropout 0.05; {made}" in card.splitlines()


@pytest.mark.parametrize("missing", TAGS)
def test_what_is_not_known_is_left_out(missing: str) -> None:
    card = model_card.card(PARAMS, {}, {name: value for name, value in TAGS.items() if name != missing})
    assert f"{model_card.DIGESTS[missing]} `" not in card
    assert "``" not in card


def test_only_metrics_of_the_run_are_listed() -> None:
    card = model_card.card(PARAMS, {"test_accuracy": 0.99461, "loss": 0.1}, TAGS)
    assert "| accuracy on the test images | 0.9946 |" in card.splitlines()
    assert "calibration" not in card

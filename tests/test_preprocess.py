"""preprocess refuses raw files that are not what they should be, and splits the digits the same way everywhere."""

import io
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline import config, files, preprocess
from pipeline.config import DIGITS
from pipeline.console import UserError

RAW = files.RAW
IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def idx(array, kind=8):
    return struct.pack(f">HBB{array.ndim}I", 0, kind, array.ndim, *array.shape) + array.tobytes()


def digits(count, seed=1):
    images = np.random.default_rng(seed).integers(0, 256, (count, 28, 28), np.uint8)
    return images, (np.arange(count) % 10).astype(np.uint8)


@pytest.fixture(autouse=True)
def _small_data(tmp_path, monkeypatch):
    """Go to a folder with 200 training and 50 test digits in data/raw."""
    monkeypatch.chdir(tmp_path)
    for part, count in (("train", 200), ("t10k", 50)):
        images, labels = digits(count, seed=count)
        files.write_bytes(files.RAW / f"{part}-images-idx3-ubyte", idx(images))
        files.write_bytes(files.RAW / f"{part}-labels-idx1-ubyte", idx(labels))
    write_params()


def write_params(train=100, validation=50, test=40, seed=1, **data):
    text = (files.ROOT / "params.yaml").read_text("utf-8")
    content = config.yaml.safe_load(text)
    content["preprocess"] = {"train": train, "validation": validation, "test": test, "seed": seed}
    content["data"] |= data
    content["train"]["augment"]["european"] = 0.0
    files.PARAMS.write_text(config.yaml.safe_dump(content), "utf-8")


def refusal():
    with pytest.raises(UserError) as caught:
        preprocess.main([])
    assert "\n" not in str(caught.value)
    assert not files.PREPARED.exists()
    return str(caught.value)


def prepared(name):
    return np.load(files.PREPARED / f"{name}.npy")


def test_arrays_and_reports_are_written_as_declared():
    preprocess.main([])
    for part, count in {"train": 100, "validation": 50, "test": 40}.items():
        assert prepared(f"{part}-images").shape == (count, 28, 28)
        assert prepared(f"{part}-labels").shape == (count,)
        assert prepared(f"{part}-images").dtype == prepared(f"{part}-labels").dtype == np.uint8
    assert sorted(path.name for path in files.REPORTS.iterdir()) == ["data.json", "digits.png"]
    assert len(list(files.PREPARED.iterdir())) == 7


def test_a_digit_keeps_its_label_and_its_pixels():
    known = {image.tobytes(): label for image, label in zip(*preprocess.read_pair(RAW, "train"), strict=True)}
    preprocess.main([])
    for part in ("train", "validation"):
        for image, label in zip(prepared(f"{part}-images"), prepared(f"{part}-labels"), strict=True):
            assert known.pop(image.tobytes()) == label  # and no digit is in two parts, since it is gone now


def test_the_test_digits_are_the_first_ones():
    preprocess.main([])
    images, labels = preprocess.read_pair(RAW, "t10k")
    assert np.array_equal(prepared("test-images"), images[:40])
    assert np.array_equal(prepared("test-labels"), labels[:40])


def test_the_same_parameters_give_the_same_bytes():
    def made():
        preprocess.main([])
        return {path: path.read_bytes() for folder in (files.PREPARED, files.REPORTS) for path in folder.iterdir()}

    assert made() == made()


def test_another_seed_splits_otherwise():
    preprocess.main([])
    before = prepared("validation-images")
    write_params(seed=2)
    preprocess.main([])
    assert not np.array_equal(before, prepared("validation-images"))


def test_fewer_digits_to_learn_from_are_judged_by_the_same_ones():
    preprocess.main([])
    before = prepared("validation-images")
    write_params(train=30)
    preprocess.main([])
    assert np.array_equal(before, prepared("validation-images"))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=300), st.integers(0, 2**31 - 1), st.floats(0, 1))
def test_every_beginning_of_the_order_has_each_class_share(labels, seed, share):
    array = np.array(labels, np.uint8)
    order = preprocess.stratify(array, seed)
    assert sorted(order) == list(range(len(labels)))
    beginning = order[: round(share * len(labels))]
    for label in set(labels):
        expected = labels.count(label) * len(beginning) / len(labels)
        assert abs(np.sum(array[beginning] == label) - expected) < len(set(labels))


def test_the_order_depends_on_the_raw_output_of_the_generator_alone():
    words = np.random.PCG64(2020).random_raw(4)
    assert words.tolist() == [8638749399453870742, 9487939504240076983, 15937770709437684853, 13270345503764102063]
    assert preprocess.stratify(np.zeros(4, np.uint8), 2020).tolist() == [0, 1, 3, 2]


REPLACE = [
    (LABELS, lambda _: None, "expected the labels here; run `dvc repro fetch`"),
    (IMAGES, lambda _: b"", "holds nothing, expected images (it begins with 00000803)"),
    (IMAGES, lambda c: c[:3], "holds something that is not IDX (it begins with 000008), expected images"),
    (IMAGES, lambda c: c[:9], "holds 9 bytes, fewer than the 16 of a header: it is truncated"),
    (IMAGES, lambda c: c[:-1], "holds 156,815 bytes, expected 156,816 for 200 images: it is truncated"),
    (IMAGES, lambda c: c + b"\0", "holds 156,817 bytes, expected 156,816 for 200 images: something was added"),
    (IMAGES, lambda _: idx(digits(200)[1]), "holds labels: are two files swapped?, expected images"),
    (LABELS, lambda _: idx(digits(200)[0]), "holds images: are two files swapped?, expected labels"),
    (IMAGES, lambda c: b"\x1f\x8b" + c, "holds a gzip file: unpack it first, expected images"),
    (IMAGES, lambda _: idx(np.zeros((200, 28, 28), ">f4"), kind=13), "not IDX (it begins with 00000d03)"),
    (IMAGES, lambda _: idx(np.zeros((200, 32, 32), np.uint8)), "holds images of 32 x 32 pixels, expected 28 x 28"),
    (IMAGES, lambda _: idx(np.zeros((0, 28, 28), np.uint8)), "holds no images"),
    (IMAGES, lambda _: b"\0\0\x08\x03" + b"\xff" * 12, "holds images of 4294967295 x 4294967295 pixels"),
    (LABELS, lambda c: c[:-3] + bytes([10, 255, 3]), "holds label 10 at position 197, expected 0 to 9"),
    (LABELS, lambda _: idx(digits(199)[1]), "holds 199 labels, expected one for each of 200 images"),
]


@pytest.mark.parametrize(("name", "change", "expected"), REPLACE, ids=[case[2][:50] for case in REPLACE])
def test_a_raw_file_that_is_wrong_is_named_with_what_it_holds(name, change, expected):
    content = change((RAW / name).read_bytes())
    (RAW / name).unlink() if content is None else (RAW / name).write_bytes(content)
    message = refusal()
    assert message.startswith(f"{RAW / name}: ")
    assert expected in message


def test_a_bit_that_flipped_since_fetch_is_seen():
    lines = [f"{files.sha256(path)}  {path.name}\n" for path in sorted(RAW.iterdir())]
    (RAW / "SHA256SUMS").write_text("".join(lines))
    preprocess.check_sums(RAW)
    content = bytearray((RAW / IMAGES).read_bytes())
    content[-1] ^= 1
    (RAW / IMAGES).write_bytes(content)
    assert refusal().startswith(f"{RAW / IMAGES}: holds other bytes than {RAW / 'SHA256SUMS'} says")


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"train": 151}, "preprocess.train + preprocess.validation is 201; expected at most the 200 images"),
        ({"test": 51}, "preprocess.test is 51; expected at most the 50"),
    ],
)
def test_more_digits_than_there_are_cannot_be_asked_for(sizes, expected):
    write_params(**sizes)
    assert refusal().startswith(expected)


def test_a_wrong_parameter_is_found_before_the_data_is_read():
    write_params(train=-1)
    (RAW / IMAGES).unlink()
    assert refusal() == "params.yaml: preprocess.train is -1; expected a whole number at least 10"


def test_a_digit_that_is_in_two_parts_is_reported():
    images, labels = digits(30)
    parts = {"train": (images[:20], labels[:20]), "validation": (images[19:], labels[19:])}
    report = preprocess.describe(parts, (images, labels), DIGITS)
    assert (report["train_repeated"], report["validation_repeated"]) == (0, 1)


def test_the_sheet_is_a_picture_with_a_row_a_class():
    sheet = Image.open(io.BytesIO(preprocess.draw(*digits(500), DIGITS)))
    assert sheet.mode == "L"
    assert np.mean(np.asarray(sheet) > 250) > 0.2  # dark ink on white paper
    rows = np.asarray(sheet)[preprocess.MARGIN : -preprocess.MARGIN].reshape(10, preprocess.CELL, -1)
    assert all(row.min() < 50 for row in rows)


def test_labels_mean_what_params_yaml_says():
    write_params(classes=["heart", "star", "moon", "sun", "cup", "key", "leaf", "fish", "bell", "tree", "never"])
    preprocess.main([])
    assert files.read_json(files.PREPARED / "classes.json")[:2] == ["heart", "star"]
    report = files.read_json(files.REPORTS / "data.json")
    assert (report["train_images_heart"], report["train_images_never"]) == (10, 0)


def test_a_label_without_a_name_is_refused():
    write_params(classes=["heart", "star", "moon"])
    message = refusal()
    assert "holds label 3 at position 3, expected 0 to 2; data.classes of params.yaml names 3 classes" in message


def test_a_class_without_digits_leaves_its_row_empty():
    images, _ = digits(20)
    assert preprocess.draw(images, np.full(20, 3, np.uint8), DIGITS).startswith(b"\x89PNG")


@pytest.mark.slow
def test_of_real_mnist_the_report_says_what_the_article_does(raw_mnist, tmp_path):
    shutil.rmtree(tmp_path / RAW)
    (tmp_path / RAW).symlink_to(raw_mnist)
    shutil.copy(files.ROOT / "params.yaml", tmp_path)
    command = [sys.executable, "-m", "pipeline.preprocess"]
    said = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(files.ROOT)}, check=True, capture_output=True)
    assert said.stdout == b"preprocess: 48,000 training, 12,000 validation and 10,000 test images\n"
    report = files.read_json(tmp_path / "reports/data.json")
    assert report["first_label"] == 5
    assert report["first_mean"] == 35.108418
    assert report["first_mean_scaled"] == 0.13768007
    assert [report[f"{part}_repeated"] for part in ("train", "validation", "test")] == [0, 0, 0]
    for label in range(10):
        share = report[f"validation_images_{label}"] / (
            report[f"validation_images_{label}"] + report[f"train_images_{label}"]
        )
        assert share == pytest.approx(0.2, abs=1e-3)
    assert report["train_sha256"] == "cc9fe8126d96df29445a7ff76389f33d2ade30db872f0ea441d050f3e7fe7626"

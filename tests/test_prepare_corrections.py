"""What is learned from are the digits of one half of the corrections, and nothing of the other half."""

import io
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import Project
from PIL import Image

from pipeline import config, corrections, files, prepare_corrections
from pipeline.config import DIGITS
from pipeline.console import UserError
from pipeline.corrections import Correction
from pipeline.learning.classifier import Classifier
from pipeline.photos import photo

PHOTOS = files.ROOT / files.PHOTOS
LABELS = {row["file"]: row["label"] for row in files.read_csv(PHOTOS / "labels.csv") if row["label"]}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with all shipped photographs as corrections; for reading only."""
    folder = tmp_path_factory.mktemp("kept")
    for name, label in LABELS.items():
        corrections.keep((PHOTOS / name).read_bytes(), label, DIGITS, folder=folder)
    return folder


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    set_share(0.1)
    return tmp_path


def set_share(share: float) -> None:
    text = (files.ROOT / files.PARAMS).read_text("utf-8")
    files.write_text(files.PARAMS, config.replaced(text, {"train.corrections": share}))


def prepared() -> tuple[np.ndarray, np.ndarray]:
    return np.load(files.PREPARED_CORRECTIONS / "images.npy"), np.load(files.PREPARED_CORRECTIONS / "labels.npy")


@pytest.mark.slow
def test_what_is_learned_from_is_nearly_always_read_as_it_is_labelled(kept: Path) -> None:
    images, labels, used = prepare_corrections.prepare(corrections.load(kept, DIGITS), DIGITS, kept)
    assert used > 0.8 * len(LABELS)
    answers = Classifier.load(Path(__file__).parent / "reader").probabilities(images).argmax(axis=1)
    assert (answers == labels).mean() > 0.97


def test_a_picture_whose_ink_falls_into_other_than_its_digits_is_not_learned_from(kept: Path) -> None:
    known = next(each for each in corrections.load(kept, DIGITS) if len(each.label) == 3)
    for label in (known.label[:2], known.label + "1"):
        images, labels, used = prepare_corrections.prepare([Correction(known.file, label)], DIGITS, kept)
        assert (images.shape, labels.shape, used) == ((0, 28, 28), (0,), 0)


def test_an_empty_sheet_has_no_field() -> None:
    content = io.BytesIO()
    Image.new("L", (200, 200), 240).save(content, "PNG")
    picture = photo.open_picture(content.getvalue())
    assert [prepare_corrections.fields_of(picture, digits) for digits in (1, 2)] == [[], []]


@pytest.mark.slow
@pytest.mark.usefixtures("workplace")
def test_the_stage_writes_the_digits_of_one_half_and_the_same_bytes_again(kept: Path) -> None:
    files.CORRECTIONS.parent.mkdir()
    files.CORRECTIONS.symlink_to(kept)
    prepare_corrections.main([])
    images, labels = prepared()
    halves = corrections.split(corrections.load(kept, DIGITS), kept)
    expected = prepare_corrections.prepare(halves.learned, DIGITS, kept)
    np.testing.assert_array_equal(images, expected[0])
    np.testing.assert_array_equal(labels, expected[1])
    others, _, used = prepare_corrections.prepare(halves.measured, DIGITS, kept)
    assert used > 10
    assert not {image.tobytes() for image in images} & {image.tobytes() for image in others}
    first = [files.sha256(path) for path in sorted(files.PREPARED_CORRECTIONS.iterdir())]
    prepare_corrections.main([])
    assert [files.sha256(path) for path in sorted(files.PREPARED_CORRECTIONS.iterdir())] == first


@pytest.mark.usefixtures("workplace")
def test_where_nothing_learns_from_corrections_there_are_no_digits_of_them(
    kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare_corrections.main([])
    empty = [files.sha256(path) for path in sorted(files.PREPARED_CORRECTIONS.iterdir())]
    assert [len(each) for each in prepared()] == [0, 0]
    files.CORRECTIONS.parent.mkdir(exist_ok=True)
    files.CORRECTIONS.symlink_to(kept)
    set_share(0.0)
    prepare_corrections.main([])
    assert [files.sha256(path) for path in sorted(files.PREPARED_CORRECTIONS.iterdir())] == empty
    assert capsys.readouterr().out.endswith("0 digits of 0 to learn from: train.corrections is 0\n")


@pytest.mark.usefixtures("workplace")
def test_a_labels_csv_that_was_edited_badly_ends_the_stage_with_its_row() -> None:
    files.write_text(files.CORRECTIONS / "labels.csv", "file,label\nnone.png,1\n")
    with pytest.raises(UserError, match=r"data/corrections/labels\.csv, row 2: expected the name of a picture"):
        prepare_corrections.main([])
    assert not files.PREPARED_CORRECTIONS.exists()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Return a project whose only stage reads data/corrections, and that git and DVC treat as ours does."""
    project = Project(tmp_path / "project")
    for name in (".dvcignore", "data/corrections/.gitignore"):
        files.write_bytes(project.root / name, (files.ROOT / name).read_bytes())
    stage = {"cmd": "ls data/corrections > made", "deps": [str(files.CORRECTIONS)], "outs": ["made"]}
    files.write_text(project.root / "dvc.yaml", yaml.safe_dump({"stages": {"prepare": stage}}))
    for words in (("init", "--quiet"), ("config", "user.name", "Test"), ("config", "user.email", "test@example.org")):
        project.git(*words)
    project.dvc("init", "--quiet")
    project.dvc("remote", "add", "--default", "team", str(tmp_path / "remote"))
    project.dvc("repro")
    commit(project)
    return project


def commit(project: Project) -> None:
    project.git("add", ".")
    project.git("commit", "--quiet", "--message", "Change")


@pytest.mark.slow
def test_corrections_are_no_files_of_git_and_are_shared_when_dvc_is_told_to(project: Project, tmp_path: Path) -> None:
    folder = project.root / files.CORRECTIONS
    (folder / ".lock").touch()
    assert project.dvc("status", "--json") == "{}\n"
    kept = corrections.keep((PHOTOS / "single_06.jpg").read_bytes(), "0", DIGITS, folder=folder)
    assert project.git("status", "--porcelain") == ""
    project.git("rm", "-r", "--cached", "--quiet", str(files.CORRECTIONS))
    project.dvc("add", str(files.CORRECTIONS))
    project.dvc("repro")
    commit(project)
    project.dvc("push")
    clone = Project(tmp_path / "clone")
    project.git("clone", "--quiet", str(project.root), str(clone.root))
    assert not (clone.root / files.CORRECTIONS).exists()
    clone.dvc("pull")
    assert corrections.load(clone.root / files.CORRECTIONS, DIGITS) == [kept]
    assert clone.dvc("status", "--json") == "{}\n"
    corrections.keep((PHOTOS / "single_01.jpg").read_bytes(), "1", DIGITS, folder=clone.root / files.CORRECTIONS)
    assert "Running stage 'prepare'" in clone.dvc("repro")
    assert clone.git("status", "--porcelain").split() == ["M", "data/corrections.dvc", "M", "dvc.lock"]

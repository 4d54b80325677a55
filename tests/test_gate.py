"""The gate passes what is as good, fails what is shown to be worse, and never passes what it could not compare."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import gate as benchmark
from pipeline import config, console, corrections, evidence, files, gate
from pipeline.evidence import IncomparableError
from pipeline.gate import Verdict

LIMITS = config.load(files.ROOT / "params.yaml").gate
GOOD = {
    "test_accuracy_low": 0.9915,
    "calibration_error_high": 0.005,
    "model_bytes": 217_000,
    "multiply_adds": 4_865_920,
}


def pair(lost=0, won=0, images=10_000):
    """Return a base that reads 99.3% right, and a challenger that loses and wins exactly so many images."""
    labels = (np.arange(images) % 10).astype(np.uint8)
    wrong = (labels + 1) % 10
    before, after = labels.copy(), labels.copy()
    fails = images * 7 // 1000
    before[:fails] = after[:fails] = wrong[:fails]
    after[:won] = labels[:won]
    after[fails : fails + lost] = wrong[fails : fails + lost]
    return tuple(with_metrics(benchmark.side_of(name, labels, part)) for name, part in (("b", before), ("c", after)))


def with_metrics(side, **changes):
    return replace(side, metrics=side.metrics | GOOD | changes, photos=side.photos | {"photo_accuracy": 0.95})


def verdicts(challenger, base, limits=LIMITS):
    return {check.name: check.verdict for check in gate.decide(challenger, base, limits)}


def verdict(challenger, base, limits=LIMITS):
    return gate.conclude(gate.decide(challenger, base, limits))


def test_an_identical_model_passes():
    base, challenger = pair()
    assert verdict(challenger, base) is Verdict.PASSED


def test_a_model_as_good_that_answers_60_images_otherwise_passes():
    base, challenger = pair(lost=30, won=30)
    assert verdict(challenger, base) is Verdict.PASSED


def test_a_model_that_is_shown_to_be_worse_fails():
    base, challenger = pair(lost=60, won=30)
    assert verdicts(challenger, base)["worse_p"] is Verdict.FAILED
    check = next(check for check in gate.decide(challenger, base, LIMITS) if check.name == "worse_p")
    assert check.found == "p = 0.001: 60 lost, 30 won of 10,000"


def test_a_model_that_is_not_shown_to_be_good_enough_is_a_warning():
    base, challenger = pair(lost=45, won=28)
    found = verdicts(challenger, base)
    assert (found["worse_p"], found["margin"]) == (Verdict.PASSED, Verdict.WARNED)
    assert verdict(challenger, base) is Verdict.WARNED


def test_few_images_show_nothing_and_are_a_warning():
    base, challenger = pair(images=500)
    assert verdict(challenger, base) is Verdict.WARNED


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("test_accuracy_low", 0.9899),
        ("calibration_error_high", 0.0201),
        ("model_bytes", 400_001),
        ("multiply_adds", 6_000_001),
    ],
)
def test_every_limit_fails_beyond_it_and_passes_at_it(name, bad):
    base, challenger = pair()
    assert verdicts(with_metrics(challenger, **{name: bad}), base)[name] is Verdict.FAILED
    assert verdicts(with_metrics(challenger, **{name: getattr(LIMITS, name)}), base)[name] is Verdict.PASSED


def test_photographs_have_their_floor_which_0_takes_away():
    base, challenger = pair()
    worse = replace(challenger, photos=challenger.photos | {"photo_accuracy": 0.89})
    unlabelled = replace(challenger, photos={"model_sha256": "c"})
    assert verdicts(worse, base)["photo_accuracy"] is Verdict.FAILED
    assert verdicts(unlabelled, base)["photo_accuracy"] is Verdict.INCOMPARABLE
    assert verdict(unlabelled, base, LIMITS.model_copy(update={"photo_accuracy": 0.0})) is Verdict.PASSED


@pytest.mark.parametrize("nothing", [None, float("nan"), float("inf"), "0.999", [1]])
def test_a_figure_that_is_no_number_cannot_be_compared(nothing):
    base, challenger = pair()
    assert verdict(with_metrics(challenger, test_accuracy_low=nothing), base) is Verdict.INCOMPARABLE


def test_a_report_of_another_model_fails():
    base, challenger = pair()
    assert verdicts(replace(challenger, train={"model_sha256": "other"}), base)["reports"] is Verdict.FAILED


def test_a_base_whose_reports_do_not_belong_together_cannot_be_compared():
    base, challenger = pair()
    assert verdict(challenger, replace(base, train={"model_sha256": "other"})) is Verdict.INCOMPARABLE


@pytest.mark.parametrize("digest", ["other", None])
def test_other_test_digits_cannot_be_compared(digest):
    base, challenger = pair()
    assert verdict(with_metrics(challenger, test_sha256=digest), base) is Verdict.INCOMPARABLE
    assert verdict(with_metrics(challenger, test_sha256=None), with_metrics(base, test_sha256=None)) is (
        Verdict.INCOMPARABLE
    )


def test_other_labels_under_the_same_digest_cannot_be_compared():
    (base, challenger), (_, shorter) = pair(), pair(images=9_000)
    shifted = replace(challenger, labels=(challenger.labels + 1) % 10, predictions=(challenger.predictions + 1) % 10)
    assert verdict(shifted, base) is Verdict.INCOMPARABLE
    assert verdict(shorter, base) is Verdict.INCOMPARABLE


def test_without_a_base_nothing_passes_but_a_floor_still_fails():
    _, challenger = pair()
    nothing = IncomparableError("no baseline: there is no commit before this one to compare with")
    assert verdict(challenger, nothing) is Verdict.INCOMPARABLE
    assert verdict(with_metrics(challenger, test_accuracy_low=0.5), nothing) is Verdict.FAILED
    assert verdict(nothing, challenger) is Verdict.INCOMPARABLE


def test_without_checks_the_verdict_is_cannot_compare():
    assert gate.conclude([]) is Verdict.INCOMPARABLE


def test_the_exit_status_is_0_only_for_a_pass_with_or_without_warnings():
    assert {str(verdict): status for verdict, status in gate.STATUS.items()} == {
        "pass": 0,
        "warn": 0,
        "fail": 1,
        "cannot compare": 4,
    }


def test_a_change_that_moves_its_own_limits_is_a_warning():
    base, challenger = pair()
    moved = replace(challenger, params={"gate.margin": 0.03, "train.dropout": 0.3})
    checks = gate.decide(moved, replace(base, params={"gate.margin": 0.003, "train.dropout": 0.2}), LIMITS)
    assert checks[-1] == gate.Check("limits", Verdict.WARNED, "changed: gate.margin", "those of the base")


def test_outputs_that_are_not_those_of_this_code_fail():
    assert gate.check_dvc_status({}).verdict is Verdict.PASSED
    assert gate.check_dvc_status({"train": [{"changed deps": {"params.yaml": "modified"}}]}).verdict is Verdict.FAILED


def test_lost_and_won_images_come_with_the_most_sure_answers_first():
    base, challenger = pair(lost=3, won=2)
    confidence = np.full(10_000, 0.5)
    confidence[[71, 1]] = 0.9
    lost, won = gate.changed_answers(replace(challenger, confidence=confidence), base)
    assert (lost.tolist(), won.tolist()) == ([71, 70, 72], [1, 0])


def test_a_picture_in_braille_has_a_dot_for_every_inked_pixel():
    image = np.zeros((28, 28), np.uint8)
    image[0, 0] = image[27, 27] = 255
    image[4:8, 2:4] = 128
    image[10, 10] = 127
    drawn = gate.braille(image)
    assert [len(line) for line in drawn] == [14] * 7
    assert {
        (row, column): mark for row, line in enumerate(drawn) for column, mark in enumerate(line) if mark != "⠀"
    } == {
        (0, 0): "⠁",
        (1, 1): "⣿",
        (6, 13): "⢀",
    }


def test_the_page_says_the_verdict_first_and_shows_the_digits_that_changed_sides(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = np.zeros((10_000, 28, 28), np.uint8)
    images[70, 4:8, 2:4] = 255
    base, challenger = pair(lost=60, won=1)
    files.write_array(files.PREPARED / "test-images.npy", images)
    files.write_array(files.PREPARED / "test-labels.npy", base.labels)
    digest = files.digest_files(files.PREPARED.iterdir())
    base = replace(with_metrics(base, test_sha256=digest), params={"train.dropout": 0.2})
    challenger = replace(with_metrics(challenger, test_sha256=digest), params={"train.dropout": 0.3})
    page = gate.render(gate.decide(challenger, base, LIMITS), challenger, base)
    lines = page.splitlines()
    assert lines[0] == "# Gate: fail"
    assert "| worse_p | **fail** | p = 2.7e-17: 60 lost, 1 won of 10,000 | at least 0.01 |" in lines
    assert "## 60 lost: right in the base, wrong now (the 15 most sure answers)" in lines
    assert "## 1 won: wrong in the base, right now" in lines
    assert any("⣿" in line for line in lines)
    assert any(line.startswith("a 0, #70 ") for line in lines)
    assert "| train.dropout | 0.2 | 0.3 |" in lines
    assert "| test_accuracy | 0.993 | 0.9871 |" in lines


def test_a_page_without_the_test_images_has_their_numbers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base, challenger = pair(lost=1)
    page = gate.render(gate.decide(challenger, base, LIMITS), challenger, base)
    assert "```text\na 0, #70\n0 → 1 (1.00)\n```" in page


def test_the_page_of_the_worst_model_fits_into_a_comment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = np.full((10_000, 28, 28), 255, np.uint8)
    base, challenger = pair(lost=9_000, won=70)
    files.write_array(files.PREPARED / "test-images.npy", images)
    files.write_array(files.PREPARED / "test-labels.npy", base.labels)
    digest = files.digest_files(files.PREPARED.iterdir())
    sides = (with_metrics(challenger, test_sha256=digest), with_metrics(base, test_sha256=digest))
    assert "⣿" * 14 in gate.render(gate.decide(*sides, LIMITS), *sides)
    assert len(gate.render(gate.decide(*sides, LIMITS), *sides).encode()) < 65_536  # GitHub's limit, in characters


def test_the_gate_waits_for_no_tensorflow_and_no_mlflow():
    code = "import sys; from pipeline import gate; print({'tensorflow', 'mlflow', 'scipy'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


@pytest.mark.slow
def test_the_rates_of_the_benchmark_are_those_of_a_fresh_run():
    fresh = [{name: str(value) for name, value in row.items()} for row in benchmark.rows(LIMITS)]
    assert fresh == files.read_csv(files.ROOT / benchmark.REPORT)


# Corrections

READER = Path(__file__).parent / "reader"


def with_network(side, classes=config.DIGITS):
    """Return evidence of the tests' network, which answers in names of ``classes``."""
    calibration = files.read_json(READER / "calibration.json") | {"classes": classes}
    content = {evidence.NETWORK: (READER / "digits.tflite").read_bytes(), evidence.CALIBRATION: json.dumps(calibration)}
    return replace(side, network=content | {evidence.CALIBRATION: content[evidence.CALIBRATION].encode()})


MISNAMED = ("1", "0", "3", "2", "5", "4", "7", "6", "9", "8")


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Keep photographs in a folder, the current one; return how many of them are measured."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(files.ROOT / "params.yaml", tmp_path)
    photos = files.ROOT / files.PHOTOS
    for row in files.read_csv(photos / "labels.csv"):
        if len(row["label"]) == 1 and row["file"] < "single_21":
            corrections.keep((photos / row["file"]).read_bytes(), row["label"], config.DIGITS)
    found = corrections.split(corrections.load(files.CORRECTIONS, config.DIGITS))
    assert found.learned
    assert len(found.measured) > 7
    return len(found.measured)


def test_corrections_that_nothing_learns_from_are_read_by_both_networks(measured):
    base, challenger = pair()
    found = gate.measure_corrections(with_network(challenger), with_network(base, MISNAMED))
    assert (found["measured"], found["right_before"], found["lost"]) == (measured, 0, 0)
    assert found["right"] == found["won"] > 0.8 * measured
    assert 0 < found["difference_low"] < found["right"] / measured <= found["difference_high"] <= 1
    check = gate.check_corrections(found, LIMITS)
    assert (check.name, check.verdict) == ("corrections", Verdict.PASSED)
    assert check.found.startswith(f"p = 1: 0 of {measured} right before, {found['right']} now [+")


def test_a_model_that_reads_corrections_worse_fails(measured):
    base, challenger = pair()
    found = gate.measure_corrections(with_network(challenger, MISNAMED), with_network(base))
    assert found["lost"] > 0.8 * measured
    assert gate.check_corrections(found, LIMITS).verdict is Verdict.FAILED


@pytest.mark.parametrize(("lost", "won", "words"), [(1, 9, "[+4.5, +29.3]"), (9, 1, "[-29.3, -4.5]")])
def test_the_interval_of_the_corrections_has_two_sides(lost, won, words):
    low, high = gate.scoring.difference_interval(lost, won, 50)
    assert gate.interval({"difference_low": low, "difference_high": high}) == words


@pytest.mark.usefixtures("measured")
def test_a_base_without_its_network_is_a_warning():
    base, challenger = pair()
    for nothing in (base, IncomparableError("no baseline")):
        check = gate.check_corrections(gate.measure_corrections(with_network(challenger), nothing), LIMITS)
        assert check.verdict is Verdict.WARNED
        assert check.found.endswith("right; the base has no network here to compare with")


def test_without_corrections_there_is_no_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(files.ROOT / "params.yaml", tmp_path)
    base, challenger = map(with_network, pair())
    assert gate.measure_corrections(challenger, base) == {}
    files.CORRECTIONS.mkdir(parents=True)
    assert gate.measure_corrections(challenger, base) == {}


@pytest.fixture(scope="module")
def committed(tmp_path_factory):
    """Make a repository with DVC whose first commit has the reports of a base; for copying only."""
    root = tmp_path_factory.mktemp("committed")
    run("git", "init", "--quiet", "--initial-branch=main", root=root)
    run("git", "config", "user.name", "Test", root=root)
    run("git", "config", "user.email", "test@example.org", root=root)
    run(sys.executable, "-m", "dvc", "init", "--quiet", root=root)
    stage = "{cmd: cp params.yaml made, deps: [params.yaml], outs: [made]}"
    files.write_text(root / "dvc.yaml", f"stages: {{made: {stage}}}")
    shutil.copy(files.ROOT / "params.yaml", root)
    run(sys.executable, "-m", "dvc", "repro", "--quiet", root=root)
    lay_out(pair()[0], root)
    commit(root)
    return root


@pytest.fixture
def project(committed, tmp_path, monkeypatch):
    """Return a copy of that repository, as the current folder."""
    monkeypatch.chdir(shutil.copytree(committed, tmp_path / "project", symlinks=True))
    return Path.cwd()


def run(*command, root):
    subprocess.run(command, check=True, capture_output=True, cwd=root)


def commit(root):
    run("git", "add", "--all", root=root)
    run("git", "commit", "--quiet", "--message", "Change", root=root)


def lay_out(side, root=Path()):
    for name in ("metrics", "train", "photos"):
        files.write_json(root / files.REPORTS / f"{name}.json", getattr(side, name))
    rows = zip(range(len(side.labels)), side.labels, side.predictions, side.confidence, strict=True)
    columns = ("index", "label", "prediction", "probability")
    table = [dict(zip(columns, row, strict=True)) for row in rows]
    files.write_csv(root / files.REPORTS / "predictions.csv", table, columns)


def page():
    return gate.PAGE.read_text("utf-8")


def judged(revision="", against=""):
    return gate.STATUS[gate.conclude(gate.judge(revision, against)[0])]


@pytest.mark.slow
@pytest.mark.usefixtures("project")
def test_a_change_is_judged_against_the_last_commit():
    lay_out(pair(lost=10, won=20)[1])
    assert judged() == 0
    assert page().startswith("# Gate: pass\n")
    lay_out(pair(lost=60, won=20)[1])
    assert judged() == 1
    assert page().startswith("# Gate: fail\n")


@pytest.mark.slow
@pytest.mark.usefixtures("project")
def test_the_page_and_a_report_say_what_came_of_the_corrections():
    shutil.copytree(READER, files.MODELS)
    commit(Path())
    lay_out(pair(won=20)[1])
    assert judged("", "HEAD") == 0
    assert "corrections" not in page()
    photo = files.ROOT / files.PHOTOS / "single_06.jpg"
    kept = corrections.keep(photo.read_bytes(), "0", config.DIGITS, writer="Ada")
    assert corrections.is_measured(kept)
    assert judged("", "HEAD") == 0
    assert "| corrections | pass | p = 1: " in page()
    found = files.read_json(files.REPORTS / "corrections.json")
    assert (found["measured"], found["right_before"]) == (1, found["right"])
    corrections.delete(kept.file, config.DIGITS)
    assert judged("", "HEAD") == 0
    assert not (files.REPORTS / "corrections.json").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("project")
def test_a_first_commit_ends_with_4_and_says_why():
    assert judged() == 4
    assert "no baseline: there is no commit before this one" in page()


@pytest.mark.slow
def test_outputs_of_other_parameters_fail(project):
    lay_out(pair(won=1)[1])
    path = project / "params.yaml"
    path.write_text(path.read_text("utf-8") + "# another word\n", "utf-8")
    assert judged() == 1
    assert "| dvc status | **fail** | changed: made; `dvc repro` | clean |" in page()


@pytest.mark.slow
@pytest.mark.usefixtures("project")
def test_missing_predictions_and_nan_end_with_4():
    lay_out(pair(won=1)[1])
    (files.REPORTS / "predictions.csv").unlink()
    assert judged() == 4
    assert "the workspace has no reports/predictions.csv" in page()
    lay_out(pair(won=1)[1])
    files.write_text(files.REPORTS / "metrics.json", '{"test_accuracy": NaN}')
    assert judged() == 4


@pytest.mark.slow
def test_two_revisions_are_compared_whatever_the_workspace_holds(project):
    lay_out(pair(lost=60)[1])
    commit(project)
    shutil.rmtree(files.REPORTS)
    assert judged("HEAD~1", "HEAD") == 0
    assert judged("HEAD") == judged("HEAD", "HEAD~1") == 1


@pytest.mark.slow
@pytest.mark.usefixtures("project")
def test_an_unknown_base_is_a_users_mistake_and_leaves_no_verdict_of_before():
    lay_out(pair(won=1)[1])
    assert judged() == 0
    with pytest.raises(console.UserError, match="nowhere: expected a revision") as caught:
        gate.main(["--against", "nowhere"])
    assert caught.value.status == 2
    assert not gate.PAGE.exists()


@pytest.mark.slow
def test_a_folder_without_dvc_is_a_users_mistake(project):
    lay_out(pair(won=1)[1])
    shutil.rmtree(project / ".dvc")
    with pytest.raises(console.UserError, match="dvc status: ERROR"):
        gate.main([])


def test_the_reports_that_the_gate_reads_are_named_as_the_stages_write_them():
    assert evidence.METRICS == "reports/metrics.json"
    assert evidence.PREDICTIONS == "reports/predictions.csv"


@pytest.mark.parametrize("arguments", [["--rollback", "--promote"], ["--promote", "HEAD"], ["--rollback", "HEAD"]])
def test_what_does_not_go_together_is_a_usage_error(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        gate.main(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("python -m pipeline.gate: error: --")


EASY = {"test_accuracy_low": 0.3, "photo_accuracy": 0.0, "calibration_error_high": 0.9, "margin": 0.5, "worse_p": 1e-9}


@pytest.mark.slow
def test_a_model_that_passes_is_offered_promoted_beaten_and_taken_back(made_project):
    project = made_project
    project.set(**{f"gate.{name}": value for name, value in EASY.items()})
    project.git("commit", "--quiet", "--all", "--message", "Ask little of few digits")
    assert project.stage("gate", "--against", "champion", status=4)
    project.set(**{"checkpoints.max_days": 29})
    assert "challenger: version 1 of digits;" in project.stage("gate").stdout
    assert "champion: version 1 of digits" in project.stage("gate", "--promote").stdout
    project.set(**{"train.seed": 2})
    assert "dvc status" in project.stage("gate", "--promote", status=1).stdout
    project.dvc("repro")
    assert "champion: version 2 of digits" in project.stage("gate", "--promote").stdout
    assert "the champion, version 1 of digits, model" in (project.root / gate.PAGE).read_text("utf-8")
    assert "champion: version 1 of digits" in project.stage("gate", "--rollback").stdout
    assert "p = 1: 0 lost" not in project.stage("gate", "--against", "champion").stdout


@pytest.mark.slow
def test_a_model_that_does_not_pass_is_neither_offered_nor_promoted(made_project):
    made_project.set(**{"gate.test_accuracy_low": 0.9999})
    said = made_project.stage("gate", "--promote", status=1).stdout
    assert "challenger:" not in said
    assert "champion:" not in said

"""What has moved is said, with its level, its page and its exit status; what has not moved is quiet."""

import io
import sqlite3
from collections import Counter
from contextlib import closing
from datetime import date, timedelta
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy import stats

from pipeline import charts, counts, files, scoring, watch
from pipeline.console import UserError
from pipeline.counts import Observed
from pipeline.learning.classifier import Classifier
from pipeline.watch import LAST, THIS, VALIDATION

DAY = date(2026, 11, 26)
MODEL = counts.model_of(files.ROOT / "models")


def drawn(number: int, seed: int, pen: int = 1) -> np.ndarray:
    """Return fields with digits of a font, each a little turned, moved and scaled, uint8 [number, 28, 28]."""
    rng, fields = np.random.default_rng(seed), np.zeros((number, 28, 28), np.uint8)
    for place, digit in enumerate(rng.integers(0, 10, number)):
        cv2.putText(fields[place], str(digit), (6, 22), cv2.FONT_HERSHEY_SIMPLEX, 0.7, 255, 1)
        turn = cv2.getRotationMatrix2D((14, 14), rng.uniform(-12, 12), rng.uniform(0.9, 1.1))
        fields[place] = cv2.warpAffine(fields[place], turn, (28, 28))
        fields[place] = cv2.dilate(fields[place], np.ones((pen, pen), np.uint8))
    return fields


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return Classifier.load(files.ROOT / "models")


@pytest.fixture(scope="module")
def usual(classifier: Classifier) -> watch.Histograms:
    return watch.histograms_of(drawn(400, 1), classifier)


@pytest.fixture(scope="module")
def broad(classifier: Classifier) -> watch.Histograms:
    return watch.histograms_of(drawn(400, 2, pen=2), classifier)


def keep(week: watch.Histograms, day: date, model: str = MODEL, kind: str = "field") -> None:
    """Count pictures as a service would, on a day."""
    sent = {"kind": {kind: watch.pictures(week)}}
    Path("mlruns").mkdir(exist_ok=True)
    with closing(sqlite3.connect(watch.FILE)) as file, file:
        file.execute(counts.TABLE)
        for quantity, bins in (sent | dict(week)).items():
            file.executemany(counts.ADD, [(str(day), model, quantity, bin_, number) for bin_, number in bins.items()])


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with the committed model and 400 validation digits."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").symlink_to(files.ROOT / "models")
    files.write_array(tmp_path / watch.DIGITS, drawn(400, 3))
    return tmp_path


def run(*arguments: str) -> int:
    return watch.main(["--until", str(DAY), *arguments])


def test_a_week_like_the_last_one_and_like_the_validation_digits_is_quiet(
    project: Path, usual: watch.Histograms, classifier: Classifier, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(usual, DAY)
    keep(watch.histograms_of(drawn(300, 4), classifier), DAY - timedelta(days=7))
    assert run() == 0
    said = capsys.readouterr()
    assert "pictures: this week 400, last week 300, validation 400" in said.out
    assert "nothing has moved, at a level of 0.01; see reports/watch.html" in said.out
    assert said.err == ""
    assert "Nothing has moved" in (project / watch.PAGE).read_text("utf-8")


def test_a_new_pen_has_moved_against_both(
    project: Path, usual: watch.Histograms, broad: watch.Histograms, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(broad, DAY)
    keep(usual, DAY - timedelta(days=7))
    assert run() == 1
    said = capsys.readouterr().out.splitlines()
    moved = {(line.split("  ")[0], against) for line in said for against in (LAST, VALIDATION) if against in line}
    assert {("ink of the first digit", LAST), ("ink of the first digit", VALIDATION)} <= moved
    assert said[-1].startswith("moved: ")
    assert 'class="verdict fail"' in (project / watch.PAGE).read_text("utf-8")


@pytest.mark.parametrize(
    ("ago", "expected"), [(0, "this week 400"), (6, "this week 400"), (7, "this week 0"), (-1, "this week 0")]
)
@pytest.mark.usefixtures("project")
def test_a_week_is_the_seven_days_up_to_the_day(
    usual: watch.Histograms, capsys: pytest.CaptureFixture[str], ago: int, expected: str
) -> None:
    keep(usual, DAY - timedelta(days=ago))
    run()
    assert expected in capsys.readouterr().out


@pytest.mark.usefixtures("project")
def test_of_too_few_pictures_nothing_is_said(usual: watch.Histograms, capsys: pytest.CaptureFixture[str]) -> None:
    few = {"verdict": {"digit": watch.ENOUGH - 1}}
    keep(few, DAY)
    assert run() == 4
    assert "too little to say: expected 50 pictures this week" in capsys.readouterr().out
    keep({"verdict": {"digit": 1}}, DAY)
    assert run("--against", "last-week") == 4
    assert run() != 4
    keep(usual, DAY - timedelta(days=7))
    assert run("--against", "last-week") != 4


@pytest.mark.usefixtures("project")
def test_a_model_is_compared_with_itself_alone(usual: watch.Histograms, capsys: pytest.CaptureFixture[str]) -> None:
    keep(usual, DAY, model="other")
    keep(usual, DAY - timedelta(days=7))
    assert run() == 4
    assert "models holds another model than other, which was served" in capsys.readouterr().err
    with pytest.raises(UserError, match="another model than other"):
        run("--against", "validation")
    keep(usual, DAY)
    keep(usual, DAY)
    assert run() == 0
    assert "note: 400 pictures of this week were read by another model" in capsys.readouterr().err


def test_without_the_validation_digits_it_is_said_and_last_week_is_compared(
    project: Path, usual: watch.Histograms, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / watch.DIGITS).unlink()
    keep(usual, DAY)
    keep(usual, DAY - timedelta(days=7))
    assert run() == 0
    assert "note: not compared with the validation digits: data/prepared/valid" in capsys.readouterr().err
    with pytest.raises(UserError, match="`dvc repro preprocess` makes them"):
        run("--against", "validation")


@pytest.mark.usefixtures("project")
def test_a_change_of_what_is_sent_and_of_refusals_is_found(
    usual: watch.Histograms, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(usual, DAY, kind="photograph")
    keep({"verdict": {"refused": 100}, "refused": {"not base64": 100}}, DAY)
    keep(usual, DAY - timedelta(days=7))
    keep({"verdict": {"refused": 100}, "refused": {"damaged picture": 100}}, DAY - timedelta(days=7))
    assert run("--against", "last-week") == 1
    out = capsys.readouterr().out
    assert out.splitlines()[-1].startswith("moved: what is sent, reasons of refusals, against last week;")


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--until", "yesterday"], "--until: expected a day such as 2026-11-26, found 'yesterday'"),
        (["--level", "0"], "--level: expected 0.005 to 0.1, found 0.0"),
        (["--level", "nan"], "--level: expected 0.005 to 0.1, found nan"),
        (["missing.db"], "missing.db: expected the counts of a service"),
        (["models"], "models: expected the counts of a service"),
        (["models/digits.tflite"], "models/digits.tflite: expected the counts of a service"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], said: str) -> None:
    with pytest.raises(UserError) as error:
        watch.main(arguments)
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)
    assert error.value.status == 2


def test_a_picture_counts_for_one_whatever_its_number_of_digits(classifier: Classifier) -> None:
    from pipeline.photos import photo, reading

    page = np.full((120, 700), 255, np.uint8)
    for place, digit in enumerate("3141592"):
        cv2.putText(page, digit, (40 + 90 * place, 90), cv2.FONT_HERSHEY_SIMPLEX, 2.5, 0, 6)
    stream = io.BytesIO()
    Image.fromarray(page).save(stream, "PNG")
    found = reading.read(photo.open_picture(stream.getvalue()), classifier)
    assert len(found.digits) > 1
    assert Counter(quantity for quantity, _ in counts.observed(found)).most_common(1)[0][1] == 1


def test_the_page_loads_nothing_and_shows_what_was_sent_as_text(project: Path, usual: watch.Histograms) -> None:
    keep(usual, DAY)
    keep({"verdict": {"refused": 60}, "refused": {"<script>alert(1)</script>": 60}}, DAY)
    keep(usual, DAY - timedelta(days=7))
    run()
    page = (project / watch.PAGE).read_text("utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not {"http://", "https://", "src=", "@import", "url("} & set(page.split('"'))
    assert "href=" not in page.replace('href="data:,"', "")
    for chart in page.split("<svg")[1:]:
        ElementTree.fromstring("<svg" + chart.split("</svg>")[0] + "</svg>")  # noqa: S314


def test_the_same_counts_give_the_same_page(project: Path, usual: watch.Histograms, broad: watch.Histograms) -> None:
    keep(broad, DAY)
    keep(usual, DAY - timedelta(days=7))
    pages = []
    for _ in range(2):
        run()
        pages.append((project / watch.PAGE).read_text("utf-8"))
    assert pages[0] == pages[1]


@pytest.mark.parametrize(("now", "then"), [((9, 1), (40, 60)), ((30, 20), (70, 130)), ((3, 7), (55, 45))])
def test_of_two_bins_the_test_is_fishers(now: tuple[int, int], then: tuple[int, int]) -> None:
    both = [dict(zip("ab", each, strict=True)) for each in (now, then)]
    found = np.mean([watch.p_value(*both, np.random.default_rng(seed), is_scale=False) for seed in range(20)])
    exact = stats.hypergeom(sum(now) + sum(then), now[0] + then[0], sum(now))
    values, expected = np.arange(sum(now) + 1), exact.mean()
    p = exact.pmf(values)[np.abs(values - expected) >= abs(now[0] - expected) - 1e-9].sum()
    assert found == pytest.approx(p, rel=0.25, abs=7e-4)


@pytest.mark.parametrize("is_scale", [True, False])
def test_a_test_keeps_its_level_with_few_pictures_and_rare_bins(is_scale: bool) -> None:
    rng, shares = np.random.default_rng(7), np.array([0.005, 0.01, 0.035, 0.15, 0.8])
    found = []
    for _ in range(500):
        now, then = (dict(enumerate(rng.multinomial(number, shares).tolist())) for number in (60, 3000))
        found.append(watch.p_value(now, then, rng, is_scale=is_scale))
    for level in (0.05, 0.01):
        assert np.mean(np.array(found) <= level) <= level + 3 * np.sqrt(level / 500)


def test_a_difference_that_no_chance_makes_gets_the_least_p() -> None:
    now, then = {1: 200}, {2: 200}
    for is_scale in (True, False):
        assert watch.p_value(now, then, np.random.default_rng(0), is_scale=is_scale) == 1 / (watch.DRAWS + 1)


def test_nothing_is_alarmed_more_often_for_being_looked_at_many_times(usual: watch.Histograms) -> None:
    now = {quantity: dict.fromkeys(bins, 1) for quantity, bins in usual.items()}
    weeks = {THIS: usual, LAST: usual, VALIDATION: usual}
    assert {each.p for each in watch.compare(weeks, 0.01)} == {1.0}
    assert [each.against for each in watch.compare({THIS: now, LAST: usual}, 0.01)].count(VALIDATION) == 0


def test_a_histogram_is_as_high_as_its_shares_and_as_wide_as_its_bins() -> None:
    chart = charts.histogram("Ink", "ink", {"now": {10: 0.5, 12: 0.5}, "then": {11: 1.0}})
    lines = [line for line in ElementTree.fromstring(chart) if line.get("class") in ("first", "second")]  # noqa: S314
    heights = [{float(point.split(",")[1]) for point in line.get("points", "").split()} for line in lines]
    floor, top = charts.HEIGHT - charts.BOTTOM, charts.TOP
    assert heights == [{floor, (floor + top) / 2}, {floor, top}]


def observed(bins: dict[str, int]) -> list[list[Observed]]:
    return [[("verdict", bin_)] for bin_, number in bins.items() for _ in range(number)]


def test_pictures_are_tallied_by_quantity_and_bin() -> None:
    assert watch.tally(observed({"digit": 3, "unsure": 2})) == {"verdict": {"digit": 3, "unsure": 2}}


def test_the_documented_table_of_simulated_weeks_is_the_committed_one() -> None:
    from benchmarks import watch as simulated

    rows = files.read_csv(files.ROOT / simulated.TABLE)
    numbers = [row | {name: int(row[name]) for name in ("pictures", "weeks", "noticed")} for row in rows]
    assert simulated.table(numbers) in (files.ROOT / "benchmarks/README.md").read_text("utf-8")


def test_in_simulated_weeks_the_level_is_kept_and_large_changes_are_noticed_in_five_hundred_pictures() -> None:
    rows = files.read_csv(files.ROOT / "benchmarks/watch.csv")
    for row in rows:
        noticed, weeks = int(row["noticed"]), int(row["weeks"])
        if row["change"] == "nothing":
            assert scoring.wilson(noticed, weeks)[0] <= 0.01, row
    most = [row for row in rows if row["pictures"] == max((row["pictures"] for row in rows), key=int)]
    assert {row["change"] for row in most if int(row["noticed"]) >= 0.9 * int(row["weeks"])} >= {
        "rotated by 15 degrees",
        "a broader pen",
    }

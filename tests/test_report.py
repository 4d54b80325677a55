"""The report page says what the reports say, all of it and nothing else, in a file that needs no network."""

import base64
import io
import itertools
import json
import re
import shutil
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from conftest import Project
from PIL import Image

from pipeline import charts, files, report, tracking
from pipeline.config import DIGITS
from pipeline.store import open_store

MODEL, TEST = "a" * 64, "b" * 64
METRICS = {
    "calibration_error": 0.004,
    "calibration_error_high": 0.006,
    "model_bytes": 218320,
    "model_sha256": MODEL,
    "multiply_adds": 4865920,
    "test_accuracy": 0.9939,
    "test_accuracy_high": 0.9952,
    "test_accuracy_low": 0.9922,
    "test_images": 10000,
    "test_loss": 0.0201,
    "test_sha256": TEST,
}
TRAIN = {
    "best_epoch": 2,
    "best_val_accuracy": 0.9931,
    "best_val_loss": 0.0243,
    "epochs_run": 3,
    "model_sha256": MODEL,
    "parameters": 53578,
    "stopped_early": True,
}
CORRECTIONS = {"measured": 50, "right": 49, "right_before": 41, "model_sha256": MODEL}
HISTORY = [(1, 0.5, 0.85, 0.2, 0.95), (2, 0.2, 0.94, 0.1, 0.97), (3, 0.1, 0.96, 0.12, 0.96)]
PREDICTIONS = [(0, 7, 7, 0.99), (1, 7, 1, 0.6), (2, 7, 9, 0.95), (3, 4, 4, 0.9), (4, 9, 9, 1.0)]
GATE = f"""# Gate: warn

Nothing is shown to be worse; look at the warnings before you merge.

Of the workspace, model `{MODEL[:12]}`, against main, model `{"c" * 12}`.

| check | verdict | found | asked for |
|---|---|---|---|
| margin | **warn** | <b>0.1</b> points | above 0.3 |

## 1 lost: right in the base, wrong now

```text
⠀⠀⠀⣀
```
"""


@pytest.fixture
def reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with every report there can be, of a small test set."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(files.ROOT / "params.yaml", tmp_path)
    folder = tmp_path / "reports"
    photos = {"photos_read": 3, "photos_scored": 2, "photos_unreadable": 1, "photos_unsure": 1}
    shares = {"photo_accuracy": 0.5, "photo_accuracy_low": 0.0945, "photo_accuracy_high": 0.9055}
    for name, content in {"metrics": METRICS, "train": TRAIN, "photos": photos | shares}.items():
        files.write_json(folder / f"{name}.json", content)
    uses = {"train_images": 48000, "validation_images": 12000, "test_images": 10000}
    files.write_json(folder / "data.json", uses)
    files.write_json(folder / "provenance.json", {f"{name}_sha256": "d" * 64 for name in ("code", "data", "params")})
    files.write_json(folder / "corrections.json", CORRECTIONS)
    write(folder / "history.csv", "epoch loss accuracy val_loss val_accuracy", HISTORY)
    write(folder / "predictions.csv", "index label prediction probability", PREDICTIONS)
    write(folder / "calibration.csv", "probability accuracy images", [(0.6, 0.5, 2), (0.97, 1.0, 3)])
    write(folder / "photos.csv", "file text verdict", [("five.jpg", "5", "digit"), ("<i>.jpg", "", "no digit")])
    write(folder / "sweep.csv", "rank dropout best_val_loss error", [(1, 0.2, 0.024, ""), (2, 0.4, 0.031, "")])
    files.write_text(folder / "gate.md", GATE)
    for name in report.PICTURES:
        Image.new("L", (8, 8), 255).save(folder / f"{name}.png")
    return folder


def write(path: Path, columns: str, rows: list[tuple[object, ...]]) -> None:
    names = columns.split()
    files.write_csv(path, [dict(zip(names, row, strict=True)) for row in rows], names)


class Page(HTMLParser):
    """What a page holds: ids, the links within it, all that it would load, and its headings."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.headings: list[int] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids += [given["id"] or ""] if "id" in given else []
        self.links += [given["href"] or ""] if tag == "a" else []
        loaded = given.get("src") or (given.get("href") if tag == "link" else None)
        self.loaded += [loaded] if loaded else []
        self.headings += [int(tag[1])] if re.fullmatch("h[1-6]", tag) else []
        self.open += [tag] if tag not in ("meta", "link", "img", "br", "hr") else []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def rendered(reports: Path, commit: str = "Commit 1234.") -> str:
    return report.render(reports, commit)


def test_the_result_stands_at_the_top_with_its_interval(reports: Path) -> None:
    page = rendered(reports)
    assert "99.39%" in page
    assert "95%: 99.22% to 99.52%" in page
    assert "10,000 test digits that nothing was chosen on" in page


def test_every_report_has_its_section_and_every_link_its_target(reports: Path) -> None:
    page = Page(rendered(reports))
    assert page.links == [f"#{anchor}" for anchor in report.SECTIONS]
    assert set(report.SECTIONS) <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert page.open == []


def test_what_has_not_been_made_is_left_out(reports: Path) -> None:
    for path in reports.iterdir():
        if path.name != "metrics.json":
            path.unlink()
    page = Page(rendered(reports))
    assert page.links == ["#result", "#provenance"]
    assert page.loaded == ["data:,"]


def test_the_page_loads_nothing_from_elsewhere(reports: Path) -> None:
    text = rendered(reports)
    assert all(address.startswith("data:") for address in Page(text).loaded)
    assert len(Page(text).loaded) == 1 + len(report.PICTURES)
    assert "http" not in text
    assert "<script" not in text


def test_headings_skip_no_level(reports: Path) -> None:
    levels = Page(rendered(reports)).headings
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(below - above <= 1 for above, below in itertools.pairwise(levels))


def test_the_same_reports_make_the_same_page(reports: Path) -> None:
    assert rendered(reports) == rendered(reports)


def test_what_reports_say_is_text_and_never_markup(reports: Path) -> None:
    page = rendered(reports, "Commit 1234, “<script>alert(1)</script>”.")
    assert "<script" not in page
    assert "<i>" not in page
    assert "&lt;i&gt;.jpg" in page
    assert "<b>" not in page


def test_recall_is_of_a_row_and_precision_of_a_column(reports: Path) -> None:
    seven, nine = (report.confusion(files.read_csv(reports / "predictions.csv"), DIGITS)[digit] for digit in (7, 9))
    assert (seven["recall"], seven["precision"]) == ("33.3%", "100.0%")
    assert (nine["recall"], nine["precision"]) == ("100.0%", "50.0%")
    assert [cell["count"] for cell in seven["cells"]] == [0, 1, 0, 0, 0, 0, 0, 1, 0, 1]


def test_the_most_sure_mistake_comes_first(reports: Path) -> None:
    found = report.mistakes(files.read_csv(reports / "predictions.csv"))
    assert found == [("2", "7", "9", "0.95"), ("1", "7", "1", "0.6")]


def test_the_page_begins_with_the_verdict_of_the_gate(reports: Path) -> None:
    page = rendered(reports)
    assert '<p class="verdict warn">Gate: warn. Nothing is shown to be worse; look at the warnings' in page
    assert "<h3>1 lost: right in the base, wrong now</h3>" in page
    assert "&lt;b&gt;0.1" in page


def test_a_verdict_on_another_model_is_left_out(reports: Path) -> None:
    files.write_text(reports / "gate.md", GATE.replace(MODEL[:12], "e" * 12))
    assert "Gate" not in rendered(reports)


def test_corrections_have_a_line_of_their_own(reports: Path) -> None:
    def line() -> str:
        return "".join(re.findall(r"<dt>corrections</dt><dd>(.*?)</dd>", report.render(reports, "Commit")))

    assert line() == "49 of 50<small>read right, not learned from, 41 with the base</small>"
    files.write_json(reports / "corrections.json", CORRECTIONS | {"model_sha256": "e" * 64})
    assert line() == ""
    (reports / "corrections.json").unlink()
    assert line() == ""


def test_a_verdict_that_names_no_model_is_shown(reports: Path) -> None:
    files.write_text(reports / "gate.md", "# Gate: cannot compare\n\nIt cannot be said.\n")
    assert 'class="verdict cannot"' in rendered(reports)


WRONG = [None, "", "much", [], {}, True, float("nan")]


def damaged() -> Iterator[tuple[str, str, object]]:
    """Yield each key that the page needs, with what an older version or an editor may have left there."""
    for name, (texts, numbers) in report.NEEDED.items():
        needed = [*texts, *numbers, *(report.LABELLED if name == "photos" else ())]
        yield from (
            (name, key, value) for key in needed for value in [LACKING, *WRONG] if not fits(key in texts, value)
        )


def fits(text: bool, value: object) -> bool:
    return text and isinstance(value, str)


LACKING = object()


@pytest.mark.parametrize("name", report.NEEDED)
def test_a_report_without_a_figure_is_named_in_a_line(reports: Path, name: str) -> None:
    path = reports / f"{name}.json"
    whole = files.read_json(path)
    for _, key, value in (each for each in damaged() if each[0] == name):
        content = {other: whole[other] for other in whole if other != key}
        path.write_text(json.dumps(content if value is LACKING else content | {key: value}))
        if value is LACKING and key == "photo_accuracy":
            rendered(reports)  # as where no photograph has a label
            continue
        with pytest.raises(files.UnreadableError) as raised:
            rendered(reports)
        assert str(raised.value) == (
            f"{path}: not as a stage wrote it (expected {key}); remove it, and `dvc repro` makes it anew"
        )


@pytest.mark.parametrize("value", ["", "much", "nan", "-1"])
@pytest.mark.parametrize(
    ("name", "column"), [(name, column) for name in report.TABLES for column in report.TABLES[name]]
)
def test_a_table_without_a_number_is_named_in_a_line(reports: Path, name: str, column: str, value: str) -> None:
    rows = files.read_csv(reports / f"{name}.csv")
    files.write_csv(reports / f"{name}.csv", [row | {column: value} for row in rows], list(rows[0]))
    if value == "-1" and column not in ("label", "prediction"):
        rendered(reports)
        return
    with pytest.raises(files.UnreadableError, match=rf"reports/{name}\.csv: not as a stage wrote it") as raised:
        rendered(reports)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "page", ["", "# Gate: warn", "<<<<<<< HEAD\n# Gate: warn\n=======\n", "# Gate:\n\nSo.\n", "\xff"]
)
def test_a_page_of_the_gate_that_cannot_be_read_is_left_out(reports: Path, page: str) -> None:
    (reports / "gate.md").write_bytes(page.encode("latin1"))
    assert 'class="verdict' not in rendered(reports)


def test_photographs_are_counted_as_people_count_them(reports: Path) -> None:
    assert "1 of the 2 with a label were read right" in rendered(reports)


def test_without_reports_it_says_what_makes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(report.UserError, match=r"reports/metrics.json: expected .* `dvc repro` makes them"):
        report.main([])


def drawn(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)  # noqa: S314


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in drawn(svg).iter("text")]


def test_curves_have_a_point_an_epoch_and_whole_epochs_below() -> None:
    svg = charts.curves("Loss", "epoch", "loss", {"training": [3, 2, 1], "validation": [2, 1, 2]}, marked=2)
    assert len(list(drawn(svg).iter("circle"))) == 6
    assert [text for text in texts(svg) if text in ("1", "1.5", "2", "3")].count("1.5") <= 1
    assert "best: epoch 2" in texts(svg)
    assert charts.horizontal_axis(1, 3, 1).ticks() == [1, 2, 3]


def test_a_training_of_one_epoch_can_be_drawn() -> None:
    drawn(charts.curves("Loss", "epoch", "loss", {"training": [1.0], "validation": [1.0]}, marked=1))


def test_ticks_are_round_and_within_the_scale() -> None:
    assert charts.horizontal_axis(0, 1).ticks() == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert charts.horizontal_axis(0.9918, 0.9957).ticks() == [0.992, 0.993, 0.994, 0.995]
    assert charts.horizontal_axis(1, 300, 1).ticks()[0] == 50


def test_a_higher_value_is_drawn_higher() -> None:
    axis = charts.vertical_axis(0, 1)
    assert axis.at(0) > axis.at(0.5) > axis.at(1)


def test_the_title_of_a_chart_is_its_text_alternative() -> None:
    element = drawn(charts.interval("Accuracy <0.99>", 0.99, 0.98, 0.995, 0.97))
    assert element.attrib["aria-label"] == element.findtext("title") == "Accuracy <0.99>"


def test_all_right_answers_can_be_drawn() -> None:
    drawn(charts.reliability("Honest", [(1.0, 1.0, 100)]))
    drawn(charts.reliability("Honest", []))
    drawn(charts.interval("All", 1.0, 1.0, 1.0))


@pytest.fixture(scope="module")
def reported(made_once: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return a small project with its page; for reading and copying only."""
    project = made_once.copy(tmp_path_factory.mktemp("reported") / "project")
    assert project.stage("report").stdout == "report: reports/index.html\n"
    return project


@pytest.mark.slow
def test_the_page_is_kept_with_the_run_and_linked_from_its_note(
    reported: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(reported.root))
    store = open_store()
    run = store.runs("attributes.status = 'FINISHED'")[0]
    kept = tracking.Run(store, run.info.run_id).read("reports/index.html")
    assert kept == (reported.root / report.PAGE).read_bytes()
    link = f"#/experiments/{store.experiment_id}/runs/{run.info.run_id}/artifacts/reports/index.html"
    assert f"({link})" in run.data.tags["mlflow.note.content"]


@pytest.mark.slow
def test_a_page_that_a_server_missed_is_kept_the_next_time(
    made_project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = made_project.run(
        sys.executable, "-m", "pipeline.report", status=2, MLFLOW_TRACKING_URI="http://127.0.0.1:9"
    ).stderr
    assert said.count("\n") == 1
    assert "no answer" in said
    assert (made_project.root / report.PAGE).exists()
    made_project.stage("report")
    monkeypatch.setenv("DVC_ROOT", str(made_project.root))
    store = open_store()
    kept = tracking.Run(store, store.runs("tags.`report.page` != ''")[0].info.run_id).read("reports/index.html")
    assert kept == (made_project.root / report.PAGE).read_bytes()
    assert b"not yet kept" not in kept


@pytest.mark.slow
def test_a_second_page_of_the_same_reports_is_the_same_and_leaves_git_clean(reported: Project, tmp_path: Path) -> None:
    project = reported.copy(tmp_path / "project")
    project.stage("report")
    assert (project.root / report.PAGE).read_bytes() == (reported.root / report.PAGE).read_bytes()
    assert project.git("status", "--porcelain") == ""


@pytest.mark.slow
def test_the_page_shows_a_real_small_model(reported: Project) -> None:
    text = (reported.root / report.PAGE).read_text("utf-8")
    metrics, commit = reported.json("metrics.json"), reported.git("rev-parse", "HEAD")
    assert f"{metrics['test_accuracy']:.2%}" in text
    assert metrics["model_sha256"] in text
    assert f"Commit {commit[:12]}, “Make”." in text
    assert files.sha256(reported.root / "dvc.lock") in text


def test_the_pictures_are_those_of_the_reports(reports: Path) -> None:
    embedded = report.collect(reports)["pictures"]["mistakes"].removeprefix("data:image/png;base64,")
    with Image.open(io.BytesIO(base64.b64decode(embedded))) as picture:
        assert picture.size == (8, 8)

"""What people open is looked at in a real browser: MLflow's pages, the report, the demo."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Project, environment
from PIL import Image

from pipeline import config, corrections, demo, files, provenance, report, tracking, ui
from pipeline.store import open_store

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.common.by import By  # noqa: E402

CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
SECONDS = 120  # that anything may take on a busy machine
TRIALS = [(batch, dropout, patience) for batch in (64, 128) for dropout in (0.1, 0.4) for patience in (1, 3)]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path(CHROMIUM).exists(), reason=f"{CHROMIUM}: install Debian's package chromium"),
    pytest.mark.skipif(not Path(DRIVER).exists(), reason=f"{DRIVER}: install Debian's package chromium-driver"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # selenium's sockets
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Return a browser without a window."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1700,2600"):
        options.add_argument(word)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(3 * SECONDS)
    closed = "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')"
    driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": f"try {{ {closed} }} catch {{}}"})
    yield driver
    driver.quit()


def wait(what: str, asked: Callable[[], Any]) -> Any:
    """Return what ``asked`` returns once that is true; fail the test where it never is."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if found := asked():
            return found
        time.sleep(0.2)
    pytest.fail(f"waited for {what}")


def all_texts(browser: Any, selector: str) -> list[str]:
    script = "return [...document.querySelectorAll(arguments[0])].map(element => element.textContent)"
    return [text.strip() for text in browser.execute_script(script, selector)]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def start(root: Path, module: str, *arguments: str, host: str = "127.0.0.1") -> tuple[subprocess.Popen[str], str]:
    """Start a server of the project and return it with the address that it prints."""
    command = [sys.executable, "-m", f"pipeline.{module}", *arguments]
    server = subprocess.Popen(command, cwd=root, env=environment(), stdout=subprocess.PIPE, text=True)
    assert server.stdout
    said = server.stdout.readline()
    assert f" http://{host}:" in said, said
    return server, next(word for word in said.split() if word.startswith("http"))


def stop(server: subprocess.Popen[str]) -> None:
    server.send_signal(signal.SIGINT)
    assert server.wait(SECONDS) == 0
    assert server.stdout
    server.stdout.close()


# MLflow's pages


@pytest.fixture(scope="module")
def project(made_once: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """Return a small project with a real run, and the recorded histories of a sweep in its store."""
    project = made_once.copy(tmp_path_factory.mktemp("browser") / "project")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_ROOT", str(project.root))
        patch.chdir(project.root)
        record_sweep(project)
    yield project
    shutil.rmtree(project.root)


def record_sweep(project: Project) -> None:
    store, params = open_store(), config.load()
    parent = store.client.create_run(store.experiment_id, run_name="sweep of batch_size, dropout, patience")
    for number, (batch, dropout, patience) in enumerate(TRIALS):
        varied = {"batch_size": batch, "dropout": dropout, "patience": patience}
        trial = params.model_copy(update={"train": params.train.model_copy(update=varied)})
        made_of = provenance.digests(trial, "d" * 64)
        with tracking.ending(tracking.start(store, trial, made_of, parent=parent.info.run_id)) as run:
            for epoch in range(1, 4 + patience):
                value = 1 / (epoch + 1) + 0.01 * number
                named = {"loss": value, "val_loss": value, "accuracy": 1 - value / 3, "val_accuracy": 1 - value / 3}
                run.log_epoch(epoch, named)
            run.log_summary({"best_val_loss": value, "best_val_accuracy": 1 - value / 3, "best_epoch": epoch})
            run.log_image("mistakes", project.root / "reports" / "mistakes.png")
            run.describe()
    store.client.set_terminated(parent.info.run_id)


@pytest.fixture(scope="module")
def mlflow_page(project: Project) -> Iterator[str]:
    """Return the address that `make ui` prints."""
    server, address = start(project.root, "ui", "--port", str(free_port()))
    yield address
    stop(server)


def test_the_first_page_says_which_is_best_and_why(browser: Any, mlflow_page: str) -> None:
    browser.get(mlflow_page)
    names = ".ag-pinned-left-cols-container [col-id='attributes.`Run Name`'], .ag-row [col-id='attributes.`Run Name`']"
    wait("the runs", lambda: len(all_texts(browser, names)) > len(TRIALS))
    first = ".ag-row[row-index='0'] [col-id='metrics.`best_val_loss`']"
    losses = all_texts(browser, ".ag-row [col-id='metrics.`best_val_loss`']")
    assert float(all_texts(browser, first)[0]) == min(float(loss) for loss in losses if loss not in ("", "-"))
    cells = browser.find_elements(By.CSS_SELECTOR, ".ag-header-cell")
    shown = [cell.get_attribute("col-id") for cell in sorted(cells, key=lambda cell: cell.rect["x"])]
    expected = ["metrics.`best_val_loss`", "metrics.`best_val_accuracy`", "metrics.`test_accuracy`"]
    expected += ["metrics.`photo_accuracy`", "params.`train.batch_size`", "params.`train.dropout`"]
    assert [name for name in shown if name in expected] == expected
    assert any("batch 64 · dropout 0.1 · patience 3" in text for text in all_texts(browser, ".ag-row"))
    assert "Runs of the digits pipeline" in browser.find_element(By.TAG_NAME, "body").text


def test_the_compare_page_shows_exactly_the_parameters_that_differ(browser: Any, mlflow_page: str) -> None:
    browser.get(mlflow_page)
    wait("the runs", lambda: len(browser.find_elements(By.CSS_SELECTOR, ".ag-row input[type=checkbox]")) > 4)
    tick(browser, "batch 64 · dropout 0.1 · patience 3")
    tick(browser, "batch 64 · dropout 0.4 · patience 3")
    click(browser, "[data-testid='runs-compare-button']:not([disabled])")
    wait("the comparison", lambda: "Comparing 2 Runs" in browser.find_element(By.TAG_NAME, "body").text)
    every = {f"train.{name}" for name in config.Train.model_fields}
    wait("all parameters", lambda: every <= set(compared(browser)))
    browser.execute_script("document.querySelectorAll('[role=switch]')[0].click()")
    wait("the parameter that differs, alone", lambda: compared(browser) == {"train.dropout": ["0.1", "0.4"]})
    dimensions = "return [...document.querySelectorAll('.js-plotly-plot')].flatMap(plot => plot.data)"
    axes = browser.execute_script(f"{dimensions}.flatMap(trace => (trace.dimensions ?? []).map(each => each.label))")
    assert axes[0] == "train.dropout"
    assert len(axes) == 2


def tick(browser: Any, name: str) -> None:
    script = """
        const row = [...document.querySelectorAll('.ag-row')].find(row => row.textContent.includes(arguments[0]));
        const same = row && `.ag-row[row-id="${row.getAttribute('row-id')}"]`;
        const box = row && document.querySelector(`${same} input[type=checkbox]`);
        if (box) box.click();
        return Boolean(box);"""
    wait(f"a box at {name}", lambda: browser.execute_script(script, name))


def click(browser: Any, selector: str) -> None:
    script = "const found = document.querySelector(arguments[0]); if (found) found.click(); return Boolean(found)"
    wait(selector, lambda: browser.execute_script(script, selector))


def compared(browser: Any) -> dict[str, list[str]]:
    """Return the rows of the compare page that are parameters."""
    script = """return [...document.querySelectorAll('tr, [role=row]')].map(
        row => [...row.querySelectorAll('th, td, [role=cell], [role=rowheader]')].map(cell => cell.innerText.trim()))"""
    rows = [row for row in browser.execute_script(script) if row and row[0].startswith("train.")]
    return {row[0]: row[1:] for row in rows}


@pytest.fixture(scope="module")
def charts(browser: Any, mlflow_page: str) -> Any:
    """Return the browser on the charts of the view."""
    browser.get(f"{mlflow_page}&compareRunsMode=CHART")
    wait("the curves", lambda: len([trace for trace in traces(browser) if trace["type"] == "scatter"]) > len(TRIALS))
    return browser


def traces(browser: Any) -> list[dict[str, Any]]:
    script = """return [...document.querySelectorAll('.js-plotly-plot')].flatMap(plot => plot.data.map(trace => ({
        type: trace.type, name: trace.name, metric: trace.metricKey, x: trace.x && [...trace.x]})))"""
    return list(browser.execute_script(script))


def test_curves_have_one_point_an_epoch_from_1(charts: Any) -> None:
    curves = [trace for trace in traces(charts) if trace["type"] == "scatter" and trace["metric"]]
    assert {curve["metric"] for curve in curves} == {"loss", "val_loss", "accuracy", "val_accuracy"}
    for curve in curves:
        assert curve["x"] == list(range(1, len(curve["x"]) + 1)), curve
    longest = [len(curve["x"]) for curve in curves if curve["name"].endswith("dropout 0.4 · patience 3")]
    assert set(longest) == {6}


def test_parallel_coordinates_have_the_swept_parameters_for_axes(charts: Any) -> None:
    words = all_texts(charts, ".parcoords text")
    axes = [word for word in words if word.startswith(("train.", "best_"))]
    assert axes == ["train.batch_size", "train.dropout", "train.patience", "best_val_accuracy"]


def test_summary_metrics_are_compared_and_pictures_load(charts: Any) -> None:
    bars = [trace for trace in traces(charts) if trace["type"] == "bar"]
    assert any(min(bar["x"]) > 0 and len(bar["x"]) >= len(TRIALS) for bar in bars)
    script = (
        "return [...document.querySelectorAll('img')].filter(i => i.src.includes('images')).map(i => i.naturalWidth)"
    )
    wait("the pictures", lambda: len(found := charts.execute_script(script)) > len(TRIALS) and min(found) > 0)


def test_the_note_of_a_run_leads_to_its_report(browser: Any, mlflow_page: str, project: Project) -> None:
    project.stage("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_ROOT", str(project.root))
        store = open_store()
        run = store.runs("tags.`report.page` != ''")[0]
    address = mlflow_page.split("#")[0]
    browser.get(f"{address}#/experiments/{store.experiment_id}/runs/{run.info.run_id}")
    wait("the model card", lambda: "Handwritten digits, 28 x 28" in browser.find_element(By.TAG_NAME, "body").text)
    link = browser.find_element(By.CSS_SELECTOR, "a[href*='artifacts/reports/index.html']").get_attribute("href")
    assert link.startswith(address)
    browser.get(link)
    frame = wait("its frame", lambda: browser.find_elements(By.CSS_SELECTOR, "iframe"))[0]
    browser.switch_to.frame(frame)
    wait("the report", lambda: all_texts(browser, "h1") == ["Handwritten digits: the state of the model"])
    browser.switch_to.default_content()


# The report


def look(browser: Any, address: str, *, dark: bool = False, width: int = 1200) -> None:
    """Open a page as a person with such a screen does."""
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.get(address)


@pytest.fixture
def screen(browser: Any) -> Iterator[Any]:
    """Return the browser, whose screen may be changed."""
    yield browser
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def violations(browser: Any) -> list[str]:
    """Return what axe finds wrong with the page."""
    axe = pytest.importorskip("axe_core_python", reason="axe-core-python is not installed")
    browser.execute_script((Path(axe.__file__).parent / "axe.min.js").read_text("utf-8"))
    found = browser.execute_async_script(
        "axe.run(document, {resultTypes: ['violations']}).then(arguments[0], arguments[0])"
    )
    assert "passes" in found, found
    assert found["passes"]
    return [f"{each['id']}: {json.dumps([node['html'] for node in each['nodes']][:3])}" for each in found["violations"]]


@pytest.fixture(scope="module")
def page(project: Project) -> str:
    """Return the address of a report page with every section that there can be."""
    sweep = [dict(zip(("batch_size", "dropout", "patience"), trial, strict=True)) for trial in TRIALS]
    rows = [{"rank": rank, **trial, "best_val_loss": 0.02, "error": ""} for rank, trial in enumerate(sweep, 1)]
    files.write_csv(project.root / "reports" / "sweep.csv", rows, list(rows[0]))
    for name in ("sweep_parallel.png", "sweep_heatmap.png"):
        shutil.copy(project.root / "reports" / "digits.png", project.root / "reports" / name)
    project.run(sys.executable, "-m", "pipeline.gate", "--against", "HEAD", status=1)
    project.stage("report")
    return (project.root / report.PAGE).as_uri()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390], ids=["wide", "phone"])
def test_everyone_can_use_the_report(screen: Any, page: str, width: int, dark: bool) -> None:
    look(screen, page, dark=dark, width=width)
    screen.execute_script("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert violations(screen) == []
    assert screen.execute_script("return document.documentElement.scrollWidth") <= width


def test_the_report_is_light_or_dark_as_the_reader_is(screen: Any, page: str) -> None:
    shades = []
    for dark in (False, True):
        look(screen, page, dark=dark)
        shades.append(screen.execute_script("return getComputedStyle(document.body).backgroundColor"))
    assert shades == ["rgb(255, 255, 255)", "rgb(13, 17, 23)"]


def test_the_report_shows_every_picture_and_section(screen: Any, page: str) -> None:
    look(screen, page)
    assert screen.execute_script("return [...document.images].every(image => image.complete && image.naturalWidth)")
    assert all_texts(screen, "h2") == [name for name in all_texts(screen, "h2") if name]
    assert len(all_texts(screen, "nav a")) == len(report.SECTIONS)
    assert screen.execute_script("return performance.getEntriesByType('resource').map(each => each.name)") == []


# The demo


@pytest.fixture(scope="module")
def demo_page(project: Project) -> Iterator[str]:
    """Return the address that `make demo` prints."""
    server, address = start(project.root, "demo", "--port", "0")
    yield address
    stop(server)


def test_a_one_that_is_drawn_is_read(screen: Any, demo_page: str) -> None:
    look(screen, demo_page)
    draw(screen, [(0.52, 0.2), (0.5, 0.4), (0.49, 0.6), (0.48, 0.8)])
    assert wait("the answer", lambda: "".join(all_texts(screen, "#text"))) == "1"
    assert all_texts(screen, "#digits caption")[0].startswith("1 with ")
    assert len(all_texts(screen, "#digits tr")) == 10
    assert len(all_texts(screen, "#digits tr.second")) == 1
    assert screen.execute_script("return [...document.images].map(image => image.naturalWidth)")[0] == 28


def test_a_one_that_is_drawn_from_another_address_is_read(screen: Any, project: Project) -> None:
    server, address = start(project.root, "demo", "--port", "0", "--host", "0.0.0.0", host=demo.own_address())  # noqa: S104
    look(screen, address)
    screen.find_element(By.ID, "one").click()
    draw(screen, [(0.52, 0.2), (0.5, 0.4), (0.49, 0.6), (0.48, 0.8)])
    assert wait("the answer", lambda: "".join(all_texts(screen, "#text"))) == "1"
    screen.execute_script("history.replaceState(null, '', '/?token=of-the-demo-before')")
    screen.find_element(By.ID, "one").click()
    wait("the reason", lambda: "expected the address with its token" in all_texts(screen, "#words")[0])
    stop(server)


def draw(browser: Any, points: list[tuple[float, float]]) -> None:
    """Press, move and lift a mouse over the sheet, whose sides are 1."""
    script = "const box = document.querySelector('canvas').getBoundingClientRect(); return [box.x, box.y, box.width]"
    left, top, size = browser.execute_script(script)
    places = [{"x": left + x * size, "y": top + y * size} for x, y in points]
    kinds = ["mousePressed", *["mouseMoved"] * (len(places) - 2), "mouseReleased"]
    for kind, place in zip(kinds, places, strict=True):
        event = {"type": kind, "button": "left", "buttons": 1, "clickCount": 1, **place}
        browser.execute_cdp_cmd("Input.dispatchMouseEvent", event)


def test_a_photograph_that_is_dropped_is_read(screen: Any, demo_page: str, project: Project) -> None:
    look(screen, demo_page)
    rows = files.read_csv(project.root / "reports" / "photos.csv")
    photo = next(row for row in rows if row["right"] == "1" and row["text"] and row["verdict"] == "digit")
    drop(screen, project.root / "data" / "photos" / photo["file"], "image/jpeg")
    assert wait("the answer", lambda: "".join(all_texts(screen, "#text"))) == photo["text"]
    assert all_texts(screen, "#steps figcaption") == ["upright and grey", "the ink, paper taken away"]
    assert "Read in" in all_texts(screen, "#words")[0]


def drop(browser: Any, path: Path, kind: str) -> None:
    """Drop a file on the page."""
    script = """
        const [bytes, name, type] = arguments, data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], name, { type }));
        document.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));"""
    browser.execute_script(script, list(path.read_bytes()), path.name, kind)


def test_what_is_no_picture_gets_a_reason(screen: Any, demo_page: str, tmp_path: Path) -> None:
    look(screen, demo_page)
    (tmp_path / "five.txt").write_text("5")
    drop(screen, tmp_path / "five.txt", "text/plain")
    assert wait("a word", lambda: all_texts(screen, "#words") == ["This is not a picture."])
    drop(screen, tmp_path / "five.txt", "image/png")
    assert wait("a reason", lambda: all_texts(screen, "#words") == ["It cannot be read: not a picture."])


def test_a_blank_sheet_is_no_digit(screen: Any, demo_page: str, tmp_path: Path) -> None:
    look(screen, demo_page)
    Image.new("L", (200, 200), 250).save(tmp_path / "blank.png")
    drop(screen, tmp_path / "blank.png", "image/png")
    wait("the verdict", lambda: all_texts(screen, "#words")[0].startswith("No digit"))
    assert all_texts(screen, "#text") == [""]


def kept(project: Project) -> list[tuple[str, str]]:
    return [(each.label, each.writer) for each in corrections.load(project.root / files.CORRECTIONS, config.DIGITS)]


def press(browser: Any, selector: str) -> None:
    browser.execute_script("arguments[0].click()", browser.find_element(By.CSS_SELECTOR, selector))


def test_an_answer_is_said_to_be_wrong_or_right_and_what_was_kept_is_deleted(
    screen: Any, demo_page: str, project: Project
) -> None:
    look(screen, demo_page)
    assert not screen.find_element(By.ID, "correction").is_displayed()
    draw(screen, [(0.52, 0.2), (0.5, 0.5), (0.48, 0.8)])
    wait("the answer", lambda: screen.find_element(By.ID, "right").is_displayed())
    screen.find_element(By.ID, "wrong").click()
    screen.find_element(By.ID, "label").send_keys("x")
    press(screen, "#shown button")
    wait("the reason", lambda: all_texts(screen, "#said")[0].startswith("Not kept: label '1x': expected what"))
    assert kept(project) == []
    screen.find_element(By.ID, "writer").send_keys("Ada")
    screen.find_element(By.ID, "label").clear()
    screen.find_element(By.ID, "label").send_keys("7")
    press(screen, "#shown button")
    wait("a word", lambda: all_texts(screen, "#said") == ["Kept as 7."])
    assert kept(project) == [("7", "Ada")]
    press(screen, "#clear")
    draw(screen, [(0.5, 0.2), (0.5, 0.5), (0.5, 0.8)])
    wait("the answer", lambda: screen.find_element(By.ID, "right").is_displayed())
    screen.find_element(By.ID, "right").click()
    wait("a word", lambda: all_texts(screen, "#said") == ["Kept as 1."])
    press(screen, "#view summary")
    wait("what is kept", lambda: all_texts(screen, "#kept strong") == ["1", "7"])
    press(screen, "#kept li:nth-child(2) button")
    wait("what is left", lambda: all_texts(screen, "#kept strong") == ["1"])
    assert kept(project) == [("1", "Ada")]


def test_the_page_does_not_ask_whether_an_answer_is_right_when_it_is_told_not_to(screen: Any, demo_page: str) -> None:
    look(screen, demo_page)
    press(screen, "#keep")
    for _ in range(2):  # the second time it remembers
        draw(screen, [(0.52, 0.2), (0.5, 0.5), (0.48, 0.8)])
        wait("the answer", lambda: all_texts(screen, "#digits table"))
        assert not screen.find_element(By.ID, "correction").is_displayed()
        screen.refresh()
    press(screen, "#keep")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390], ids=["wide", "phone"])
def test_everyone_can_use_the_demo(screen: Any, demo_page: str, width: int, dark: bool) -> None:
    look(screen, demo_page, dark=dark, width=width)
    draw(screen, [(0.52, 0.2), (0.5, 0.5), (0.48, 0.8)])
    wait("the answer", lambda: all_texts(screen, "#digits table"))
    press(screen, "#right")
    wait("a word", lambda: all_texts(screen, "#said") == ["Kept as 1."])
    press(screen, "#wrong")
    press(screen, "#view summary")
    wait("what is kept", lambda: all_texts(screen, "#kept strong"))
    screen.execute_cdp_cmd("Page.setBypassCSP", {"enabled": True})
    assert violations(screen) == []
    assert screen.execute_script("return document.documentElement.scrollWidth") <= width


def test_the_addresses_are_of_this_machine_only() -> None:
    assert ui.HOST == demo.HOST == "127.0.0.1"

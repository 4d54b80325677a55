"""Take the README's pictures from what is there: the runs, the report, the photographs, the demo.

    python -m benchmarks.screenshots

Reads   mlruns/, reports/, models/ after `make` (and `make sweep`, so that there are runs to compare)
Writes  docs/compare.png, docs/report.png, docs/photographs.png, docs/demo.png, each below 200 kB
Needs   Debian's packages chromium and chromium-driver
"""

from __future__ import annotations

import contextlib
import io
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from selenium import webdriver

from pipeline import console, files
from pipeline.console import UserError
from pipeline.report import PAGE

DOCS = Path("docs")
CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
BYTES = 200_000  # of a picture at most: a README should open at once
SECONDS = 60
SEVEN = [(0.25, 0.25), (0.5, 0.24), (0.72, 0.24), (0.6, 0.5), (0.48, 0.82)]  # a hand's, on a sheet whose sides are 1


def main(arguments: Sequence[str]) -> None:
    """Take all pictures."""
    console.no_arguments(arguments)
    for path in (CHROMIUM, DRIVER):
        if not path.exists():
            raise UserError(f"{path}: expected a browser here; apt install chromium chromium-driver")
    sheet = files.REPORTS / "contact_sheet.png"
    if not PAGE.exists() or not sheet.exists():
        raise UserError(f"{PAGE}: expected a finished project; run `make` first")
    with browser() as driver:
        keep("compare", compare(driver))
        keep("report", report(driver))
        keep("demo", demo(driver))
    keep("photographs", top(sheet.read_bytes()))


@contextlib.contextmanager
def browser() -> Iterator[webdriver.Chrome]:
    """Open a browser without a window, in which MLflow's assistant stays closed."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(word)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    closed = "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')"
    driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": f"try {{ {closed} }} catch {{}}"})
    try:
        yield driver
    finally:
        driver.quit()


@contextlib.contextmanager
def serving(module: str, port: int) -> Iterator[str]:
    """Run one of the project's servers and yield the address that it prints."""
    command = [sys.executable, "-m", f"pipeline.{module}", "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        said = server.stdout.readline() if server.stdout else ""
        if "http" not in said:
            raise UserError(f"pipeline.{module} does not start; what it said is above")
        yield said[said.index("http") :].split()[0]
    finally:
        server.send_signal(signal.SIGINT)
        server.wait()


def compare(driver: webdriver.Chrome) -> bytes:
    """Return MLflow's comparison of the runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with serving("ui", port) as address:
        driver.set_window_size(1500, 1200)
        driver.get(f"{address}&compareRunsMode=CHART")
        script = "return document.querySelectorAll('.js-plotly-plot .scatterlayer .trace').length"
        wait(lambda: driver.execute_script(script))
        time.sleep(3)  # until the charts stand still
        return driver.get_screenshot_as_png()


def report(driver: webdriver.Chrome) -> bytes:
    """Return the upper part of the report page."""
    driver.set_window_size(1100, 1500)
    driver.get(PAGE.resolve().as_uri())
    return driver.get_screenshot_as_png()


def demo(driver: webdriver.Chrome) -> bytes:
    """Return the demo after a seven was drawn."""
    with serving("demo", 0) as address:
        driver.set_window_size(1000, 800)
        driver.get(address)
        script = (
            "const box = document.querySelector('canvas').getBoundingClientRect(); return [box.x, box.y, box.width]"
        )
        left, top, size = driver.execute_script(script)
        kinds = ["mousePressed", *["mouseMoved"] * (len(SEVEN) - 2), "mouseReleased"]
        for kind, (x, y) in zip(kinds, SEVEN, strict=True):
            place = {"x": left + x * size, "y": top + y * size}
            event = {"type": kind, "button": "left", "buttons": 1, "clickCount": 1, **place}
            driver.execute_cdp_cmd("Input.dispatchMouseEvent", event)
        wait(lambda: driver.execute_script("return document.querySelectorAll('#steps img').length"))
        return driver.get_screenshot_as_png()


def wait(asked: Callable[[], object]) -> None:
    """Return once ``asked`` returns something true."""
    end = time.monotonic() + SECONDS
    while not asked():
        if time.monotonic() > end:
            raise UserError("the page did not come; try again on a machine that is less busy")
        time.sleep(0.2)


def top(sheet: bytes) -> bytes:
    """Return the first rows of the contact sheet, no higher than wide, cut between two rows."""
    stream = io.BytesIO()
    with Image.open(io.BytesIO(sheet)) as image:
        plain = np.flatnonzero(np.ptp(np.asarray(image.convert("L")), axis=1) == 0)
        image.crop((0, 0, image.width, int(plain[plain < image.width].max()))).save(stream, "PNG")
    return stream.getvalue()


def keep(name: str, picture: bytes) -> None:
    """Write a picture to docs/, with as many colours and pixels as its bytes allow."""
    path = DOCS / f"{name}.png"
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    content = next(small for small in smaller(image) if len(small) <= BYTES)
    files.write_bytes(path, content)
    print(f"{path}: {len(content) / 1000:.0f} kB")


def smaller(image: Image.Image) -> Iterator[bytes]:
    """Yield a picture as PNG files of fewer and fewer colours, then pixels."""
    for factor in (1, 0.8, 0.65, 0.5, 0.4, 0.3):
        size = (round(image.width * factor), round(image.height * factor))
        for colours in (256, 64):
            stream = io.BytesIO()
            shrunk = image.resize(size, Image.Resampling.LANCZOS)
            shrunk.quantize(colours, Image.Quantize.FASTOCTREE).save(stream, "PNG", optimize=True)
            yield stream.getvalue()


if __name__ == "__main__":
    console.run(main)

"""UI: compare the runs in MLflow, in a saved view that sorts them from best to worst.

    python -m pipeline.ui [--port 5000]

Reads   mlruns/, for which a server is started, or the server that MLFLOW_TRACKING_URI names
Writes  the experiment's description and its saved view "Which is best?", where they are not there yet
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline import console, files
from pipeline.console import Stopped, UserError

HOST = "127.0.0.1"
SECONDS = 60  # until a server that does not answer is given up
STORE = "mlruns/mlflow.db"
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "PYTHONWARNINGS": "ignore",
}
VIEW = "best"
ABOUT = """Runs of the digits pipeline: one a trained model.

- **Best** means by the validation digits: `best_val_loss`, `best_val_accuracy`. Nothing is chosen on the test digits.
- Curves have one point an epoch. `best_epoch` is the epoch whose weights are kept.
- A sweep is a run with its trials below it. Select runs and press *Compare* to see which parameters differ.
- The description of a run is its model card; `reports/index.html` among its artifacts is the whole report.
"""
PARAMETERS = ("train.batch_size", "train.dropout", "train.patience", "train.learning_rate")
FIGURES = ("best_val_loss", "best_val_accuracy", "test_accuracy", "photo_accuracy", "best_epoch", "epochs_run")


def main(arguments: Sequence[str]) -> int:
    """Serve MLflow's pages until Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.ui",
        description="Compare the runs in MLflow.",
        epilog="example: python -m pipeline.ui --port 5001",
    )
    parser.add_argument("--port", type=int, default=5000, help="default 5000")
    port = parser.parse_args(arguments).port
    remote = os.environ.get("MLFLOW_TRACKING_URI", "")
    if remote.startswith("http"):
        print(f"Compare the runs at {view_at(remote)}")
        return 0
    if not remote and not (files.workspace() / STORE).exists():
        raise UserError("mlruns: no runs yet; run `make` first")
    with serving(_database(remote), port) as server:
        address = view_at(f"http://{HOST}:{port}")  # while the server starts
        wait_for(server, port)
        print(f"Compare the runs at {address} (Ctrl-C ends this)", flush=True)
        return until_ended(server)


def until_ended(server: subprocess.Popen[bytes]) -> int:
    """Return the status of a server once it has ended.

    Of two signals at once a thread of MLflow may take both, and then nothing wakes a main thread that only waits.
    """
    while server.poll() is None:
        time.sleep(0.2)
    return server.returncode


def _database(uri: str) -> str:
    if not uri:
        return f"sqlite:///{files.workspace() / STORE}"
    from pipeline.store import resolve

    return resolve(uri)


def view_at(server: str) -> str:
    """Write the view to the store, unless it is there, and return its address on a server."""
    from pipeline.store import open_store, without_passwords  # two seconds, in which the server starts

    store = open_store()
    there = store.client.get_experiment(store.experiment_id).tags
    for name, value in tags().items():
        if name not in there:  # what a person has changed stays
            store.client.set_experiment_tag(store.experiment_id, name, value)
    page = f"#/experiments/{store.experiment_id}/runs"
    address = without_passwords(server.rstrip("/")).replace("***@", "")
    return f"{address}/{page}?workflowType=machine_learning&viewStateShareKey={VIEW}"


def tags() -> dict[str, str]:
    """Return the tags of an experiment that MLflow's pages read (3.17)."""
    view = {"name": "Which is best?", "createdAt": 0, "updatedAt": 0, "state": json.dumps(view_state())}
    return {
        "mlflow.note.content": ABOUT,
        "mlflow.experimentKind": "custom_model_development",
        f"mlflow.sharedViewState.{VIEW}": json.dumps(view),
    }


def view_state() -> dict[str, Any]:
    """Return the view: the columns and their order, the least validation loss first, and the charts."""
    columns = [f"metrics.`{name}`" for name in FIGURES[:4]] + [f"params.`{name}`" for name in PARAMETERS]
    columns += [f"metrics.`{name}`" for name in FIGURES[4:]]
    sections = {"best": "Which parameters are best", "curves": "Curves", "pictures": "Pictures"}
    return {
        "orderByKey": "metrics.`best_val_loss`",
        "orderByAsc": True,
        "selectedColumns": columns,
        "columnOrder": ["attributes.`Run Name`", *columns, "runDateAndNestInfo", "duration"],
        "columnWidths": {"attributes.`Run Name`": 290} | dict.fromkeys(columns, 130),
        "compareRunSections": [
            {"uuid": key, "name": name, "display": True, "isReordered": False, "columns": 2}
            for key, name in sections.items()
        ],
        "compareRunCharts": list(_charts()),
        "isAccordionReordered": True,
    }


def _charts() -> Iterator[dict[str, Any]]:
    yield _chart("best", "PARALLEL", "parallel", selectedParams=PARAMETERS[:3], selectedMetrics=["best_val_accuracy"])
    accuracy, loss = ({"key": f"best_val_{name}", "type": "METRIC"} for name in ("accuracy", "loss"))
    yield _chart("best", "SCATTER", "best_val_loss against best_val_accuracy", xaxis=accuracy, yaxis=loss)
    for name in ("loss", "accuracy"):
        title = f"{name}, training against validation"
        yield _chart("curves", "LINE", title, metricKey=name, selectedMetricKeys=[name, f"val_{name}"])
    for name in ("mistakes", "photos"):
        yield _chart("pictures", "IMAGE", name, imageKeys=[name])


def _chart(section: str, kind: str, name: str, **options: Any) -> dict[str, Any]:
    shared = {"deleted": False, "isGenerated": False, "runsCountToCompare": 20, "displayName": name}
    kinds: dict[str, dict[str, Any]] = {
        "PARALLEL": {"showAllRuns": False},
        "SCATTER": {},  # not BAR: bars start at 0, and losses of 0.018 and 0.022 look alike
        "LINE": {
            "lineSmoothness": 0,
            "xAxisKey": "step",
            "xAxisScaleType": "linear",
            "scaleType": "linear",
            "yAxisKey": "metric",
            "yAxisExpressions": [],
            "range": {},
            "selectedXAxisMetricKey": "",
            "useGlobalXaxisKey": True,
            "useGlobalLineSmoothing": True,
            "ignoreOutliers": False,
        },
        "IMAGE": {"step": 0, "showRunParams": False},
    }
    return {"uuid": f"{section}-{name}", "type": kind, "metricSectionId": section, **shared, **kinds[kind], **options}


@contextlib.contextmanager
def serving(uri: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``mlflow server`` on the loopback address for as long as the block lasts, or until it is stopped."""
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", HOST, "--port", str(port)]
    command += ["--uvicorn-opts", "--log-level warning"]
    stores = {
        "MLFLOW_BACKEND_STORE_URI": uri,
        "MLFLOW_REGISTRY_STORE_URI": uri,
    }  # and not arguments, which every user of the machine can read
    _refuse_taken(port)
    server = subprocess.Popen(command, env=os.environ | QUIET | stores, cwd=files.workspace(), start_new_session=True)
    try:
        yield server
    except Stopped:
        pass  # which is how a server ends
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def _refuse_taken(port: int) -> None:
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((HOST, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"port {port}: {reason}; take another one with PORT=5001 or --port 5001") from None


def wait_for(server: subprocess.Popen[bytes], port: int) -> None:
    """Return when the server answers; raise ``UserError`` when it ends, or does not answer within a minute."""
    end = time.monotonic() + SECONDS
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a company's proxy knows no server here
    while time.monotonic() < end and server.poll() is None:
        with contextlib.suppress(OSError):
            direct.open(f"http://{HOST}:{port}/health", timeout=5).close()
            return
        time.sleep(0.1)
    raise UserError("mlflow server: it does not answer; what it said is above")


if __name__ == "__main__":
    console.run(main)

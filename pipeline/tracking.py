"""Everything that is said to MLflow: one run a trained model, joined to the DVC outputs by content."""

from __future__ import annotations

import base64
import contextlib
import functools
import getpass
import io
import json
import logging
import os
import platform
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when MLflow is imported
os.environ.setdefault("MLFLOW_ENABLE_ASYNC_LOGGING", "false")  # what is logged asynchronously is lost at a kill
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
import psutil
import yaml
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelOutput, Metric, Param, RunTag
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException
from PIL import Image
from sqlalchemy.exc import SQLAlchemyError

from pipeline import config, files
from pipeline.config import Params
from pipeline.console import Stopped, UserError, undisturbed

EXPERIMENT = "digits"
PACKAGES = ("tensorflow", "keras", "numpy", "opencv-python-headless", "ai-edge-litert", "mlflow", "dvc")


class SqliteClient(MlflowClient):
    """MLflow's client, none of whose calls is torn by a signal: a transaction half done would lock the file."""

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        return undisturbed()(value) if callable(value) and not name.startswith("_") else value


class Store:
    """The MLflow store of the main workspace, or the server that ``MLFLOW_TRACKING_URI`` names."""

    def __init__(self, client: MlflowClient, experiment_id: str) -> None:
        self.client = client
        self.experiment_id = experiment_id

    def runs(self, condition: str) -> list[MlflowRun]:
        """Return the runs of the experiment that meet an MLflow filter, newest first."""
        order = ["attributes.start_time DESC"]
        return list(self.client.search_runs([self.experiment_id], condition, max_results=50_000, order_by=order))


def store_uri() -> str:
    """Return where runs go: ``MLFLOW_TRACKING_URI``, else the SQLite file of the main workspace."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{files.workspace() / 'mlruns' / 'mlflow.db'}"


def open_store(uri: str = "") -> Store:
    """Open the store and put right what can be: close runs whose process died, follow a project that was moved."""
    uri = uri or store_uri()
    store = connect(uri)
    if uri.startswith(SQLITE):
        relocate(database_of(uri))
    close_stale(store)
    return store


SQLITE = "sqlite:///"


def database_of(uri: str) -> Path:
    """Return the file of a local store."""
    return Path(uri.removeprefix(SQLITE)).resolve()


def connect(uri: str) -> Store:
    """Open a store as it is, made when it is not there; raise ``UserError`` if it is out of reach."""
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        if uri.startswith(SQLITE):
            return _connect_local(uri)
        _reach(uri)
        return _connect(uri, artifacts=None)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"MLflow store {uri}: {reason}; expected a store that can be read and written") from None


def _connect_local(uri: str) -> Store:
    folder = database_of(uri).parent
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):  # processes that make the schema at once break it for good
        return _connect(uri, artifacts=(folder / "artifacts").as_uri())


LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def moved_from(database: Path) -> str:
    """Return the URI of the folder that an SQLite store was made in, where that is not the one it is in; else ""."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        query = "SELECT artifact_location FROM experiments WHERE name = ?"
        found = connection.execute(query, [EXPERIMENT]).fetchone()
    made_in = found[0].removesuffix("/artifacts") if found and found[0].startswith("file:") else ""
    return made_in if made_in != database.parent.as_uri() else ""


def relocate(database: Path) -> None:
    """Make the absolute locations in an SQLite store those of the folder it is in, after a move or a copy."""
    old, new = moved_from(database), database.parent.as_uri()
    if not old:
        return
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        for table, column in LOCATIONS:
            query = f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?"  # noqa: S608
            connection.execute(query, [new, len(old) + 1, len(old) + 1, f"{old}/"])


def _connect(uri: str, artifacts: str | None) -> Store:
    client = SqliteClient(uri) if uri.startswith(SQLITE) else MlflowClient(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment:
        return Store(client, experiment.experiment_id)
    try:
        return Store(client, client.create_experiment(EXPERIMENT, artifacts))
    except MlflowException:  # another process of a shared server was faster
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if not experiment:
            raise
        return Store(client, experiment.experiment_id)


def _reach(uri: str) -> None:
    if not uri.startswith(("http://", "https://")):
        return
    try:
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=5).close()  # noqa: S310
    except urllib.error.HTTPError:
        return  # something answers; MLflow says the rest
    except OSError as error:
        raise UserError(f"MLFLOW_TRACKING_URI={uri}: no answer ({error}); start the server or unset it") from None


def close_stale(store: Store) -> None:
    """Close the runs that a process of this machine left RUNNING when it died."""
    for run in store.runs("attributes.status = 'RUNNING'"):
        if is_dead(run.data.tags):
            store.client.set_terminated(run.info.run_id, "KILLED")


def is_dead(tags: Mapping[str, str]) -> bool:
    """Tell whether the process that these tags of a run name was of this machine and is no more."""
    if tags.get("process.host") != socket.gethostname():
        return False
    try:
        return f"{psutil.Process(int(tags['process.pid'])).create_time():.0f}" != tags["process.started"]
    except psutil.NoSuchProcess:
        return True


class Run:
    """One MLflow run: what is said of it while it trains and afterwards."""

    def __init__(self, store: Store, run_id: str) -> None:
        self.store = store
        self.client = store.client
        self.run_id = run_id

    def log_epoch(self, number: int, metrics: Mapping[str, float]) -> None:
        """Log one epoch's metrics at its own step, in one call."""
        self._log(metrics, number)

    def log_summary(self, metrics: Mapping[str, float]) -> None:
        """Log figures of the run as a whole: tables show the last value of a curve, not the best."""
        self._log(metrics, 0)

    def _log(self, metrics: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        self.client.log_batch(self.run_id, [Metric(name, float(value), now, step) for name, value in metrics.items()])

    def tag(self, tags: Mapping[str, object]) -> None:
        """Set tags."""
        self.client.log_batch(self.run_id, tags=[RunTag(name, str(value)) for name, value in tags.items()])

    def log_image(self, key: str, file: Path) -> None:
        """Log a picture under the same key in every run, so that the UI can put runs side by side."""
        with Image.open(file) as image:
            self.client.log_image(self.run_id, image.convert("RGB"), key=key, step=0)

    def log_files(self, paths: Sequence[Path], folder: str) -> None:
        """Log files as artifacts under ``folder``."""
        for path in paths:
            self.client.log_artifact(self.run_id, str(path), folder)

    def log_bytes(self, content: bytes, path: str) -> None:
        """Log an artifact as it is: text would lose its own ends of line."""
        with tempfile.TemporaryDirectory() as folder:
            files.write_bytes(Path(folder, path), content)
            self.client.log_artifact(self.run_id, str(Path(folder, path)))

    def log_trained(self, report: Mapping[str, Any], models: Path) -> None:
        """Log the end of a training: its summary, and the model's files in the folder ``models``."""
        self.log_summary({name: value for name, value in report.items() if isinstance(value, int | float)})
        self.tag({"model.sha256": report["model_sha256"]})
        self.client.log_dict(self.run_id, dict(report), f"{files.REPORTS / 'train.json'}")
        self.log_model(models)
        self.describe()

    def log_known_results(self, model_sha256: str) -> None:
        """Log what the reports say of this very model already: then DVC has no reason to run the later stages."""
        for report in RESULTS:
            path = files.REPORTS / report
            if path.exists() and files.read_json(path).get("model_sha256") == model_sha256:
                self.log_results(report)

    def log_results(self, report: str) -> None:
        """Log what a later stage found: its figures, its picture, and whole what gate and `reproduce` read again."""
        stage, key, picture, kept = RESULTS[report]
        found = files.read_json(files.REPORTS / report)
        self.log_summary({name: value for name, value in found.items() if isinstance(value, int | float)})
        self.tag({f"{stage}.code.sha256": code_sha256(stage)})
        self.log_image(key, files.REPORTS / picture)
        self.log_files([files.REPORTS / name for name in (report, kept)], str(files.REPORTS))
        self.describe()

    def log_model(self, models: Path) -> str:
        """Log the files in ``models``, and the code that answers with them, as an MLflow model; return its id."""
        from mlflow import pyfunc
        from mlflow.models import Model

        tags = {"serving.sha256": files.digest_files(SERVED)}
        kept = self.client.create_logged_model(self.store.experiment_id, "model", self.run_id, tags)
        about = Model(kept.artifact_location, self.run_id, model_uuid=kept.model_id, model_id=kept.model_id)
        with tempfile.TemporaryDirectory() as folder:
            saved = Path(folder, "model")
            pyfunc.save_model(
                saved,
                loader_module="pipeline.serving",
                data_path=_copied(models.glob("[!.]*"), Path(folder, "data")),
                code_paths=[_copied(SERVED, Path(folder, "pipeline"))],
                mlflow_model=about,
                pip_requirements=pinned(NEEDED),
                **_interface(),
            )
            self.client.log_model_artifacts(kept.model_id, str(saved))
        self.client.finalize_logged_model(kept.model_id, "READY")
        self.client.log_outputs(self.run_id, [LoggedModelOutput(kept.model_id, step=0)])
        return kept.model_id

    def find_model(self) -> str | None:
        """Return the id of the newest model logged for this run with the code that reads photographs as it is now."""
        condition = f"source_run_id = '{self.run_id}' AND tags.`serving.sha256` = '{files.digest_files(SERVED)}'"
        found = self.client.search_logged_models([self.store.experiment_id], condition)
        return next((logged.model_id for logged in found if logged.status == "READY"), None)

    def read(self, path: str) -> bytes | None:
        """Return the bytes of an artifact, say ``params.yaml`` or ``reports/metrics.json``; None where it is not."""
        with tempfile.TemporaryDirectory() as folder, contextlib.suppress(MlflowException, OSError):
            return Path(self.client.download_artifacts(self.run_id, path, folder)).read_bytes()
        return None

    def describe(self) -> None:
        """Write the model card into the run's note, from all that the run knows by now."""
        data = self.client.get_run(self.run_id).data
        self.tag({"mlflow.note.content": card(data.params, data.metrics, data.tags)})

    @undisturbed()
    def end(self, status: str, error: BaseException | None = None) -> None:
        """Close the run: FINISHED, KILLED or FAILED, with the error in its tags."""
        with contextlib.suppress(MlflowException) if error else contextlib.nullcontext():
            if error:
                self.tag({"error": " ".join(f"{type(error).__name__}: {error}".split())[:500]})
            self.client.set_terminated(self.run_id, status)


RESULTS = {  # a report: its stage, its picture with the key of all runs, and the answers behind the figures
    "metrics.json": ("evaluate", "mistakes", "mistakes.png", "predictions.csv"),
    "photos.json": ("predict-photo", "photos", "contact_sheet.png", "photos.csv"),
}
SERVED = [  # serving.py and what it imports
    files.ROOT / "pipeline" / f"{name}.py"
    for name in ("__init__", "classifier", "console", "files", "lines", "photo", "reading", "serving")
]
NEEDED = ("ai-edge-litert", "mlflow", "numpy", "opencv-python-headless", "pandas", "pillow", "tqdm")  # and these


@functools.cache  # a sweep asks a thousand times, and each answer is read from a file
def pinned(names: tuple[str, ...]) -> list[str]:
    """Return packages with their versions, as pip takes them."""
    return [f"{name}=={version(name)}" for name in names]


def _copied(paths: Iterable[Path], folder: Path) -> str:
    for path in paths:
        files.write_bytes(folder / path.name, path.read_bytes())
    return str(folder)


def _interface() -> dict[str, Any]:
    """Return the signature of a logged model and an example of what it takes: a photograph of a one."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType

    signature = ModelSignature(
        inputs=Schema([ColSpec(AnyType(), "image")]),
        outputs=Schema([*(ColSpec("string", name) for name in WORDS), ColSpec(AnyType(), "digits")]),
        params=ParamSchema([ParamSpec("one", "boolean", default=False)]),
    )
    photograph, content = Image.new("L", (64, 64), 255), io.BytesIO()
    photograph.paste(0, (29, 12, 35, 52))
    photograph.save(content, "PNG")
    example = [{"image": base64.b64encode(content.getvalue()).decode()}]
    return {"signature": signature, "input_example": example}


WORDS = ("text", "verdict", "reason")  # of an answer


def card(params: Mapping[str, str], metrics: Mapping[str, float], tags: Mapping[str, str]) -> str:
    """Return the model card, in Markdown."""
    made = (
        f"Trained with {', '.join(f'{name[6:]} {params[name]}' for name in sorted(params) if name in NAMED)}; "
        f"data `{tags.get('data.sha256', '')[:12]}`, model `{tags.get('model.sha256', '')[:12]}`, "
        f"commit `{tags.get('git.commit', '')[:12]}`."
    )
    lines = [
        "# Handwritten digits, 28 x 28",
        f"A convolutional network of {metrics.get('parameters', 0):,.0f} parameters that reads one handwritten digit.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {words} | {form.format(metrics[name])} |" for name, words, form in CARD if name in metrics),
        "",
        made,
        "",
        "Made for single digits written by hand, dark on light or light on dark. Not for print, letters or cheques.",
    ]
    if "report.page" in tags:
        lines += ["", f"[The report: curves, mistakes, photographs, provenance]({tags['report.page']})"]
    return "\n".join(lines)


CARD = (
    ("test_accuracy", "accuracy on the test digits", "{:.4f}"),
    ("test_accuracy_low", "its 95% interval from", "{:.4f}"),
    ("test_accuracy_high", "to", "{:.4f}"),
    ("test_loss", "loss on the test digits", "{:.4f}"),
    ("calibration_error", "calibration error", "{:.4f}"),
    ("photo_accuracy", "accuracy on the sample photographs", "{:.3f}"),
    ("best_val_accuracy", "accuracy on the validation digits", "{:.4f}"),
    ("best_epoch", "best epoch", "{:.0f}"),
    ("epochs_run", "epochs", "{:.0f}"),
)
NAMED = {f"train.{name}" for name in ("batch_size", "dropout", "patience", "epochs", "learning_rate", "seed")}


@contextlib.contextmanager
def training(store: Store, params: Params, data_sha256: str) -> Iterator[Run]:
    """Open the run of a training; it ends FINISHED, KILLED by a signal, or FAILED with the error in its tags."""
    with ending(start(store, params, digests(params, data_sha256))) as run:
        yield run


@contextlib.contextmanager
def ending(run: Run) -> Iterator[Run]:
    """End a run with the block: FINISHED, KILLED by a signal, or FAILED with the error in its tags."""
    try:
        yield run
    except BaseException as error:
        run.end("KILLED" if isinstance(error, Stopped | KeyboardInterrupt | SystemExit) else "FAILED", error)
        raise
    run.end("FINISHED")


@undisturbed()
def start(
    store: Store,
    params: Params,
    digests: Mapping[str, str],
    *,
    name: str = "",
    parent: str = "",
    origin: Origin | None = None,
) -> Run:
    """Create the run of a training with all that is known before the first step.

    A sweep gives its trials a ``name``, its own run as ``parent``, and one ``origin`` for all.
    """
    origin = origin or find_origin()
    tags = {**_dotted(digests), **origin.tags, **({"mlflow.parentRunId": parent} if parent else {})}
    created = store.client.create_run(store.experiment_id, tags=tags, run_name=name or run_name(params))
    run = Run(store, created.info.run_id)
    run.client.log_batch(run.run_id, params=[Param(name, str(value)) for name, value in _shown(params).items()])
    run.client.log_dict(run.run_id, params.model_dump(), str(files.PARAMS))
    run.client.log_inputs(run.run_id, _datasets(params, digests["data_sha256"]))
    if origin.patch:
        run.log_bytes(origin.patch, PATCH)
    return run


@contextlib.contextmanager
def sweeping(store: Store, params: Params, digests: Mapping[str, str], origin: Origin) -> Iterator[Run]:
    """Open the parent run of the sweep that ``digests`` names as ``sweep_id``; it ends as `training`'s."""
    run = find_sweep(store, digests["sweep_id"])
    if run:
        store.client.update_run(run.run_id, status="RUNNING")
        run.tag({**origin.tags, "error": ""})
    else:
        name = f"sweep of {', '.join(params.sweep.parameters)}"
        created = store.client.create_run(store.experiment_id, tags=_dotted(digests) | origin.tags, run_name=name)
        run = Run(store, created.info.run_id)
        space = {f"sweep.{name}": json.dumps(values) for name, values in params.sweep.parameters.items()}
        run.client.log_batch(run.run_id, params=[Param(name, text[:6000]) for name, text in space.items()])
        run.client.log_dict(run.run_id, params.model_dump(), str(files.PARAMS))
    with ending(run):
        yield run


def find_sweep(store: Store, sweep_id: str) -> Run | None:
    """Return the newest run of a sweep that no process is working on."""
    found = store.runs(f"tags.`sweep.id` = '{sweep_id}' and attributes.status != 'RUNNING'")
    return Run(store, found[0].info.run_id) if found else None


def finished_children(store: Store, parent: Run) -> dict[str, MlflowRun]:
    """Return the finished runs of a sweep by the digest of their parameters."""
    found = store.runs(f"tags.`mlflow.parentRunId` = '{parent.run_id}' and attributes.status = 'FINISHED'")
    return {run.data.tags["params.sha256"]: run for run in found}


@dataclass(frozen=True)
class Origin:
    """Where runs of this process come from: commit, DVC experiment, machine, process; and what is not committed."""

    tags: dict[str, str]
    patch: bytes


def find_origin() -> Origin:
    """Return where a run that starts now comes from."""
    patch, commit = uncommitted(), _git("rev-parse", "HEAD").decode().strip()
    tags = {
        "git.commit": commit,
        "mlflow.source.git.commit": commit,
        "mlflow.source.name": Path(sys.argv[0]).name,
        "mlflow.source.type": "LOCAL",
        "mlflow.user": getpass.getuser(),
        "git.dirty": str(bool(patch)).lower(),
        **_dvc_tags(),
        **_process_tags(),
    }
    return Origin(tags, patch)


def _dotted(digests: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "."): value for name, value in digests.items()}


def digests(params: Params, data_sha256: str) -> dict[str, str]:
    """Return what a model is made of, by sha256: data, parameters, and the code of the stage ``train``."""
    return {
        "code_sha256": code_sha256("train"),
        "data_sha256": data_sha256,
        "params_sha256": files.digest(params.train.model_dump()),
    }


def code_sha256(stage: str) -> str:
    """Return the digest of the modules that dvc.yaml names for a stage."""
    stages = yaml.safe_load((files.ROOT / "dvc.yaml").read_text("utf-8"))["stages"]
    return files.digest_files(files.ROOT / path for path in stages[stage]["deps"] if path.endswith(".py"))


def run_name(params: Params) -> str:
    """Return a name that says what sweeps vary."""
    train = params.train
    return f"batch {train.batch_size} · dropout {train.dropout:g} · patience {train.patience}"


def _shown(params: Params) -> dict[str, Any]:
    values = params.train.model_dump()
    return {
        f"train.{name}": json.dumps(value, sort_keys=True) if isinstance(value, dict) else value
        for name, value in values.items()
    }


def _datasets(params: Params, data_sha256: str) -> list[DatasetInput]:
    sizes = {"training": params.preprocess.train, "validation": params.preprocess.validation}
    source = json.dumps({"uri": str(files.PREPARED)})
    return [
        DatasetInput(
            Dataset(
                name=f"mnist-{use}",
                digest=data_sha256[:16],
                source_type="local",
                source=source,
                profile=json.dumps({"images": size, "shape": [28, 28], "dtype": "uint8"}),
            ),
            [InputTag("mlflow.data.context", use)],
        )
        for use, size in sizes.items()
    ]


def _process_tags() -> dict[str, str]:
    process = psutil.Process()
    return {
        "process.host": socket.gethostname(),
        "process.pid": str(process.pid),
        "process.started": f"{process.create_time():.0f}",
        "system.platform": platform.platform(),
        "system.cores": str(os.cpu_count()),
        "system.memory_gb": f"{psutil.virtual_memory().total / 1e9:.0f}",
        "system.python": platform.python_version(),
        "system.packages": " ".join(pinned(PACKAGES)),
    }


def _dvc_tags() -> dict[str, str]:
    names = {"dvc.exp_name": "DVC_EXP_NAME", "dvc.baseline_rev": "DVC_EXP_BASELINE_REV"}
    return {tag: os.environ[name] for tag, name in names.items() if os.environ.get(name)}


def uncommitted() -> bytes:
    """Return what differs from the last commit, new files too, as a patch without the outputs of the stages."""
    with tempfile.TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": str(Path(folder, "index"))}
        _git("read-tree", "HEAD", env=index)
        _git("add", "--all", "--", ".", *OUTPUTS, env=index)
        return _git("diff-index", "--cached", "--binary", "HEAD", "--", ".", *OUTPUTS, env=index)


OUTPUTS = (":!dvc.lock", ":!reports")
PATCH = "uncommitted.patch"


def _git(*words: str, env: Mapping[str, str] | None = None) -> bytes:
    done = subprocess.run(["git", *words], capture_output=True, check=False, env={**os.environ, **(env or {})})
    return done.stdout if done.returncode == 0 else b""


def log_results(report: str) -> None:
    """Add what a stage found, one of ``RESULTS``, to the run of the model in front of it; restore a lost run first."""
    store = open_store()
    run = find_run(store)
    if run:
        run.log_results(report)
    else:
        restore(store)


def log_page(page: Path) -> None:
    """Keep the report page with the run of the model in front of it, and link it from the run's note."""
    run = run_of_model(open_store())
    run.log_files([page], str(files.REPORTS))
    path = f"{files.REPORTS.as_posix()}/{page.name}"
    run.tag({"report.page": f"#/experiments/{run.store.experiment_id}/runs/{run.run_id}/artifacts/{path}"})
    run.describe()


def run_of_model(store: Store) -> Run:
    """Return the newest run of the model that reports/train.json describes; restore it if there is none."""
    return find_run(store) or restore(store)


def find_run(store: Store) -> Run | None:
    """Return the newest finished run of the model that reports/train.json describes."""
    report = files.read_json(files.REPORTS / "train.json")
    found = store.runs(f"tags.`model.sha256` = '{report['model_sha256']}' and attributes.status = 'FINISHED'")
    return Run(store, found[0].info.run_id) if found else None


def restore(store: Store) -> Run:
    """Make the run of a model that came from a cache or from another machine, from its recorded history."""
    report, made_of = (files.read_json(files.REPORTS / name) for name in ("train.json", "provenance.json"))
    with ending(start(store, config.load(), made_of)) as run:
        run.tag({"restored": "true"})
        for row in files.read_csv(files.REPORTS / "history.csv"):
            run.log_epoch(int(row.pop("epoch")), {name: float(value) for name, value in row.items()})
        run.log_trained(report, files.MODELS)
        run.log_known_results(report["model_sha256"])
    return run

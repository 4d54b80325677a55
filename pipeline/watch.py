"""Watch: tell whether what a service reads has moved since last week, or away from the validation digits.

    python -m pipeline.watch [FILE] [--until DAY] [--against last-week|validation] [--level 0.01]

Reads   FILE, in which a service counts (mlruns/counts.db), models/ and the validation digits
Writes  reports/watch.html: one file that loads nothing, for light and dark, wide and narrow screens
Exits   0 nothing has moved · 1 something has moved · 2 usage · 4 too little to say: never a silent pass

This week is the seven days up to DAY, today by default (UTC).
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
from markupsafe import Markup

from pipeline import charts, console, counts, files, scoring
from pipeline.console import UserError
from pipeline.counts import SCALES, Bin, Observed, Row
from pipeline.learning.classifier import Classifier

FILE, PAGE = Path("mlruns/counts.db"), files.REPORTS / "watch.html"
DIGITS = files.PREPARED / "validation-images.npy"
WEEK = 7  # days
ENOUGH = 50  # pictures on either side: of fewer, little could be noticed (benchmarks/README.md)
DRAWS = 1999  # at most; after so many
EXTREME = 20  # of them that lie as far apart, it is clear that nothing has moved (Besag & Clifford 1991)
THIS, LAST, VALIDATION = "this week", "last week", "validation"
TESTED = {  # against what each quantity is tested; a validation digit is one digit, and never refused
    LAST: ("kind", "verdict", "refused", "digits", "sureness", "ink"),
    VALIDATION: ("verdict", "sureness", "ink"),
}
WORDS = {  # of the page and the table
    "kind": "what is sent",
    "verdict": "verdicts",
    "refused": "reasons of refusals",
    "digits": "digits in a picture",
    "sureness": "sureness of the first digit",
    "ink": "ink of the first digit",
}
DRAWN = ("verdict", "sureness", "ink", "digits", "kind")

Histogram = Mapping[Bin, int]  # pictures by bin
Histograms = Mapping[str, Histogram]  # by quantity


@dataclass(frozen=True)
class Comparison:
    """A quantity this week and in a reference: each in words, and the p-value, corrected for all comparisons (Holm)."""

    quantity: str
    against: str
    now: str
    then: str
    p: float
    has_moved: bool


def main(arguments: Sequence[str]) -> int:
    """Compare, print the table, write the page, and return the exit status."""
    given = _parse(arguments)
    rows, day = counts.read(given.file), given.until
    model, notes = choose_model(rows, day)
    weeks = {name: histograms(_week(rows, model, day - timedelta(days=ago))) for name, ago in ((THIS, 0), (LAST, WEEK))}
    if model and given.against != "last-week":
        try:
            weeks[VALIDATION] = validation(model)
        except UserError as error:
            if given.against:
                raise
            notes.append(f"not compared with the validation digits: {error}")
    if given.against == "validation":
        del weeks[LAST]
    found = compare(weeks, given.level)
    print("\n".join([*_heading(weeks, model, day), *_table(found)]))
    print("\n".join(f"note: {note}" for note in notes), end="\n" if notes else "", file=sys.stderr)
    files.write_text(PAGE, render(weeks, rows, found, notes, model=model, day=day, level=given.level))
    print(f"{sentence(found, given.level)}; see {PAGE}")
    return 4 if not found else int(any(each.has_moved for each in found))


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.watch",
        description=(__doc__ or "").split("\n", maxsplit=1)[0],
        epilog="example: python -m pipeline.watch mlruns/counts.db --until 2026-11-26",
    )
    parser.add_argument("file", nargs="?", type=Path, default=FILE, help=f"in which a service counts ({FILE})")
    parser.add_argument("--until", metavar="DAY", default="", help="the last day of this week (today, UTC)")
    parser.add_argument("--against", choices=("last-week", "validation"), help="only this (both)")
    parser.add_argument("--level", type=float, default=0.01, help="how often a week is to alarm in which nothing moved")
    given = parser.parse_args(arguments)
    try:
        given.until = date.fromisoformat(given.until) if given.until else datetime.now(UTC).date()
    except ValueError:
        raise UserError(f"--until: expected a day such as 2026-11-26, found {given.until!r}") from None
    if not 0.005 <= given.level <= 0.1:
        raise UserError(f"--level: expected 0.005 to 0.1, found {given.level}")
    return given


def choose_model(rows: Iterable[Row], day: date) -> tuple[str, list[str]]:
    """Return the model that read most pictures of the week up to ``day``, with a note where others read some too."""
    read = Counter[str]()
    for row in rows:
        if row.quantity == "kind" and 0 <= (day - row.day).days < WEEK:
            read[row.model] += row.pictures
    if not read:
        return "", []
    model, most = read.most_common(1)[0]
    others = read.total() - most
    return model, [f"{others:,} pictures of this week were read by another model, and are left out"] if others else []


def _week(rows: Iterable[Row], model: str, day: date) -> list[Row]:
    return [row for row in rows if row.model == model and 0 <= (day - row.day).days < WEEK]


def histograms(rows: Iterable[Row]) -> Histograms:
    """Return the pictures by quantity and bin of some days."""
    found: dict[str, Counter[Bin]] = {}
    for row in rows:
        found.setdefault(row.quantity, Counter())[row.bin] += row.pictures
    return found


def validation(model: str) -> Histograms:
    """Return what would have been counted of the validation digits; raise ``UserError`` where that cannot be known."""
    if not DIGITS.exists():
        raise UserError(f"{DIGITS}: expected them here; `dvc repro preprocess` makes them")
    classifier = Classifier.load(files.MODELS)
    if model != counts.model_of(files.MODELS):
        raise UserError(f"{files.MODELS} holds another model than {model}, which was served")
    return histograms_of(np.load(DIGITS), classifier)


def histograms_of(fields: np.ndarray, classifier: Classifier) -> Histograms:
    """Return what a service would count of fields, uint8 [n, 28, 28]."""
    from pipeline.serving import read_fields  # imported here, since importing MLflow takes seconds

    return tally(counts.observed(found) for found in read_fields(fields, classifier))


def tally(pictures: Iterable[Iterable[Observed]]) -> Histograms:
    """Return the pictures by quantity and bin, from what was counted of each."""
    found: dict[str, Counter[Bin]] = {}
    for picture in pictures:
        for quantity, bin_ in picture:
            found.setdefault(quantity, Counter())[bin_] += 1
    return found


def compare(weeks: Mapping[str, Histograms], level: float) -> list[Comparison]:
    """Test this week against each reference, quantity by quantity where both hold ``ENOUGH`` pictures.

    Where nothing has moved, something is said to have with a probability of ``level`` at most, over all comparisons
    together (Holm 1979), if pictures are independent of one another.
    """
    pairs = {}
    for against, quantities in TESTED.items():
        for quantity in quantities if against in weeks else ():
            now, then = (Counter(weeks[name].get(quantity, {})) for name in (THIS, against))
            if against == VALIDATION:
                del now["refused"]
            if min(now.total(), then.total()) >= ENOUGH:
                pairs[quantity, against] = now, then
    rng = np.random.default_rng(0)  # the same counts, the same page
    ps = [p_value(now, then, rng, is_scale=quantity in SCALES) for (quantity, _), (now, then) in pairs.items()]
    return [
        Comparison(quantity, against, *told(quantity, *pair), p, p < level)
        for ((quantity, against), pair), p in zip(pairs.items(), scoring.holm(np.array(ps)).tolist(), strict=True)
    ]


def p_value(now: Histogram, then: Histogram, rng: np.random.Generator, *, is_scale: bool) -> float:
    """Return the p-value of a permutation test that two histograms are of one distribution (Fisher 1935).

    Of all ways in which the pictures of both could have fallen into these two weeks: how many lie as far apart? For a
    scale by the greatest difference of cumulative shares (Kolmogorov-Smirnov), otherwise by chi-squared. Unlike the
    tables of both it is exact for few pictures and for bins.
    """
    bins = sorted({*now, *then})  # all of one type
    here, all_ = (np.array([each[bin_] for bin_ in bins]) for each in (Counter(now), Counter(now) + Counter(then)))
    expected = all_ * (here.sum() / all_.sum())

    def distance(drawn: np.ndarray) -> np.ndarray:
        if is_scale:
            return np.abs(np.cumsum(drawn - expected, axis=-1)).max(axis=-1)
        return ((drawn - expected) ** 2 / expected).sum(axis=-1)

    limit, extreme, draws = float(distance(here)) - 1e-9, 0, 0
    while draws < DRAWS:
        size = min(1000, DRAWS - draws)
        is_as_far = distance(rng.multivariate_hypergeometric(all_, here.sum(), size, method="marginals")) >= limit
        reached = np.flatnonzero(extreme + np.cumsum(is_as_far) >= EXTREME)
        if len(reached):
            return EXTREME / (draws + int(reached[0]) + 1)
        extreme, draws = extreme + int(is_as_far.sum()), draws + size
    return (extreme + 1) / (draws + 1)


def told(quantity: str, now: Histogram, then: Histogram) -> tuple[str, str]:
    """Return two histograms in words: the mean of a scale, otherwise the share of the bin that has changed most."""
    if quantity in SCALES:
        return f"mean {mean(now):.1f}", f"mean {mean(then):.1f}"
    shares = [{bin_: each.get(bin_, 0) / sum(each.values()) for bin_ in {*now, *then}} for each in (now, then)]
    most = max(sorted(shares[0], key=str), key=lambda bin_: abs(shares[0][bin_] - shares[1][bin_]))
    return f"{most}: {shares[0][most]:.1%}", f"{shares[1][most]:.1%}"


def mean(histogram: Histogram) -> float:
    """Return the mean of a scale's bins, by their lower ends."""
    return sum(float(bin_) * pictures for bin_, pictures in histogram.items()) / sum(histogram.values())


def sentence(found: Sequence[Comparison], level: float) -> str:
    """Return the result in a sentence."""
    if not found:
        return f"too little to say: expected {ENOUGH} pictures this week, and as many to compare them with"
    moved = []
    for against in dict.fromkeys(each.against for each in found if each.has_moved):
        names = [WORDS[each.quantity] for each in found if each.has_moved and each.against == against]
        moved.append(f"{', '.join(names)}, against {against}")
    return f"moved: {'; '.join(moved)}" if moved else f"nothing has moved, at a level of {level:g}"


def _heading(weeks: Mapping[str, Histograms], model: str, day: date) -> list[str]:
    numbers = ", ".join(f"{name} {pictures(each):,}" for name, each in weeks.items())
    return [f"{day - timedelta(days=WEEK - 1)} to {day}, model {model or 'none'}; pictures: {numbers}"]


def pictures(week: Histograms) -> int:
    """Return how many pictures were sent in a week, refused ones too."""
    return sum(week.get("verdict", {}).values())


COLUMNS = ("quantity", THIS, "before", "against", "p", "")


def _table(found: Sequence[Comparison]) -> list[str]:
    rows = [COLUMNS, *(_row(each) for each in found)] if found else []
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _row(each: Comparison) -> tuple[str, ...]:
    moved = "moved" if each.has_moved else ""
    return WORDS[each.quantity], each.now, each.then, each.against, f"{each.p:.4f}", moved


def render(
    weeks: Mapping[str, Histograms],
    rows: Iterable[Row],
    found: Sequence[Comparison],
    notes: Sequence[str],
    *,
    model: str,
    day: date,
    level: float,
) -> str:
    """Return the page."""
    return charts.page(
        "watch.html",
        model=model,
        first=day - timedelta(days=WEEK - 1),
        last=day,
        level=level,
        status="" if not found else "fail" if any(each.has_moved for each in found) else "pass",
        sentence=sentence(found, level),
        notes=notes,
        facts=[(name, f"{pictures(each):,}") for name, each in weeks.items()],
        columns=COLUMNS,
        comparisons=[_row(each) for each in found],
        charts=_charts(weeks),
        days=list(_days(rows, model, day)),
        refusals=sorted(weeks[THIS].get("refused", {}).items(), key=lambda each: -each[1]),
    )


def _charts(weeks: Mapping[str, Histograms]) -> list[tuple[str, Markup]]:
    drawn = []
    for quantity in DRAWN:
        series = {name: each[quantity] for name, each in weeks.items() if each.get(quantity)}
        bins = sorted({bin_ for each in series.values() for bin_ in each})
        if THIS not in series or len(bins) < 2:
            continue
        named = {bin_: f"{bin_:g}" if quantity == "digits" else bin_ for bin_ in bins}  # a number of digits is no width
        shares = {
            name: {named[bin_]: each.get(bin_, 0) / sum(each.values()) for bin_ in bins}
            for name, each in series.items()
        }
        words = WORDS[quantity].capitalize()
        drawn.append((words, charts.histogram(words, SCALES.get(quantity, words), shares)))
    return drawn


def _days(rows: Iterable[Row], model: str, day: date) -> Iterable[tuple[object, ...]]:
    rows = [row for row in rows if row.model == model]
    for ago in range(2 * WEEK):
        here = day - timedelta(days=ago)
        found = histograms(row for row in rows if row.day == here)
        verdicts = [found.get("verdict", {}).get(name, 0) for name in VERDICTS]
        means = [f"{mean(found[name]):.1f}" if found.get(name) else "" for name in ("sureness", "ink")]
        yield here, sum(verdicts), *verdicts, *means, _median(found.get("milliseconds", {}))


VERDICTS = ("digit", "unsure", "no digit", "refused")


def _median(histogram: Histogram) -> str:
    """Return the bin of the median of the milliseconds, whose bins double."""
    half, total = sum(histogram.values()) / 2, 0
    for bin_ in sorted(histogram, key=float):
        total += histogram[bin_]
        if total >= half:
            return f"{bin_} to {2 * float(bin_):g}"
    return ""


if __name__ == "__main__":
    console.run(main)

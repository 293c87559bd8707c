"""Plots of an evaluation's report: amounts, confusion matrices and calibration."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from components.evaluate.report.rows import AnsweredRows, shown
from fovea.evaluation.calibration import Calibration, Coverage, coverage_table
from fovea.evaluation.metrics import UNREADABLE, confusions, label
from fovea.evaluation.outcomes import Outcomes
from fovea.pages.charts import Histogram, amount, histogram
from fovea.pages.plots import Axis, Plot, percent, plot
from fovea.task.metrics import Array

_MOST_DOTS = 3000
_FARTHEST = 150.0
"""Larger errors, in per cent, are shown as this one."""
_ERROR_EDGES = np.arange(-100.0, _FARTHEST + 20, 10)
_WITHIN = 0.1 + 1e-9
_MOST_CONFUSIONS = 12
_BINS = 10
_BIN_ROWS = 10
WANTED = (0.8, 0.9, 0.95, 0.99)
"""Accuracies that thresholds are shown for."""


@dataclass(frozen=True)
class Amounts:
    """Answered and true amounts of a field."""

    name: str
    scatter: Plot | None
    errors: Histogram | None
    shares: Plot
    """For each model, the cumulative distribution of relative errors."""
    compared: int
    """Answers with a price in the right currency."""
    missing: int


def amounts(field: str, models: Mapping[str, AnsweredRows], baselines: Mapping[str, Outcomes]) -> Amounts:
    """Return the plots of a field's amounts.

    Args:
        field: The field.
        models: The answers by model; scatter plot and histogram are the ``challenger``'s.
        baselines: The outcomes of trivial answers by name.
    """
    answered = models["challenger"]
    known = []
    for each in answered.rows:
        answer = answered.task.comparable(each.row.truth, each.answer.fields)[field]
        if answer is not None:
            known.append((float(each.row.truth[field]), float(answer)))
    outcomes = {name: rows.outcomes for name, rows in models.items()} | dict(baselines)
    return Amounts(
        label(field),
        _scatter(known),
        _errors(known),
        _shares({name: each.fields[field]["ape"] for name, each in outcomes.items()}),
        len(known),
        len(answered.rows) - len(known),
    )


def _scatter(known: Sequence[tuple[float, float]]) -> Plot | None:
    if not known:
        return None
    every = [price for pair in known for price in pair]
    low, high = min(every), max(every)
    axis = Axis.powers(low * 0.9, high * 1.1)
    # Spread evenly over the rows, which are not ordered by price.
    some = known[:: -(-len(known) // _MOST_DOTS)]
    near = [pair for pair in some if _is_near(*pair)]
    far = [pair for pair in some if not _is_near(*pair)]
    ends = (axis.low, axis.high)
    return plot(
        axis,
        axis,
        f"Prices that were answered against the true ones, {len(known):,} rows from {amount(low)} to "
        f"{amount(high)}: {sum(_is_near(*pair) for pair in known):,} lie within 10 % of the truth.",
        lines={"the true price": [(end, end) for end in ends]},
        dots={"further off": far, "within 10 %": near},
    )


def _is_near(truth: float, answer: float) -> bool:
    return abs(answer - truth) <= _WITHIN * truth


def _errors(known: Sequence[tuple[float, float]]) -> Histogram | None:
    signed = [min(100 * (answer - truth) / truth, _FARTHEST) for truth, answer in known]
    # What is off by just 10 % belongs to the columns within.
    near = [min(error, 9.99) for error, pair in zip(signed, known, strict=True) if _is_near(*pair)]
    far = [error for error, pair in zip(signed, known, strict=True) if not _is_near(*pair)]
    return histogram({"within 10 %": np.array(near), "further off": np.array(far)}, _ERROR_EDGES)


def _shares(errors: Mapping[str, Array]) -> Plot:
    """Return the cumulative distributions of relative errors, from 0 to 100 %."""
    places = np.linspace(0, 1, 101)
    lines = {}
    for name, each in errors.items():
        ordered = np.sort(each)
        shares = np.searchsorted(ordered, places + 1e-9, side="right") / len(ordered)
        lines[name] = list(zip(places.tolist(), shares.tolist(), strict=True))
    said = "; ".join(
        f"{name} {percent(line[10][1])} within 10 %, {percent(line[50][1])} within 50 %"
        for name, line in lines.items()
    )
    whole = Axis.linear(0, 1, percent)
    return plot(whole, whole, f"Share of rows whose price is off by so much at most: {said}.", lines)


@dataclass(frozen=True)
class MatrixCell:
    """A cell of a confusion matrix; ``shade`` is its share of the row, 0 to 100."""

    count: int
    shade: float
    right: bool


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix: rows are the truth, columns the answers."""

    field: str
    names: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[tuple[MatrixCell, ...], ...]
    totals: tuple[int, ...]
    most: tuple[tuple[str, str, int, int], ...]
    """The most frequent mistakes: truth, answer, how often, and of how many rows."""


def matrix(field: str, outcomes: Outcomes) -> Matrix:
    """Return the confusion matrix of the most frequent categories; all others are one."""
    counted, columns_of = confusions(outcomes)[field], outcomes.fields[field]
    rows = [(name, row) for name, row in zip(counted.categories, counted.rows, strict=True) if any(row)]
    columns = [place for place in range(len(counted.categories)) if any(row[place] for row in counted.rows)]
    truths, answers = columns_of["truth"].tolist(), columns_of["answer"].tolist()
    every = Counter(truths)
    wrong = Counter(pair for pair in zip(truths, answers, strict=True) if pair[0] != pair[1])
    most = sorted(wrong.items(), key=lambda each: (-each[1], each[0]))[:_MOST_CONFUSIONS]
    return Matrix(
        label(field),
        tuple(shown(name, 40) for name, _ in rows),
        tuple(shown(counted.categories[place], 40) for place in columns),
        tuple(
            tuple(
                MatrixCell(row[place], 100 * row[place] / sum(row), counted.categories[place] == name)
                for place in columns
            )
            for name, row in rows
        ),
        tuple(sum(row) for _, row in rows),
        tuple(
            (shown(truth, 60), shown(answer, 60) or UNREADABLE, count, every[truth])
            for (truth, answer), count in most
        ),
    )


@dataclass(frozen=True)
class Threshold:
    """The confidence at which answers have a wanted accuracy, and how many reach it."""

    wanted: float
    confidence: float | None
    """None where no confidence suffices."""
    coverage: float
    accuracy: float | None
    """None where no answer reaches it."""
    rows: int


@dataclass(frozen=True)
class FieldConfidence:
    """The calibration of a field on the rows of the evaluation."""

    name: str
    reason: str
    """Why there is no confidence; empty where there is one."""
    fitted_on: int
    accuracy: float
    """Over all rows."""
    off_by: float | None
    """The mean distance of confidence and accuracy, weighted by rows."""
    reliability: Plot | None
    coverage: Plot | None
    thresholds: tuple[Threshold, ...]


def calibration(fitted: Calibration | None, answered: AnsweredRows) -> tuple[FieldConfidence, ...]:
    """Return each field's calibration on rows that it was not fitted on."""
    if fitted is None:
        return ()
    return tuple(_field(fitted, name, answered) for name in answered.task.fields if name in fitted.fields)


def _field(fitted: Calibration, name: str, answered: AnsweredRows) -> FieldConfidence:
    right = [answered.is_right(row, name) for row in answered.rows]
    confidences = [answered.confidence(row, name) for row in answered.rows]
    known = sorted(
        (confidence, is_so)
        for confidence, is_so in zip(confidences, right, strict=True)
        if confidence is not None
    )
    reason = fitted.fields[name].reason or ("" if known else "no answer has a confidence")
    bins = list(_bins(known)) if not reason else []
    return FieldConfidence(
        name=shown(name.replace("_", " "), 40),
        reason=shown(reason, 160),
        fitted_on=fitted.fields[name].rows,
        accuracy=sum(right) / len(right),
        off_by=sum(each.rows * abs(each.confidence - each.accuracy) for each in bins) / len(known)
        if bins
        else None,
        reliability=_reliability(bins) if bins else None,
        coverage=_coverage(coverage_table(confidences, right, 100)) if bins else None,
        thresholds=tuple(_thresholds(fitted, name, known, len(right))) if bins else (),
    )


@dataclass(frozen=True)
class _Bin:
    rows: int
    confidence: float
    accuracy: float
    low: float
    high: float


def _bins(known: Sequence[tuple[float, bool]]) -> Iterator[_Bin]:
    """Yield groups of equal size, by rising confidence."""
    count = max(1, min(_BINS, len(known) // _BIN_ROWS))
    for number in range(count):
        group = known[number * len(known) // count : (number + 1) * len(known) // count]
        if group:
            rows, right = len(group), sum(is_so for _, is_so in group)
            mean = sum(confidence for confidence, _ in group) / rows
            yield _Bin(rows, mean, right / rows, *_wilson(right, rows))


def _wilson(right: int, rows: int, z: float = 1.96) -> tuple[float, float]:
    """Return Wilson's interval of a share at 95 %."""
    share, scale = right / rows, 1 + z * z / rows
    centre = (share + z * z / (2 * rows)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    return max(0.0, centre - half), min(1.0, centre + half)


def _reliability(bins: Sequence[_Bin]) -> Plot:
    said = "; ".join(f"{percent(each.confidence)} sure, {percent(each.accuracy)} right" for each in bins)
    whole = Axis.linear(0, 1, percent)
    return plot(
        whole,
        whole,
        f"How often answers are right, by how sure they are, in groups of as many rows: {said}.",
        lines={"as sure as right": [(0, 0), (1, 1)]},
        dots={"answers": [(each.confidence, each.accuracy) for each in bins]},
        whiskers={"interval": [((each.confidence, each.low), (each.confidence, each.high)) for each in bins]},
    )


def _coverage(table: Sequence[Coverage]) -> Plot:
    # From the most confident rows to all; the first few say little.
    points = [(each.coverage, each.accuracy) for each in reversed(table) if each.rows >= _BIN_ROWS]
    low = min((accuracy for _, accuracy in points), default=0.0)
    some = points[:: max(1, len(points) // 4)]
    said = "; ".join(f"{percent(share)} of rows, {percent(right)} right" for share, right in some)
    return plot(
        Axis.linear(0, 1, percent),
        Axis.linear(min(0.99, math.floor(10 * low) / 10), 1.0, percent),
        f"How often answers are right, where only the surest are taken: {said}.",
        lines={"answers": points},
    )


def _thresholds(
    fitted: Calibration, name: str, known: Sequence[tuple[float, bool]], rows: int
) -> Iterator[Threshold]:
    for wanted in WANTED:
        found = fitted.threshold_for(name, wanted)
        if found is None:
            yield Threshold(wanted, None, 0.0, None, 0)
            continue
        kept = [is_so for confidence, is_so in known if confidence >= found.threshold]
        yield Threshold(
            wanted, found.threshold, len(kept) / rows, sum(kept) / len(kept) if kept else None, len(kept)
        )

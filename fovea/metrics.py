"""How good answers are, and how sure that is. Pure functions on arrays, which evaluate and gate share.

Figures are over rows, and rows of one product, or of products whose pictures look alike, are no independent
samples: what is drawn anew for an interval are whole product groups, each with all its rows (a cluster
bootstrap, percentiles of the redrawn figure). A redrawn sample is not built: how often each group is drawn
becomes a weight of its rows, and every figure is computed from the weights of all resamples at once.
"""

import itertools
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
from numpy.typing import NDArray

from fovea.errors import UserError
from fovea.records import Confusion, Interval, Metrics
from fovea.task import FieldValue, Task

Fields = Mapping[str, FieldValue]
"""The fields of an answer by name."""
Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Text = NDArray[np.str_]

WITHOUT_PRICE = 1.0
"""The relative error of an answer without a price: as if it had said nothing at all, 100 %."""
NO_CATEGORY = ""
"""The category of an answer that could not be read; no category has this name."""
OTHER = "(other)"
"""All categories that are too rare to stand for themselves."""
UNREADABLE = "(unreadable)"
"""What answers without a category are shown as."""
BASELINES = "baselines.parquet"

RESAMPLES = 1000
LEVEL = 0.95
_MOST_CATEGORIES = 30
_PRICE_BANDS = 4
# 0.1 has no exact binary form: a price that is off by just 10 % counts as within.
_WITHIN = 0.1 + 1e-9
# Weights in memory at once, 8 bytes each.
_WEIGHTS_AT_ONCE = 2_000_000
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Roles:
    """Which field of a task is the title, which the category, which the price, and which its currency."""

    title: str
    category: str
    price: str
    currency: str | None

    @classmethod
    def of(cls, task: Task) -> Self:
        """Tell the fields by their types.

        Raises:
            UserError: the task has not one field of each type, but for the currency, which may be missing.
        """
        by_type: dict[str, list[str]] = {"text": [], "category": [], "price": [], "currency": []}
        for name, field in task.fields.items():
            by_type[field.type].append(name)
        currencies = by_type.pop("currency")
        if any(len(names) != 1 for names in by_type.values()) or len(currencies) > 1:
            raise UserError(
                f"task {task.name!r} cannot be evaluated: its figures need one text, one category and one "
                f"price field, it has {by_type}, and one currency at most"
            )
        return cls(
            title=by_type["text"][0],
            category=by_type["category"][0],
            price=by_type["price"][0],
            currency=currencies[0] if currencies else None,
        )


@dataclass(frozen=True)
class Outcomes:
    """What came of each row: all that figures follow from. Arrays of one length, an entry a row."""

    row_ids: Text
    groups: Text
    """Rows of one product group are drawn together."""
    parsed: Mask
    title_exact: Mask
    title_f1: Array
    category_truth: Text
    category_answer: Text
    """`NO_CATEGORY` where the answer could not be read."""
    price_truth: Array
    price_ape: Array
    """|answer - truth| / truth; `WITHOUT_PRICE` where there is none, or one in another currency."""
    price_absolute_error: Array
    """|answer - truth|; the truth itself where there is none, or one in another currency."""

    def __len__(self) -> int:
        return len(self.row_ids)

    @classmethod
    def of(
        cls,
        task: Task,
        truths: Sequence[Fields],
        answers: Sequence[Fields | None],
        groups: Sequence[str],
        row_ids: Sequence[str] | None = None,
    ) -> Self:
        """Hold answers against truths; an answer that could not be read is None.

        Args:
            task: says which field is what.
            truths: what is true of each row.
            answers: what was said of it.
            groups: the product group of each row.
            row_ids: by default the rows are numbered.

        Raises:
            ValueError: the sequences differ in length.
        """
        roles = Roles.of(task)
        names = [str(number) for number in range(len(truths))] if row_ids is None else row_ids
        rows = [
            _row(roles, truth, answer, group, name)
            for truth, answer, group, name in zip(truths, answers, groups, names, strict=True)
        ]
        columns: list[Sequence[Any]] = list(zip(*rows, strict=True)) if rows else [()] * len(fields(cls))
        return cls(*(np.asarray(column, kind) for column, kind in zip(columns, _KINDS.values(), strict=True)))

    def take(self, index: Any) -> Self:
        """Return the rows at the places of ``index``, or where a mask holds."""
        return type(self)(*(getattr(self, name)[index] for name in _KINDS))

    def aligned_with(self, other: "Outcomes") -> Self:
        """Return these rows in the order of ``other``.

        Raises:
            ValueError: they are not the same rows, or not of the same product groups.
        """
        mine, its = np.argsort(self.row_ids), np.argsort(other.row_ids)
        if not np.array_equal(self.row_ids[mine], other.row_ids[its]):
            raise ValueError("the outcomes are of different rows")
        order = np.empty_like(mine)
        order[its] = mine
        aligned = self.take(order)
        if not np.array_equal(aligned.groups, other.groups):
            raise ValueError("the outcomes are of different product groups")
        return aligned

    def to_table(self) -> pa.Table:
        """Return the outcomes as a table with a column for each attribute; `from_table` reads it."""
        return pa.table({name: pa.array(getattr(self, name).tolist()) for name in _KINDS})

    @classmethod
    def from_table(cls, table: pa.Table) -> Self:
        """Read what `to_table` made; further columns are passed over."""
        return cls(*(np.asarray(table[name].to_pylist(), kind) for name, kind in _KINDS.items()))


_KINDS = {
    "row_ids": np.str_,
    "groups": np.str_,
    "parsed": np.bool_,
    "title_exact": np.bool_,
    "title_f1": np.float64,
    "category_truth": np.str_,
    "category_answer": np.str_,
    "price_truth": np.float64,
    "price_ape": np.float64,
    "price_absolute_error": np.float64,
}


def _row(roles: Roles, truth: Fields, answer: Fields | None, product: str, name: str) -> tuple[Any, ...]:
    category, price = str(truth[roles.category]), float(truth[roles.price])
    if answer is None:
        return name, product, False, False, 0.0, category, NO_CATEGORY, price, WITHOUT_PRICE, price
    # A price in another currency is another price, whatever its number.
    other = roles.currency is not None and answer[roles.currency] != truth[roles.currency]
    error = abs(float(answer[roles.price]) - price)
    title, said = str(truth[roles.title]), str(answer[roles.title])
    return (
        name,
        product,
        True,
        said == title,
        token_f1(title, said),
        category,
        str(answer[roles.category]),
        price,
        WITHOUT_PRICE if other else error / price,
        price if other else error,
    )


def token_f1(truth: str, answer: str) -> float:
    """Return the F1 of the answer's words, in small letters and counted as often as they stand."""
    expected, said = (Counter(_WORD.findall(text.casefold())) for text in (truth, answer))
    if not expected and not said:
        return float(truth == answer)
    return 2 * (expected & said).total() / (expected.total() + said.total())


Metric = Callable[[Outcomes, Array], Array]
"""From outcomes and whole weights (resamples, rows), none of them all zero, to figures (resamples,)."""


def _mean(name: str) -> Metric:
    def mean(outcomes: Outcomes, weights: Array) -> Array:
        values = np.asarray(getattr(outcomes, name), np.float64)
        figures: Array = weights @ values / weights.sum(1)
        return figures

    return mean


def _category_accuracy(outcomes: Outcomes, weights: Array) -> Array:
    right = (outcomes.category_truth == outcomes.category_answer).astype(np.float64)
    figures: Array = weights @ right / weights.sum(1)
    return figures


def _category_macro_f1(outcomes: Outcomes, weights: Array) -> Array:
    """The mean F1 of the categories that occur in the truths or in the answers of the (re)sample.

    A row without an answer is missed by its category; "no category" is not one to be averaged over.
    """
    labels, codes = np.unique(
        np.concatenate([outcomes.category_truth, outcomes.category_answer]), return_inverse=True
    )
    truth, answer = codes[: len(outcomes)], codes[len(outcomes) :]
    wanted = labels != NO_CATEGORY

    def totals(code: NDArray[np.intp], kept: Array) -> Array:
        shape = (len(weights), len(labels))
        places = code + shape[1] * np.arange(shape[0])[:, None]
        counted = np.bincount(places.ravel(), kept.ravel(), shape[0] * shape[1])
        return np.asarray(counted, np.float64).reshape(shape)[:, wanted]

    occurrences = totals(truth, weights) + totals(answer, weights)
    hits = totals(truth, weights * (truth == answer))
    f1 = np.divide(2 * hits, occurrences, out=np.zeros_like(hits), where=occurrences > 0)
    figures: Array = f1.sum(1) / (occurrences > 0).sum(1)
    return figures


def _price_median_ape(outcomes: Outcomes, weights: Array) -> Array:
    order = np.argsort(outcomes.price_ape)
    errors, upto = outcomes.price_ape[order], np.cumsum(weights[:, order], axis=1)
    count = upto[:, -1:]
    low, high = (errors[(upto <= place).sum(1)] for place in ((count - 1) // 2, count // 2))
    # Not their sum's half: two of the same must give that same.
    middle: Array = low + (high - low) / 2
    return middle


def _price_within_10_percent(outcomes: Outcomes, weights: Array) -> Array:
    figures: Array = weights @ (outcomes.price_ape <= _WITHIN).astype(np.float64) / weights.sum(1)
    return figures


METRICS: Mapping[str, Metric] = {
    "parse_rate": _mean("parsed"),
    "title_exact": _mean("title_exact"),
    "title_f1": _mean("title_f1"),
    "category_accuracy": _category_accuracy,
    "category_macro_f1": _category_macro_f1,
    "price_median_ape": _price_median_ape,
    "price_mean_ape": _mean("price_ape"),
    "price_within_10_percent": _price_within_10_percent,
    "price_mean_absolute_error": _mean("price_absolute_error"),
}
"""The figures by name; those of `Metrics`. All but `IN_CURRENCY` are fractions."""

LOWER_IS_BETTER = frozenset({"price_median_ape", "price_mean_ape", "price_mean_absolute_error"})
IN_CURRENCY = frozenset({"price_mean_absolute_error"})
"""Figures that are amounts of money."""
COUNTS = ("samples", "groups")
"""What else stands in `Metrics`: how many rows, and product groups, the figures rest on."""


def figure(outcomes: Outcomes, name: str) -> float:
    """Return a figure over all rows.

    Raises:
        ValueError: there are no rows.
    """
    return float(METRICS[name](outcomes, _once(outcomes))[0])


def measure(outcomes: Outcomes, resamples: int = RESAMPLES) -> Metrics:
    """Return all figures, with their intervals; 0 ``resamples`` for none.

    Raises:
        ValueError: there are no rows.
    """
    once = _once(outcomes)
    return Metrics(
        samples=len(outcomes),
        groups=len(np.unique(outcomes.groups)),
        **{name: float(metric(outcomes, once)[0]) for name, metric in METRICS.items()},
        intervals=bootstrap(outcomes, METRICS, resamples) if resamples else {},
    )


def bootstrap(
    outcomes: Outcomes,
    names: Iterable[str] = METRICS,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> dict[str, Interval]:
    """Return the intervals that figures lie in at ``level``, from product groups drawn anew.

    They are of what the rows hold: where every row is right, no resample is wrong, and the interval has no
    width.

    Raises:
        ValueError: there are no rows.
    """
    _once(outcomes)
    wanted = list(names)
    drawn: dict[str, list[Array]] = {name: [] for name in wanted}
    for weights in _draws(outcomes.groups, resamples, seed):
        for name in wanted:
            drawn[name].append(METRICS[name](outcomes, weights))
    return {name: Interval(**_ends(np.concatenate(parts), level)) for name, parts in drawn.items()}


@dataclass(frozen=True)
class PairedDifference:
    """A figure of the first less that of the second, and the interval that the difference lies in."""

    difference: float
    low: float
    high: float


def paired_bootstrap(
    first: Outcomes,
    second: Outcomes,
    name: str,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> PairedDifference:
    """Compare two models on the same rows: each resample draws the same product groups for both.

    Raises:
        ValueError: there are no rows, or the two are not of the same rows.
    """
    second = second.aligned_with(first)
    metric = METRICS[name]
    differences = np.concatenate(
        [
            metric(first, weights) - metric(second, weights)
            for weights in _draws(first.groups, resamples, seed)
        ]
    )
    return PairedDifference(figure(first, name) - figure(second, name), **_ends(differences, level))


def slices(outcomes: Outcomes) -> dict[str, dict[str, Mask]]:
    """Return where the slices lie, by what the truth says: the same for every model on the same rows.

    ``category``: the 30 most frequent, and `OTHER` for the rest. ``price_band``: four, cut at the quartiles
    of the true prices, each without its upper end but for the last; fewer where prices are few.
    """
    frequent = _frequent(outcomes.category_truth)
    categories = {name: outcomes.category_truth == name for name in frequent}
    rest = ~np.isin(outcomes.category_truth, frequent)
    if rest.any():
        categories[OTHER] = rest
    return {"category": categories, "price_band": dict(_price_bands(outcomes.price_truth))}


def _price_bands(prices: Array) -> Iterator[tuple[str, Mask]]:
    # Prices that occur, so that the names of the bands are exact.
    edges = np.unique(np.quantile(prices, np.linspace(0, 1, _PRICE_BANDS + 1), method="nearest"))
    for low, high in itertools.pairwise(edges) if len(edges) > 1 else [(edges[0], edges[0])]:
        last = high == edges[-1]
        inside = (prices >= low) & ((prices <= high) if last else (prices < high))
        yield f"{low:.2f} to {high:.2f}", inside


def with_intervals(metrics: Metrics) -> dict[str, float]:
    """Return counts and figures by name, and the ends of a figure's interval as ``…_low`` and ``…_high``."""
    ends = {
        f"{name}_{end}": value
        for name, interval in metrics.intervals.items()
        for end, value in interval.model_dump().items()
    }
    return metrics.figures | ends


def confusion(outcomes: Outcomes) -> Confusion:
    """Return how often each category was answered with which: the 30 most frequent, and the rest as one.

    `OTHER` also stands for answers that name no category of the split; `UNREADABLE` for answers without one.
    """
    frequent = _frequent(outcomes.category_truth)
    places = {name: place for place, name in enumerate([*frequent, OTHER])}
    places[NO_CATEGORY] = len(places)
    rows = np.zeros((len(places), len(places)), int)
    pairs = zip(outcomes.category_truth.tolist(), outcomes.category_answer.tolist(), strict=True)
    for truth, answer in pairs:
        rows[places.get(truth, len(frequent)), places.get(answer, len(frequent))] += 1
    shown = [place for place in range(len(places)) if rows[place].any() or rows[:, place].any()]
    names = (*frequent, OTHER, UNREADABLE)
    return Confusion(
        categories=tuple(names[place] for place in shown),
        rows=tuple(tuple(rows[place, shown].tolist()) for place in shown),
    )


def _frequent(categories: Text) -> list[str]:
    """Return the most frequent categories, of equally frequent ones the first by name."""
    counts = Counter(categories.tolist())
    return sorted(counts, key=lambda name: (-counts[name], name))[:_MOST_CATEGORIES]


def write_baselines(baselines: Mapping[str, Outcomes], folder: Path) -> None:
    """Write ``baselines.parquet``: the columns of `Outcomes.to_table`, and ``baseline``, its name."""
    tables = [
        outcomes.to_table().append_column("baseline", [[name] * len(outcomes)])
        for name, outcomes in baselines.items()
    ]
    parquet.write_table(pa.concat_tables(tables), folder / BASELINES, compression="zstd")


def read_baselines(path: Path) -> dict[str, Outcomes]:
    """Read what `write_baselines` wrote, by the baselines' names.

    Raises:
        UserError: it cannot be read, or holds other columns.
    """
    try:
        table = parquet.read_table(path)
        names = np.asarray(table["baseline"].to_pylist(), np.str_)
        every = Outcomes.from_table(table)
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: no baselines can be read ({type(error).__name__}: {error}); evaluate the base again"
        ) from error
    return {name: every.take(names == name) for name in dict.fromkeys(names.tolist())}


def read_outcomes(paths: Collection[Path], task: Task, *, shuffled: bool = False) -> Outcomes:
    """Read an evaluation's ``predictions-*.parquet``.

    Args:
        paths: the files.
        task: its fields are the columns.
        shuffled: hold each truth against what was said of the picture that was shown instead.

    Raises:
        UserError: they cannot be read, or hold other columns.
    """
    try:
        rows = [row for path in sorted(paths) for row in parquet.read_table(path).to_pylist()]
        answers = [
            None
            if row["parse_error"] is not None
            else {name: row[f"predicted_{name}"] for name in task.fields}
            for row in rows
        ]
        if shuffled:
            said = dict(zip((row["row_id"] for row in rows), answers, strict=True))
            answers = [said[row["shuffled_row_id"]] for row in rows]
        return Outcomes.of(
            task,
            [{name: row[f"true_{name}"] for name in task.fields} for row in rows],
            answers,
            [row["product_group"] for row in rows],
            [row["row_id"] for row in rows],
        )
    except (pa.ArrowException, OSError, KeyError, TypeError) as error:
        raise UserError(
            f"{', '.join(map(str, paths)) or 'no file'}: no predictions can be read "
            f"({type(error).__name__}: {error}); evaluate the model again"
        ) from error


def _once(outcomes: Outcomes) -> Array:
    """Return the weights of the rows as they are: each once."""
    if not len(outcomes):
        raise ValueError("there is nothing to measure: no rows")
    return np.ones((1, len(outcomes)))


def _draws(groups: Text, resamples: int, seed: int) -> Iterator[Array]:
    """Yield weights (some resamples, rows): how often each row's group was drawn.

    As many groups are drawn as there are. The draws do not depend on how many resamples fit into memory.
    """
    _, numbers = np.unique(groups, return_inverse=True)
    count = int(numbers.max()) + 1
    generator = np.random.default_rng(seed)
    at_once = max(1, _WEIGHTS_AT_ONCE // len(groups))
    for start in range(0, resamples, at_once):
        some = min(at_once, resamples - start)
        drawn = generator.integers(0, count, (some, count)) + count * np.arange(some)[:, None]
        times = np.bincount(drawn.ravel(), minlength=some * count).reshape(some, count)
        yield times[:, numbers].astype(np.float64)


def _ends(values: Array, level: float) -> dict[str, float]:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return {"low": float(low), "high": float(high)}

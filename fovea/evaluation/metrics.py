"""Figures of outcomes by name, their slices and the confusion. Pure functions on arrays."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fovea.evaluation.outcomes import NO_CATEGORY, Array, Mask, Outcomes, Text, each_row_once
from fovea.records import Confusion, Metrics

OTHER = "(other)"
"""All categories that are too rare to stand for themselves."""
UNREADABLE = "(unreadable)"
"""What answers without a category are shown as."""

_MOST_CATEGORIES = 30
_PRICE_BANDS = 4
# 0.1 has no exact binary form: a price that is off by just 10 % counts as within.
_WITHIN = 0.1 + 1e-9

MetricFunction = Callable[[Outcomes, Array], Array]
"""From outcomes and whole weights (resamples, rows), none of them all zero, to figures (resamples,)."""


@dataclass(frozen=True)
class Metric:
    """A figure of outcomes, and how it is read.

    Attributes:
        name: Its field in `Metrics`.
        title: What reports call it.
        function: Computes it.
        unit: ``fraction``, or ``currency`` for an amount of money.
        lower_is_better: Whether a smaller figure is the better one.
    """

    name: str
    title: str
    function: MetricFunction
    unit: Literal["fraction", "currency"] = "fraction"
    lower_is_better: bool = False


def _mean(name: str) -> MetricFunction:
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
    metric.name: metric
    for metric in (
        Metric("category_accuracy", "Category right", _category_accuracy),
        Metric("category_macro_f1", "Category, mean F1", _category_macro_f1),
        Metric("title_exact", "Title right, letter by letter", _mean("title_exact")),
        Metric("title_f1", "Title, F1 of its words", _mean("title_f1")),
        Metric("price_median_ape", "Price, median error", _price_median_ape, lower_is_better=True),
        Metric("price_mean_ape", "Price, mean error", _mean("price_ape"), lower_is_better=True),
        Metric("price_within_10_percent", "Price within 10 %", _price_within_10_percent),
        Metric(
            "price_mean_absolute_error",
            "Price, mean error in money",
            _mean("price_absolute_error"),
            unit="currency",
            lower_is_better=True,
        ),
        Metric("parse_rate", "Answers that can be read", _mean("parsed")),
    )
}
"""The figures of `Metrics` by name, in the order of the report."""

COUNTS = ("samples", "groups")
"""What else stands in `Metrics`: how many rows, and product groups, the figures rest on."""


def figure(outcomes: Outcomes, name: str) -> float:
    """Return a figure over all rows.

    Raises:
        ValueError: there are no rows.
    """
    return float(METRICS[name].function(outcomes, each_row_once(outcomes))[0])


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

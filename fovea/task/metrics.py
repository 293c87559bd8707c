"""Metrics of one field: functions of what came of each row, weighted. Pure functions on arrays."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Columns = Mapping[str, NDArray[Any]]
"""What came of each row for one field: arrays of one length, named as in the field's ``outcome``."""
MetricFunction = Callable[[Columns, Array], Array]
"""From columns and weights (resamples, rows), none of them all zero, to figures (resamples,)."""
Unit = Literal["fraction", "currency", "count"]

NO_ANSWER = ""
"""The answer of a row whose answer could not be read; no value is empty."""


@dataclass(frozen=True)
class Metric:
    """A figure of one field, and how it is read.

    Attributes:
        name: Its name within the field; of a task's metrics it is ``<field>.<name>``.
        title: What reports call it, after the field's name.
        function: Computes it.
        unit: ``fraction``, or ``currency`` for an amount of money.
        lower_is_better: Whether a smaller figure is better.
    """

    name: str
    title: str
    function: MetricFunction
    unit: Unit = "fraction"
    lower_is_better: bool = False


def mean(column: str) -> MetricFunction:
    """Return the function for the weighted mean of a column."""

    def weighted_mean(columns: Columns, weights: Array) -> Array:
        figures: Array = weights @ np.asarray(columns[column], np.float64) / weights.sum(1)
        return figures

    return weighted_mean


def median(column: str) -> MetricFunction:
    """Return the function for the weighted median of a column."""

    def weighted_median(columns: Columns, weights: Array) -> Array:
        order = np.argsort(columns[column])
        values, upto = columns[column][order], np.cumsum(weights[:, order], axis=1)
        count = upto[:, -1:]
        low, high = (values[(upto <= place).sum(1)] for place in ((count - 1) // 2, count // 2))
        # Not their sum's half: two of the same must give that same.
        middle: Array = low + (high - low) / 2
        return middle

    return weighted_median


def share_at_most(column: str, limit: float) -> MetricFunction:
    """Return the function for the weighted share of rows whose column is at most ``limit``."""

    def weighted_share(columns: Columns, weights: Array) -> Array:
        figures: Array = weights @ (columns[column] <= limit).astype(np.float64) / weights.sum(1)
        return figures

    return weighted_share


def accuracy(columns: Columns, weights: Array) -> Array:
    """Return the weighted share of rows whose ``answer`` is the ``truth``."""
    right = (columns["truth"] == columns["answer"]).astype(np.float64)
    figures: Array = weights @ right / weights.sum(1)
    return figures


def macro_f1(columns: Columns, weights: Array) -> Array:
    """Return the mean F1 of the values that occur as ``truth`` or ``answer`` in the (re)sample.

    A row without an answer counts as missed by its true value; `NO_ANSWER` is not a value to average over.
    """
    truths, answers = columns["truth"], columns["answer"]
    labels, codes = np.unique(np.concatenate([truths, answers]), return_inverse=True)
    truth, answer = codes[: len(truths)], codes[len(truths) :]
    wanted = labels != NO_ANSWER

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

"""Metrics with bootstrap intervals.

Rows of one product, or of products whose pictures look alike, are not independent. So whole product groups
are resampled, each with all its rows: a cluster bootstrap with percentile intervals (Efron and Tibshirani,
1993). A resample is never built. How often each group is drawn becomes a weight of its rows, and every
metric is computed from the weights of all resamples at once.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from fovea.evaluation.metrics import figure, metrics_of
from fovea.evaluation.outcomes import Outcomes, Text, each_row_once
from fovea.records import Interval, Metrics
from fovea.task.metrics import Array

RESAMPLES = 1000
LEVEL = 0.95

# Weights in memory at once, 8 bytes each.
_WEIGHTS_AT_ONCE = 2_000_000


def measure(outcomes: Outcomes, resamples: int = RESAMPLES) -> Metrics:
    """Return all figures, with their intervals; 0 ``resamples`` for none.

    Raises:
        ValueError: there are no rows.
    """
    once = each_row_once(outcomes)
    return Metrics(
        samples=len(outcomes),
        groups=len(np.unique(outcomes.groups)),
        figures={
            name: float(metric.function(outcomes, once)[0])
            for name, metric in metrics_of(outcomes.task).items()
        },
        intervals=bootstrap(outcomes, resamples=resamples) if resamples else {},
    )


def bootstrap(
    outcomes: Outcomes,
    names: Iterable[str] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> dict[str, Interval]:
    """Return the bootstrap intervals of the metrics at ``level``, None for all; product groups are resampled.

    Where every row is right, no resample is wrong, and the interval has no width.

    Raises:
        ValueError: there are no rows.
    """
    each_row_once(outcomes)
    metrics = metrics_of(outcomes.task)
    wanted = list(metrics if names is None else names)
    drawn: dict[str, list[Array]] = {name: [] for name in wanted}
    for weights in _draws(outcomes.groups, resamples, seed):
        for name in wanted:
            drawn[name].append(metrics[name].function(outcomes, weights))
    return {name: Interval(**_ends(np.concatenate(parts), level)) for name, parts in drawn.items()}


@dataclass(frozen=True)
class PairedDifference:
    """The difference of two figures, first minus second, with its interval."""

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
    metric = metrics_of(first.task)[name].function
    differences = np.concatenate(
        [
            metric(first, weights) - metric(second, weights)
            for weights in _draws(first.groups, resamples, seed)
        ]
    )
    return PairedDifference(figure(first, name) - figure(second, name), **_ends(differences, level))


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

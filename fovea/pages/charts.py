"""Compute the charts of a page: stacked histograms of several series."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_MOST_COLUMNS = 40
_LOGARITHMIC_FROM = 50
"""If the largest value is at least this many times the smallest, the axis is logarithmic."""


@dataclass(frozen=True)
class Column:
    """One column: its label, and for each series its height as a percentage of the tallest column."""

    label: str
    shares: dict[str, float]


@dataclass(frozen=True)
class Tick:
    """A label of the axis, at ``place`` per cent of its length."""

    label: str
    place: float


@dataclass(frozen=True)
class Histogram:
    """The distribution of values."""

    columns: tuple[Column, ...]
    ticks: tuple[Tick, ...]
    label: str


def amount(value: float) -> str:
    """Return a number in the short form of an axis: ``2.5``, ``40``, ``1,500``."""
    return f"{value:,.0f}" if abs(value) >= 100 or value == round(value) else f"{value:.3g}"


def histogram(
    series: Mapping[str, NDArray[np.float64]], edges: NDArray[np.float64] | None = None
) -> Histogram | None:
    """Return the stacked histogram of several series; None if there are no values.

    Values must be finite; if they are all positive and span a wide range, the axis is logarithmic. ``edges``
    optionally sets the edges of the columns, evenly spaced and around all values.
    """
    every = np.concatenate([np.empty(0), *series.values()])
    if not every.size:
        return None
    low, high = float(every.min()), float(every.max())
    logarithmic = edges is None and low > 0 and high / low >= _LOGARITHMIC_FROM
    if edges is None:
        edges = np.geomspace(low, high, _MOST_COLUMNS + 1) if logarithmic else _even_edges(low, high)
    # Rounding must exclude neither the smallest nor the largest value.
    edges[0], edges[-1] = min(edges[0], low), max(edges[-1], high)
    counts = {name: np.histogram(values, edges)[0] for name, values in series.items()}
    tallest = int(sum(counts.values(), np.zeros(len(edges) - 1, int)).max())
    columns = tuple(
        Column(
            label=f"{amount(edges[index])} to {amount(edges[index + 1])}: "
            + ", ".join(f"{name} {of[index]:,}" for name, of in counts.items()),
            shares={name: 100 * float(of[index]) / tallest for name, of in counts.items()},
        )
        for index in range(len(edges) - 1)
    )
    return Histogram(columns, _ticks(edges, logarithmic), f"from {amount(low)} to {amount(high)}")


def _even_edges(low: float, high: float) -> NDArray[np.float64]:
    step = _round_step((high - low) / _MOST_COLUMNS or abs(high) / 100 or 1.0)
    first, last = math.floor(low / step), math.floor(high / step) + 1
    return np.arange(first, last + 1, dtype=np.float64) * step


def _ticks(edges: NDArray[np.float64], logarithmic: bool) -> tuple[Tick, ...]:
    low, high = float(edges[0]), float(edges[-1])
    if logarithmic:
        tens = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        steps = (1, 3) if len(tens) < 5 else (1,)
        values = [step * 10.0**ten for ten in tens for step in steps if low <= step * 10.0**ten <= high]
        values = values[:: -(-len(values) // 8) or 1]
        return tuple(Tick(amount(v), 100 * math.log(v / low) / math.log(high / low)) for v in values)
    every = max(1, -(-(len(edges) - 1) // 6))
    return tuple(Tick(amount(value), 100 * (value - low) / (high - low)) for value in edges[::every])


def _round_step(least: float) -> float:
    """Return the smallest of 1, 2, 5, 10, 20 … that is not below ``least``."""
    power: float = 10.0 ** math.floor(math.log10(least))
    return next(step * power for step in (1, 2, 5, 10, 20) if step * power >= least)

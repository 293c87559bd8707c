"""Compute plots over two axes, and intervals on one; ``plots.html.j2`` draws them.

Positions are percentages of the axis, so that a plot can have any size without scaling its text.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from fovea.pages.charts import Tick, amount

_STEPS = (1, 2, 2.5, 5, 10)
_PARTS = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8))
_FEWEST_TICKS = 3
_ROUNDING = 1e-9
_MOST_POINTS = 500

Point = tuple[float, float]


def percent(fraction: float) -> str:
    """Return a fraction as a percentage in the short form of an axis: ``97 %``, ``2.5 %``."""
    return f"{round(100 * fraction, 1):,g} %"


@dataclass(frozen=True)
class Axis:
    """The range of an axis; values outside are clipped to its ends."""

    low: float
    high: float
    ticks: tuple[Tick, ...]
    logarithmic: bool = False

    @classmethod
    def linear(cls, low: float, high: float, form: Callable[[float], str] = amount) -> Self:
        """Return an axis with about four round steps around ``low`` and ``high``."""
        least = max((high - low) / 4, _ROUNDING * max(abs(low), abs(high), 1.0))
        power = 10.0 ** math.floor(math.log10(least))
        step = next(each * power for each in _STEPS if each * power >= least * (1 - _ROUNDING))
        first, last = math.floor(low / step + _ROUNDING), math.ceil(high / step - _ROUNDING)
        last = max(last, first + 1)
        values = [number * step for number in range(first, last + 1)]
        return cls._of(values[0], values[-1], values, form, logarithmic=False)

    @classmethod
    def powers(cls, low: float, high: float, form: Callable[[float], str] = amount) -> Self:
        """Return a logarithmic axis with at least three round ticks; both ends are above 0."""
        if high < low * 4:
            low, high = low / 2, high * 2
        tens = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        values: list[float] = []
        for parts in _PARTS:
            if len(values) < _FEWEST_TICKS:
                values = [part * 10.0**ten for ten in tens for part in parts]
                values = [value for value in values if low <= value <= high]
        return cls._of(low, high, values[:: -(-len(values) // 6)], form, logarithmic=True)

    @classmethod
    def _of(
        cls,
        low: float,
        high: float,
        values: Sequence[float],
        form: Callable[[float], str],
        *,
        logarithmic: bool,
    ) -> Self:
        bare = cls(low, high, (), logarithmic)
        return cls(low, high, tuple(Tick(form(value), bare.place(value)) for value in values), logarithmic)

    def place(self, value: float) -> float:
        """Return the position of a value, 0 to 100."""
        if self.logarithmic:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return 100 * min(1.0, max(0.0, share))


@dataclass(frozen=True)
class Mark:
    """A metric with its interval on an axis; ``low`` equals ``high`` if there is no interval."""

    kind: str
    place: float
    low: float
    high: float
    label: str


def mark(axis: Axis, kind: str, value: float, interval: tuple[float, float] | None, label: str) -> Mark:
    """Return a metric as a dot, and its interval as a whisker."""
    low, high = interval or (value, value)
    return Mark(kind, axis.place(value), axis.place(low), axis.place(high), label)


def thinned(points: Sequence[Point]) -> list[Point]:
    """Return at most `_MOST_POINTS` points of a line, each the mean of the points that it replaces."""
    each = -(-len(points) // _MOST_POINTS)
    groups = [points[start : start + each] for start in range(0, len(points), each)]
    return [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups
    ]


@dataclass(frozen=True)
class Plot:
    """Lines and dots over two axes, as SVG paths by series in a box of 100 by 100."""

    across: Axis
    up: Axis
    lines: dict[str, str]
    dots: dict[str, str]
    label: str
    """A text alternative for screen readers."""


def plot(
    across: Axis,
    up: Axis,
    label: str,
    lines: Mapping[str, Sequence[Point]] | None = None,
    dots: Mapping[str, Iterable[Point]] | None = None,
    whiskers: Mapping[str, Iterable[tuple[Point, Point]]] | None = None,
) -> Plot:
    """Return the drawing of lines, dots, and whiskers between two points, each by its series."""

    def at(point: Point) -> str:
        return f"{across.place(point[0]):.5g} {100 - up.place(point[1]):.5g}"

    drawn = {name: "M" + "L".join(map(at, points)) for name, points in (lines or {}).items() if points}
    for name, pairs in (whiskers or {}).items():
        drawn[name] = drawn.get(name, "") + "".join(f"M{at(one)}L{at(other)}" for one, other in pairs)
    # A line of zero length with round ends is a dot whose size does not depend on the plot's.
    spots = {name: "".join(f"M{at(point)}h0" for point in points) for name, points in (dots or {}).items()}
    return Plot(
        across,
        up,
        {name: path for name, path in drawn.items() if path},
        {name: path for name, path in spots.items() if path},
        label,
    )

"""Curves over steps, reckoned here and drawn by ``curves.html.j2`` as SVG."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 320, 150
"""Of the drawing, about as wide as it is on a phone, so that its text can be read there."""
_MOST_POINTS = 500
_TICKS = 4


@dataclass(frozen=True)
class Line:
    """One series: the points of an SVG polyline, and its last value."""

    points: str
    last: str


@dataclass(frozen=True)
class Tick:
    """A value written beside an axis, at ``place`` units of the drawing."""

    label: str
    place: float


@dataclass(frozen=True)
class Curves:
    """Several series over the same steps."""

    lines: dict[str, Line]
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]
    label: str


def curves(series: Mapping[str, Sequence[tuple[float, float]]]) -> Curves | None:
    """Return the drawing of series of (step, value); None where there is no finite value.

    The vertical axis begins at 0 where no value is negative.
    """
    finite = {name: [p for p in points if math.isfinite(p[1])] for name, points in series.items()}
    finite = {name: points for name, points in finite.items() if points}
    if not finite:
        return None
    every = [point for points in finite.values() for point in points]
    left, right = min(x for x, _ in every), max(x for x, _ in every)
    low, high = min(0.0, *(y for _, y in every)), max(y for _, y in every)
    width, height = (right - left) or 1.0, (high - low) or 1.0

    def place(x: float, y: float) -> str:
        return f"{(x - left) / width * WIDTH:.1f},{HEIGHT - (y - low) / height * HEIGHT:.1f}"

    lines = {
        name: Line(" ".join(place(*point) for point in thinned(points)), _number(points[-1][1]))
        for name, points in finite.items()
    }
    shares = [number / _TICKS for number in range(_TICKS + 1)]
    steps = sorted({round(left + share * (right - left)) for share in shares})
    return Curves(
        lines,
        tuple(Tick(f"{step:,}", (step - left) / width * WIDTH) for step in steps),
        tuple(Tick(_number(low + share * (high - low)), HEIGHT * (1 - share)) for share in shares),
        f"steps {left:,.0f} to {right:,.0f}, from {_number(low)} to {_number(high)}",
    )


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return at most `_MOST_POINTS` points, each the mean of those that it stands for."""
    each = -(-len(points) // _MOST_POINTS)
    groups = [points[start : start + each] for start in range(0, len(points), each)]
    return [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups
    ]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == round(value) else f"{value:.3g}"

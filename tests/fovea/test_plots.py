"""Axes and the paths that are drawn over them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fovea.pages.plots import Axis, mark, percent, plot

ENDS = st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)).map(sorted)


@given(ENDS)
def test_a_linear_axis_holds_its_ends_at_few_round_steps(ends: list[float]) -> None:
    low, high = ends
    axis = Axis.linear(low, high)
    slack = 1e-6 * (1 + abs(low) + abs(high))
    assert axis.low <= low + slack
    assert axis.high >= high - slack
    assert axis.low < axis.high
    assert 2 <= len(axis.ticks) <= 7
    assert (axis.ticks[0].place, axis.ticks[-1].place) == pytest.approx((0, 100))
    assert axis.place(low) <= axis.place(high)


@given(st.floats(1e-3, 1e6), st.floats(1, 1e6))
def test_a_logarithmic_axis_is_even_in_ratios(low: float, times: float) -> None:
    axis = Axis.powers(low, low * times)
    middle = (axis.low * axis.high) ** 0.5
    assert axis.place(middle) == pytest.approx(50)
    assert 3 <= len(axis.ticks) <= 6
    assert all(0 <= tick.place <= 100 for tick in axis.ticks)


def test_percentages_on_an_axis() -> None:
    axis = Axis.linear(0, 1, percent)
    assert [tick.label for tick in axis.ticks] == ["0 %", "25 %", "50 %", "75 %", "100 %"]
    assert percent(0.975) == "97.5 %"
    assert (axis.place(-1), axis.place(0.5), axis.place(2)) == (0, 50, 100)


def test_marks_and_paths() -> None:
    axis = Axis.linear(0, 1, percent)
    whisker = mark(axis, "one", 0.5, (0.25, 0.75), "half")
    assert (whisker.low, whisker.place, whisker.high) == (25, 50, 75)
    assert mark(axis, "one", 0.5, None, "half").low == 50
    drawn = plot(
        axis,
        axis,
        "what there is",
        lines={"line": [(0, 0), (1, 1)], "nothing": []},
        dots={"dots": [(0.5, 0.25)], "none": []},
        whiskers={"ends": [((0.5, 0), (0.5, 1))]},
    )
    assert drawn.lines == {"line": "M0 100L100 0", "ends": "M50 100L50 0"}
    assert drawn.dots == {"dots": "M50 75h0"}

"""Pages that need nothing beside them, and the charts on them."""

from collections.abc import Mapping
from pathlib import Path

import jinja2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fovea.pages import picture_url, render_page
from fovea.pages.charts import histogram

AMOUNTS = st.lists(st.floats(-1e9, 1e9, allow_nan=False) | st.floats(1e-3, 1e9), max_size=50)


def page(tmp_path: Path, body: str, values: Mapping[str, object]) -> str:
    template = tmp_path / "a.html.j2"
    template.write_text('{% extends "page.html.j2" %}{% block main %}' + body + "{% endblock %}")
    return render_page(template, **values)


def test_values_are_escaped_and_none_may_be_missing(tmp_path: Path) -> None:
    text = page(tmp_path, "<p title='{{ value }}'>{{ value }}</p>", {"value": "'<b>&"})
    assert "<p title='&#39;&lt;b&gt;&amp;'>&#39;&lt;b&gt;&amp;</p>" in text
    assert "default-src 'none'" in text
    with pytest.raises(jinja2.UndefinedError):
        page(tmp_path, "{{ value }}", {})


def test_pictures_are_made_small() -> None:
    url = picture_url(Image.new("RGBA", (4000, 2000), "red"), 100)
    assert url.startswith("data:image/jpeg;base64,")
    assert len(url) < 2000


@given(st.dictionaries(st.sampled_from(["train", "validation", "test"]), AMOUNTS))
def test_every_value_is_in_one_column(values: dict[str, list[float]]) -> None:
    chart = histogram({name: np.array(amounts, np.float64) for name, amounts in values.items()})
    if not any(values.values()):
        assert chart is None
        return
    assert chart is not None
    assert len(chart.columns) <= 60
    tallest = max(sum(column.shares.values()) for column in chart.columns)
    assert tallest == pytest.approx(100)
    for name, amounts in values.items():
        shown = sum(int(column.label.split(f"{name} ")[1].split(",")[0]) for column in chart.columns)
        assert shown == len(amounts)
    assert all(-0.01 <= tick.place <= 100.01 for tick in chart.ticks)


def test_values_far_apart_are_shown_by_their_order_of_magnitude() -> None:
    chart = histogram({"": np.geomspace(1, 10_000, 1000)})
    assert chart is not None
    heights = [sum(column.shares.values()) for column in chart.columns]
    assert min(heights) > 90
    assert chart.ticks[0].label == "1"

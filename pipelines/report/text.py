"""The table of a run's metrics and the formatting of its values, for the terminal and the report."""

from collections.abc import Mapping

from fovea.evaluation.text import UNKNOWN, figure_text
from fovea.records import Metrics
from pipelines.report.summary import FigureTitle

COLUMNS = {
    "nearest_neighbour": "nearest neighbour",
    "base": "base",
    "champion": "champion",
    "challenger": "challenger",
    "shuffled": "shuffled",
}
"""The models of the table, by the summary's names; a missing model has no column."""


def columns(models: Mapping[str, Metrics]) -> dict[str, str]:
    """Return the headings of the table's columns, by the summary's names for the models."""
    return {name: heading for name, heading in COLUMNS.items() if name in models}


def metric(metrics: Metrics | None, figure: FigureTitle) -> str:
    """Return one of the table's figures as text."""
    return figure_text(None if metrics is None else metrics.figures[figure.name], figure.unit)


def duration(seconds: float) -> str:
    """Return a duration as ``4.2 s`` or ``3 min 05 s``."""
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


def field_value(value: str | float | None) -> str:
    """Return a field's value as text; a price with two decimals."""
    return UNKNOWN if value is None else f"{value:,.2f}" if isinstance(value, float) else value

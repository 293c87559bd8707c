"""How figures are written for people, in the terminal and in the report alike."""

from collections.abc import Mapping

from components.gate_rules import COUNTS
from fovea.metrics import IN_CURRENCY
from fovea.records import Metrics, RuleResult

COLUMNS = {
    "nearest_neighbour": "nearest neighbour",
    "base": "base",
    "champion": "champion",
    "tuned": "tuned",
    "shuffled": "shuffled",
}
"""The models of the table, by the summary's name for them; one that is not there has no column."""

ROWS = {
    "parse_rate": "answers that can be read",
    "title_exact": "title right",
    "category_accuracy": "category right",
    "price_median_ape": "median price error",
}
"""The figures of the table, by their name in `Metrics`."""


def columns(models: Mapping[str, Metrics]) -> dict[str, str]:
    """Return the headings of the table's columns, by the summary's names for the models."""
    return {name: heading for name, heading in COLUMNS.items() if name in models}


def percent(value: float | None) -> str:
    """Return a fraction as a percentage: ``97.5 %``."""
    return "–" if value is None else f"{100 * value:.1f} %"


def metric(metrics: Metrics | None, name: str) -> str:
    """Return one of the table's figures as text."""
    return percent(None if metrics is None else getattr(metrics, name))


def rule_limit(rule: RuleResult) -> str:
    """Return what a rule asks for; nothing for a condition, which just holds or not."""
    if not rule.metric or rule.limit is None:
        return ""
    sign = {">=": "≥", "<=": "≤"}.get(rule.comparison, rule.comparison)
    limit = _amount(rule.metric, rule.limit)
    return f"{sign} {limit.replace('%', 'points') if rule.against else limit}"


def rule_value(rule: RuleResult) -> str:
    """Return what a rule saw: whether a condition holds, a figure, or the gain over somebody else's."""
    if rule.value is None:
        return "–"
    if not rule.metric:
        return "holds" if rule.value >= 1 else "does not hold"
    value = _amount(rule.metric, rule.value)
    if not rule.against:
        return value
    return ("+" if rule.value > 0 else "") + value.replace("%", "points")


def _amount(metric: str, value: float) -> str:
    if metric in COUNTS:
        return f"{value:,.0f}"
    return f"{value:,.2f}" if metric in IN_CURRENCY else percent(value)


def duration(seconds: float) -> str:
    """Return a duration as ``4.2 s`` or ``3 min 05 s``."""
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


def field_value(value: str | float | None) -> str:
    """Return a field's value as text; a price with two decimals."""
    return "–" if value is None else f"{value:,.2f}" if isinstance(value, float) else value

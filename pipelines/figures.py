"""How figures are written for people, in the terminal and in the report alike."""

from collections.abc import Mapping

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
    sign = {">=": "≥", "<=": "≤"}.get(rule.comparison, rule.comparison)
    return "" if is_condition(rule) else f"{sign} {rule_value(rule, rule.limit)}"


def rule_value(rule: RuleResult, value: float | None) -> str:
    """Return a rule's value or limit as it is best read: a condition, a count or a percentage."""
    if value is None:
        return "–"
    if is_condition(rule):
        return "holds" if value >= 1 else "does not hold"
    return f"{value:,.0f}" if rule.name == "samples" else percent(value)


def is_condition(rule: RuleResult) -> bool:
    """Return whether a rule is a condition that holds or not, rather than a figure against a limit."""
    return rule.comparison == ">=" and rule.limit == 1.0 and rule.value in (0.0, 1.0)


def duration(seconds: float) -> str:
    """Return a duration as ``4.2 s`` or ``3 min 05 s``."""
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


def field_value(value: str | float | None) -> str:
    """Return a field's value as text; a price with two decimals."""
    return "–" if value is None else f"{value:,.2f}" if isinstance(value, float) else value

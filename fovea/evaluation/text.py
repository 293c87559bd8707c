"""How figures and the gate's rules are written for people: in reasons, reports and the terminal alike."""

from fovea.records import Interval, RuleResult
from fovea.task.metrics import Unit

UNKNOWN = "–"
_SIGNS = {">=": "≥", "<=": "≤"}


def figure_text(value: float | None, unit: Unit, digits: int = 1) -> str:
    """Return a figure as ``97.5 %``, an amount of money as ``1,250.00``, a count as ``1,250``."""
    if value is None:
        return UNKNOWN
    return _number(value, unit, digits) + (" %" if unit == "fraction" else "")


def gain_text(value: float | None, unit: Unit, digits: int = 1) -> str:
    """Return a difference of two figures: ``+2.5 points``, of money ``+1.20``."""
    if value is None:
        return UNKNOWN
    text = ("+" if value > 0 else "") + _number(value, unit, digits)
    return text + (" points" if unit == "fraction" else "")


def interval_text(interval: Interval | None, unit: Unit, digits: int = 1) -> str:
    """Return an interval without its unit, such as ``95.1 – 98.9``; nothing for None."""
    if interval is None:
        return ""
    return f"{_number(interval.low, unit, digits)} – {_number(interval.high, unit, digits)}"


def rule_value(rule: RuleResult) -> str:
    """Return what a rule saw: whether a condition holds, a figure, or the gain over another model's."""
    if rule.value is not None and not rule.metric:
        return "holds" if rule.value >= 1 else "does not hold"
    return (gain_text if rule.against else figure_text)(rule.value, rule.unit)


def rule_limit(rule: RuleResult) -> str:
    """Return what a rule asks for; nothing for a condition, which just holds or not."""
    if not rule.metric or rule.limit is None:
        return ""
    limit = (gain_text if rule.against else figure_text)(rule.limit, rule.unit)
    return f"{sign(rule.comparison)} {limit}"


def sign(comparison: str) -> str:
    """Return the sign of a comparison as it is printed."""
    return _SIGNS.get(comparison, comparison)


def _number(value: float, unit: Unit, digits: int) -> str:
    if unit == "count":
        text = f"{value:z,.0f}"
    elif unit == "currency":
        text = f"{value:z,.2f}"
    else:
        text = f"{100 * value:z.{digits}f}"
    return text.replace("-", "−")

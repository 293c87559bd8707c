"""How figures and the gate's rules are written for people: in reasons, reports and the terminal alike."""

from fovea.evaluation.metrics import COUNTS, METRICS
from fovea.records import Interval, RuleResult

UNKNOWN = "–"
_SIGNS = {">=": "≥", "<=": "≤"}


def figure_text(metric: str, value: float | None, digits: int = 1) -> str:
    """Return a figure as ``97.5 %``, an amount of money as ``1,250.00``, a count as ``1,250``."""
    if value is None:
        return UNKNOWN
    return _number(metric, value, digits) + (" %" if _is_fraction(metric) else "")


def gain_text(metric: str, value: float | None, digits: int = 1) -> str:
    """Return a difference of two figures: ``+2.5 points``, of money ``+1.20``."""
    if value is None:
        return UNKNOWN
    text = ("+" if value > 0 else "") + _number(metric, value, digits)
    return text + (" points" if _is_fraction(metric) else "")


def interval_text(metric: str, interval: Interval | None, digits: int = 1) -> str:
    """Return where a figure or a difference lies, without its unit: ``95.1 – 98.9``; nothing for None."""
    if interval is None:
        return ""
    return f"{_number(metric, interval.low, digits)} – {_number(metric, interval.high, digits)}"


def rule_value(rule: RuleResult) -> str:
    """Return what a rule saw: whether a condition holds, a figure, or the gain over somebody else's."""
    if rule.value is not None and not rule.metric:
        return "holds" if rule.value >= 1 else "does not hold"
    return (gain_text if rule.against else figure_text)(rule.metric, rule.value)


def rule_limit(rule: RuleResult) -> str:
    """Return what a rule asks for; nothing for a condition, which just holds or not."""
    if not rule.metric or rule.limit is None:
        return ""
    limit = (gain_text if rule.against else figure_text)(rule.metric, rule.limit)
    return f"{sign(rule.comparison)} {limit}"


def sign(comparison: str) -> str:
    """Return the sign of a comparison as it is printed."""
    return _SIGNS.get(comparison, comparison)


def _is_fraction(metric: str) -> bool:
    return metric not in COUNTS and not _is_currency(metric)


def _is_currency(metric: str) -> bool:
    return metric in METRICS and METRICS[metric].unit == "currency"


def _number(metric: str, value: float, digits: int) -> str:
    if metric in COUNTS:
        text = f"{value:z,.0f}"
    elif _is_currency(metric):
        text = f"{value:z,.2f}"
    else:
        text = f"{100 * value:z.{digits}f}"
    return text.replace("-", "−")

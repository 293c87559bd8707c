"""How the gate's rules are written for people."""

from typing import Any

import pytest

from fovea.evaluation.text import rule_limit, rule_value
from fovea.records import RuleResult


@pytest.mark.parametrize(
    ("about", "value", "limit", "shown"),
    [
        ({}, 1.0, 1.0, ("holds", "")),
        ({}, 0.0, 1.0, ("does not hold", "")),
        ({"metric": "samples", "unit": "count"}, 1276, 200, ("1,276", "≥ 200")),
        ({"metric": "parse_rate"}, 1.0, 1.0, ("100.0 %", "≥ 100.0 %")),
        (
            {"metric": "full_price.mean_absolute_error", "unit": "currency"},
            31.4,
            1000.0,
            ("31.40", "≥ 1,000.00"),
        ),
        ({"metric": "category.accuracy", "against": "base"}, 0.453, 0.0, ("+45.3 points", "≥ 0.0 points")),
        ({"metric": "parse_rate", "against": "champion"}, -0.01, -0.03, ("−1.0 points", "≥ −3.0 points")),
        ({"metric": "parse_rate", "against": "champion"}, -0.0, -0.03, ("0.0 points", "≥ −3.0 points")),
        ({"metric": "parse_rate", "against": "champion"}, None, -0.03, ("–", "≥ −3.0 points")),
    ],
)
def test_a_rule(about: dict[str, Any], value: float | None, limit: float, shown: tuple[str, str]) -> None:
    rule = RuleResult(
        name="some_rule",
        description="",
        value=value,
        comparison=">=",
        limit=limit,
        passed=True,
        reason="",
        **about,
    )
    assert (rule_value(rule), rule_limit(rule)) == shown

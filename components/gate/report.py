"""The gate's decision as Markdown, for the KFP UI. Every value from a record is escaped."""

import html
from collections.abc import Mapping

from components.gate.rules import Judgement
from fovea.figures import interval_text, rule_limit, rule_value
from fovea.records import RuleResult

_MARKDOWN = str.maketrans({character: f"\\{character}" for character in "\\`*_{}[]()#+-!|~:@"})


def escape(text: str) -> str:
    """Return ``text`` as Markdown that shows it literally, on one line and within a table's cell."""
    return html.escape(" ".join(text.split()).translate(_MARKDOWN), quote=False)


def markdown(judgement: Judgement, base: Judgement, digests: Mapping[str, str]) -> str:
    """Return the verdict, each rule with its value and limit, the base under the same rules, and digests."""
    of_base = {result.name: result for result in base.rules}
    rows = [
        _row(rule, of_base.get(rule.name)) for rule in sorted(judgement.rules, key=lambda rule: rule.passed)
    ]
    lines = [
        f"# {'Passed' if judgement.passed else 'Refused'}",
        "",
        escape(judgement.reason),
        "",
        "| | Rule | What it asks | Value | 95 % | Limit | Rows | Base | Why |",
        "|---|---|---|---:|---|---|---:|---|---|",
        *rows,
        "",
        "The value of a comparison is the gain, above 0 where the model is better; the whole of its interval "
        "must lie above the limit. Intervals are in per cent or points, those of money in currency.",
        "",
        "The same rules "
        + ("let the base pass, so they ask for nothing." if base.passed else "refuse the base."),
        "",
        *(f"- {escape(name)}: {escape(digest)}" for name, digest in digests.items()),
    ]
    return "\n".join(lines) + "\n"


def _row(rule: RuleResult, base: RuleResult | None) -> str:
    cells = (
        _mark(rule.passed),
        escape(rule.name),
        escape(rule.description),
        rule_value(rule),
        interval_text(rule.metric, rule.interval),
        rule_limit(rule),
        "" if rule.samples is None else str(rule.samples),
        f"{rule_value(base)} {_mark(base.passed)}" if base else "",
        escape(rule.reason),
    )
    return f"| {' | '.join(cells)} |"


def _mark(passed: bool) -> str:
    return "✓" if passed else "✗"

"""The gate's decision as Markdown, for the KFP UI. Every value from a record is escaped."""

import html

from components.gate.rules import Judgement
from fovea.records import RuleResult

_MARKDOWN = str.maketrans({character: f"\\{character}" for character in "\\`*_{}[]()#+-!|~:@"})


def escape(text: str) -> str:
    """Return ``text`` as Markdown that shows it literally, on one line and within a table's cell."""
    return html.escape(" ".join(text.split()).translate(_MARKDOWN), quote=False)


def markdown(judgement: Judgement, base: Judgement | None, digests: dict[str, str]) -> str:
    """Return the verdict, each rule with its value and limit, the base under the same rules, and digests."""
    of_base = {result.name: result for result in base.rules} if base else {}
    rows = [_row(rule, of_base.get(rule.name)) for rule in judgement.rules]
    lines = [
        f"# {'Passed' if judgement.passed else 'Refused'}",
        "",
        escape(judgement.reason),
        "",
        "| | Rule | What it asks | Model | Limit | Base | Why |",
        "|---|---|---|---:|---|---|---|",
        *rows,
        "",
        *(f"- {escape(name)}: {escape(digest)}" for name, digest in digests.items()),
    ]
    return "\n".join(lines) + "\n"


def _row(rule: RuleResult, base: RuleResult | None) -> str:
    cells = (
        _mark(rule.passed),
        escape(rule.name),
        escape(rule.description),
        _number(rule.value),
        f"{rule.comparison} {_number(rule.limit)}",
        f"{_number(base.value)} {_mark(base.passed)}" if base else "",
        escape(rule.reason),
    )
    return f"| {' | '.join(cells)} |"


def _mark(passed: bool) -> str:
    return "✓" if passed else "✗"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"

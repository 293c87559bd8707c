"""The gate's rules applied to what is known of a model. Pure: no files, no network.

Whatever is missing, not finite or not comparable refuses. Every rule is looked at, also after one has failed,
and the verdict does not depend on their order.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from components.gate.checks import CHECKS, CheckRule
from components.gate.evidence import (
    BASE_SHUFFLED,
    SHUFFLED,
    Evidence,
    RefusedError,
    finite,
    outcomes_of,
)
from components.gate.parameters import BASELINES, RELIANCE, GateParameters, RuleSpec
from fovea.evaluation.intervals import RESAMPLES, PairedDifference, bootstrap, paired_bootstrap
from fovea.evaluation.metrics import COUNTS, METRICS, figure, slices
from fovea.evaluation.outcomes import CHALLENGER, Mask, Outcomes
from fovea.evaluation.text import figure_text, gain_text, interval_text, sign
from fovea.records import AbsentRecord, Interval, RuleResult
from fovea.steps import plain_line

_COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
}


@dataclass(frozen=True)
class MetricRule:
    """A rule on a figure, as people write it."""

    spec: RuleSpec
    resamples: int = RESAMPLES

    @property
    def name(self) -> str:
        """Its name, which a refusal names."""
        return self.spec.name

    def apply(self, evidence: Evidence) -> RuleResult:
        """Return what the rule says. What is missing, not finite or on too few rows refuses."""
        try:
            found = self._against(evidence) if self.spec.against else self._absolute(evidence)
        except RefusedError as error:
            found = {"passed": False, "reason": str(error)}
        except AttributeError as error:  # a record that was built without validation
            found = {"passed": False, "reason": f"a record is incomplete: {error}"}
        spec = self.spec
        return RuleResult(
            **{
                "name": spec.name,
                "description": spec.description or _described(spec),
                "metric": spec.metric,
                "slice": spec.slice,
                "against": spec.against,
                "comparison": spec.comparison,
                "limit": spec.limit,
                "value": None,
                "inputs": self._inputs(evidence),
                **found,
            }
        )

    def _absolute(self, evidence: Evidence) -> dict[str, object]:
        spec = self.spec
        rows, mask = self._rows(evidence)
        value = _figure(evidence, CHALLENGER, spec.metric, mask)
        holds = _COMPARE[spec.comparison](value, spec.limit)
        return {
            "value": value,
            "interval": self._interval(evidence, mask),
            "samples": rows,
            "passed": holds,
            "reason": f"{spec.metric} is {figure_text(spec.metric, value, _DIGITS)}, "
            f"{'as' if holds else 'not'} {sign(spec.comparison)} "
            f"{figure_text(spec.metric, spec.limit, _DIGITS)}",
        }

    def _against(self, evidence: Evidence) -> dict[str, object]:
        spec = self.spec
        if spec.against == "champion" and isinstance(evidence.champion, AbsentRecord):
            return {"passed": True, "reason": f"there is no champion: {evidence.champion.reason}"}
        rows, mask = self._rows(evidence)
        own, other = (_figure(evidence, name, spec.metric, mask) for name in (CHALLENGER, spec.against))
        found = self._paired(evidence, spec.against, spec.metric, mask)
        better = -1 if METRICS[spec.metric].lower_is_better else 1
        low, high = sorted((better * found.low, better * found.high))
        holds = low > spec.limit
        metric, interval = spec.metric, Interval(low=low, high=high)
        return {
            "value": better * found.difference,
            "interval": interval,
            "own": own,
            "compared": other,
            "samples": rows,
            "passed": holds,
            "reason": f"{metric} is {figure_text(metric, own, _DIGITS)}, that of {spec.against} "
            f"{figure_text(metric, other, _DIGITS)}: the gain, {interval_text(metric, interval, _DIGITS)} at "
            f"95 %, is {'surely' if holds else 'not surely'} above {gain_text(metric, spec.limit, _DIGITS)}",
        }

    def _rows(self, evidence: Evidence) -> tuple[int, Mask | None]:
        """Return how many rows the rule rests on, and which; None for all."""
        outcomes = outcomes_of(evidence, CHALLENGER)
        mask = _mask(outcomes, self.spec.slice) if self.spec.slice else None
        rows = len(outcomes) if mask is None else int(mask.sum())
        if rows < self.spec.min_samples:
            raise RefusedError(f"rests on {rows} rows, at least {self.spec.min_samples} are needed")
        return rows, mask

    def _interval(self, evidence: Evidence, mask: Mask | None) -> Interval | None:
        metric = self.spec.metric
        if metric in COUNTS:
            return None
        if metric == RELIANCE:
            found = self._paired(evidence, SHUFFLED, "category_accuracy", mask)
            return Interval(low=found.low, high=found.high)
        outcomes = _taken(evidence, CHALLENGER, mask)
        return bootstrap(outcomes, [metric], self.resamples)[metric]

    def _paired(self, evidence: Evidence, other: str, metric: str, mask: Mask | None) -> PairedDifference:
        mine, its = (_taken(evidence, name, mask) for name in (CHALLENGER, other))
        found = paired_bootstrap(mine, its, metric, self.resamples)
        for value in (found.difference, found.low, found.high):
            finite(value, f"the difference in {metric} to {other}")
        return found

    def _inputs(self, evidence: Evidence) -> dict[str, str]:
        """Return the digests of the evaluations that the rule looks at."""
        names = {CHALLENGER, *([self.spec.against] if self.spec.against else [])}
        records = {
            name.partition(":")[0].replace("baseline", "base"): evidence.record(name) for name in names
        }
        return {name: record.digest for name, record in sorted(records.items()) if record is not None}


Rule = CheckRule | MetricRule


# How many failed rules a reason names; the decision holds them all.
_NAMED = 4


# So that a figure that just fails is not written as its limit.
_DIGITS = 2


def _figure(evidence: Evidence, who: str, metric: str, mask: Mask | None) -> float:
    if metric == RELIANCE:
        shown, instead = (
            _figure(evidence, name, "category_accuracy", mask) for name in (CHALLENGER, SHUFFLED)
        )
        return shown - instead
    outcomes = _taken(evidence, who, mask)
    if metric in COUNTS:
        return float(len(outcomes) if metric == "samples" else len(set(outcomes.groups.tolist())))
    return finite(figure(outcomes, metric), f"{metric} of {who}")


def _taken(evidence: Evidence, who: str, mask: Mask | None) -> Outcomes:
    """Return what came of the rows of a slice, in the order of the model's; None for all rows."""
    mine, its = outcomes_of(evidence, CHALLENGER), outcomes_of(evidence, who)
    try:
        aligned = its.aligned_with(mine)
    except ValueError as error:
        raise RefusedError(f"{who} cannot be compared: {error}") from error
    return aligned if mask is None else aligned.take(mask)


def _mask(outcomes: Outcomes, name: str) -> Mask:
    kind, _, wanted = name.partition("=")
    masks = slices(outcomes)[kind]
    if kind == "price_band" and wanted.isdecimal() and 1 <= int(wanted) <= len(masks):
        return list(masks.values())[int(wanted) - 1]
    if wanted not in masks:
        raise RefusedError(f"there is no {kind} {wanted!r} in the split; there are {', '.join(masks)}")
    return masks[wanted]


def _described(spec: RuleSpec) -> str:
    where = f" where {spec.slice}" if spec.slice else ""
    if not spec.against:
        return f"{spec.metric}{where}"
    return f"{spec.metric}{where}, gain over {spec.against}"


def default_rules(limits: GateParameters) -> tuple[RuleSpec, ...]:
    """Return the rules of the product catalogue's task."""

    def rule(name: str, description: str, metric: str, **asked: object) -> RuleSpec:
        values = {"name": name, "description": description, "metric": metric, "min_samples": 1, **asked}
        return RuleSpec.model_validate(values)

    category, price = "category_accuracy", "price_median_ape"
    opponents = {"base": "the base", **{f"baseline:{name}": name.replace("_", " ") for name in BASELINES}}
    margin = {"against": "champion", "margin": limits.champion_margin}
    return (
        rule("samples", "Enough rows that it never saw", "samples", at_least=limits.min_samples),
        rule("parse_rate", "Answers that can be read", "parse_rate", at_least=limits.min_parse_rate),
        rule("category_accuracy", "Right categories", category, at_least=limits.min_category_accuracy),
        rule("price_error", "Median price error", price, at_most=limits.max_price_median_ape),
        rule(
            RELIANCE,
            "Fall in category accuracy when shown another product's picture",
            RELIANCE,
            at_least=limits.min_picture_reliance,
        ),
        *(
            rule(
                f"beats_{who.removeprefix('baseline:')}_on_{what}",
                f"{said} than {name}",
                metric,
                against=who,
            )
            for who, name in opponents.items()
            for what, said, metric in (
                ("category", "More right categories", category),
                ("price", "Smaller median price error", price),
            )
        ),
        rule("keeps_parse_rate", "No fewer readable answers than the champion", "parse_rate", **margin),
        rule("keeps_category", "No fewer right categories than the champion", category, **margin),
        rule("keeps_price", "No larger median price error than the champion", price, **margin),
    )


@dataclass(frozen=True)
class Judgement:
    """A verdict, why, and what each rule said."""

    passed: bool
    reason: str
    """One plain line without quotes."""
    rules: tuple[RuleResult, ...]


def judge(
    evidence: Evidence,
    rules: Sequence[RuleSpec],
    checks: Sequence[CheckRule] = CHECKS,
    resamples: int = RESAMPLES,
) -> Judgement:
    """Judge a model by every condition and rule; it passes if there are rules and all of them hold."""
    applied: list[Rule] = [*checks, *(MetricRule(spec, resamples) for spec in rules)]
    results = tuple(rule.apply(evidence) for rule in applied)
    failed = [_failure(result) for result in results if not result.passed]
    passed = bool(rules) and not failed
    if passed:
        reason = f"passed: all {len(results)} rules hold"
    else:
        more = [f"and {len(failed) - _NAMED} more rules"] if len(failed) > _NAMED else []
        reason = "refused: " + ("; ".join(failed[:_NAMED] + more) or "there are no rules")
    return Judgement(passed, plain_line(reason), results)


def _failure(result: RuleResult) -> str:
    """Return a failed rule's name and reason; a reason that begins with the name says both."""
    says_it = result.reason.startswith(f"{result.name} ")
    return result.reason if says_it else f"{result.name} ({result.reason})"


def judge_base(evidence: Evidence, rules: Sequence[RuleSpec], resamples: int = RESAMPLES) -> Judgement:
    """Judge the base as if it were to be deployed: rules that do not refuse it ask for nothing.

    Those that compare with the base or the champion are left out: they say nothing of what is asked.
    """
    kept = [spec for spec in rules if spec.against not in ("base", "champion")]
    base = evidence.base
    digest = base.model_digest if base else None
    outcomes = dict(evidence.outcomes)
    for name, its in ((CHALLENGER, "base"), (SHUFFLED, BASE_SHUFFLED)):
        outcomes.pop(name, None)
        if its in outcomes:
            outcomes[name] = outcomes[its]
    return judge(
        Evidence(
            challenger=base,
            base=base,
            champion=AbsentRecord(reason="not looked at"),
            model_digest=digest,
            base_digest=digest,
            outcomes=outcomes,
        ),
        kept,
        [check for check in CHECKS if check.name != "differs_from_base"],
        resamples,
    )

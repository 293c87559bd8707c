"""The gate's rules, applied to the evidence on a model. Pure functions: no files, no network.

Anything missing, not finite or not comparable refuses. All rules are evaluated, also after one has
failed, and the verdict does not depend on their order.
"""

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from components.gate.checks import CHECKS, CheckRule
from components.gate.evidence import (
    BASE_SHUFFLED,
    SHUFFLED,
    Evidence,
    RefusedError,
    finite,
    outcomes_of,
)
from components.gate.parameters import GateParameters, RuleSpec, opponents_of
from fovea.evaluation.intervals import RESAMPLES, PairedDifference, bootstrap, paired_bootstrap
from fovea.evaluation.metrics import (
    COUNTS,
    PARSE_RATE,
    RELIANCE,
    figure,
    metrics_of,
    primary_metric,
    slices,
    unit_of,
)
from fovea.evaluation.outcomes import CHALLENGER, Outcomes
from fovea.evaluation.text import figure_text, gain_text, interval_text, sign
from fovea.records import AbsentRecord, Interval, RuleResult
from fovea.task import Task
from fovea.task.metrics import Mask, Unit
from fovea.text import plain_line

_COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
}


@dataclass(frozen=True)
class MetricRule:
    """A rule on a figure."""

    spec: RuleSpec
    resamples: int = RESAMPLES

    @property
    def name(self) -> str:
        """The rule's name."""
        return self.spec.name

    def apply(self, evidence: Evidence) -> RuleResult:
        """Return the rule's result. A figure that is missing, not finite or on too few rows refuses."""
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
                "unit": self._unit(evidence),
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
        unit = self._unit(evidence)
        holds = _COMPARE[spec.comparison](value, spec.limit)
        return {
            "value": value,
            "interval": self._interval(evidence, mask),
            "samples": rows,
            "passed": holds,
            "reason": f"{spec.metric} is {figure_text(value, unit, _DIGITS)}, "
            f"{'as' if holds else 'not'} {sign(spec.comparison)} {figure_text(spec.limit, unit, _DIGITS)}",
        }

    def _against(self, evidence: Evidence) -> dict[str, object]:
        spec = self.spec
        if spec.against == "champion" and isinstance(evidence.champion, AbsentRecord):
            return {"passed": True, "reason": f"there is no champion: {evidence.champion.reason}"}
        rows, mask = self._rows(evidence)
        own, other = (_figure(evidence, name, spec.metric, mask) for name in (CHALLENGER, spec.against))
        found = self._paired(evidence, spec.against, spec.metric, mask)
        metric = metrics_of(outcomes_of(evidence, CHALLENGER).task)[spec.metric]
        better = -1 if metric.lower_is_better else 1
        low, high = sorted((better * found.low, better * found.high))
        holds = low > spec.limit
        interval, unit = Interval(low=low, high=high), metric.unit
        return {
            "value": better * found.difference,
            "interval": interval,
            "own": own,
            "compared": other,
            "samples": rows,
            "passed": holds,
            "reason": f"{metric.name} is {figure_text(own, unit, _DIGITS)}, that of {spec.against} "
            f"{figure_text(other, unit, _DIGITS)}: the gain, {interval_text(interval, unit, _DIGITS)} at "
            f"95 %, is {'surely' if holds else 'not surely'} above {gain_text(spec.limit, unit, _DIGITS)}",
        }

    def _unit(self, evidence: Evidence) -> Unit:
        outcomes = evidence.outcomes.get(CHALLENGER)
        return unit_of(outcomes.task, self.spec.metric) if outcomes is not None else "fraction"

    def _rows(self, evidence: Evidence) -> tuple[int, Mask | None]:
        """Return how many rows the figure is computed on, and which; None for all."""
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
            primary = primary_metric(outcomes_of(evidence, CHALLENGER).task)
            found = self._paired(evidence, SHUFFLED, primary, mask)
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
        """Return the digests of the evaluations that the rule reads."""
        names = {CHALLENGER, *([self.spec.against] if self.spec.against else [])}
        records = {
            name.partition(":")[0].replace("baseline", "base"): evidence.record(name) for name in names
        }
        return {name: record.digest for name, record in sorted(records.items()) if record is not None}


Rule = CheckRule | MetricRule


# Failed rules that a reason names; the decision has them all.
_NAMED = 4


# Enough that a figure that just fails is not printed as its limit.
_DIGITS = 2


def _figure(evidence: Evidence, who: str, metric: str, mask: Mask | None) -> float:
    if metric == RELIANCE:
        primary = primary_metric(outcomes_of(evidence, CHALLENGER).task)
        shown, instead = (_figure(evidence, name, primary, mask) for name in (CHALLENGER, SHUFFLED))
        return shown - instead
    outcomes = _taken(evidence, who, mask)
    if metric in COUNTS:
        return float(len(outcomes) if metric == "samples" else len(set(outcomes.groups.tolist())))
    return finite(figure(outcomes, metric), f"{metric} of {who}")


def _taken(evidence: Evidence, who: str, mask: Mask | None) -> Outcomes:
    """Return the outcomes of a slice's rows, in the challenger's order; None for all rows."""
    mine, its = outcomes_of(evidence, CHALLENGER), outcomes_of(evidence, who)
    try:
        aligned = its.aligned_with(mine)
    except ValueError as error:
        raise RefusedError(f"{who} cannot be compared: {error}") from error
    return aligned if mask is None else aligned.take(mask)


def _mask(outcomes: Outcomes, name: str) -> Mask:
    field, _, wanted = name.partition("=")
    masks = slices(outcomes).get(field, {})
    if wanted in masks:
        return masks[wanted]
    if wanted.isdecimal() and 1 <= int(wanted) <= len(masks):
        return list(masks.values())[int(wanted) - 1]
    raise RefusedError(f"there is no {field} {wanted!r} in the split; there are {', '.join(masks)}")


def _described(spec: RuleSpec) -> str:
    where = f" where {spec.slice}" if spec.slice else ""
    if not spec.against:
        return f"{spec.metric}{where}"
    return f"{spec.metric}{where}, gain over {spec.against}"


def default_rules(limits: GateParameters, task: Task) -> tuple[RuleSpec, ...]:
    """Return the rules that a task's fields require, with the limits of the gate's parameters."""
    required = list(_required(task))
    opponents = [each for each in opponents_of(task) if each != "champion"]
    margin = {"against": "champion", "margin": limits.champion_margin}
    titles = {name: metric.title for name, metric in metrics_of(task).items()}
    return (
        _rule("samples", "Enough rows that it never saw", "samples", at_least=limits.min_samples),
        _rule(PARSE_RATE, titles[PARSE_RATE], PARSE_RATE, at_least=limits.min_parse_rate),
        *(
            _rule(metric.replace(".", "_"), titles[metric], metric, **_limit(limits, limit, bound))
            for _, metric, limit, bound in required
        ),
        _rule(
            RELIANCE,
            f"{titles[primary_metric(task)]}: fall when shown another product's picture",
            RELIANCE,
            at_least=limits.min_picture_reliance,
        ),
        *(
            _rule(
                f"beats_{who.removeprefix('baseline:')}_on_{field}",
                f"{titles[metric]}: better than {_opponent(who)}",
                metric,
                against=who,
            )
            for who in opponents
            for field, metric, _, _ in required
        ),
        _rule("keeps_parse_rate", f"{titles[PARSE_RATE]}: no worse than the champion", PARSE_RATE, **margin),
        *(
            _rule(f"keeps_{field}", f"{titles[metric]}: no worse than the champion", metric, **margin)
            for field, metric, _, _ in required
        ),
    )


def _required(task: Task) -> Iterator[tuple[str, str, float | str, str]]:
    """Yield field, metric, limit and ``at_least`` or ``at_most`` of each requirement of the task's fields."""
    metrics = metrics_of(task)
    for field, kind in task.fields.items():
        for requirement in kind.requirements:
            metric = f"{field}.{requirement.metric}"
            bound = "at_most" if metrics[metric].lower_is_better else "at_least"
            yield field, metric, requirement.limit, bound


def _limit(limits: GateParameters, limit: float | str, bound: str) -> dict[str, float]:
    return {bound: getattr(limits, limit) if isinstance(limit, str) else limit}


def _opponent(name: str) -> str:
    return "the base" if name == "base" else name.removeprefix("baseline:").replace("_", " ")


def _rule(name: str, description: str, metric: str, **limit: Any) -> RuleSpec:
    values = {"name": name, "description": description, "metric": metric, "min_samples": 1, **limit}
    return RuleSpec.model_validate(values)


@dataclass(frozen=True)
class Judgement:
    """A verdict, its reason, and each rule's result."""

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
    """Judge a model by all conditions and rules. It passes if there are rules and all of them hold."""
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
    """Return a failed rule's name and reason, without repeating the name."""
    says_it = result.reason.startswith(f"{result.name} ")
    return result.reason if says_it else f"{result.name} ({result.reason})"


def judge_base(evidence: Evidence, rules: Sequence[RuleSpec], resamples: int = RESAMPLES) -> Judgement:
    """Judge the base as if it were to be deployed. If it passes, the rules require nothing of a model.

    Comparisons with the base and the champion are left out.
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

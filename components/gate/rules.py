"""The gate's rules, and the judgement that follows from them. Pure: no files, no network.

Whatever is missing, not finite or not comparable refuses. Every rule is looked at, also after one has failed,
and the verdict does not depend on their order.
"""

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from fovea.records import EvaluationRecord, RuleResult
from fovea.steps import plain_line

Comparison = Literal[">=", "<=", ">", "<"]

_COMPARE: dict[Comparison, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


class Limits(BaseModel):
    """What a model must reach. Accuracies, rates and errors are fractions."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    min_samples: int = Field(default=200, ge=1)
    min_parse_rate: float = Field(default=0.98, ge=0, le=1)
    min_category_accuracy: float = Field(default=0.90, ge=0, le=1)
    max_price_median_ape: float = Field(default=0.15, ge=0)
    min_picture_reliance: float = Field(default=0.30, ge=0, le=1)


def _picture_reliance(evaluation: EvaluationRecord) -> float | None:
    if evaluation.shuffled is None:
        return None
    return evaluation.metrics.category_accuracy - evaluation.shuffled.category_accuracy


FIGURES: dict[str, Callable[[EvaluationRecord], float | None]] = {
    "samples": lambda evaluation: evaluation.metrics.samples,
    "parse_rate": lambda evaluation: evaluation.metrics.parse_rate,
    "category_accuracy": lambda evaluation: evaluation.metrics.category_accuracy,
    "price_median_ape": lambda evaluation: evaluation.metrics.price_median_ape,
    "picture_reliance": _picture_reliance,
    "gain_over_majority": lambda evaluation: (
        evaluation.metrics.category_accuracy - evaluation.chance_category_accuracy
    ),
}
"""What a rule can look at, by name."""


@dataclass(frozen=True)
class Evidence:
    """What a model is judged by. What could not be read is None, and ``unreadable`` says why."""

    candidate: EvaluationRecord | None
    base: EvaluationRecord | None
    model_digest: str | None
    """The model that would be deployed."""
    base_digest: str | None
    """The model it was tuned from."""
    unreadable: tuple[str, ...] = ()


@dataclass(frozen=True)
class FigureRule:
    """A figure of the candidate against a limit, or (``limit`` None) against the base's same figure."""

    name: str
    description: str
    figure: str
    comparison: Comparison
    limit: float | None = None

    def apply(self, evidence: Evidence) -> RuleResult:
        """Return what the rule says. A figure that is missing or not finite fails it."""
        value, why = _figure(self.figure, evidence.candidate)
        limit = self.limit
        if limit is None:
            limit, base_why = _figure(self.figure, evidence.base)
            why = why or (base_why and f"{base_why} for the base")
        elif not math.isfinite(limit):
            limit, why = None, why or f"the limit on {self.figure} is not a finite number"
        holds = value is not None and limit is not None and _COMPARE[self.comparison](value, limit)
        if value is not None and limit is not None:
            why = f"{self.figure} is {value:.4g}, {'as' if holds else 'not'} {self.comparison} {limit:.4g}"
        return RuleResult(
            name=self.name,
            description=self.description,
            value=value,
            comparison=self.comparison,
            limit=limit,
            passed=holds,
            reason=why,
        )


@dataclass(frozen=True)
class CheckRule:
    """A condition on the evidence itself: ``wrong`` returns what is wrong with it, or an empty string."""

    name: str
    description: str
    wrong: Callable[[Evidence], str]

    def apply(self, evidence: Evidence) -> RuleResult:
        """Return what the rule says: the value is 1 where the condition holds, else 0."""
        try:
            wrong = self.wrong(evidence)
        except AttributeError as error:  # a record that was built without validation
            wrong = f"a record is incomplete: {error}"
        return RuleResult(
            name=self.name,
            description=self.description,
            value=0.0 if wrong else 1.0,
            comparison=">=",
            limit=1.0,
            passed=not wrong,
            reason=wrong or "holds",
        )


Rule = FigureRule | CheckRule

# How many failed rules a reason names; the decision holds them all.
_NAMED = 4


def _figure(name: str, evaluation: EvaluationRecord | None) -> tuple[float | None, str]:
    """Return a finite figure, or None and why there is none."""
    if evaluation is None:
        return None, f"{name} is missing: there is no evaluation"
    try:
        value = FIGURES[name](evaluation)
    except (AttributeError, TypeError):  # a record that was built without validation
        value = None
    if value is None:
        return None, f"{name} is missing"
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None, f"{name} is not a finite number"
    return float(value), ""


def _unreadable(evidence: Evidence) -> str:
    missing = [
        f"there is no {what}"
        for what, record in (
            ("evaluation of the model", evidence.candidate),
            ("evaluation of the base", evidence.base),
            ("model", evidence.model_digest),
        )
        if record is None
    ]
    return "; ".join(evidence.unreadable or missing)


def _incomparable(evidence: Evidence) -> str:
    candidate, base = evidence.candidate, evidence.base
    if candidate is None or base is None:
        return "there are no two evaluations to compare"
    pairs = {
        "dataset": (candidate.dataset_digest, base.dataset_digest),
        "task": (candidate.task_digest, base.task_digest),
        "split": (candidate.split, base.split),
        "generation parameters": (candidate.generation, base.generation),
        "number of samples": (candidate.metrics.samples, base.metrics.samples),
        "number of products": (candidate.metrics.products, base.metrics.products),
        "version of the evaluation": (candidate.step_version, base.step_version),
    }
    differing = [what for what, (one, other) in pairs.items() if one != other]
    return f"model and base were evaluated with a different {', '.join(differing)}" if differing else ""


def _another_model(evidence: Evidence) -> str:
    if evidence.candidate is None or evidence.model_digest is None:
        return "it cannot be said which model was evaluated"
    if evidence.candidate.model_digest != evidence.model_digest:
        return "the evaluation is of another model than the one to deploy"
    return ""


def _another_base(evidence: Evidence) -> str:
    if evidence.base is None or evidence.base_digest is None:
        return "it cannot be said what the model was tuned from"
    if evidence.base.model_digest != evidence.base_digest:
        return "the evaluation to compare with is not of the model this one was tuned from"
    return ""


def _is_the_base(evidence: Evidence) -> str:
    known = {evidence.base_digest, evidence.base.model_digest if evidence.base else None}
    if evidence.model_digest is None or evidence.model_digest in known:
        return "the model is the base itself"
    return ""


CHECKS = (
    CheckRule("records_readable", "Both evaluations and the model can be read", _unreadable),
    CheckRule("evaluated_this_model", "The evaluation is of the model to deploy", _another_model),
    CheckRule("compared_with_its_base", "The comparison is with the model it was tuned from", _another_base),
    CheckRule("differs_from_base", "The model is not the base itself", _is_the_base),
    CheckRule("comparable", "Same data, task, split, generation and sample on both sides", _incomparable),
)
"""The conditions that hold for every judgement; no limit loosens them."""


def default_rules(limits: Limits) -> tuple[Rule, ...]:
    """Return the rules of the product catalogue's task."""
    return (
        *CHECKS,
        FigureRule("samples", "Enough rows that it never saw", "samples", ">=", limits.min_samples),
        FigureRule("parse_rate", "Answers that can be read", "parse_rate", ">=", limits.min_parse_rate),
        FigureRule(
            "category_accuracy", "Right categories", "category_accuracy", ">=", limits.min_category_accuracy
        ),
        FigureRule(
            "price_error", "Median price error", "price_median_ape", "<=", limits.max_price_median_ape
        ),
        FigureRule(
            "picture_reliance",
            "Fall in category accuracy when shown another product's picture",
            "picture_reliance",
            ">=",
            limits.min_picture_reliance,
        ),
        FigureRule(
            "beats_majority",
            "Gain in category accuracy over always naming the most frequent one",
            "gain_over_majority",
            ">",
            0.0,
        ),
        FigureRule("beats_base_on_category", "More right categories than the base", "category_accuracy", ">"),
        FigureRule(
            "beats_base_on_price", "Smaller median price error than the base", "price_median_ape", "<"
        ),
    )


@dataclass(frozen=True)
class Judgement:
    """A verdict, why, and what each rule said."""

    passed: bool
    reason: str
    """One plain line without quotes."""
    rules: tuple[RuleResult, ...]


def judge(evidence: Evidence, rules: Sequence[Rule]) -> Judgement:
    """Judge a model by every rule; it passes if there are rules and all of them hold."""
    results = tuple(rule.apply(evidence) for rule in rules)
    failed = [f"{result.name} ({result.reason})" for result in results if not result.passed]
    passed = bool(results) and not failed
    if passed:
        reason = f"passed: all {len(results)} rules hold"
    else:
        more = [f"and {len(failed) - _NAMED} more rules"] if len(failed) > _NAMED else []
        reason = "refused: " + ("; ".join(failed[:_NAMED] + more) or "there are no rules")
    return Judgement(passed, plain_line(reason), results)


def judge_base(base: EvaluationRecord, rules: Sequence[Rule]) -> Judgement:
    """Judge the base as if it were to be deployed: rules that do not refuse it ask for nothing.

    Those that compare with the base are left out: they would refuse it whatever it answers.
    """
    rules = [
        rule
        for rule in rules
        if rule.name != "differs_from_base" and not (isinstance(rule, FigureRule) and rule.limit is None)
    ]
    evidence = Evidence(
        candidate=base, base=base, model_digest=base.model_digest, base_digest=base.model_digest
    )
    return judge(evidence, rules)

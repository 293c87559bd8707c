"""The gate's conditions on its evidence, checked in every judgement. Pure functions: no files."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from components.gate.evidence import SHUFFLED, Evidence, RefusedError, finite, outcomes_of
from fovea.evaluation.baselines import baselines_of
from fovea.evaluation.metrics import figure, metrics_of
from fovea.evaluation.outcomes import CHALLENGER
from fovea.records import AbsentRecord, EvaluationRecord, RuleResult

_ROUNDING = 1e-9


@dataclass(frozen=True)
class CheckRule:
    """A condition on the evidence. ``wrong`` returns what is wrong, or an empty string."""

    name: str
    description: str
    wrong: Callable[[Evidence], str]

    def apply(self, evidence: Evidence) -> RuleResult:
        """Return the rule's result: the value is 1 where the condition holds, else 0."""
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


def _unreadable(evidence: Evidence) -> str:
    missing = [
        f"there is no {what}"
        for what, record in (
            ("evaluation of the model", evidence.challenger),
            ("evaluation of the base", evidence.base),
            ("evaluation of the champion, nor word that there is no champion", evidence.champion),
            ("model", evidence.model_digest),
        )
        if record is None
    ]
    return "; ".join(evidence.unreadable or missing)


def _incomparable(evidence: Evidence) -> str:
    challenger = evidence.challenger
    others = {"base": evidence.base}
    if not isinstance(evidence.champion, AbsentRecord):
        others["champion"] = evidence.champion
    found = []
    for name, other in others.items():
        if challenger is None or other is None:
            return "there are no evaluations to compare"
        differing = _differing(challenger, other)
        if differing:
            found.append(f"model and {name} were evaluated with a different {', '.join(differing)}")
    return "; ".join(found)


def _differing(one: EvaluationRecord, other: EvaluationRecord) -> list[str]:
    pairs = {
        "dataset": (one.dataset_digest, other.dataset_digest),
        "task": (one.task_digest, other.task_digest),
        "split": (one.split, other.split),
        "generation parameters": (one.generation, other.generation),
        "number of samples": (one.metrics.samples, other.metrics.samples),
        "number of product groups": (one.metrics.groups, other.metrics.groups),
        "version of the evaluation": (one.step_version, other.step_version),
    }
    return [what for what, (left, right) in pairs.items() if left != right]


def _disagreeing(evidence: Evidence) -> str:
    """Return which figure is missing, not finite, or different from that of its predictions."""
    try:
        task = outcomes_of(evidence, CHALLENGER).task
        names = [CHALLENGER, SHUFFLED, "base", *(f"baseline:{name}" for name in baselines_of(task))]
        if not isinstance(evidence.champion, AbsentRecord):
            names.append("champion")
        for name in names:
            _check_figures(evidence, name)
    except RefusedError as error:
        return str(error)
    return ""


def _check_figures(evidence: Evidence, who: str) -> None:
    metrics, outcomes = evidence.metrics(who), outcomes_of(evidence, who)
    for metric in metrics_of(outcomes.task):
        what = f"{metric} of {who}"
        recorded = metrics.figures.get(metric) if metrics else None
        interval = metrics.intervals.get(metric) if metrics else None
        if recorded is None or interval is None:
            raise RefusedError(f"{what if recorded is None else f'the interval of {what}'} is missing")
        found = figure(outcomes, metric)
        if not math.isclose(found, finite(recorded, what), rel_tol=_ROUNDING, abs_tol=_ROUNDING):
            raise RefusedError(f"{what} is {recorded:.6g} in the record and {found:.6g} in its predictions")
        for end in (interval.low, interval.high):
            finite(end, f"the interval of {what}")


def _another_model(evidence: Evidence) -> str:
    if evidence.challenger is None or evidence.model_digest is None:
        return "it cannot be said which model was evaluated"
    if evidence.challenger.model_digest != evidence.model_digest:
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


def _is_the_champion(evidence: Evidence) -> str:
    if evidence.champion is None:
        return "it cannot be said what the champion is"
    if isinstance(evidence.champion, EvaluationRecord) and (
        evidence.model_digest is None or evidence.model_digest == evidence.champion.model_digest
    ):
        return "the model is the champion already"
    return ""


CHECKS = (
    CheckRule("records_readable", "The evaluations and the model can be read", _unreadable),
    CheckRule("evaluated_this_model", "The evaluation is of the model to deploy", _another_model),
    CheckRule("compared_with_its_base", "The comparison is with the model it was tuned from", _another_base),
    CheckRule("differs_from_base", "The model is not the base itself", _is_the_base),
    CheckRule("differs_from_champion", "The model is not the champion itself", _is_the_champion),
    CheckRule("comparable", "Same data, task, split, generation and sample on all sides", _incomparable),
    CheckRule("figures_agree", "Every figure is there, and is what its predictions come to", _disagreeing),
)
"""The conditions of every judgement, `parameters.CONDITIONS`; no limit relaxes them."""

"""The gate's step: read the evaluations, judge, and record the decision in S3, MLflow and the KFP UI.

In the Markdown for KFP and MLflow, every value from a record is escaped.
"""

import html
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from components.gate.evidence import gather
from components.gate.parameters import GateParameters, RuleSpec, read_rules
from components.gate.rules import Judgement, default_rules, judge, judge_base
from fovea import tracking
from fovea.evaluation.text import interval_text, rule_limit, rule_value
from fovea.parameters import parse_parameters
from fovea.records import Decision, MlflowReference, RuleResult, StepInputs, write_record
from fovea.steps import RunContext, reporting_failure, run_step
from fovea.storage import Storage
from fovea.task import Task

STEP = "gate"
VERSION = 3

logger = logging.getLogger("fovea")


class Verdict(NamedTuple):
    """The outputs of the task."""

    passed: bool
    reason: str


def gate_step(
    *,
    base_record: str | Path,
    challenger_record: str | Path,
    champion_record: str | Path,
    model_record: str | Path,
    decision_record: str | Path,
    report: str | Path,
    artifact_root: str,
    run_id: str,
    parameters: Mapping[str, Any],
) -> Verdict:
    """Decide whether the challenger may be deployed. A refusal is a verdict, not an exception.

    Args:
        base_record: File with the base's EvaluationRecord.
        challenger_record: File with the challenger's EvaluationRecord.
        champion_record: File with the champion's EvaluationRecord, or with the AbsentRecord that says why
            there is none.
        model_record: File with the challenger's ModelRecord.
        decision_record: Where the Decision goes; nothing is written if the model's record cannot be read,
            since there is then no model to decide on.
        report: Where the decision goes as Markdown.
        artifact_root: ``s3://bucket/prefix`` of payloads and records.
        run_id: The run, which is part of the input key: a decision is never reused.
        parameters: Fields of `GateParameters`.

    Raises:
        UserError: a limit or rule is not allowed, or S3 cannot be reached.
    """
    context, storage = RunContext(artifact_root=artifact_root, run_id=run_id), Storage()
    with reporting_failure(STEP, context, storage):
        asked = parse_parameters(GateParameters, parameters)
        evidence, model, records = gather(
            base=base_record,
            challenger=challenger_record,
            champion=champion_record,
            model=model_record,
            storage=storage,
        )
        rules = _rules(asked, model.task if model else None, storage)
        judgement, of_base = judge(evidence, rules), judge_base(evidence, rules)
        parents = {name: record.digest for name, record in records.items()}
        text = markdown(judgement, of_base, parents)
        _write(report, text)
        if model is not None:
            inputs = StepInputs(
                step=STEP,
                version=VERSION,
                parameters={
                    **asked.in_result(),
                    "rules": [rule.model_dump() for rule in rules],
                    "run_id": run_id,
                },
                parents=parents,
            )
            decision = run_step(
                Decision,
                inputs,
                context,
                work=lambda _: {"model_digest": model.digest, **_fields(judgement, of_base)},
                storage=storage,
            )
            write_record(decision, decision_record)
            _track(model.mlflow, decision, text, [Path(decision_record), Path(report)])
    logger.info("gate: %s", judgement.reason)
    return Verdict(judgement.passed, judgement.reason)


def _rules(asked: GateParameters, task: Task | None, storage: Storage) -> tuple[RuleSpec, ...]:
    """Return the rules to apply; without a task there are none, and the gate refuses."""
    given = read_rules(asked.gate_rules, storage)
    return given.check(task).with_defaults(default_rules(asked, task)) if task else ()


def _fields(judgement: Judgement, of_base: Judgement) -> dict[str, object]:
    return {
        "passed": judgement.passed,
        "reason": judgement.reason,
        "rules": judgement.rules,
        "base_passed": of_base.passed,
        "base_reason": of_base.reason,
    }


def _track(reference: MlflowReference | None, decision: Decision, text: str, files: list[Path]) -> None:
    """Record the decision in MLflow: on the model's version, and as files of its run."""
    tracking.tag_model_version(reference, _tags(decision), description=text)
    run = tracking.Run.of(reference)
    for path in files:
        run.log_file(path, STEP)


def _tags(decision: Decision) -> dict[str, str]:
    refused = [rule.name for rule in decision.rules if not rule.passed]
    return {
        "fovea.gate": "passed" if decision.passed else "refused",
        "fovea.gate_reason": decision.reason,
        "fovea.gate_refused_by": ", ".join(refused)[:_TAG_CHARACTERS],
        "fovea.decision": decision.digest,
        "fovea.decision_run": decision.run_id,
        "fovea.evaluation": decision.parents.get("challenger", ""),
    }


# MLflow refuses longer tags.
_TAG_CHARACTERS = 5000


def _write(path: str | Path, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)


_MARKDOWN = str.maketrans({character: f"\\{character}" for character in "\\`*_{}[]()#+-!|~:@"})


def escape(text: str) -> str:
    """Return ``text`` escaped for Markdown, on one line."""
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
        interval_text(rule.interval, rule.unit),
        rule_limit(rule),
        "" if rule.samples is None else str(rule.samples),
        f"{rule_value(base)} {_mark(base.passed)}" if base else "",
        escape(rule.reason),
    )
    return f"| {' | '.join(cells)} |"


def _mark(passed: bool) -> str:
    return "✓" if passed else "✗"

"""The gate's work: read the evaluations, judge, and write the decision down wherever people look for it."""

import logging
from pathlib import Path
from typing import NamedTuple

from components.gate.evidence import gather
from components.gate.report import markdown
from components.gate.rules import Judgement, Limits, default_rules, judge, judge_base
from components.gate_rules import read_rules
from fovea import tracking
from fovea.records import Decision, MlflowReference, write_record
from fovea.steps import RunContext, parse_parameters, reporting_failure, run_step
from fovea.storage import Storage

STEP = "gate"
VERSION = 3

logger = logging.getLogger("fovea")


class Verdict(NamedTuple):
    """What the pipeline goes on with."""

    passed: bool
    reason: str


def gate_step(
    *,
    base_record: str | Path,
    tuned_record: str | Path,
    champion_record: str | Path,
    model_record: str | Path,
    decision_record: str | Path,
    report: str | Path,
    artifact_root: str,
    run_id: str,
    gate_rules: str = "",
    **limits: float,
) -> Verdict:
    """Decide whether the tuned model may be deployed. A refusal is a verdict, not an exception.

    Args:
        base_record: File with the base's EvaluationRecord.
        tuned_record: File with the tuned model's EvaluationRecord.
        champion_record: File with the champion's EvaluationRecord, or with the AbsentRecord that says why
            there is none.
        model_record: File with the tuned model's ModelRecord.
        decision_record: Where the Decision goes; nothing is written if the model's record cannot be read,
            since there is then no model to decide on.
        report: Where the decision goes as Markdown.
        artifact_root: ``s3://bucket/prefix`` of payloads and records.
        run_id: The run, which is part of the decision's input key: every run decides for itself.
        gate_rules: YAML of further rules, or its ``s3://…`` URI (`components.gate_rules`).
        **limits: Fields of `Limits`.

    Raises:
        UserError: a limit or rule is not allowed, or S3 cannot be reached.
    """
    context, storage = RunContext(artifact_root=artifact_root, run_id=run_id), Storage()
    with reporting_failure(STEP, context, storage):
        asked = parse_parameters(Limits, limits)
        rules = read_rules(gate_rules, storage).with_defaults(default_rules(asked))
        evidence, model, records = gather(
            base=base_record,
            tuned=tuned_record,
            champion=champion_record,
            model=model_record,
            storage=storage,
        )
        judgement, of_base = judge(evidence, rules), judge_base(evidence, rules)
        parents = {name: record.digest for name, record in records.items()}
        text = markdown(judgement, of_base, parents)
        _write(report, text)
        if model is not None:
            decision = run_step(
                Decision,
                step=STEP,
                version=VERSION,
                context=context,
                parameters={
                    **asked.model_dump(),
                    "rules": [rule.model_dump() for rule in rules],
                    "run_id": run_id,
                },
                parents=parents,
                work=lambda _: {"model_digest": model.digest, **_fields(judgement, of_base)},
                storage=storage,
            )
            write_record(decision, decision_record)
            _track(model.mlflow, decision, text, [Path(decision_record), Path(report)])
    logger.info("gate: %s", judgement.reason)
    return Verdict(judgement.passed, judgement.reason)


def _fields(judgement: Judgement, of_base: Judgement) -> dict[str, object]:
    return {
        "passed": judgement.passed,
        "reason": judgement.reason,
        "rules": judgement.rules,
        "base_passed": of_base.passed,
        "base_reason": of_base.reason,
    }


def _track(reference: MlflowReference | None, decision: Decision, text: str, files: list[Path]) -> None:
    """Write the decision down in MLflow: on the model's version, and as files of its run."""
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
        "fovea.evaluation": decision.parents.get("tuned", ""),
    }


# MLflow refuses longer tags.
_TAG_CHARACTERS = 5000


def _write(path: str | Path, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)

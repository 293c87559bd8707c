"""The gate's work: read the evaluations, judge, and write the decision down wherever people look for it."""

import logging
from pathlib import Path
from typing import NamedTuple

from components.gate.report import markdown
from components.gate.rules import Evidence, Judgement, Limits, default_rules, judge, judge_base
from fovea import tracking
from fovea.errors import UserError
from fovea.records import Decision, EvaluationRecord, ModelRecord, R, read_record, write_record
from fovea.steps import RunContext, parse_parameters, plain_line, reporting_failure, run_step
from fovea.storage import Storage

STEP = "gate"
VERSION = 1

logger = logging.getLogger("fovea")


class Verdict(NamedTuple):
    """What the pipeline goes on with."""

    passed: bool
    reason: str


def gate_step(
    *,
    base_record: str | Path,
    tuned_record: str | Path,
    model_record: str | Path,
    decision_record: str | Path,
    report: str | Path,
    artifact_root: str,
    run_id: str,
    **limits: float,
) -> Verdict:
    """Decide whether the tuned model may be deployed. A refusal is a verdict, not an exception.

    Args:
        base_record: File with the base's EvaluationRecord.
        tuned_record: File with the tuned model's EvaluationRecord.
        model_record: File with the tuned model's ModelRecord.
        decision_record: Where the Decision goes; nothing is written if the model's record cannot be read,
            since there is then no model to decide on.
        report: Where the decision goes as Markdown.
        artifact_root: ``s3://bucket/prefix`` of payloads and records.
        run_id: The run, which is part of the decision's input key: every run decides for itself.
        **limits: Fields of `Limits`.

    Raises:
        UserError: a limit is not allowed, or S3 cannot be reached.
    """
    context, storage = RunContext(artifact_root=artifact_root, run_id=run_id), Storage()
    with reporting_failure(STEP, context, storage):
        asked = parse_parameters(Limits, limits)
        unreadable: list[str] = []
        base = _read(base_record, EvaluationRecord, "evaluation of the base", unreadable)
        tuned = _read(tuned_record, EvaluationRecord, "evaluation of the model", unreadable)
        model = _read(model_record, ModelRecord, "model", unreadable)
        evidence = Evidence(
            candidate=tuned,
            base=base,
            model_digest=model.digest if model else None,
            base_digest=model.base.digest if model and model.base else None,
            unreadable=tuple(unreadable),
        )
        rules = default_rules(asked)
        judgement = judge(evidence, rules)
        records = {"model": model, "tuned": tuned, "base": base}
        parents = {name: record.digest for name, record in records.items() if record is not None}
        _write(report, markdown(judgement, judge_base(base, rules) if base else None, parents))
        if model is not None:
            decision = run_step(
                Decision,
                step=STEP,
                version=VERSION,
                context=context,
                parameters={**asked.model_dump(), "run_id": run_id},
                parents=parents,
                work=lambda _: {"model_digest": model.digest, **_fields(judgement)},
                storage=storage,
            )
            write_record(decision, decision_record)
            tracking.tag_model_version(model.mlflow, _tags(decision))
    logger.info("gate: %s", judgement.reason)
    return Verdict(judgement.passed, judgement.reason)


def _read(path: str | Path, record_type: type[R], what: str, unreadable: list[str]) -> R | None:
    try:
        return read_record(path, record_type)
    except (UserError, ValueError) as error:  # ValueError: bytes that are no text
        unreadable.append(plain_line(f"{what}: {error}", length=300))
        return None


def _fields(judgement: Judgement) -> dict[str, object]:
    return {"passed": judgement.passed, "reason": judgement.reason, "rules": judgement.rules}


def _tags(decision: Decision) -> dict[str, str]:
    return {
        "fovea.gate": "passed" if decision.passed else "refused",
        "fovea.gate_reason": decision.reason,
        "fovea.decision": decision.digest,
        "fovea.decision_run": decision.run_id,
        "fovea.evaluation": decision.parents.get("tuned", ""),
    }


def _write(path: str | Path, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)

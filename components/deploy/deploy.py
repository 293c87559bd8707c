"""The deployment's work: refuse what did not pass, serve, verify, and only then write the deployment down."""

import hashlib
import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from components.deploy.local_server import LocalServer, ServerError
from components.deploy.parameters import Deployment, DeployParameters
from components.deploy.verify import (
    CHAT_PATH,
    PREDICT_PATH,
    Expectation,
    Verification,
    load_probes,
    verify,
)
from fovea import tracking
from fovea.progress import Progress
from fovea.records import (
    DatasetRecord,
    Decision,
    EvaluationRecord,
    ModelRecord,
    ModelReference,
    now,
    read_record,
)
from fovea.steps import RunContext, StepReport, parse_parameters, plain_line, reporting_failure
from fovea.storage import Storage, index_uri, join_uri
from fovea.task import Task

STEP = "deploy"
VERSION = 1

logger = logging.getLogger("fovea")


class Verdict(NamedTuple):
    """What the pipeline goes on with."""

    deployed: bool
    reason: str


def deployment_uri(artifact_root: str, service_name: str) -> str:
    """Return where the document of a service's deployment lies."""
    return join_uri(artifact_root, "deployments", f"{service_name}.json")


def deploy_step(
    *,
    model_record: str | Path,
    evaluation_record: str | Path,
    dataset_record: str | Path,
    decision_record: str | Path,
    deployment: str | Path,
    artifact_root: str,
    run_id: str,
    **parameters: Any,
) -> Verdict:
    """Deploy a model that the gate let pass. A refusal is a verdict, not an exception. Never cached.

    Args:
        model_record: file with the ModelRecord.
        evaluation_record: file with its EvaluationRecord.
        dataset_record: file with the DatasetRecord it was evaluated on.
        decision_record: file with the gate's Decision on it.
        deployment: where the `Deployment` goes, or the verdict where there is none.
        artifact_root: ``s3://bucket/prefix`` of payloads and records.
        run_id: the run.
        **parameters: fields of `DeployParameters`.

    Raises:
        UserError: a parameter is not allowed, a record cannot be read, or S3 cannot be reached.
    """
    context, storage = RunContext(artifact_root=artifact_root, run_id=run_id), Storage()
    started = time.monotonic()
    with reporting_failure(STEP, context, storage):
        asked: DeployParameters = parse_parameters(DeployParameters, parameters)
        candidate = Candidate(
            model=read_record(model_record, ModelRecord),
            evaluation=read_record(evaluation_record, EvaluationRecord),
            dataset=read_record(dataset_record, DatasetRecord),
            decision=read_record(decision_record, Decision),
        )
        reason = candidate.refusal()
        found = (
            Verification(False, reason)
            if reason
            else _serve_and_verify(candidate, asked, artifact_root, storage)
        )
        verdict = Verdict(found.passed, plain_line(found.reason))
        Path(deployment).parent.mkdir(parents=True, exist_ok=True)
        if verdict.deployed:
            document = _document(candidate, asked, context, found)
            text = document.model_dump_json(indent=2) + "\n"
            uri = deployment_uri(artifact_root, asked.service_name)
            storage.write_bytes(uri, text.encode())
            tracking.tag_model_version(candidate.model.mlflow, _tags(document), alias="champion")
        else:
            text, uri = json.dumps(verdict._asdict(), indent=2) + "\n", ""
        Path(deployment).write_text(text)
        report = StepReport(
            task=STEP,
            step=STEP,
            seconds=round(time.monotonic() - started, 2),
            reused=False,
            digest="sha256:" + hashlib.sha256(text.encode()).hexdigest(),
            record_uri=uri,
        )
        storage.write_bytes(context.run_uri(f"{STEP}.json"), report.model_dump_json().encode())
    logger.info("deploy: %s", verdict.reason)
    return verdict


@dataclass(frozen=True)
class Candidate:
    """A model to deploy, and what speaks for it."""

    model: ModelRecord
    evaluation: EvaluationRecord
    dataset: DatasetRecord
    decision: Decision

    @property
    def task(self) -> Task:
        """What the model is asked."""
        return self.model.task or self.dataset.task

    def refusal(self) -> str | None:
        """Return why the model may not be deployed, or None. The records must all speak of one another."""
        model, evaluation, decision = self.model, self.evaluation, self.decision
        checks = (
            (decision.passed, f"the gate refused the model: {decision.reason}"),
            (decision.model_digest == model.digest, "the decision is on another model"),
            (evaluation.model_digest == model.digest, "the evaluation is of another model"),
            (evaluation.digest in decision.parents.values(), "the decision rests on another evaluation"),
            (evaluation.dataset_digest == self.dataset.digest, "the evaluation used another dataset"),
            (evaluation.task_digest == self.task.digest, "the evaluation asked another task"),
            (evaluation.generation.num_crops == model.num_crops, "the evaluation used other num_crops"),
        )
        return next((reason for holds, reason in checks if not holds), None)


def _serve_and_verify(
    candidate: Candidate, asked: DeployParameters, artifact_root: str, storage: Storage
) -> Verification:
    deadline = time.monotonic() + asked.timeout_seconds
    generation = candidate.evaluation.generation
    probes = load_probes(storage, candidate.dataset, candidate.evaluation, asked.probes)
    expected = Expectation(
        name=asked.service_name,
        model_digest=candidate.model.digest,
        task=candidate.task,
        max_new_tokens=generation.max_new_tokens,
        dtype=generation.dtype,
    )
    server = LocalServer(
        model_uri=_record_uri(candidate.model, artifact_root),
        name=asked.service_name,
        port=asked.port,
        dtype=generation.dtype,
    )
    try:
        with server.running(asked.timeout_seconds) as address:
            timeout = max(1.0, deadline - time.monotonic())
            logger.info("deploy: asking %s about %d held-out pictures", address, len(probes))
            # Proxies of the environment are for the outside.
            with httpx.Client(base_url=address, timeout=timeout, trust_env=False) as client:
                return verify(client, probes, expected, Progress(logger, "deploy: asking"))
    except ServerError as error:
        return Verification(False, str(error))


def _record_uri(model: ModelRecord, artifact_root: str) -> str:
    return index_uri(artifact_root, model.step, model.input_key)


def _document(
    candidate: Candidate, asked: DeployParameters, context: RunContext, found: Verification
) -> Deployment:
    assert found.example is not None  # noqa: S101 - there is one whenever the verification passed
    model = candidate.model
    return Deployment(
        service=asked.service_name,
        target=asked.target,
        model=ModelReference(digest=model.digest, record_uri=_record_uri(model, context.artifact_root)),
        decision_digest=candidate.decision.digest,
        evaluation_digest=candidate.evaluation.digest,
        dtype=candidate.evaluation.generation.dtype,
        probes=found.asked,
        agreed=found.agreed,
        example=found.example,
        predict_path=PREDICT_PATH.format(name=asked.service_name),
        chat_path=CHAT_PATH,
        verified_at=now(),
        run_id=context.run_id,
    )


def _tags(document: Deployment) -> dict[str, str]:
    return {
        "fovea.deployed": document.service,
        "fovea.deployed_at": document.verified_at.isoformat(),
        "fovea.deployed_by_run": document.run_id,
    }

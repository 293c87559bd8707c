"""The deployment's work: refuse what did not pass, serve, verify, and only then write the deployment down."""

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from components.deploy.candidate import Candidate
from components.deploy.history import deployment_uri, present_deployment, write_deployment
from components.deploy.parameters import Deployment, DeployParameters
from components.deploy.targets.local import LocalServer, ServerError
from components.deploy.verification import (
    CHAT_PATH,
    PREDICT_PATH,
    Expectation,
    Outcome,
    Verification,
    load_probes,
    verify,
)
from fovea import tracking
from fovea.champion import ALIAS
from fovea.errors import UserError
from fovea.parameters import parse_parameters
from fovea.progress import Progress
from fovea.records import ModelReference
from fovea.steps import RunContext, StepReport, reporting_failure
from fovea.storage import Storage
from fovea.text import plain_line

__all__ = ["Verdict", "deploy", "deploy_step", "deployment_uri"]

STEP = "deploy"
VERSION = 1

logger = logging.getLogger("fovea")


class Verdict(NamedTuple):
    """What the pipeline goes on with."""

    deployed: bool
    reason: str


def deploy_step(
    *,
    model_record: str | Path,
    evaluation_record: str | Path,
    dataset_record: str | Path,
    decision_record: str | Path,
    deployment: str | Path,
    artifact_root: str,
    run_id: str,
    parameters: Mapping[str, Any],
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
        parameters: fields of `DeployParameters`.

    Raises:
        UserError: a parameter is not allowed, a record cannot be read, or S3 cannot be reached.
    """
    context, storage = RunContext(artifact_root=artifact_root, run_id=run_id), Storage()
    started = time.monotonic()
    with reporting_failure(STEP, context, storage):
        asked = parse_parameters(DeployParameters, parameters)
        candidate = Candidate.from_files(
            {
                "model": model_record,
                "evaluation": evaluation_record,
                "dataset": dataset_record,
                "decision": decision_record,
            }
        )
        verdict, document = deploy(candidate, asked, context, storage)
        Path(deployment).parent.mkdir(parents=True, exist_ok=True)
        if document is not None:
            text = document.model_dump_json(indent=2) + "\n"
        else:
            text = json.dumps(verdict._asdict(), indent=2) + "\n"
        Path(deployment).write_text(text)
        report = StepReport(
            task=STEP,
            step=STEP,
            seconds=round(time.monotonic() - started, 2),
            reused=False,
            digest="sha256:" + hashlib.sha256(text.encode()).hexdigest(),
            record_uri=deployment_uri(artifact_root, asked.service_name) if document else "",
        )
        storage.write_bytes(context.run_uri(f"{STEP}.json"), report.model_dump_json().encode())
    return verdict


def deploy(
    candidate: Candidate,
    asked: DeployParameters,
    context: RunContext,
    storage: Storage,
    decided_at: datetime | None = None,
) -> tuple[Verdict, Deployment | None]:
    """Serve a candidate, verify it, and only then make it known: in S3, and as MLflow's champion.

    Args:
        candidate: the model with its records.
        asked: where and how.
        context: the run that deploys, and the artifact root.
        storage: S3.
        decided_at: when it was decided to deploy it; by default, when the gate did.

    Returns:
        The verdict, and the document of the deployment where there is one.

    Raises:
        UserError: the held-out pictures cannot be read, or S3 cannot be reached.
    """
    reason = candidate.refusal()
    if reason:
        outcome = Outcome(Verification(False, reason))
    elif asked.deploy_target == "kserve":
        outcome, asked = _on_kserve(candidate, asked, context, storage, decided_at)
    else:
        outcome = Outcome(_on_this_machine(candidate, asked, context.artifact_root, storage))
    verdict = Verdict(outcome.verification.passed, plain_line(outcome.verification.reason))
    logger.info("deploy: %s", verdict.reason)
    if not verdict.deployed:
        return verdict, None
    document = _document(candidate, asked, context, outcome)
    write_deployment(storage, context.artifact_root, document)
    tracking.tag_model_version(candidate.model.mlflow, _tags(document), alias=ALIAS)
    return verdict, document


def _on_kserve(
    candidate: Candidate,
    asked: DeployParameters,
    context: RunContext,
    storage: Storage,
    decided_at: datetime | None,
) -> tuple[Outcome, DeployParameters]:
    """Roll out on KServe; return the outcome, and the parameters with the namespace that was meant."""
    # The Kubernetes client takes a second to import, which a local run need not wait for.
    from components.deploy.targets.cluster import Cluster
    from components.deploy.targets.kserve import KServeTarget

    try:
        cluster = Cluster.connect(asked.kserve.namespace)
    except UserError as error:
        return Outcome(Verification(False, str(error))), asked
    target = KServeTarget(
        cluster=cluster,
        run_id=context.run_id,
        decided_at=decided_at or candidate.decision.created_at,
        previous=present_deployment(storage, context.artifact_root, asked.service_name),
    )
    settings = asked.kserve.model_copy(update={"namespace": cluster.namespace})
    return (
        target.deploy(candidate, asked, context.artifact_root, storage),
        asked.model_copy(update={"kserve": settings}),
    )


def _on_this_machine(
    candidate: Candidate, asked: DeployParameters, artifact_root: str, storage: Storage
) -> Verification:
    deadline = time.monotonic() + asked.deploy_timeout_seconds
    generation = candidate.evaluation.generation
    probes = load_probes(storage, candidate.dataset, candidate.evaluation, asked.deploy_probes)
    expected = Expectation(
        name=asked.service_name,
        model_digest=candidate.model.digest,
        task=candidate.task,
        max_new_tokens=generation.max_new_tokens,
        dtype=generation.dtype,
        calibration=candidate.calibration,
    )
    server = LocalServer(
        model_uri=candidate.record_uris(artifact_root)["model"],
        name=asked.service_name,
        port=asked.deploy_port,
        dtype=generation.dtype,
        evaluation_uri=candidate.calibration_uri(artifact_root),
    )
    try:
        with server.running(asked.deploy_timeout_seconds) as address:
            timeout = max(1.0, deadline - time.monotonic())
            logger.info("deploy: asking %s about %d held-out pictures", address, len(probes))
            # Proxies of the environment are for the outside.
            with httpx.Client(base_url=address, timeout=timeout, trust_env=False) as client:
                return verify(client, probes, expected, Progress(logger, "deploy: asking"))
    except ServerError as error:
        return Verification(False, str(error))


def _document(
    candidate: Candidate, asked: DeployParameters, context: RunContext, outcome: Outcome
) -> Deployment:
    found, model = outcome.verification, candidate.model
    assert found.example is not None  # noqa: S101 - there is one whenever the verification passed
    records = candidate.record_uris(context.artifact_root)
    return Deployment(
        service=asked.service_name,
        target=asked.deploy_target,
        model=ModelReference(digest=model.digest, record_uri=records["model"]),
        decision_digest=candidate.decision.digest,
        evaluation_digest=candidate.evaluation.digest,
        calibration_digest=candidate.calibration.digest if candidate.calibration else "",
        dtype=candidate.evaluation.generation.dtype,
        probes=found.asked,
        agreed=found.agreed,
        example=found.example,
        predict_path=PREDICT_PATH.format(name=asked.service_name),
        chat_path=CHAT_PATH,
        # Not to the second: of two deployments the later one must be known.
        verified_at=datetime.now(UTC),
        run_id=context.run_id,
        records=records,
        parameters=asked,
        rollout=outcome.kind,
        namespace=asked.kserve.namespace if asked.deploy_target == "kserve" else "",
        inference_service=outcome.manifest,
    )


def _tags(document: Deployment) -> dict[str, str]:
    return {
        "fovea.deployed": document.service,
        "fovea.deployed_at": document.verified_at.isoformat(),
        "fovea.deployed_by_run": document.run_id,
        "fovea.evaluation": document.evaluation_digest,
        "fovea.decision": document.decision_digest,
    }

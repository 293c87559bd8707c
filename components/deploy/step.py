"""The deploy step: refuse what the gate did not pass, deploy to the target, then commit the document."""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from components.deploy.history import deployment_uri, write_deployment
from components.deploy.parameters import Deployment, DeployParameters
from components.deploy.release import Release
from components.deploy.targets.local import LocalTarget
from components.deploy.targets.target import RolloutOutcome, Target
from components.deploy.verification import CHAT_PATH, PREDICT_PATH, Verification
from fovea import tracking
from fovea.champion import ALIAS
from fovea.parameters import parse_parameters
from fovea.records import ModelReference
from fovea.steps import RunContext, StepReport, reporting_failure
from fovea.storage import Storage
from fovea.text import plain_line

__all__ = ["Verdict", "deploy", "deploy_step", "deployment_uri"]

STEP = "deploy"
VERSION = 1

logger = logging.getLogger("fovea")


class Verdict(NamedTuple):
    """The outputs of the task."""

    deployed: bool
    reason: str


def _kserve_target(storage: Storage, run_id: str) -> Target:
    # The Kubernetes client takes a second to import, which a local run must not wait for.
    from components.deploy.targets.kserve import KServeTarget

    return KServeTarget(storage, run_id)


_TARGETS: Mapping[str, Callable[[Storage, str], Target]] = {
    "local": lambda storage, _: LocalTarget(storage),
    "kserve": _kserve_target,
}


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
        settings = parse_parameters(DeployParameters, parameters)
        files = {
            "model": model_record,
            "evaluation": evaluation_record,
            "dataset": dataset_record,
            "decision": decision_record,
        }
        release = Release.from_files(files, artifact_root)
        verdict, document = deploy(release, settings, run_id, storage)
        if document is not None:
            text = document.model_dump_json(indent=2) + "\n"
        else:
            text = json.dumps(verdict._asdict(), indent=2) + "\n"
        Path(deployment).parent.mkdir(parents=True, exist_ok=True)
        Path(deployment).write_text(text)
        report = StepReport(
            task=STEP,
            step=STEP,
            seconds=round(time.monotonic() - started, 2),
            reused=False,
            digest="sha256:" + hashlib.sha256(text.encode()).hexdigest(),
            record_uri=deployment_uri(artifact_root, settings.service_name) if document else "",
        )
        storage.write_bytes(context.run_uri(f"{STEP}.json"), report.model_dump_json().encode())
    return verdict


def deploy(
    release: Release, settings: DeployParameters, run_id: str, storage: Storage
) -> tuple[Verdict, Deployment | None]:
    """Deploy a release, and commit its document to S3 and as MLflow's champion only if it was verified.

    Args:
        release: the model with its records.
        settings: where and how.
        run_id: the run that deploys.
        storage: S3.

    Returns:
        The verdict, and the document of the deployment where there is one.

    Raises:
        UserError: the held-out pictures cannot be read, or S3 cannot be reached.
    """
    refusal = release.refusal()
    if refusal:
        outcome = RolloutOutcome(Verification(False, refusal))
    else:
        outcome = _TARGETS[settings.deploy_target](storage, run_id).deploy(release, settings)
    verdict = Verdict(outcome.verification.passed, plain_line(outcome.verification.reason))
    logger.info("deploy: %s", verdict.reason)
    if not verdict.deployed:
        return verdict, None
    document = _document(release, settings, run_id, outcome)
    write_deployment(storage, release.artifact_root, document)
    tracking.tag_model_version(release.model.mlflow, _tags(document), alias=ALIAS)
    return verdict, document


def _document(
    release: Release, settings: DeployParameters, run_id: str, outcome: RolloutOutcome
) -> Deployment:
    found, records = outcome.verification, release.record_uris
    assert found.example is not None  # noqa: S101 - there is one whenever the verification passed
    if outcome.namespace:
        # A rollback deploys there, although its own default may be another namespace.
        kserve = settings.kserve.model_copy(update={"namespace": outcome.namespace})
        settings = settings.model_copy(update={"kserve": kserve})
    return Deployment(
        service=settings.service_name,
        target=settings.deploy_target,
        model=ModelReference(digest=release.model.digest, record_uri=records["model"]),
        decision_digest=release.decision.digest,
        evaluation_digest=release.evaluation.digest,
        calibration_digest=release.calibration.digest if release.calibration else "",
        dtype=release.evaluation.generation.dtype,
        probes=found.asked,
        agreed=found.agreed,
        example=found.example,
        predict_path=PREDICT_PATH.format(name=settings.service_name),
        chat_path=CHAT_PATH,
        # With fractions of a second, which say which of two deployments is the later one.
        verified_at=datetime.now(UTC),
        run_id=run_id,
        records=records,
        parameters=settings,
        rollout=outcome.kind,
        namespace=outcome.namespace,
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

"""The outcome of a run: fail it after a refusal, and report how it finished and why."""

import logging
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

from fovea.errors import UserError
from fovea.records import now
from fovea.steps import Failure, RunContext, reporting_failure
from fovea.storage import Storage

logger = logging.getLogger("fovea")

REQUIRE = "require"
"""The task in ``failure.json`` if a run was refused rather than broken."""
REFUSAL = "refusal.json"
"""Document with the reason, under the prefix of a run that finished without a deployment as configured."""

_SILENT = (
    "a task stopped without an error message: it ran out of memory, was evicted, or could not be scheduled; "
    "see its pod's events and log"
)


class Refusal(BaseModel):
    """Why a run finished without a deployment."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reason: str


def require_step(
    *,
    passed: bool,
    reason: str,
    artifact_root: str,
    run_id: str,
    on_refusal: str = "fail",
) -> None:
    """Do nothing if ``passed``; otherwise record ``reason`` and fail the run, or let it finish.

    Raises:
        UserError: ``passed`` is False and ``on_refusal`` is not ``end``; its message is ``reason``.
    """
    if passed:
        return
    context, storage = RunContext(artifact_root=artifact_root, run_id=run_id), Storage()
    with reporting_failure(REQUIRE, context, storage):
        if on_refusal != "end":
            raise UserError(reason)
        storage.write_bytes(context.run_uri(REFUSAL), Refusal(reason=reason).model_dump_json().encode())
    logger.warning("%s: the run stops without a deployment: %s", REQUIRE, reason)


class Outcome(BaseModel):
    """How a run finished; stored as ``runs/{run_id}/outcome.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: Literal["succeeded", "not_deployed", "refused", "failed", "cancelled"]
    """``not_deployed``: the gate refused the model, and the run was configured not to fail then."""
    task: str
    """The task in which the run stopped; empty if it succeeded, or if no task reported it."""
    reason: str
    finished_at: datetime


def report_outcome_step(*, state: str, artifact_root: str, run_id: str) -> Outcome:
    """Write ``outcome.json`` from KFP's final state and the tasks' documents, and log it."""
    context = RunContext(artifact_root=artifact_root, run_id=run_id)
    storage = Storage()
    outcome = _outcome(state, _failure(storage, context), _refusal(storage, context))
    storage.write_bytes(context.run_uri("outcome.json"), outcome.model_dump_json().encode())
    where = f" in {outcome.task}" if outcome.task else ""
    reason = outcome.reason.removeprefix(f"{outcome.state}: ")
    logger.info("report_outcome: run %s %s%s: %s", run_id, outcome.state, where, reason)
    return outcome


def _failure(storage: Storage, context: RunContext) -> Failure | None:
    uri = context.run_uri("failure.json")
    return Failure.model_validate_json(storage.read_bytes(uri)) if storage.exists(uri) else None


def _refusal(storage: Storage, context: RunContext) -> Refusal | None:
    uri = context.run_uri(REFUSAL)
    return Refusal.model_validate_json(storage.read_bytes(uri)) if storage.exists(uri) else None


def _outcome(state: str, failure: Failure | None, refusal: Refusal | None) -> Outcome:
    if state == "SUCCEEDED" and refusal is not None:
        return Outcome(state="not_deployed", task="", reason=refusal.reason, finished_at=now())
    if state == "SUCCEEDED":
        # A failure document of a successful run is from an attempt whose retry succeeded.
        return Outcome(state="succeeded", task="", reason="every step succeeded", finished_at=now())
    if state in {"CANCELLED", "CANCELED"}:
        return Outcome(state="cancelled", task="", reason="the run was cancelled", finished_at=now())
    if failure is None:
        return Outcome(state="failed", task="", reason=_SILENT, finished_at=now())
    refused = failure.task == REQUIRE
    return Outcome(
        state="refused" if refused else "failed",
        task="" if refused else failure.task,
        reason=failure.error,
        finished_at=now(),
    )

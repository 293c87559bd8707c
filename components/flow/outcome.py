"""Say how a run ended and why: the last task of every run, whatever became of the others."""

import logging
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

from components.flow.require import REFUSAL, Refusal
from components.flow.require import TASK as REQUIRE_TASK
from fovea.records import now
from fovea.steps import Failure, RunContext
from fovea.storage import Storage

logger = logging.getLogger("fovea")

_SILENT = (
    "a task ended without saying why: it ran out of memory, was evicted, or never found a node; "
    "see its pod's events and log"
)


class Outcome(BaseModel):
    """How a run ended; kept as ``runs/{run_id}/outcome.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: Literal["succeeded", "not_deployed", "refused", "failed", "cancelled"]
    """``not_deployed``: the gate refused the model, and the run was asked to end then rather than to fail."""
    task: str
    """The task the run ended at; empty for one that succeeded, or where no task said so."""
    reason: str
    finished_at: datetime


def report_outcome_step(*, state: str, artifact_root: str, run_id: str) -> Outcome:
    """Write ``outcome.json`` from KFP's final state and what the tasks left behind, and log it."""
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
        # A failure that is there all the same was an attempt's whose retry succeeded.
        return Outcome(state="succeeded", task="", reason="every step succeeded", finished_at=now())
    if state in {"CANCELLED", "CANCELED"}:
        return Outcome(state="cancelled", task="", reason="somebody ended the run", finished_at=now())
    if failure is None:
        return Outcome(state="failed", task="", reason=_SILENT, finished_at=now())
    refused = failure.task == REQUIRE_TASK
    return Outcome(
        state="refused" if refused else "failed",
        task="" if refused else failure.task,
        reason=failure.error,
        finished_at=now(),
    )

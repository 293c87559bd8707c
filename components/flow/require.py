"""Fail, or end, a run that a step refused to go on with."""

import logging

from pydantic import BaseModel, ConfigDict

from fovea.errors import UserError
from fovea.steps import RunContext, reporting_failure
from fovea.storage import Storage

TASK = "require"
"""The task that ``failure.json`` names when a run was refused rather than broken."""
REFUSAL = "refusal.json"
"""Lies under the prefix of a run that ended, as was asked, without a deployment; holds the reason."""

logger = logging.getLogger("fovea")


class Refusal(BaseModel):
    """Why a run ended without a deployment."""

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
    """Do nothing where ``passed``; else write ``reason`` down and fail the run, or let it end.

    Raises:
        UserError: ``passed`` is False and ``on_refusal`` is not ``end``; its message is ``reason``.
    """
    if passed:
        return
    context, storage = RunContext(artifact_root=artifact_root, run_id=run_id), Storage()
    with reporting_failure(TASK, context, storage):
        if on_refusal != "end":
            raise UserError(reason)
        storage.write_bytes(context.run_uri(REFUSAL), Refusal(reason=reason).model_dump_json().encode())
    logger.warning("%s: the run ends without a deployment: %s", TASK, reason)

"""Fail a run that a step refused to go on with."""

from fovea.errors import UserError
from fovea.steps import RunContext, reporting_failure
from fovea.storage import Storage

TASK = "require"
"""The task that ``failure.json`` names when a run was refused rather than broken."""


def require_step(*, passed: bool, reason: str, artifact_root: str, run_id: str) -> None:
    """Do nothing where ``passed``; else record ``reason`` as the run's failure and raise it.

    Raises:
        UserError: ``passed`` is False; its message is ``reason``.
    """
    if passed:
        return
    with reporting_failure(TASK, RunContext(artifact_root=artifact_root, run_id=run_id), Storage()):
        raise UserError(reason)

"""The step that finds the champion, the model that is deployed now."""

import logging
from pathlib import Path

from fovea.champion import find_champion
from fovea.records import AbsentRecord, ModelRecord, write_record
from fovea.steps import RunContext, reporting_failure
from fovea.storage import Storage

TASK = "find_champion"

logger = logging.getLogger("fovea")


def find_champion_step(
    *, champion_record: str | Path, registered_model_name: str, artifact_root: str, run_id: str
) -> ModelRecord | AbsentRecord:
    """Write the record of the model that alias ``champion`` points at, or why there is none.

    Args:
        champion_record: Where the ModelRecord goes, or the AbsentRecord.
        registered_model_name: Name of the model in MLflow's registry.
        artifact_root: ``s3://bucket/prefix`` of payloads and records.
        run_id: The run.

    Raises:
        UserError: MLflow does not answer, or the champion's record cannot be read.
    """
    context, storage = RunContext(artifact_root=artifact_root, run_id=run_id), Storage()
    with reporting_failure(TASK, context, storage):
        champion = find_champion(storage, registered_model_name)
        write_record(champion, champion_record)
    if isinstance(champion, AbsentRecord):
        logger.info("%s: none: %s", TASK, champion.reason)
    else:
        logger.info("%s: %s, of run %s", TASK, champion.digest[:19], champion.run_id)
    return champion

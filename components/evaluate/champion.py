"""Which model is deployed now: MLflow's alias says so, and its record says what it is."""

import logging
from pathlib import Path

from fovea import tracking
from fovea.errors import UserError
from fovea.records import AbsentRecord, ModelRecord, write_record
from fovea.steps import RunContext, reporting_failure
from fovea.storage import Storage

TASK = "find_champion"
ALIAS = "champion"

logger = logging.getLogger("fovea")


def find_champion_step(
    *, champion_record: str | Path, registered_model: str, artifact_root: str, run_id: str
) -> ModelRecord | AbsentRecord:
    """Write the record of the model that alias ``champion`` points at, or why there is none.

    Args:
        champion_record: Where the ModelRecord goes, or the AbsentRecord.
        registered_model: Name of the model in MLflow's registry.
        artifact_root: ``s3://bucket/prefix`` of payloads and records.
        run_id: The run.

    Raises:
        UserError: there is a champion, or may be, but its record cannot be had: a comparison with it must not
            be passed over for that.
    """
    context, storage = RunContext(artifact_root=artifact_root, run_id=run_id), Storage()
    with reporting_failure(TASK, context, storage):
        champion = _find(storage, registered_model)
        write_record(champion, champion_record)
    if isinstance(champion, AbsentRecord):
        logger.info("%s: none: %s", TASK, champion.reason)
    else:
        logger.info("%s: %s, of run %s", TASK, champion.digest[:19], champion.run_id)
    return champion


def _find(storage: Storage, registered_model: str) -> ModelRecord | AbsentRecord:
    if not tracking.is_on():
        return AbsentRecord(reason="no MLflow is configured, which would know the deployed model")
    source = tracking.version_source(registered_model, ALIAS)
    if source is None:
        return AbsentRecord(reason=f"no version of {registered_model} was deployed yet")
    try:
        record = storage.find_by_payload(source)
    except UserError as error:
        raise UserError(
            f"the champion of {registered_model} cannot be compared with: {error} Bring it back, or take the "
            f"alias {ALIAS} from it in MLflow"
        ) from error
    if not isinstance(record, ModelRecord):
        raise UserError(f"{source}: the champion of {registered_model} is a {record.kind}, not a model")
    return record

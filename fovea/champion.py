"""Find the champion, the deployed version of a registered model: MLflow names it, its record is in S3."""

from fovea import tracking
from fovea.errors import UserError
from fovea.records import AbsentRecord, ModelRecord
from fovea.storage import Storage

ALIAS = "champion"


def find_champion(storage: Storage, registered_model_name: str) -> ModelRecord | AbsentRecord:
    """Return the record of a registered model's champion, or why there is none.

    Raises:
        UserError: MLflow does not respond, or it names a champion whose record cannot be read: the comparison
            must not be skipped.
    """
    if not tracking.is_on():
        return AbsentRecord(reason="MLflow is not configured, so the deployed model is unknown")
    source = tracking.version_source(registered_model_name, ALIAS)
    if source is None:
        return AbsentRecord(reason=f"no version of {registered_model_name} has been deployed")
    try:
        record = storage.find_by_payload(source)
    except UserError as error:
        raise UserError(
            f"the champion of {registered_model_name} cannot be compared with: {error} Restore it, or "
            f"remove the alias {ALIAS} from it in MLflow"
        ) from error
    if not isinstance(record, ModelRecord):
        raise UserError(f"{source}: the champion of {registered_model_name} is a {record.kind}, not a model")
    return record

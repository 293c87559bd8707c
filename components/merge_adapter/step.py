"""The merge_adapter step: from an adapter and its base to the record of a registered model.

It does not import heavy libraries: an existing merge is found in a second, without torch.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.merge_adapter.parameters import MergeAdapterParameters
from fovea import tracking
from fovea.errors import UserError
from fovea.parameters import parse_parameters
from fovea.records import AdapterRecord, ModelRecord, StepInputs, read_record, write_record
from fovea.steps import Attempt, RunContext, reporting_failure, run_step
from fovea.storage import Storage

STEP = "merge_adapter"
VERSION = 3


def merge_adapter_step(
    *,
    adapter_record: str | Path,
    base_record: str | Path,
    model_record: str | Path,
    artifact_root: str,
    run_id: str,
    parameters: Mapping[str, Any],
) -> ModelRecord:
    """Merge an adapter into its base, and register the result as a model version whose source is its S3 URI.

    Args:
        adapter_record: File with the AdapterRecord.
        base_record: File with the base's ModelRecord.
        model_record: Where to write the merged model's ModelRecord.
        artifact_root: ``s3://bucket/prefix`` of payloads and records.
        run_id: The run.
        parameters: Fields of `MergeAdapterParameters`.

    Raises:
        UserError: the adapter was trained on another base or does not fit it, or the merged model's outputs
            differ from those of base and adapter.
    """
    context, storage = RunContext(artifact_root=artifact_root, run_id=run_id), Storage()
    with reporting_failure(STEP, context, storage):
        asked = parse_parameters(MergeAdapterParameters, parameters)
        adapter = read_record(adapter_record, AdapterRecord)
        base = read_record(base_record, ModelRecord)
        if adapter.base.digest != base.digest:
            raise UserError(
                f"the adapter was trained on the base {adapter.base.digest}, this one is {base.digest}; "
                f"give the record {adapter.base.record_uri}"
            )
        inputs = StepInputs(
            step=STEP,
            version=VERSION,
            parameters=asked.in_result(),
            parents={"adapter": adapter.digest, "base": base.digest},
        )
        record = run_step(
            ModelRecord,
            inputs,
            context,
            work=lambda attempt: _work(attempt, adapter, base, asked),
            storage=storage,
        )
        # After the commit, so that only existing models are registered.
        reference = tracking.register_model(
            asked.registered_model_name, record.uri, adapter.mlflow, _tags(record, adapter)
        )
        record = record.model_copy(update={"mlflow": reference or adapter.mlflow})
        write_record(record, model_record)
    return record


def _work(
    attempt: Attempt, adapter: AdapterRecord, base: ModelRecord, asked: MergeAdapterParameters
) -> Mapping[str, Any]:
    from components.merge_adapter.merge import merge

    return merge(attempt, adapter, base, verified=asked.verify_merge)


def _tags(record: ModelRecord, adapter: AdapterRecord) -> dict[str, str]:
    return {
        "fovea.model": record.digest,
        "fovea.base": adapter.base.digest,
        "fovea.adapter": adapter.digest,
        "fovea.dataset": adapter.dataset_digest,
        "fovea.task": adapter.task.digest,
        "fovea.run": record.run_id,
    }

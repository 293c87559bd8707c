"""The work of merge_adapter: one model out of a base and an adapter, proven, kept and registered."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from components.merge_adapter.card import model_card
from components.merge_adapter.files import copy_files
from components.merge_adapter.lora import LoraAdapter
from components.merge_adapter.shards import Place, merge_file, places
from components.merge_adapter.verify import verify
from fovea import tracking
from fovea.errors import UserError
from fovea.records import AdapterRecord, ModelRecord, read_record, write_record
from fovea.steps import Attempt, RunContext, parse_parameters, reporting_failure, run_step
from fovea.storage import Storage

STEP = "merge_adapter"
VERSION = 2

logger = logging.getLogger("fovea")


class MergeAdapterParameters(BaseModel):
    """What a merge can be told."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    verify: bool = True
    """Compare the merged model with base and adapter. It takes the memory of the model in float32."""


def merge_adapter_step(
    *,
    adapter_record: str | Path,
    base_record: str | Path,
    model_record: str | Path,
    artifact_root: str,
    run_id: str,
    registered_model_name: str = "fovea",
    **parameters: Any,
) -> ModelRecord:
    """Merge an adapter into its base, and register the result as a model version whose source is its S3 URI.

    Args:
        adapter_record: File with the AdapterRecord.
        base_record: File with the base's ModelRecord.
        model_record: Where the merged model's ModelRecord goes.
        artifact_root: ``s3://bucket/prefix`` of payloads and records.
        run_id: The run.
        registered_model_name: The model in MLflow's registry; it does not change the merged model.
        **parameters: Fields of `MergeAdapterParameters`.

    Raises:
        UserError: the adapter was trained on another base or does not fit it, or the merged model says
            something else than base and adapter.
    """
    context, storage = RunContext(artifact_root=artifact_root, run_id=run_id), Storage()
    with reporting_failure(STEP, context, storage):
        asked: MergeAdapterParameters = parse_parameters(MergeAdapterParameters, parameters)
        adapter = read_record(adapter_record, AdapterRecord)
        base = read_record(base_record, ModelRecord)
        if adapter.base.digest != base.digest:
            raise UserError(
                f"the adapter was trained on the base {adapter.base.digest}, this one is {base.digest}; "
                f"give the record {adapter.base.record_uri}"
            )
        record = run_step(
            ModelRecord,
            step=STEP,
            version=VERSION,
            context=context,
            parameters=asked.model_dump(),
            parents={"adapter": adapter.digest, "base": base.digest},
            work=lambda attempt: _merge(attempt, adapter, base, asked),
            storage=storage,
        )
        # After the commit: a version is registered only of a model that exists.
        reference = tracking.register_model(
            registered_model_name, record.uri, adapter.mlflow, _tags(record, adapter)
        )
        record = record.model_copy(update={"mlflow": reference or adapter.mlflow})
        write_record(record, model_record)
    return record


def merge_folders(
    base: Path, adapter: Path, merged: Path, attempt: Attempt | None = None
) -> Mapping[str, Place]:
    """Write the base's weights with the adapter merged into ``merged``; return the base's tensors.

    Raises:
        UserError: the adapter is not plain LoRA, or does not fit the base.
    """
    lora = LoraAdapter.load(adapter)
    files = sorted(base.glob("*.safetensors"))
    tensors = {name: place for path in files for name, place in places(path).items()}
    # Everything is checked before the first gigabyte is written.
    lora.check({name: (place.shape, place.dtype) for name, place in tensors.items()})
    progress = attempt.progress("merging files") if attempt else None
    for number, path in enumerate(files, start=1):
        merge_file(path, merged / path.name, lora)
        if progress is not None:
            progress(number, len(files))
    logger.info("merge_adapter: %d of %d tensors changed", len(lora.pairs), len(tensors))
    return {name: tensors[name] for name in lora.pairs}


def _merge(
    attempt: Attempt, adapter: AdapterRecord, base: ModelRecord, asked: MergeAdapterParameters
) -> Mapping[str, Any]:
    fetch = attempt.storage.download
    base_folder = fetch(base, progress=attempt.progress("fetching the base model"))
    adapter_folder = fetch(adapter, progress=attempt.progress("fetching the adapter"))
    changed = merge_folders(base_folder, adapter_folder, attempt.payload, attempt)
    copy_files(base_folder, attempt.payload, adapter.num_crops, adapter.task)
    (attempt.payload / "README.md").write_text(model_card(adapter, base, len(changed)))
    if asked.verify:
        logger.info("merge_adapter: comparing the merged model with base and adapter")
        stored = next(iter(changed.values())).dtype
        difference = verify(base_folder, adapter_folder, attempt.payload, adapter.task, stored)
        logger.info("merge_adapter: logits agree, largest difference %.1e of the largest logit", difference)
    return {
        "architecture": base.architecture,
        "num_crops": adapter.num_crops,
        "task": adapter.task,
        "base": adapter.base,
        "adapter_digest": adapter.digest,
        "mlflow": adapter.mlflow,
    }


def _tags(record: ModelRecord, adapter: AdapterRecord) -> dict[str, str]:
    return {
        "fovea.model": record.digest,
        "fovea.base": adapter.base.digest,
        "fovea.adapter": adapter.digest,
        "fovea.dataset": adapter.dataset_digest,
        "fovea.task": adapter.task.digest,
        "fovea.run": record.run_id,
    }

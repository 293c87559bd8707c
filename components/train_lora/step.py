"""The train_lora step: from a dataset and a base model to the record of an adapter.

It does not import heavy libraries: an existing adapter is found in a second, without torch.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.train_lora.checkpoints import Checkpoints
from components.train_lora.parameters import TrainLoraParameters
from components.train_lora.report import copy_report, report_uri
from fovea.parameters import parse_parameters
from fovea.records import AdapterRecord, DatasetRecord, ModelRecord, StepInputs, read_record, write_record
from fovea.steps import Attempt, RunContext, configure_logging, reporting_failure, run_step
from fovea.storage import Storage

STEP = "train_lora"
VERSION = 3


def train_lora_step(
    *,
    dataset_record: str | Path,
    base_record: str | Path,
    adapter_record: str | Path,
    artifact_root: str,
    run_id: str,
    parameters: Mapping[str, Any],
    report: str | Path | None = None,
) -> AdapterRecord:
    """Train an adapter for the base model on the dataset's train split, and write its record.

    Args:
        dataset_record: File with the DatasetRecord.
        base_record: File with the base's ModelRecord.
        adapter_record: Where to write the AdapterRecord.
        artifact_root: s3://bucket/prefix of payloads and records.
        run_id: The run's ID.
        parameters: Fields of `TrainLoraParameters`.
        report: Where to write the HTML report, if anywhere.

    Raises:
        UserError: an input cannot be read, a parameter is wrong, the training does not fit the device, the
            loss diverges, or ``resume_from_checkpoint`` names a checkpoint of other inputs.
    """
    configure_logging()
    context, storage = RunContext(artifact_root=artifact_root, run_id=run_id), Storage()
    with reporting_failure(STEP, context, storage):
        checked = parse_parameters(TrainLoraParameters, parameters)
        dataset = read_record(dataset_record, DatasetRecord)
        base = read_record(base_record, ModelRecord)
        inputs = StepInputs(
            step=STEP,
            version=VERSION,
            parameters=checked.in_result(),
            parents={"dataset": dataset.digest, "base": base.digest},
        )

        def work(attempt: Attempt) -> Mapping[str, Any]:
            from components.train_lora.train import Work

            return Work(dataset, base, checked, inputs).run(attempt)

        record = run_step(AdapterRecord, inputs, context, work, storage=storage)
        write_record(record, adapter_record)
        Checkpoints(storage, artifact_root, inputs).remove_all()
        if report is not None:
            copy_report(storage, report_uri(artifact_root, inputs.key), Path(report))
    return record

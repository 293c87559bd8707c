"""The step: from a model and a dataset to the record of an evaluation.

It imports no torch: an existing evaluation is found in a second.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.evaluate.checkpoints import Parts
from components.evaluate.parameters import EvaluateParameters
from fovea.devices import has_gpu
from fovea.errors import UserError
from fovea.evaluation.metrics import with_intervals
from fovea.evaluation.outcomes import CHALLENGER
from fovea.parameters import parse_parameters
from fovea.records import (
    AbsentRecord,
    DatasetRecord,
    EvaluationRecord,
    GenerationParameters,
    ModelRecord,
    StepInputs,
    read_optional_record,
    read_record,
    write_record,
)
from fovea.steps import Attempt, RunContext, reporting_failure, run_step
from fovea.storage import Storage

STEP = "evaluate"
VERSION = 8

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")


def evaluate_step(
    *,
    model_record: str | Path,
    dataset_record: str | Path,
    evaluation_record: str | Path,
    artifact_root: str,
    run_id: str,
    parameters: Mapping[str, Any],
    subject: str = CHALLENGER,
    split: str = "test",
    num_crops: int = 0,
) -> EvaluationRecord | AbsentRecord:
    """Evaluate a model on a split of a dataset; an existing evaluation of the same inputs is reused.

    Args:
        model_record: File with the ModelRecord, or with an AbsentRecord, which is then written and
            returned.
        dataset_record: File with the DatasetRecord, whose task is asked.
        evaluation_record: Where the EvaluationRecord goes.
        artifact_root: ``s3://bucket/prefix`` of payloads and records.
        run_id: The run.
        parameters: Fields of `EvaluateParameters`.
        subject: What the model is in a comparison: base, champion or challenger. It names the task, and does
            not change the evaluation.
        split: The split of the dataset to ask about.
        num_crops: Crops a picture is cut into at most; 0 for what the model's record says.

    Raises:
        UserError: a record cannot be read, the dataset has no such split, or the model was tuned for another
            task than the dataset's.
    """
    context, storage = RunContext(artifact_root=artifact_root, run_id=run_id), Storage()
    if not _NAME.fullmatch(subject):
        raise UserError(f"subject {subject[:60]!r}: use small letters, digits, - and _, at most 40")
    task = f"{STEP}_{subject}"
    with reporting_failure(task, context, storage):
        asked = parse_parameters(EvaluateParameters, parameters)
        model = read_optional_record(model_record, ModelRecord)
        if isinstance(model, AbsentRecord):
            write_record(model, evaluation_record)
            return model
        dataset = read_record(dataset_record, DatasetRecord)
        _check(model, dataset, subject, split)
        generation = GenerationParameters(
            max_new_tokens=asked.max_new_tokens,
            num_crops=num_crops or model.num_crops,
            dtype="bfloat16" if has_gpu() else "float32",
        )
        inputs = StepInputs(
            step=STEP,
            version=VERSION,
            parameters={**generation.model_dump(), "split": split, **_shaping(asked, model)},
            parents={"model": model.digest, "dataset": dataset.digest},
        )
        parts = Parts(storage, artifact_root, inputs.key)

        def work(attempt: Attempt) -> Mapping[str, Any]:
            from components.evaluate.evaluation import Evaluation

            return Evaluation(
                attempt, model, dataset, split, asked, generation, parts, subject == CHALLENGER
            ).run()

        record = run_step(EvaluationRecord, inputs, context, work, task=task, storage=storage)
        parts.remove_all()
        write_record(record, evaluation_record)
    return record


def figures(record: EvaluationRecord) -> dict[str, float]:
    """Return an evaluation's figures by name, for tables of names and numbers.

    ``…_low`` and ``…_high`` are the ends of their intervals; ``shuffled_…`` are those with shuffled pictures,
    and those of the baselines start with the baseline's name.
    """
    others = {"shuffled": record.shuffled} if record.shuffled else {}
    return with_intervals(record.metrics) | {
        f"{prefix}_{name}": value
        for prefix, metrics in {**others, **record.baselines}.items()
        for name, value in metrics.figures.items()
    }


def _shaping(asked: EvaluateParameters, model: ModelRecord) -> dict[str, Any]:
    """Return the parameters that change the evaluation of this model."""
    unused = "calibration_samples" if model.base is None else "neighbour_samples"
    return {name: value for name, value in asked.in_result().items() if name != unused}


def _check(model: ModelRecord, dataset: DatasetRecord, subject: str, split: str) -> None:
    for needed in (split, *(["train"] if model.base is None else [])):
        if needed not in dataset.splits:
            raise UserError(f"the dataset has no {needed!r} split; it has {sorted(dataset.splits)}")
    if model.task is not None and model.task.digest != dataset.task.digest:
        raise UserError(
            f"the {subject} model answers another task than the dataset's: "
            f"{dataset.task.difference(model.task)}; prepare the data for the model's task, or, where it is "
            "the champion, give the run another registered_model_name and another service_name"
        )

"""The step: from a model and a dataset to the record of an evaluation.

It imports nothing heavy: an evaluation that exists is found again in a second, without torch.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.evaluate.checkpoints import Parts
from components.evaluate.parameters import EvaluateParameters
from fovea.devices import has_gpu
from fovea.errors import UserError
from fovea.evaluation.metrics import with_intervals
from fovea.evaluation.outcomes import Roles
from fovea.records import (
    AbsentRecord,
    DatasetRecord,
    EvaluationRecord,
    GenerationParameters,
    ModelRecord,
    input_key,
    read_optional_record,
    read_record,
    write_record,
)
from fovea.steps import Attempt, RunContext, parse_parameters, reporting_failure, run_step
from fovea.storage import Storage

STEP = "evaluate"
VERSION = 7


def evaluate_step(
    *,
    model_record: str | Path,
    dataset_record: str | Path,
    evaluation_record: str | Path,
    artifact_root: str,
    run_id: str,
    **parameters: Any,
) -> EvaluationRecord | AbsentRecord:
    """Evaluate a model on a split of a dataset; an evaluation of the same inputs that exists is reused.

    Args:
        model_record: File with the ModelRecord, or with the AbsentRecord that says why there is no model:
            then that is what is written and returned.
        dataset_record: File with the DatasetRecord, whose task is asked.
        evaluation_record: Where the EvaluationRecord goes.
        artifact_root: ``s3://bucket/prefix`` of payloads and records.
        run_id: The run.
        **parameters: Fields of `EvaluateParameters`.

    Raises:
        UserError: a record cannot be read, the dataset has no such split, or the model was tuned for another
            task than the dataset's.
    """
    context, storage = RunContext(artifact_root=artifact_root, run_id=run_id), Storage()
    task = f"{STEP}_{parameters.get('subject', 'tuned')}"
    with reporting_failure(task, context, storage):
        asked: EvaluateParameters = parse_parameters(EvaluateParameters, parameters)
        model = read_optional_record(model_record, ModelRecord)
        if isinstance(model, AbsentRecord):
            write_record(model, evaluation_record)
            return model
        dataset = read_record(dataset_record, DatasetRecord)
        _check(model, dataset, asked)
        generation = GenerationParameters(
            max_new_tokens=asked.max_new_tokens,
            num_crops=asked.num_crops or model.num_crops,
            dtype="bfloat16" if has_gpu() else "float32",
        )
        shaping = _shaping(asked, generation, model)
        parents = {"model": model.digest, "dataset": dataset.digest}
        parts = Parts(storage, artifact_root, input_key(STEP, VERSION, shaping, parents))

        def work(attempt: Attempt) -> Mapping[str, Any]:
            from components.evaluate.evaluation import Evaluation

            return Evaluation(attempt, model, dataset, asked, generation, parts).run()

        record = run_step(
            EvaluationRecord,
            step=STEP,
            task=task,
            version=VERSION,
            context=context,
            parameters=shaping,
            parents=parents,
            work=work,
            storage=storage,
        )
        parts.remove_all()
        write_record(record, evaluation_record)
    return record


def figures(record: EvaluationRecord) -> dict[str, float]:
    """Return an evaluation's figures by name, for tables of names and numbers.

    ``…_low`` and ``…_high`` are the ends of their intervals; ``shuffled_…`` are those with shuffled pictures,
    and those of the baselines begin with the baseline's name.
    """
    others = {"shuffled": record.shuffled} if record.shuffled else {}
    return with_intervals(record.metrics) | {
        f"{prefix}_{name}": value
        for prefix, metrics in {**others, **record.baselines}.items()
        for name, value in metrics.figures.items()
    }


def _shaping(
    asked: EvaluateParameters, generation: GenerationParameters, model: ModelRecord
) -> dict[str, Any]:
    """Return what an evaluation depends on, beside the model and the data.

    Not what the model is in a comparison, and not how many answers are made at once.
    """
    mine = {"split", "max_samples", "neighbour_samples" if model.base is None else "calibration_samples"}
    return {**generation.model_dump(), **asked.model_dump(include=mine)}


def _check(model: ModelRecord, dataset: DatasetRecord, asked: EvaluateParameters) -> None:
    Roles.of(dataset.task)
    wanted = [asked.split, *(["train"] if model.base is None else [])]
    for split in wanted:
        if split not in dataset.splits:
            raise UserError(f"the dataset has no {split!r} split; it has {sorted(dataset.splits)}")
    if model.task is not None and model.task.digest != dataset.task.digest:
        raise UserError(
            f"the {asked.subject} model answers another task than the dataset's: "
            f"{dataset.task.difference(model.task)}; prepare the data for the model's task, or, where it is "
            "the champion, give the run another registered_model and another service_name"
        )

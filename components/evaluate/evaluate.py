"""The work of evaluate: ask the model about every picture of a split, and measure what it answers."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from components.evaluate.predictions import write_predictions
from components.evaluate.rows import Split
from components.evaluate.shuffle import shuffle_among_products
from fovea import tracking
from fovea.errors import UserError
from fovea.inference import Answer, Predictor
from fovea.metrics import Outcomes, Roles, measure, slices
from fovea.records import (
    DatasetRecord,
    EvaluationRecord,
    GenerationParameters,
    ModelRecord,
    read_record,
    write_record,
)
from fovea.steps import Attempt, RunContext, parse_parameters, reporting_failure, run_step
from fovea.storage import Storage

STEP = "evaluate"
VERSION = 2

logger = logging.getLogger("fovea")

# Pictures in memory at once, in batches: enough to put those of like length together.
_BATCHES_AHEAD = 4


class EvaluateParameters(BaseModel):
    """How a model is evaluated; all of it is part of the evaluation's input key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    subject: str = Field(default="tuned", pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")
    split: str = Field(default="test", pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")
    max_samples: int = Field(default=0, ge=0)
    batch_size: int = Field(default=16, ge=1, le=4096)
    max_new_tokens: int = Field(default=64, ge=1, le=4096)
    num_crops: int = Field(default=0, ge=0, le=64)


def evaluate_step(
    *,
    model_record: str | Path,
    dataset_record: str | Path,
    evaluation_record: str | Path,
    artifact_root: str,
    run_id: str,
    **parameters: Any,
) -> EvaluationRecord:
    """Evaluate a model on a split of a dataset; an evaluation of the same inputs that exists is reused.

    Args:
        model_record: File with the ModelRecord.
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
        model = read_record(model_record, ModelRecord)
        dataset = read_record(dataset_record, DatasetRecord)
        _check(model, dataset, asked)
        generation = GenerationParameters(
            max_new_tokens=asked.max_new_tokens,
            num_crops=asked.num_crops or model.num_crops,
            dtype="bfloat16" if torch.cuda.is_available() else "float32",
        )
        record = run_step(
            EvaluationRecord,
            step=STEP,
            task=task,
            version=VERSION,
            context=context,
            parameters=_shaping(asked, generation),
            parents={"model": model.digest, "dataset": dataset.digest},
            work=lambda attempt: _evaluate(attempt, model, dataset, asked, generation),
            storage=storage,
        )
        write_record(record, evaluation_record)
    return record


def figures(record: EvaluationRecord) -> dict[str, float]:
    """Return an evaluation's figures by name, those with shuffled pictures as ``shuffled_…``."""
    shuffled = record.shuffled.figures if record.shuffled else {}
    return {**record.metrics.figures, **{f"shuffled_{name}": value for name, value in shuffled.items()}}


def _shaping(asked: EvaluateParameters, generation: GenerationParameters) -> dict[str, Any]:
    """Return what an evaluation depends on, beside the model and the data.

    Not what the model is in a comparison, and not how many answers are made at once.
    """
    return {**generation.model_dump(), **asked.model_dump(include={"split", "max_samples"})}


def _check(model: ModelRecord, dataset: DatasetRecord, asked: EvaluateParameters) -> None:
    Roles.of(dataset.task)
    if asked.split not in dataset.splits:
        raise UserError(f"the dataset has no {asked.split!r} split; it has {sorted(dataset.splits)}")
    if model.task is not None and model.task.digest != dataset.task.digest:
        raise UserError(
            f"the model was tuned for task {model.task.name} {model.task.version}, the dataset is of "
            f"{dataset.task.name} {dataset.task.version}; prepare the data for the model's task"
        )


def _evaluate(
    attempt: Attempt,
    model: ModelRecord,
    dataset: DatasetRecord,
    asked: EvaluateParameters,
    generation: GenerationParameters,
) -> Mapping[str, Any]:
    fetch = attempt.storage.download
    data = fetch(dataset, pattern=f"{asked.split}-*.parquet", progress=attempt.progress("fetching the split"))
    weights = fetch(model, progress=attempt.progress("fetching the model"))
    task = dataset.task
    split = Split(data, asked.split, task, asked.max_samples)
    predictor = Predictor.load(weights, task=task, dtype=generation.dtype, num_crops=generation.num_crops)
    answers = _answers(attempt, predictor, split, asked)
    products = [row.product_id for row in split.rows]
    shown = shuffle_among_products(products)
    if shown is None:
        logger.warning("%s: the split has one product, there are no pictures to shuffle", attempt.task)
    write_predictions(attempt.payload, task, split.rows, answers, shown)

    truths = [row.truth for row in split.rows]
    fields = [answer.fields for answer in answers]
    row_ids = [row.row_id for row in split.rows]
    outcomes = Outcomes.of(task, truths, fields, products, row_ids)
    metrics = measure(outcomes)
    # The question is the same for every row and generation is greedy, so what the model says of another
    # product's picture is what it said of that picture when it came to it.
    shuffled = (
        measure(Outcomes.of(task, truths, [fields[other] for other in shown], products)) if shown else None
    )
    own: dict[str, Any] = {
        "model_digest": model.digest,
        "dataset_digest": dataset.digest,
        "task_digest": task.digest,
        "split": asked.split,
        "generation": generation,
        "metrics": metrics,
        "parsed": measure(outcomes.take(outcomes.parsed)) if outcomes.parsed.any() else None,
        "shuffled": shuffled,
        "slices": {
            kind: {name: measure(outcomes.take(mask)) for name, mask in masks.items()}
            for kind, masks in slices(outcomes).items()
        },
        "chance_category_accuracy": max(Counter(outcomes.category_truth.tolist()).values()) / len(outcomes),
    }
    run = tracking.Run.of(model.mlflow)
    run.log_metrics(metrics.figures, prefix=f"{asked.split}/")
    run.log_metrics(shuffled.figures if shuffled else {}, prefix=f"{asked.split}/shuffled/")
    logger.info(
        "%s: of %d rows %.1f %% can be read, %.1f %% have the right category, median price error %.1f %%",
        attempt.task,
        metrics.samples,
        100 * metrics.parse_rate,
        100 * metrics.category_accuracy,
        100 * metrics.price_median_ape,
    )
    return own


def _answers(
    attempt: Attempt, predictor: Predictor, split: Split, asked: EvaluateParameters
) -> Sequence[Answer]:
    progress = attempt.progress("answering")
    answers: list[Answer] = []

    def report(done: int, _: int) -> None:
        progress(len(answers) + done, len(split.rows))

    for pictures in split.pictures(_BATCHES_AHEAD * asked.batch_size):
        answers += predictor.answer(
            pictures,
            max_new_tokens=asked.max_new_tokens,
            batch_size=asked.batch_size,
            progress=report,
        )
    return answers

"""Evaluations as the step leaves them in S3, with what models answered made up."""

import hashlib
import io
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
from PIL import Image

from components.evaluate.baselines import shuffle_among_groups
from fovea.evaluation.calibration import fit_calibration
from fovea.evaluation.intervals import measure
from fovea.evaluation.metrics import confusions, slices
from fovea.evaluation.outcomes import Outcomes, write_baselines
from fovea.predictions import Prediction, Row, write_predictions
from fovea.records import (
    DatasetRecord,
    Decision,
    EvaluationRecord,
    GenerationParameters,
    Metrics,
    RuleResult,
    Split,
)
from fovea.storage import Storage
from fovea.task import Answer, FieldValue, Task, product_task
from tests.some_records import made_by, some_evaluation

TASK = product_task()
Fields = dict[str, FieldValue]


def digest(text: object) -> str:
    return "sha256:" + hashlib.sha256(str(text).encode()).hexdigest()


def colour(number: int) -> tuple[int, int, int]:
    return (40 * number % 256, 90 * number % 256, 150 * number % 256)


def jpeg(number: int, side: int = 64, *, noise: bool = False) -> bytes:
    picture = Image.new("RGB", (side, side), colour(number))
    if noise:
        picture = Image.fromarray(np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def some_rows(count: int, *, categories: int = 3, titles: Sequence[str] = ("Wool scarf",)) -> list[Row]:
    return [
        Row(
            f"row-{number}",
            f"p{number}",
            f"p{number // 2 * 2}",
            {
                "product": titles[number % len(titles)],
                "category": f"CATEGORY {number % categories}",
                "full_price": 10.0 + number,
            },
        )
        for number in range(count)
    ]


def answer(task: Task, fields: Fields | None, text: str = "", sure: float = 0.9) -> Answer:
    """An answer that is ``sure`` of each field; None is one that cannot be read."""
    return Answer(
        text=text or (str(fields) if fields else "What a lovely scarf"),
        fields=fields,
        parse_error=None if fields else "does not follow the template",
        prompt_tokens=10,
        completion_tokens=5,
        finish_reason="stop",
        scores=dict.fromkeys(task.fields, float(np.log(sure))) if fields else None,
    )


def right_but(rows: Sequence[Row], every: int, **wrong: FieldValue) -> list[Answer]:
    """Answers that are right, but for each so many-th, which has the wrong fields and is less sure."""
    return [
        answer(TASK, {**row.truth, **wrong}, sure=0.6 + 0.3 * (number % 7) / 7)
        if number % every == 0
        else answer(TASK, row.truth, sure=0.7 + 0.29 * (number % 5) / 5)
        for number, row in enumerate(rows)
    ]


@dataclass(frozen=True)
class Bucket:
    """Where evaluations lie; it is slow to make, so tests share one."""

    root: str
    storage: Storage


def save_dataset(
    bucket: Bucket, rows: Sequence[Row], pictures: Mapping[int, bytes] | None = None, task: Task = TASK
) -> DatasetRecord:
    """A dataset whose test split holds the rows, each with a picture of its colour."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = [(pictures or {}).get(number) or jpeg(number % 30) for number in range(len(rows))]
        columns = {
            "row_id": [row.row_id for row in rows],
            "product_id": [row.product_id for row in rows],
            "product_group": [row.product_group for row in rows],
            "image": [{"bytes": data, "path": "a.jpg"} for data in images],
            **{field: [row.truth[field] for row in rows] for field in task.fields},
        }
        middle = len(rows) // 2 or 1
        for number, start in enumerate(range(0, len(rows), middle)):
            table = pa.table(columns).slice(start, middle)
            parquet.write_table(table, folder / f"test-{number:05}.parquet", row_group_size=100)
        files = bucket.storage.upload_folder(folder, f"{bucket.root}/dataset/")
    made = {**made_by("prepare_data"), "uri": f"{bucket.root}/dataset/", "files": files}
    return DatasetRecord(
        **made,
        task=task,
        splits={"test": Split(rows=len(rows), products=len({row.product_id for row in rows}))},
        dropped={},
        currency="USD",
        categories={},
        longest_side=64,
    )


def save_evaluation(
    bucket: Bucket,
    model: str,
    dataset: DatasetRecord,
    rows: Sequence[Row],
    answers: Sequence[Answer],
    *,
    baselines: Mapping[str, Sequence[Fields]] | None = None,
    calibrated: bool = True,
    resamples: int = 50,
) -> EvaluationRecord:
    """The evaluation of a model of that name."""
    task = dataset.task
    truths, fields = [row.truth for row in rows], [each.fields for each in answers]
    groups, row_ids = [row.product_group for row in rows], [row.row_id for row in rows]
    fitted = fit_calibration(task, truths, fields, [each.scores for each in answers]) if calibrated else None
    shown = shuffle_among_groups(groups)
    outcomes = Outcomes.of(task, truths, fields, groups, row_ids)
    trivial = {
        name: Outcomes.of(task, truths, said, groups, row_ids) for name, said in (baselines or {}).items()
    }
    with tempfile.TemporaryDirectory() as name:
        others = [row_ids[other] for other in shown] if shown else [None] * len(rows)
        predictions = [
            Prediction(row, each, fitted.confidences(each.scores) if fitted else {}, other)
            for row, each, other in zip(rows, answers, others, strict=True)
        ]
        write_predictions(Path(name), task, predictions)
        if trivial:
            write_baselines(trivial, Path(name))
        files = bucket.storage.upload_folder(Path(name), f"{bucket.root}/{model}/")

    def measured(some: Outcomes) -> Metrics:
        return measure(some, resamples)

    return some_evaluation(
        uri=f"{bucket.root}/{model}/",
        files=files,
        model_digest=digest(model),
        dataset_digest=dataset.digest,
        task_digest=task.digest,
        generation=GenerationParameters(max_new_tokens=64, num_crops=1, dtype="float32"),
        metrics=measured(outcomes),
        parsed=measured(outcomes.take(outcomes.parsed)) if outcomes.parsed.any() else None,
        shuffled=measured(Outcomes.of(task, truths, [fields[other] for other in shown], groups))
        if shown
        else None,
        slices={
            kind: {each: measured(outcomes.take(mask)) for each, mask in masks.items()}
            for kind, masks in slices(outcomes).items()
        },
        baselines={each: measured(found) for each, found in trivial.items()},
        confusions=confusions(outcomes),
        calibration=fitted,
    )


def decision(model: str, *rules: RuleResult, passed: bool = False, reason: str = "") -> Decision:
    return Decision(
        **made_by("gate"),
        model_digest=digest(model),
        passed=passed,
        reason=reason or ("passed: all rules hold" if passed else "refused: parse_rate (too low)"),
        rules=rules,
    )

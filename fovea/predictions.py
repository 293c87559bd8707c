"""Predictions: what a model answered to the rows of a split, as an evaluation keeps them in Parquet.

``predictions-00000.parquet`` and on have a row for each row of the split, in its order. The columns are
``row_id``, ``product_id``, ``product_group``, ``text``, ``parse_error`` (null where the answer was read),
``prompt_tokens``, ``completion_tokens``, ``finish_reason`` and ``shuffled_row_id`` (whose picture is shown
instead where pictures are shuffled); and for each field of the task ``true_FIELD``, ``predicted_FIELD``,
``score_FIELD`` (the log-probability) and ``confidence_FIELD`` (null where it is not known).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

from fovea.errors import UserError
from fovea.records import EvaluationRecord
from fovea.storage import Storage
from fovea.task import Answer, FieldValue, Task

PATTERN = "predictions-*.parquet"
"""Matches the files among those of an evaluation's payload."""

_ROWS_A_FILE = 20_000


@dataclass(frozen=True)
class Row:
    """A row of a split without its picture; ``truth`` has the task's fields."""

    row_id: str
    product_id: str
    product_group: str
    truth: dict[str, FieldValue]


@dataclass(frozen=True)
class Prediction:
    """A row with a model's answer to it."""

    row: Row
    answer: Answer
    confidences: Mapping[str, float | None] = field(default_factory=dict)
    """The probability that a field is right, by field; None or absent where it is not known."""
    shuffled_row_id: str | None = None
    """Whose picture is shown instead where pictures are shuffled; None where there is only one group."""


def to_table(task: Task, predictions: Sequence[Prediction]) -> pa.Table:
    """Return predictions as a table; `from_table` reads it."""
    rows, answers = [each.row for each in predictions], [each.answer for each in predictions]
    columns = {
        "row_id": pa.array([row.row_id for row in rows], pa.string()),
        "product_id": pa.array([row.product_id for row in rows], pa.string()),
        "product_group": pa.array([row.product_group for row in rows], pa.string()),
        "text": pa.array([answer.text for answer in answers], pa.string()),
        "parse_error": pa.array([answer.parse_error for answer in answers], pa.string()),
        "prompt_tokens": pa.array([answer.prompt_tokens for answer in answers], pa.int32()),
        "completion_tokens": pa.array([answer.completion_tokens for answer in answers], pa.int32()),
        "finish_reason": pa.array([answer.finish_reason for answer in answers], pa.string()),
        "shuffled_row_id": pa.array([each.shuffled_row_id for each in predictions], pa.string()),
    }
    for name, kind in task.fields.items():
        value = pa.type_for_alias(kind.arrow_type)
        known = [each.confidences.get(name) for each in predictions]
        columns |= {
            f"true_{name}": pa.array([row.truth[name] for row in rows], value),
            f"predicted_{name}": pa.array([(each.fields or {}).get(name) for each in answers], value),
            f"score_{name}": pa.array([(each.scores or {}).get(name) for each in answers], pa.float64()),
            f"confidence_{name}": pa.array(known, pa.float64()),
        }
    return pa.table(columns)


def from_table(table: pa.Table, task: Task) -> list[Prediction]:
    """Return the predictions of a table.

    Raises:
        KeyError: a column is missing.
    """
    return [_prediction(row, task) for row in table.to_pylist()]


def _prediction(row: Mapping[str, Any], task: Task) -> Prediction:
    def values(prefix: str) -> dict[str, Any]:
        return {name: row[f"{prefix}_{name}"] for name in task.fields}

    is_readable = row["parse_error"] is None
    scores = {name: score for name, score in values("score").items() if score is not None}
    return Prediction(
        row=Row(row["row_id"], row["product_id"], row["product_group"], values("true")),
        answer=Answer(
            text=row["text"],
            fields=values("predicted") if is_readable else None,
            parse_error=row["parse_error"],
            prompt_tokens=row["prompt_tokens"],
            completion_tokens=row["completion_tokens"],
            finish_reason=row["finish_reason"],
            scores=scores if is_readable else None,
        ),
        confidences=values("confidence"),
        shuffled_row_id=row["shuffled_row_id"],
    )


def write_predictions(folder: Path, task: Task, predictions: Sequence[Prediction]) -> None:
    """Write ``predictions-00000.parquet`` and on, 20,000 rows a file."""
    for number, start in enumerate(range(0, len(predictions), _ROWS_A_FILE)):
        part = to_table(task, predictions[start : start + _ROWS_A_FILE])
        parquet.write_table(part, folder / f"predictions-{number:05}.parquet", compression="zstd")


def read_predictions(paths: Collection[Path], task: Task) -> list[Prediction]:
    """Read the files that `write_predictions` wrote.

    Raises:
        UserError: they cannot be read, or have other columns.
    """
    try:
        return [each for path in sorted(paths) for each in from_table(parquet.read_table(path), task)]
    except (pa.ArrowException, OSError, KeyError, TypeError) as error:
        raise UserError(
            f"{', '.join(map(str, paths)) or 'no file'}: no predictions can be read "
            f"({type(error).__name__}: {error}); evaluate the model again"
        ) from error


def fetch_predictions(
    storage: Storage, record: EvaluationRecord, task: Task, cache: Path | None = None
) -> list[Prediction]:
    """Return an evaluation's predictions; only files that the record names are read.

    Raises:
        UserError: they cannot be fetched or read.
    """
    folder = storage.download(record, cache, pattern=PATTERN)
    names = [entry.path for entry in record.files if entry.path.startswith("predictions-")]
    return read_predictions([folder / name for name in names], task)


def shuffled(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Return each row with the answer to the picture that it is shown instead.

    Raises:
        KeyError: a row names no other, or one that is not among these.
    """
    answers = {each.row.row_id: each.answer for each in predictions}
    return [replace(each, answer=answers[str(each.shuffled_row_id)]) for each in predictions]

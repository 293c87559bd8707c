"""What a model answered to each row, as the tables that an evaluation keeps and leaves behind."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

from components.evaluate.split import Row
from fovea.evaluation.calibration import Calibration
from fovea.inference import Answer
from fovea.task import PriceField, Task

_ROWS_A_FILE = 20_000


def answers_table(task: Task, rows: Sequence[Row], answers: Sequence[Answer]) -> pa.Table:
    """Return the answers as a table, with all that `answers_from` needs.

    Columns: ``row_id``, ``text``, ``prompt_tokens``, ``completion_tokens``, ``finish_reason``, and
    ``score_FIELD`` for each field of the task (null where there is none).
    """
    scores = [answer.scores or {} for answer in answers]
    return pa.table(
        {
            "row_id": pa.array([row.row_id for row in rows], pa.string()),
            "text": pa.array([answer.text for answer in answers], pa.string()),
            "prompt_tokens": pa.array([answer.prompt_tokens for answer in answers], pa.int32()),
            "completion_tokens": pa.array([answer.completion_tokens for answer in answers], pa.int32()),
            "finish_reason": pa.array([answer.finish_reason for answer in answers], pa.string()),
            **{
                f"score_{name}": pa.array([score.get(name) for score in scores], pa.float64())
                for name in task.fields
            },
        }
    )


def answers_from(table: pa.Table, task: Task) -> list[Answer]:
    """Return the answers that `answers_table` made a table of."""
    return [_answer(row, task) for row in table.to_pylist()]


def _answer(row: Mapping[str, Any], task: Task) -> Answer:
    fields, error = task.parse(row["text"])
    scores = {name: row[f"score_{name}"] for name in task.fields}
    return Answer(
        text=row["text"],
        fields=fields,
        parse_error=error,
        prompt_tokens=row["prompt_tokens"],
        completion_tokens=row["completion_tokens"],
        finish_reason=row["finish_reason"],
        scores=None if fields is None else {n: score for n, score in scores.items() if score is not None},
    )


def write_predictions(
    folder: Path,
    task: Task,
    rows: Sequence[Row],
    answers: Sequence[Answer],
    shown: Sequence[int] | None,
    calibration: Calibration | None,
) -> None:
    """Write ``predictions-00000.parquet`` and on, a row for each row of the split and in its order.

    Columns: those of `answers_table`; ``product_id`` and ``product_group``; ``parse_error`` (null where the
    answer could be read); ``true_FIELD``, ``predicted_FIELD`` and ``confidence_FIELD`` for each field of the
    task (the latter two null where the answer could not be read, and a confidence also where none is known);
    ``shuffled_row_id``: whose picture is shown instead when pictures are shuffled (null where there is none).
    """
    table = answers_table(task, rows, answers)
    known = [calibration.confidences(answer.scores) if calibration else {} for answer in answers]
    columns = {
        "product_id": pa.array([row.product_id for row in rows], pa.string()),
        "product_group": pa.array([row.product_group for row in rows], pa.string()),
        "parse_error": pa.array([answer.parse_error for answer in answers], pa.string()),
        "shuffled_row_id": pa.array(
            [rows[other].row_id for other in shown] if shown else [None] * len(rows), pa.string()
        ),
    }
    for name, field in task.fields.items():
        kind = pa.float64() if isinstance(field, PriceField) else pa.string()
        columns[f"true_{name}"] = pa.array([row.truth[name] for row in rows], kind)
        columns[f"predicted_{name}"] = pa.array([(answer.fields or {}).get(name) for answer in answers], kind)
        columns[f"confidence_{name}"] = pa.array([each.get(name) for each in known], pa.float64())
    for name, column in columns.items():
        table = table.append_column(name, column)
    for number, start in enumerate(range(0, len(rows), _ROWS_A_FILE)):
        part = table.slice(start, _ROWS_A_FILE)
        parquet.write_table(part, folder / f"predictions-{number:05}.parquet", compression="zstd")

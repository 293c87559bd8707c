"""What a model answered to each row, as the table that an evaluation leaves behind."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet

from components.evaluate.rows import Row
from fovea.inference import Answer
from fovea.task import PriceField, Task

FILES = "predictions-*.parquet"
_ROWS_A_FILE = 20_000


def write_predictions(
    folder: Path, task: Task, rows: Sequence[Row], answers: Sequence[Answer], shown: Sequence[int] | None
) -> None:
    """Write ``predictions-00000.parquet`` and on, a row for each row of the split and in its order.

    Columns: ``row_id``, ``product_id``, ``text`` (the answer), ``parse_error`` (null where it could be read);
    ``true_FIELD`` and ``predicted_FIELD`` for each field of the task (null where the answer could not be
    read); ``prompt_tokens``, ``completion_tokens``, ``finish_reason``; ``shuffled_row_id``: whose picture is
    shown instead when pictures are shuffled (null where they cannot be).
    """
    columns: dict[str, pa.Array] = {
        "row_id": pa.array([row.row_id for row in rows], pa.string()),
        "product_id": pa.array([row.product_id for row in rows], pa.string()),
        "text": pa.array([answer.text for answer in answers], pa.string()),
        "parse_error": pa.array([answer.parse_error for answer in answers], pa.string()),
    }
    for name, field in task.fields.items():
        kind = pa.float64() if isinstance(field, PriceField) else pa.string()
        columns[f"true_{name}"] = pa.array([row.truth[name] for row in rows], kind)
        columns[f"predicted_{name}"] = pa.array([(answer.fields or {}).get(name) for answer in answers], kind)
    columns |= {
        "prompt_tokens": pa.array([answer.prompt_tokens for answer in answers], pa.int32()),
        "completion_tokens": pa.array([answer.completion_tokens for answer in answers], pa.int32()),
        "finish_reason": pa.array([answer.finish_reason for answer in answers], pa.string()),
        "shuffled_row_id": pa.array(
            [rows[other].row_id for other in shown] if shown else [None] * len(rows), pa.string()
        ),
    }
    table = pa.table(columns)
    for number, start in enumerate(range(0, len(rows), _ROWS_A_FILE)):
        part = table.slice(start, _ROWS_A_FILE)
        parquet.write_table(part, folder / f"predictions-{number:05}.parquet", compression="zstd")

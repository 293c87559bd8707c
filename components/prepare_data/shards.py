"""The dataset's shards: Parquet files with the `datasets` Image feature."""

import json
from itertools import count, islice
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from components.prepare_data.pictures import give_back_freed_memory
from components.prepare_data.workspace import DatasetRow, Workspace
from fovea.task import Task

ROWS_PER_SHARD = 1000
_ROWS_PER_GROUP = 100


def schema(task: Task) -> pyarrow.Schema:
    """Return the shards' columns; the metadata declares ``image`` as an Image feature of `datasets`."""
    kinds = {name: field.arrow_type for name, field in task.fields.items()}
    names = ("row_id", "product_id", "product_group", "image", *task.fields, "currency")
    types = {name: pyarrow.type_for_alias(kinds.get(name, "string")) for name in names}
    types["image"] = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    # Written as `datasets` does, without importing it, which takes a second and 60 MB.
    features = {name: {"dtype": kinds.get(name, "string"), "_type": "Value"} for name in names} | {
        "image": {"_type": "Image"}
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pyarrow.schema(list(types.items()), metadata=metadata)


def write_shards(workspace: Workspace, split: str, folder: Path, task: Task) -> None:
    """Write the rows of one split as ``{split}-00000.parquet`` and so on, by ``row_id``.

    That order is well mixed, and does not depend on the order of the source.
    """
    columns = schema(task)
    # Compression does not make JPEGs smaller.
    compression = {name: "zstd" for name in columns.names if name != "image"} | {"image.bytes": "none"}
    rows = workspace.rows.of_split(split)
    for number in count():
        batch = list(islice(rows, min(_ROWS_PER_GROUP, ROWS_PER_SHARD)))
        if not batch:
            return
        path = folder / f"{split}-{number:05}.parquet"
        with pyarrow.parquet.ParquetWriter(path, columns, compression=compression) as writer:
            left = ROWS_PER_SHARD
            while batch:
                records = [_record(row, workspace.pictures.jpeg(row.digest)) for row in batch]
                writer.write_batch(pyarrow.RecordBatch.from_pylist(records, columns))
                left -= len(batch)
                batch = list(islice(rows, min(_ROWS_PER_GROUP, left)))
        give_back_freed_memory()


def _record(row: DatasetRow, jpeg: bytes) -> dict[str, Any]:
    return {
        "row_id": row.row_id,
        "product_id": row.product,
        "product_group": row.group,
        "image": {"bytes": jpeg, "path": f"{row.row_id}.jpg"},
        **row.values,
        "currency": row.currency,
    }

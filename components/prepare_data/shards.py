"""The dataset's files: Parquet with the `datasets` Image feature."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow
import pyarrow.parquet
from datasets import Features, Image, Value

from components.prepare_data.pictures import Picture, Spool
from components.prepare_data.rows import Row
from fovea.task import PriceField, Task

ROWS_PER_SHARD = 1000
_ROWS_PER_GROUP = 100


@dataclass(frozen=True)
class Sample:
    """A row with its picture; ``row_id`` follows from what it holds, so a larger feed does not change it."""

    row_id: str
    row: Row
    picture: Picture


def schema(task: Task) -> pyarrow.Schema:
    """Return the shards' columns; the metadata tells `datasets` that ``image`` holds pictures."""
    fields = {
        name: Value("float64" if isinstance(field, PriceField) else "string")
        for name, field in task.fields.items()
    }
    features = Features(
        {"row_id": Value("string"), "product_id": Value("string"), "image": Image(), **fields}
        | {"currency": Value("string")}
    )
    return features.arrow_schema


def write_shards(samples: Sequence[Sample], split: str, folder: Path, task: Task, spool: Spool) -> None:
    """Write the samples of one split as ``{split}-00000.parquet`` and on, in the order given."""
    columns = schema(task)
    # JPEGs do not become smaller.
    compression = {name: "zstd" for name in columns.names if name != "image"} | {"image.bytes": "none"}
    for number, start in enumerate(range(0, len(samples), ROWS_PER_SHARD)):
        path = folder / f"{split}-{number:05}.parquet"
        with pyarrow.parquet.ParquetWriter(path, columns, compression=compression) as writer:
            for group in _chunks(samples[start : start + ROWS_PER_SHARD], _ROWS_PER_GROUP):
                writer.write_batch(
                    pyarrow.RecordBatch.from_pylist([_record(sample, spool) for sample in group], columns)
                )


def _record(sample: Sample, spool: Spool) -> dict[str, object]:
    return {
        "row_id": sample.row_id,
        "product_id": sample.row.product_id,
        "image": {"bytes": spool.read(sample.picture), "path": f"{sample.row_id}.jpg"},
        **sample.row.values,
        "currency": sample.row.currency,
    }


def _chunks(samples: Sequence[Sample], size: int) -> Iterator[Sequence[Sample]]:
    for start in range(0, len(samples), size):
        yield samples[start : start + size]

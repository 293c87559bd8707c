"""A split of a prepared dataset: truths in memory, pictures in batches."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow.parquet as parquet
from PIL import Image
from pyarrow import ArrowException

from fovea.errors import UserError
from fovea.images import PictureError, PictureLimits, decode_picture
from fovea.predictions import Row
from fovea.task import Task


class Split:
    """The rows of a split, in the order of its files.

    Truths are small and held in memory; pictures are read and decoded some rows at a time.
    """

    def __init__(self, folder: Path, name: str, task: Task, max_samples: int = 0) -> None:
        """Read the rows.

        Args:
            folder: The folder with the dataset's Parquet files.
            name: The split.
            task: Its fields are the columns of the truth.
            max_samples: Rows to take, 0 for all. Which ones depends on their ids alone.

        Raises:
            UserError: the split is not there, has no rows or lacks a column.
        """
        self.name = name
        self._files = sorted(folder.glob(f"{name}-*.parquet"))
        columns = ["row_id", "product_id", "product_group", *task.fields]
        try:
            tables = [parquet.read_table(path, columns=columns).to_pylist() for path in self._files]
        except (ArrowException, OSError) as error:
            raise UserError(
                f"{folder}: the {name} split cannot be read ({error}); prepare it again"
            ) from error
        records = [record for table in tables for record in table]
        if not records or set(columns) - set(records[0]):
            raise UserError(f"{folder}: has no {name} split with rows and the columns {', '.join(columns)}")
        self._taken = _taken([record["row_id"] for record in records], max_samples)
        self.rows = [
            Row(
                record["row_id"],
                record["product_id"],
                record["product_group"],
                {field: record[field] for field in task.fields},
            )
            for record, taken in zip(records, self._taken, strict=True)
            if taken
        ]

    def pictures(self, batch: int, first: int = 0) -> Iterator[list[Image.Image]]:
        """Yield the rows' pictures, decoded, at most ``batch`` at a time and in the rows' order.

        Args:
            batch: how many at most.
            first: the row to start with.

        Raises:
            UserError: a picture cannot be decoded.
        """
        number, passed = 0, 0
        for path in self._files:
            with parquet.ParquetFile(path) as file:
                for table in file.iter_batches(batch_size=batch, columns=["row_id", "image"]):
                    taken = [
                        record for place, record in enumerate(table.to_pylist(), number) if self._taken[place]
                    ]
                    number += table.num_rows
                    skipped = min(len(taken), first - passed)
                    passed += skipped
                    taken = taken[skipped:]
                    if taken:
                        yield [_decode(record["row_id"], record["image"]["bytes"]) for record in taken]


def _taken(row_ids: Sequence[str], max_samples: int) -> list[bool]:
    if not 0 < max_samples < len(row_ids):
        return [True] * len(row_ids)
    places = sorted(range(len(row_ids)), key=lambda place: hashlib.sha256(row_ids[place].encode()).digest())
    chosen = set(places[:max_samples])
    return [place in chosen for place in range(len(row_ids))]


def _decode(row_id: str, data: bytes) -> Image.Image:
    try:
        return decode_picture(data, PictureLimits(min_side=1))
    except PictureError as error:
        raise UserError(
            f"row {row_id}: its picture cannot be decoded ({error}); prepare the data again"
        ) from error

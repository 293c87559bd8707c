"""Readers of tables: CSV, JSON Lines and Parquet files, and Arrow tables."""

import csv
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.csv
import pyarrow.parquet

from fovea.errors import UserError

Value = str | Decimal
"""A cell: text as the table has it, or a number with a fraction of a typed table."""

_BATCH_BYTES = 4 << 20
_BATCH_ROWS = 1000
_BATCH_PICTURES = 32
"""Rows per batch if the table itself contains the pictures."""
_LINE_BYTES = 64 << 20
_MALFORMED_CHARACTERS = 300
_LOOKED_AT = 100
"""The first lines of JSON in which every column must occur."""


@dataclass(frozen=True)
class SourceRow:
    """A row as the table has it. ``malformed`` is the text of a line that is not a row."""

    values: dict[str, Value]
    picture: bytes | None = None
    """The picture's bytes, if the table itself contains them."""
    malformed: str | None = None


def read_table(path: Path, location: str, columns: Sequence[str], image_column: str) -> Iterator[SourceRow]:
    """Yield a file's rows with these columns; errors name its ``location``.

    Raises:
        UserError: The file cannot be read, or lacks a column.
    """
    with _explained(location):
        with path.open("rb") as file:
            start = file.read(64)
        if start.startswith(b"PAR1"):
            yield from _parquet(path, location, columns, image_column)
        elif start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
            yield from _json_lines(path, location, columns, image_column)
        else:
            yield from _csv(path, location, columns)


def arrow_rows(batch: Any, columns: Sequence[str], image_column: str) -> Iterator[SourceRow]:
    """Yield the rows of an Arrow table or batch, whose columns may have any type."""
    for record in batch.select(list(columns)).to_pylist():
        yield _row(record, columns, image_column)


def check_columns(location: str, columns: Sequence[str], there: Sequence[str]) -> None:
    """Raise a UserError if a column is missing."""
    missing = [column for column in columns if column not in there]
    if missing:
        raise UserError(
            f"{location}: has no column {', '.join(missing)}; there are {', '.join(there)}. "
            "Set the *_column parameters"
        )


def _parquet(path: Path, location: str, columns: Sequence[str], image_column: str) -> Iterator[SourceRow]:
    # With pre_buffer, whole row groups would be in memory.
    with pyarrow.parquet.ParquetFile(path, pre_buffer=False) as file:
        names = file.schema_arrow.names
        check_columns(location, columns, names)
        is_text = pyarrow.types.is_string(file.schema_arrow.field(image_column).type)
        size = _BATCH_ROWS if is_text else _BATCH_PICTURES
        for batch in file.iter_batches(size, columns=list(columns)):
            yield from arrow_rows(batch, columns, image_column)


def _json_lines(path: Path, location: str, columns: Sequence[str], image_column: str) -> Iterator[SourceRow]:
    with path.open("rb") as file:
        first = [_json_object(line) for line in islice(file, _LOOKED_AT)]
        check_columns(location, columns, list(dict.fromkeys(key for item in first for key in item or {})))
        file.seek(0)
        while line := file.readline(_LINE_BYTES):
            record = _json_object(line)
            if record is not None:
                yield _row(record, columns, image_column)
            elif line.strip():
                yield _malformed(line.decode(errors="replace"))


def _json_object(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(
            line.decode("utf-8-sig"), parse_float=Decimal, parse_int=str, parse_constant=lambda _: None
        )
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _csv(path: Path, location: str, columns: Sequence[str]) -> Iterator[SourceRow]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        delimiter, there = _header(file.readline(_LINE_BYTES))
    check_columns(location, columns, there)
    malformed: list[pyarrow.csv.InvalidRow] = []

    def skip(row: pyarrow.csv.InvalidRow) -> str:
        malformed.append(row)
        return "skip"

    reader = pyarrow.csv.open_csv(
        path,
        # Invalid rows have numbers only with a single thread.
        read_options=pyarrow.csv.ReadOptions(block_size=_BATCH_BYTES, use_threads=False),
        parse_options=pyarrow.csv.ParseOptions(
            delimiter=delimiter, newlines_in_values=True, invalid_row_handler=skip
        ),
        convert_options=pyarrow.csv.ConvertOptions(
            include_columns=list(columns), column_types=dict.fromkeys(columns, pyarrow.string())
        ),
    )
    number = 2  # the header is 1
    for batch in reader:
        # In slices, because Python objects take many times the memory of the batch.
        for start in range(0, batch.num_rows, _BATCH_ROWS):
            for record in batch.slice(start, _BATCH_ROWS).to_pylist():
                while malformed and malformed[0].number == number:
                    yield _malformed(malformed.pop(0).text)
                    number += 1
                yield SourceRow(record)
                number += 1
    yield from (_malformed(row.text) for row in malformed)


def _header(line: str) -> tuple[str, list[str]]:
    """Return the delimiter that splits a header into the most columns, and the columns."""
    read: dict[str, list[str]] = {mark: next(csv.reader([line], delimiter=mark), []) for mark in ",;\t|"}
    return max(read.items(), key=lambda item: len(item[1]))


def _row(record: dict[str, Any], columns: Sequence[str], image_column: str) -> SourceRow:
    picture, address = _picture(record.get(image_column))
    values = {column: _plain(record.get(column)) for column in columns if column != image_column}
    return SourceRow({**values, image_column: address}, picture)


def _picture(value: Any) -> tuple[bytes | None, str]:
    """Return a picture's bytes or address, from either or from a `datasets` image with both."""
    if isinstance(value, dict):
        if isinstance(value.get("bytes"), bytes):
            return value["bytes"], ""
        value = value.get("path")
    return (value, "") if isinstance(value, bytes) else (None, str(_plain(value)))


def _plain(value: Any) -> Value:
    match value:
        case None:
            return ""
        case str() | Decimal():
            return value
        case bool():
            return str(value).lower()
        case float():
            return Decimal(repr(value)) if math.isfinite(value) else ""
        case dict() | list():
            return json.dumps(value, ensure_ascii=False, default=str)
        case bytes():
            return value.decode(errors="replace")
    return str(value)


def _malformed(text: str) -> SourceRow:
    return SourceRow({}, malformed=text.strip()[:_MALFORMED_CHARACTERS])


_UNREADABLE: tuple[type[Exception], ...] = (OSError, UnicodeError, csv.Error, pyarrow.ArrowException)


@contextmanager
def _explained(location: str) -> Iterator[None]:
    try:
        yield
    except _UNREADABLE as error:
        raise UserError(
            f"{location}: cannot be read as CSV or JSON Lines in UTF-8, or as Parquet "
            f"({(str(error) or type(error).__name__).splitlines()[0]}); give a table with a header line"
        ) from error

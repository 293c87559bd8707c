"""Readers of tables: CSV, JSON and Parquet files, and Arrow tables."""

import csv
import json
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from components.prepare_data.sources.csv_tables import csv_rows, read_header
from components.prepare_data.sources.plain_files import plain_file
from fovea.errors import UserError

Value = str | Decimal
"""A cell: text as the table has it, or a number with a fraction of a typed table."""

_BATCH_ROWS = 1000
_BATCH_PICTURES = 32
"""Rows per batch if the table itself contains the pictures."""
_LINE_BYTES = 64 << 20
_ARRAY_BYTES = 256 << 20
_ARRAY = re.compile(rb"\[\s*(\{|\]|$)")
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
    with _explained(location), plain_file(path, location) as plain:
        with plain.open("rb") as file:
            start = file.read(64)
        text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
        if start.startswith(b"PAR1"):
            yield from _parquet(plain, location, columns, image_column)
        elif text.startswith(b"{"):
            yield from _json_lines(plain, location, columns, image_column)
        elif _ARRAY.match(text):
            yield from _json_array(plain, location, columns, image_column)
        else:
            yield from _csv(plain, location, columns)


def arrow_rows(batch: Any, columns: Sequence[str], image_column: str) -> Iterator[SourceRow]:
    """Yield the rows of an Arrow table or batch, whose columns may have any type; classes by their names."""
    classes = {name: names for name, names in _class_names(batch.schema).items() if name in columns}
    for record in batch.select(list(columns)).to_pylist():
        for column, names in classes.items():
            number = record[column]
            # -1 is an unknown class.
            known = isinstance(number, int) and 0 <= number < len(names)
            record[column] = names[number] if known else None
        yield _row(record, columns, image_column)


def _class_names(schema: pyarrow.Schema) -> dict[str, list[str]]:
    """Return the names of the classes of each `datasets.ClassLabel` in the metadata of a schema."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            name: [str(each) for each in feature["names"]]
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def check_columns(location: str, columns: Sequence[str], there: list[str]) -> None:
    """Raise a UserError where a column is missing, or there is another of its name."""
    missing = [column for column in columns if column not in there]
    if missing:
        raise UserError(
            f"{location}: has no column {', '.join(missing)}; there are {', '.join(there)}. "
            "Set the *_column parameters"
        )
    twice = [column for column in columns if there.count(column) > 1]
    if twice:
        raise UserError(
            f"{location}: has more than one column {', '.join(twice)}, and either could be meant; "
            "rename or remove the others"
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
        found = _parsed(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _parsed(text: bytes) -> Any:
    return json.loads(
        text.decode("utf-8-sig"),
        parse_float=Decimal,
        parse_int=str,
        parse_constant=lambda _: None,
        object_pairs_hook=_without_names_twice,
    )


def _without_names_twice(pairs: list[tuple[str, Any]]) -> Any:
    """Return an object, or its pairs if a name occurs twice."""
    found = dict(pairs)
    return found if len(found) == len(pairs) else pairs


def _json_array(path: Path, location: str, columns: Sequence[str], image_column: str) -> Iterator[SourceRow]:
    if path.stat().st_size > _ARRAY_BYTES:
        raise UserError(
            f"{location}: is a JSON array of more than {_ARRAY_BYTES:,} bytes; save it as JSON Lines"
        )
    try:
        items = _parsed(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{location}: is a JSON array that cannot be read ({error}); save it again, or as JSON Lines"
        ) from error
    first = [item for item in items[:_LOOKED_AT] if isinstance(item, dict)]
    check_columns(location, columns, list(dict.fromkeys(key for item in first for key in item)))
    for item in items:
        yield _row(item, columns, image_column) if isinstance(item, dict) else _malformed(json.dumps(item))


def _csv(path: Path, location: str, columns: Sequence[str]) -> Iterator[SourceRow]:
    header = read_header(path)
    check_columns(location, columns, header.names)
    for row in csv_rows(path, header, columns):
        yield _malformed(row) if isinstance(row, str) else SourceRow(row)


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
            f"({(str(error) or type(error).__name__).splitlines()[0]}); save it in UTF-8, with a header line"
        ) from error

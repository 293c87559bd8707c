"""CSV as it is found: any usual delimiter, a line ``sep=``, backslash quotes, blanks before quotes."""

import csv
import mmap
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import pyarrow
import pyarrow.compute
import pyarrow.csv

CsvRow = dict[str, Any] | str
"""Text by column; or the text of a malformed row."""

_BATCH_BYTES = 4 << 20
_BATCH_ROWS = 1000
_LINE_BYTES = 64 << 20
_SEP = re.compile(r'"?sep=([,;\t|])"?\s*', re.IGNORECASE)


@dataclass(frozen=True)
class Header:
    """The columns' names with single blanks, the delimiter, and how many lines stand before the rows."""

    names: list[str]
    delimiter: str
    lines: int


def read_header(path: Path) -> Header:
    """Return the header, read with the delimiter that ``sep=`` names, or else that makes the most columns.

    Raises:
        UnicodeError: it is not in UTF-8.
    """
    # What is buffered behind the header may be in columns that are not read.
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        said = _SEP.fullmatch(file.readline(_LINE_BYTES))
        before = 1 if said else 0
        found = []
        for delimiter in said[1] if said else ",;\t|":
            file.seek(0)
            lines = islice(_lines(file), before, None)
            reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
            names = [" ".join(name.split()) for name in next(reader, [])]
            found.append(Header(names, delimiter, before + reader.line_num))
    best = max(found, key=lambda header: len(header.names))
    if "\N{REPLACEMENT CHARACTER}" in "".join(best.names):
        raise UnicodeError("the header is in another encoding")
    return best


def csv_rows(path: Path, header: Header, columns: Sequence[str]) -> Iterator[CsvRow]:
    """Yield the rows in these columns, which the header has once.

    A row that an unclosed quote glued to the next is given as text.

    Raises:
        pyarrow.ArrowException, csv.Error, UnicodeError: the file cannot be read on.
    """
    if not _has_rows(path, header):  # pyarrow takes that for an error
        return
    backslashes, blanks = _quoting(path, header.delimiter)
    if backslashes or blanks:
        yield from _odd_rows(path, header, columns, backslashes, blanks)
        return
    done = 0
    for block in (_BATCH_BYTES, _LINE_BYTES):
        try:
            for row in islice(_usual_rows(path, header, columns, block), done, None):
                yield row
                done += 1
        except pyarrow.ArrowInvalid as error:
            # A row that is longer than a block, in whichever column.
            if "straddl" not in str(error):
                raise
            if block == _LINE_BYTES:
                raise csv.Error(
                    f"after {done:,} rows one has more than {block:,} bytes; close its quote"
                ) from error
        else:
            return


def _has_rows(path: Path, header: Header) -> bool:
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        return any(line.strip() for line in islice(_lines(file), header.lines, None))


def _usual_rows(path: Path, header: Header, columns: Sequence[str], block: int) -> Iterator[CsvRow]:
    malformed: list[pyarrow.csv.InvalidRow] = []

    def skip(row: pyarrow.csv.InvalidRow) -> str:
        malformed.append(row)
        return "skip"

    types = {name: pyarrow.string() if name in columns else pyarrow.binary() for name in header.names}
    reader = pyarrow.csv.open_csv(
        path,
        # Only a single thread counts its rows.
        read_options=pyarrow.csv.ReadOptions(
            block_size=block, use_threads=False, skip_rows=header.lines, column_names=header.names
        ),
        parse_options=pyarrow.csv.ParseOptions(
            delimiter=header.delimiter, newlines_in_values=True, invalid_row_handler=skip
        ),
        convert_options=pyarrow.csv.ConvertOptions(column_types=types),
    )
    number = header.lines + 1
    for batch in reader:
        glued = _glued_rows(batch, header.delimiter)
        wanted = batch.select([header.names.index(column) for column in columns])
        # Some rows at a time: as objects they take many times the memory of the batch.
        for start in range(0, batch.num_rows, _BATCH_ROWS):
            for place, record in enumerate(wanted.slice(start, _BATCH_ROWS).to_pylist(), start):
                while malformed and malformed[0].number == number:
                    yield malformed.pop(0).text
                    number += 1
                yield header.delimiter.join(record.values()) if place in glued else record
                number += 1
    yield from (row.text for row in malformed)


def _glued_rows(batch: pyarrow.RecordBatch, delimiter: str) -> set[int]:
    """Return the places of rows in which a cell of any column holds the end of a row and the next's start."""
    found = set()
    for index, column in enumerate(batch.columns):
        for place in pyarrow.compute.indices_nonzero(
            pyarrow.compute.match_substring(column, "\n")
        ).to_pylist():
            value = column[place].as_py()
            text = value if isinstance(value, str) else value.decode(errors="replace")
            if _is_glued(text, index, batch.num_columns, delimiter):
                found.add(place)
    return found


def _is_glued(cell: str, index: int, width: int, delimiter: str) -> bool:
    """Return whether a cell's lines are the end of a row, whole rows and the start of one, cell by cell.

    After a delimiter between cells there is no blank, as there is in prose.
    """
    if "\n" not in cell or width < 3 or f"{delimiter} " in cell:
        return False
    first, *between, last = cell.split("\n")
    counts = (first.count(delimiter), *(line.count(delimiter) for line in between), last.count(delimiter))
    expected = (width - 1 - index, *(width - 1 for _ in between), index)
    return counts == expected


def _quoting(path: Path, delimiter: str) -> tuple[bool, bool]:
    """Return whether quotes are escaped by backslashes, and whether blanks stand before opening quotes."""
    mark = re.escape(delimiter).encode()
    # Otherwise the quote after a backslash would end the cell, and a delimiter would have to follow.
    backslash = re.compile(rb'\\"[^"\s' + mark + rb"]")
    blank = re.compile(rb'^[^"\r\n]*' + mark + rb' +"[^"]', re.MULTILINE)
    with path.open("rb") as file:
        if not file.read(1):
            return False, False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            backslashes = data.find(b'\\"') >= 0 and backslash.search(data) is not None
            blanks = data.find(delimiter.encode() + b' "') >= 0 and blank.search(data) is not None
    return backslashes, blanks


def _odd_rows(
    path: Path, header: Header, columns: Sequence[str], backslashes: bool, blanks: bool
) -> Iterator[CsvRow]:
    """Yield the rows of CSV whose quoting pyarrow cannot read."""
    csv.field_size_limit(_LINE_BYTES)
    mark = re.escape(header.delimiter)
    # A cell \N, which means missing there, would become N.
    missing = re.compile(rf"(?:(?<=^)|(?<={mark}))\\N(?={mark}|\r?\n|$)")
    places = {column: header.names.index(column) for column in columns}
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = islice(_lines(file), header.lines, None)
        reader = csv.reader(
            (missing.sub("", line) for line in lines) if backslashes else lines,
            delimiter=header.delimiter,
            escapechar="\\" if backslashes else None,
            skipinitialspace=blanks,
        )
        for cells in reader:
            width = len(header.names)
            if len(cells) != width or any(
                _is_glued(cell, index, width, header.delimiter) for index, cell in enumerate(cells)
            ):
                if cells:
                    yield header.delimiter.join(cells)
                continue
            yield {column: cells[place] for column, place in places.items()}


def _lines(file: TextIO) -> Iterator[str]:
    return iter(lambda: file.readline(_LINE_BYTES), "")

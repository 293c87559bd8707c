"""What a file is by its content: read as it is, unpacked first, or refused with advice."""

import codecs
import gzip
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from fovea.errors import UserError

_MOST_BYTES = 16 << 30
"""Of an unpacked table."""
_CHUNK = 1 << 20

_GZIP = b"\x1f\x8b"
_ENCODINGS = {
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, since its mark starts with UTF-16's
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_SAVE = "save it as CSV in UTF-8, JSON Lines or Parquet"
_UNPACK = "unpack it and give the table in it"
_OTHERS = {
    b"\xd0\xcf\x11\xe0": ("an Excel workbook of the old kind (.xls)", _SAVE),
    b"PARE": ("an encrypted Parquet file", _SAVE),
    b"ARROW1": ("an Arrow file", _SAVE),
    b"ORC": ("an ORC file", _SAVE),
    b"Obj\x01": ("an Avro file", _SAVE),
    b"SQLite format 3": ("an SQLite database", _SAVE),
    b"%PDF": ("a PDF", _SAVE),
    b"<?xml": ("XML", _SAVE),
    b"<!doctype html": ("a web page", "give the address of the table itself"),
    b"<html": ("a web page", "give the address of the table itself"),
    b"\x28\xb5\x2f\xfd": ("packed with Zstandard", _UNPACK),
    b"BZh": ("packed with bzip2", _UNPACK),
    b"\xfd7zXZ": ("packed with xz", _UNPACK),
    b"7z\xbc\xaf": ("a 7z archive", _UNPACK),
    b"Rar!": ("a RAR archive", _UNPACK),
}


@contextmanager
def plain_file(path: Path, location: str) -> Iterator[Path]:
    """Give a file with the same table that is unpacked and, if it is text, in UTF-8.

    Raises:
        UserError: the file is of a kind that is not read; the message says which.
    """
    with path.open("rb") as file:
        start = file.read(1024)
    encoding = next((name for mark, name in _ENCODINGS.items() if start.startswith(mark)), None)
    if not start.startswith(_GZIP) and encoding is None:
        _refuse_others(path, start, location)
        yield path
        return
    with tempfile.NamedTemporaryFile() as copy:
        try:
            if encoding is None:
                with gzip.open(path) as packed:
                    _copy(packed, copy, location)
            else:
                with path.open(encoding=encoding, newline="") as text:
                    _copy(codecs.iterencode(iter(lambda: text.read(_CHUNK), ""), "utf-8"), copy, location)
        except (EOFError, zlib.error) as error:
            raise UserError(f"{location}: is packed with gzip and damaged; fetch or pack it again") from error
        copy.flush()
        with plain_file(Path(copy.name), location) as plain:
            yield plain


def _copy(source: IO[bytes] | Iterator[bytes], target: IO[bytes], location: str) -> None:
    chunks = source if isinstance(source, Iterator) else iter(lambda: source.read(_CHUNK), b"")
    left = _MOST_BYTES
    for chunk in chunks:
        left -= len(chunk)
        if left < 0:
            raise UserError(f"{location}: is larger than {_MOST_BYTES:,} bytes unpacked; split the table")
        target.write(chunk)


def _refuse_others(path: Path, start: bytes, location: str) -> None:
    what, advice = "", ""
    if start.startswith(b"PK\x03\x04"):
        what, advice = (
            ("an Excel workbook (.xlsx)", _SAVE) if _is_workbook(path) else ("a ZIP archive", _UNPACK)
        )
    elif not start.startswith(b"PAR1"):
        said = start.removeprefix(codecs.BOM_UTF8).lstrip().lower()
        found = (told for mark, told in _OTHERS.items() if start.startswith(mark) or said.startswith(mark))
        what, advice = next(found, ("", ""))
        if not what and b"\0" in start.partition(b"\n")[0]:
            what, advice = "a binary file", _SAVE
    if what:
        raise UserError(f"{location}: is {what} and cannot be read as a table; {advice}")


def _is_workbook(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.startswith("xl/") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False

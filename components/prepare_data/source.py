"""Where the table and its pictures come from: this disk, S3 or HTTP."""

import asyncio
import csv
import posixpath
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.csv

from fovea.errors import UserError
from fovea.fetch import Fetcher, FetchError, FetchLimits, join_url
from fovea.platform import FetchProfile
from fovea.storage import Storage, sha256_file, split_uri

TABLE_LIMITS = FetchLimits(max_bytes=2 << 30, total_seconds=900)

_BATCH_BYTES = 4 << 20


@dataclass(frozen=True)
class Table:
    """A table that lies on this disk now."""

    path: Path
    location: str
    """Where it was found: a URL after redirects, an S3 URI or a path. Relative addresses start there."""

    @property
    def digest(self) -> str:
        """``sha256:…`` of the table's bytes."""
        return f"sha256:{sha256_file(self.path)}"

    def rows(self, columns: list[str]) -> Iterator[dict[str, str] | None]:
        """Yield the rows' text in these columns; None for a line with too few or too many values.

        Raises:
            UserError: the file is no CSV in UTF-8, or a column is missing.
        """
        try:
            self._check_columns(columns)
            yield from self._read(columns)
        except (OSError, UnicodeError, csv.Error, pyarrow.ArrowInvalid, pyarrow.ArrowKeyError) as error:
            raise UserError(
                f"{self.location}: cannot be read as CSV in UTF-8 ({str(error).splitlines()[0]}); "
                "give a table with a header line"
            ) from error

    def _check_columns(self, columns: list[str]) -> None:
        with self.path.open(encoding="utf-8-sig", newline="") as file:
            there = next(csv.reader(file), [])
        missing = [column for column in columns if column not in there]
        if missing:
            raise UserError(
                f"{self.location}: has no column {', '.join(missing)}; there are {', '.join(there)}. "
                "Name the right ones with the *_column parameters, or in the task's fields"
            )

    def _read(self, columns: list[str]) -> Iterator[dict[str, str] | None]:
        malformed = 0

        def skip(_: pyarrow.csv.InvalidRow) -> str:
            nonlocal malformed
            malformed += 1
            return "skip"

        reader = pyarrow.csv.open_csv(
            self.path,
            read_options=pyarrow.csv.ReadOptions(block_size=_BATCH_BYTES),
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=skip),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=columns, column_types=dict.fromkeys(columns, pyarrow.string())
            ),
        )
        for batch in reader:
            yield from batch.to_pylist()
        yield from [None] * malformed


@contextmanager
def open_table(source: str, profile: FetchProfile, storage: Storage) -> Iterator[Table]:
    """Bring a table to this disk for the time of the block.

    Raises:
        UserError: it cannot be read.
    """
    scheme = _scheme(source)
    if scheme not in {"http", "https", "s3"}:
        path = Path(source).resolve()
        if not path.is_file():
            raise UserError(
                f"{source}: there is no such file; give a CSV file's path, URL or S3 URI as source"
            )
        yield Table(path, str(path))
        return
    with tempfile.NamedTemporaryFile(suffix=".csv") as file:
        location = source
        if scheme == "s3":
            file.write(storage.read_bytes(source))
        else:
            location = asyncio.run(_fetch_table(source, profile, file))
        file.flush()
        yield Table(Path(file.name), location)


async def _fetch_table(source: str, profile: FetchProfile, file: Any) -> str:
    async with Fetcher(profile, TABLE_LIMITS) as fetcher:
        try:
            return await fetcher.fetch_into(source, file)
        except FetchError as error:
            raise UserError(f"the table cannot be fetched: {error}") from error


class PictureReader:
    """Reads pictures by the addresses that a table gives, relative ones from where the table lies.

    A table from the web leads to the web only, so that it cannot reach the step's own disk and buckets; and
    no table leads to files outside its own folder.
    """

    def __init__(self, table: Table, fetcher: Fetcher, storage: Storage, max_bytes: int) -> None:
        self._base = table.location
        self._base_scheme = _scheme(table.location)
        self._fetcher = fetcher
        self._storage = storage
        self._max_bytes = max_bytes

    async def read(self, address: str) -> bytes:
        """Return a picture's bytes.

        Raises:
            FetchError: there is none to be had at this address.
            UserError: S3 itself refuses or cannot be reached.
        """
        scheme = _scheme(address)
        if scheme in {"http", "https"} or self._base_scheme in {"http", "https"}:
            return (await self._fetcher.fetch(join_url(self._base, address))).content
        if scheme == "s3":
            return await asyncio.to_thread(self._read_s3, address)
        if scheme:
            raise FetchError("invalid_url", address, "not an http, https or s3 address, nor a relative path")
        if self._base_scheme == "s3":
            return await asyncio.to_thread(self._read_s3, self._beside_in_s3(address))
        return await asyncio.to_thread(self._read_file, address)

    def _beside_in_s3(self, address: str) -> str:
        bucket, key = split_uri(self._base)
        folder = posixpath.dirname(key)
        found = posixpath.normpath(posixpath.join(folder, address))
        if posixpath.commonpath([f"/{folder}", f"/{found}"]) != posixpath.normpath(f"/{folder}"):
            raise _outside(address)
        return f"s3://{bucket}/{found}"

    def _read_s3(self, uri: str) -> bytes:
        if not self._storage.exists(uri):
            raise FetchError("not_found", uri, "there is no such object")
        return self._storage.read_bytes(uri)

    def _read_file(self, address: str) -> bytes:
        folder = Path(self._base).parent
        path = (folder / address).resolve()
        if not path.is_relative_to(folder):
            raise _outside(address)
        if not path.is_file():
            raise FetchError("not_found", address, "there is no such file")
        if path.stat().st_size > self._max_bytes:
            raise FetchError("too_large", address, f"is larger than {self._max_bytes:,} bytes")
        return path.read_bytes()


def _scheme(address: str) -> str:
    """Return the scheme of an address in lower case; nothing for a path."""
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):", address)
    return match[1].lower() if match else ""


def _outside(address: str) -> FetchError:
    return FetchError("forbidden_address", address, "leads out of the table's own folder")

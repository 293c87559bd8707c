"""Sources of rows and pictures: files on disk, in S3 or on the web, or a dataset of the hub.

A source is

- a path, an ``s3://`` URI or an http(s) URL of one file;
- a path or an ``s3://`` URI of a folder, or with ``*``, ``?`` or ``**``: all tables there, by name, except
  hidden ones, see `is_hidden`;
- ``hf://owner/name``, a dataset of the Hugging Face hub, see `components.prepare_data.sources.hub`.

A file is CSV, JSON Lines, a JSON array or Parquet, perhaps compressed with gzip; its content decides.
Rows are read in batches to bound memory.
"""

import asyncio
import hashlib
import posixpath
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from botocore.exceptions import ParamValidationError
from botocore.handlers import validate_bucket_name

from components.prepare_data.sources import hub
from components.prepare_data.sources.tables import SourceRow, read_table
from fovea.errors import UserError
from fovea.fetch.client import Fetcher, FetchError, FetchLimits, join_url
from fovea.fetch.profiles import FetchProfile
from fovea.storage import Storage, sha256_file, split_uri
from fovea.text import is_valid_text

TABLE_LIMITS = FetchLimits(max_bytes=2 << 30, total_seconds=900)
"""Limits of a table from the web."""

_TEXTS = (".csv", ".tsv", ".jsonl", ".ndjson")
_SUFFIXES = (*_TEXTS, *(f"{text}.gz" for text in _TEXTS), ".parquet")
"""Suffixes of the files that are read from a folder."""
_WEB = {"http", "https"}
_MAX_KEY_BYTES = 1024
"""Of a key in S3."""


class Source(Protocol):
    """A table, in one file or several."""

    @property
    def location(self) -> str:
        """The table's path, URI or URL after redirects. Relative addresses start there."""

    @property
    def digest(self) -> str:
        """``sha256:…`` of the table's content."""

    def rows(self, columns: Sequence[str], image_column: str) -> Iterator[SourceRow]:
        """Yield the rows with these columns, in the table's order.

        Raises:
            UserError: The table cannot be read, or lacks a column.
        """


class Files:
    """A table in files on the local disk."""

    def __init__(self, location: str, files: Sequence[tuple[Path, str]]) -> None:
        """Use ``files``: (path, original location) pairs. ``location`` is a file, or a folder ending in /."""
        self.location = location
        self._files = files

    @property
    def digest(self) -> str:
        """``sha256:…`` of the file's bytes, or of the digests of several files."""
        digests = [sha256_file(path) for path, _ in self._files]
        if len(digests) > 1:
            digests = [hashlib.sha256("\n".join(digests).encode()).hexdigest()]
        return f"sha256:{digests[0]}"

    def rows(self, columns: Sequence[str], image_column: str) -> Iterator[SourceRow]:
        """Yield the rows of all files, with relative addresses that start at ``location``."""
        base = posixpath.dirname(self.location)
        for path, found in self._files:
            folder = posixpath.relpath(posixpath.dirname(found), base) if len(self._files) > 1 else "."
            for row in read_table(path, found, columns, image_column):
                if folder != "." and row.picture is None and row.malformed is None:
                    address = str(row.values[image_column]).strip()
                    if address and not scheme_of(address):
                        row.values[image_column] = posixpath.join(folder, address)
                yield row


@contextmanager
def open_source(source: str, profile: FetchProfile, storage: Storage) -> Iterator[Source]:
    """Find a source, and copy its files to the local disk for the time of the block.

    Raises:
        UserError: The source does not exist or cannot be read.
    """
    scheme = scheme_of(source)
    source = scheme + source[len(scheme) :]
    with ExitStack() as stack:
        if scheme == "hf":
            yield hub.open_dataset(source)
        elif scheme in _WEB:
            file = stack.enter_context(tempfile.NamedTemporaryFile())
            location = asyncio.run(_fetch_table(source, profile, file))
            file.flush()
            yield Files(location, [(Path(file.name), location)])
        elif scheme == "s3":
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            yield _from_s3(source, storage, folder)
        elif scheme:
            raise UserError(
                f"{source}: cannot be read from {scheme}:; give a path, or an http(s), s3 or hf address"
            )
        else:
            yield _from_disk(source)


def _from_disk(source: str) -> Files:
    path = Path(source)
    if path.is_file():
        path = path.resolve()
        return Files(str(path), [(path, str(path))])
    if path.is_dir():
        base = path.resolve()
        found = [each for each in base.rglob("*") if each.name.lower().endswith(_SUFFIXES)]
    else:
        fixed = _fixed_part(source)
        base = Path(fixed).resolve()
        rest = source.removeprefix(fixed)
        found = [each.resolve() for each in base.glob(rest)] if _is_pattern(source) else []
    files = sorted(
        each
        for each in found
        if each.is_file() and each.is_relative_to(base) and not is_hidden(each.relative_to(base).as_posix())
    )
    if not files:
        raise _nothing(source)
    return Files(f"{base}/", [(each, str(each)) for each in files])


def _from_s3(source: str, storage: Storage, folder: Path) -> Files:
    if not _is_pattern(source) and not source.endswith("/") and storage.exists(source):
        base, uris = source, [source]
    elif _is_pattern(source):
        base = _fixed_part(source)
        uris = [uri for uri in _listed(storage, base) if _matches(uri, source)]
    else:
        base = source.rstrip("/") + "/"
        uris = [uri for uri in _listed(storage, base) if uri.lower().endswith(_SUFFIXES)]
    if not uris:
        raise _nothing(source)
    files = []
    for number, uri in enumerate(uris):
        storage.read_file(uri, folder / str(number))
        files.append((folder / str(number), uri))
    return Files(base, files)


def _listed(storage: Storage, base: str) -> Iterator[str]:
    return (uri for uri in storage.list(base) if not is_hidden(uri.removeprefix(base)))


def is_hidden(path: str) -> bool:
    """Return whether a file below a folder is hidden: a part of its path starts with ``.``, ``_`` or ``~$``.

    Such are checkpoints of notebooks, metadata of macOS and Spark, and lock files of office programs.
    """
    return any(part.startswith((".", "_", "~$")) for part in path.split("/"))


def _is_pattern(source: str) -> bool:
    return any(mark in source for mark in "*?")


def _fixed_part(pattern: str) -> str:
    """Return the folder in which a pattern starts, ending in a slash."""
    return re.split(r"[*?]", pattern, maxsplit=1)[0].rpartition("/")[0] + "/" if "/" in pattern else "./"


def _matches(uri: str, pattern: str) -> bool:
    """Return whether a URI matches a pattern, as with files: only ** matches slashes."""
    expressions = {"**/": "(?:[^/]+/)*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*|\?)", pattern)
    return re.fullmatch("".join(expressions.get(part, re.escape(part)) for part in parts), uri) is not None


def _nothing(source: str) -> UserError:
    return UserError(
        f"{source}: there is no such table; give the path, URL or URI of a CSV, JSON Lines or Parquet file, "
        "of a folder of such files, or a hub dataset (hf://owner/name)"
    )


async def _fetch_table(source: str, profile: FetchProfile, file: Any) -> str:
    async with Fetcher(profile, TABLE_LIMITS) as fetcher:
        try:
            return await fetcher.fetch_into(source, file)
        except FetchError as error:
            raise UserError(f"the table cannot be fetched: {error}") from error


class PicturePlaces:
    """Resolves the addresses of pictures, relative to the table's location.

    A table from the web may refer only to the web, so that it cannot read the step's disk and buckets. No
    table may refer to files outside its folder.
    """

    def __init__(self, location: str, storage: Storage, max_bytes: int) -> None:
        self._base = location
        self._base_scheme = scheme_of(location)
        self._storage = storage
        self._max_bytes = max_bytes

    def url(self, address: str) -> str | None:
        """Return the http(s) URL of an address; None if the picture is to be read with `read`.

        Raises:
            FetchError: The table may not refer to this address.
        """
        if "\0" in address or not is_valid_text(address):
            raise FetchError("invalid_url", ascii(address), "holds a NUL or half of a character")
        scheme = scheme_of(address)
        if scheme in _WEB or self._base_scheme in _WEB:
            return join_url(self._base, address)
        if scheme == "s3" and self._base_scheme != "hf":
            return None
        if scheme and not (scheme == "hf" and address.startswith(self._base)):
            raise FetchError("invalid_url", address, "not an http, https or s3 address, nor a relative path")
        return None

    def read(self, address: str) -> bytes:
        """Read a picture from disk, S3 or the hub.

        Raises:
            FetchError: The picture does not exist or cannot be read.
            UserError: S3 refuses access or cannot be reached.
        """
        scheme = scheme_of(address)
        if scheme == "s3":
            return self._read_s3(address)
        if self._base_scheme == "hf":
            return hub.read_file(address if scheme else self._beside(address), self._max_bytes)
        if self._base_scheme == "s3":
            return self._read_s3(self._beside(address))
        return self._read_file(address)

    def _beside(self, address: str) -> str:
        root, key = self._base.split("://", 1)
        folder = posixpath.dirname(key)
        found = posixpath.normpath(posixpath.join(folder, address))
        if not found.startswith(f"{folder}/"):
            raise _outside(address)
        return f"{root}://{found}"

    def _read_s3(self, uri: str) -> bytes:
        _check_s3(uri)
        if not self._storage.exists(uri):
            raise FetchError("not_found", uri, "object not found")
        return self._storage.read_bytes(uri)

    def _read_file(self, address: str) -> bytes:
        folder = Path(self._base) if self._base.endswith("/") else Path(self._base).parent
        try:
            path = (folder / address).resolve()
            if not path.is_relative_to(folder):
                raise _outside(address)
            if not path.is_file():
                raise FetchError("not_found", address, "file not found")
            if path.stat().st_size > self._max_bytes:
                raise FetchError("too_large", address, f"is larger than {self._max_bytes:,} bytes")
            return path.read_bytes()
        except PermissionError as error:
            raise FetchError("refused", address, "the file may not be read; correct its mode") from error
        except (OSError, ValueError, RuntimeError) as error:
            # Such as a name that is too long, that holds a NUL, or a link to itself.
            raise FetchError("invalid_url", address, f"not the name of a file ({error})") from error


def _check_s3(uri: str) -> None:
    """Check that S3 can be asked for an object.

    Raises:
        FetchError: its bucket or its key is none.
    """
    try:
        bucket, key = split_uri(uri)
        validate_bucket_name({"Bucket": bucket})
    except (UserError, ParamValidationError) as error:
        raise FetchError("invalid_url", uri, f"not the address of an S3 object ({error})") from error
    if not 0 < len(key.encode()) <= _MAX_KEY_BYTES:
        raise FetchError("invalid_url", uri, f"the key must have 1 to {_MAX_KEY_BYTES:,} bytes")


def scheme_of(address: str) -> str:
    """Return the scheme of an address in lower case; an empty string for a path."""
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):", address)
    return match[1].lower() if match else ""


def _outside(address: str) -> FetchError:
    return FetchError("forbidden_address", address, "outside the table's folder")

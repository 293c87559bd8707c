"""Where rows and their pictures come from: files on disk, in S3 or on the web, or a dataset on the hub.

A source is

- a path, an ``s3://`` URI or an http(s) URL of one file;
- a path or an ``s3://`` URI of a folder, or with ``*``, ``?`` or ``**``: all tables there, by name;
- ``hf://owner/name``, a dataset of the Hugging Face hub, see `components.prepare_data.sources.hub`.

A file holds CSV, JSON Lines or Parquet: its content says which. Rows are read in batches, so memory does not
grow with them.
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
"""Of a table from the web."""

_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
"""Of the files that a folder is read for."""
_WEB = {"http", "https"}
_MAX_KEY_BYTES = 1024
"""Of a key in S3."""


class Source(Protocol):
    """A table, or several that are one."""

    @property
    def location(self) -> str:
        """Where it was found: a URL after redirects, a URI or a path. Relative addresses start there."""

    @property
    def digest(self) -> str:
        """``sha256:…`` of what it holds."""

    def rows(self, columns: Sequence[str], image_column: str) -> Iterator[SourceRow]:
        """Yield its rows in these columns, in its order.

        Raises:
            UserError: it cannot be read, or a column is missing.
        """


class Files:
    """A source of files that lie on this disk now."""

    def __init__(self, location: str, files: Sequence[tuple[Path, str]]) -> None:
        """Take the files, each with where it was found; ``location`` is that of one, or a folder's with /."""
        self.location = location
        self._files = files

    @property
    def digest(self) -> str:
        """``sha256:…`` of the file's bytes, or of several files' digests in their order."""
        digests = [sha256_file(path) for path, _ in self._files]
        if len(digests) > 1:
            digests = [hashlib.sha256("\n".join(digests).encode()).hexdigest()]
        return f"sha256:{digests[0]}"

    def rows(self, columns: Sequence[str], image_column: str) -> Iterator[SourceRow]:
        """Yield the rows of all files; relative addresses start at ``location`` for all of them."""
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
    """Find a source, and bring its files to this disk for the time of the block.

    Raises:
        UserError: there is nothing to be read.
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
        found = [each for each in base.rglob("*") if each.suffix.lower() in _SUFFIXES]
    else:
        fixed = _fixed_part(source)
        base = Path(fixed).resolve()
        rest = source.removeprefix(fixed)
        found = [each.resolve() for each in base.glob(rest)] if _is_pattern(source) else []
    files = sorted(each for each in found if each.is_file() and each.is_relative_to(base))
    if not files:
        raise _nothing(source)
    return Files(f"{base}/", [(each, str(each)) for each in files])


def _from_s3(source: str, storage: Storage, folder: Path) -> Files:
    if not _is_pattern(source) and not source.endswith("/") and storage.exists(source):
        base, uris = source, [source]
    elif _is_pattern(source):
        base = _fixed_part(source)
        uris = [uri for uri in storage.list(base) if _matches(uri, source)]
    else:
        base = source.rstrip("/") + "/"
        uris = [uri for uri in storage.list(base) if uri.lower().endswith(_SUFFIXES)]
    if not uris:
        raise _nothing(source)
    files = []
    for number, uri in enumerate(uris):
        storage.read_file(uri, folder / str(number))
        files.append((folder / str(number), uri))
    return Files(base, files)


def _is_pattern(source: str) -> bool:
    return any(mark in source for mark in "*?")


def _fixed_part(pattern: str) -> str:
    """Return the folder that a pattern starts in, ending in a slash."""
    return re.split(r"[*?]", pattern, maxsplit=1)[0].rpartition("/")[0] + "/" if "/" in pattern else "./"


def _matches(uri: str, pattern: str) -> bool:
    """Return whether a pattern means a URI, as patterns of files do: only ** goes over slashes."""
    said = {"**/": "(?:[^/]+/)*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*|\?)", pattern)
    return re.fullmatch("".join(said.get(part, re.escape(part)) for part in parts), uri) is not None


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
    """Where the pictures' addresses lead; relative ones from where the table lies.

    A table from the web leads to the web only, so that it cannot reach the step's own disk and buckets; and
    no table leads to files outside its own folder.
    """

    def __init__(self, location: str, storage: Storage, max_bytes: int) -> None:
        self._base = location
        self._base_scheme = scheme_of(location)
        self._storage = storage
        self._max_bytes = max_bytes

    def url(self, address: str) -> str | None:
        """Return the http(s) URL that an address stands for; None where `read` is to be used.

        Raises:
            FetchError: the address leads nowhere that this table may lead to.
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
        """Return what lies on disk, in S3 or on the hub.

        Raises:
            FetchError: there is none to be had at this address.
            UserError: S3 itself refuses or cannot be reached.
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
            raise FetchError("not_found", uri, "there is no such object")
        return self._storage.read_bytes(uri)

    def _read_file(self, address: str) -> bytes:
        folder = Path(self._base) if self._base.endswith("/") else Path(self._base).parent
        try:
            path = (folder / address).resolve()
            if not path.is_relative_to(folder):
                raise _outside(address)
            if not path.is_file():
                raise FetchError("not_found", address, "there is no such file")
            if path.stat().st_size > self._max_bytes:
                raise FetchError("too_large", address, f"is larger than {self._max_bytes:,} bytes")
            return path.read_bytes()
        except PermissionError as error:
            raise FetchError("refused", address, "the file may not be read; correct its mode") from error
        except (OSError, ValueError, RuntimeError) as error:
            # Such as a name that is too long, that holds a NUL, or a link to itself.
            raise FetchError("invalid_url", address, f"is no name of a file ({error})") from error


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
    """Return the scheme of an address in lower case; nothing for a path."""
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):", address)
    return match[1].lower() if match else ""


def _outside(address: str) -> FetchError:
    return FetchError("forbidden_address", address, "leads out of the table's own folder")

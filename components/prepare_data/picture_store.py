"""The picture store: fetched originals in S3, shared by all runs, so that none is fetched twice.

Under ``{artifact_root}/pictures/{fetch profile}/``:

    packs/{id}.bin       originals, one after the other
    index/{id}.parquet   for each URL: the URL after redirects, its ETag and Last-Modified, the original's
                         SHA-256, its pack, offset and length, and when it was fetched or found unchanged

A pack is written before its index object; only indexed originals exist for readers. Names are unique and no
object is overwritten, so any number of runs may use a store at once. Of several entries for a URL, the newest
is valid. An original that the store has under any URL is not written again.

A run that finds many index objects merges them into few, and then deletes them. A run that misses a listed
object lists again: its entries are in an object that was written before the deletion. A run that is killed in
between leaves duplicate entries, which do no harm.
"""

import hashlib
import io
import logging
import sqlite3
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields, replace
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow
import pyarrow.parquet

from fovea.errors import UserError
from fovea.fetch.client import Version
from fovea.storage import Storage, join_uri

_PACK_BYTES = 32 << 20
_PACK_SECONDS = 5.0
"""The longest time before fetched originals are uploaded."""

# One request reads originals with gaps of at most this size, and at most this much in total.
_GAP_BYTES = 512 << 10
_READ_BYTES = 8 << 20

_READERS = 8

_MERGE_FROM = 200
"""The number of index objects from which they are merged, and the rows of a merged one."""
_MERGED_ROWS = 20_000
_ROWS = 1000

logger = logging.getLogger("fovea")


@dataclass(frozen=True)
class Stored:
    """An entry of the index: an original found at ``url``. The fields are the index's columns."""

    url: str
    found_at: str
    """The URL after redirects."""
    etag: str
    last_modified: str
    digest: str
    """SHA-256, 64 hexadecimal digits."""
    pack: str
    offset: int
    length: int
    checked_at: float
    """When the original was fetched or last found unchanged, in seconds since 1970."""

    @property
    def version(self) -> Version:
        """The version that the server stated."""
        return Version(self.found_at, self.etag, self.last_modified)


_TYPES = {"offset": pyarrow.int64(), "length": pyarrow.int64(), "checked_at": pyarrow.float64()}
_SCHEMA = pyarrow.schema([(field.name, _TYPES.get(field.name, pyarrow.string())) for field in fields(Stored)])
_COLUMNS = ", ".join(_SCHEMA.names)


class PictureStore:
    """The store as one run uses it, opened with `open_store`. Only `read` may be used in other threads."""

    def __init__(self, storage: Storage, root: str, folder: Path, recheck_after: timedelta) -> None:
        self._storage = storage
        self._root = root
        self._recheck_after = recheck_after.total_seconds()
        self._db = sqlite3.connect(folder / "picture_store.sqlite", isolation_level=None)
        for statement in (
            "PRAGMA journal_mode = OFF",
            "PRAGMA synchronous = OFF",
            f"CREATE TABLE stored ({_COLUMNS}, PRIMARY KEY (url)) WITHOUT ROWID",
            "CREATE INDEX stored_by_digest ON stored (digest)",
            "BEGIN",
        ):
            self._db.execute(statement)
        self._uploader = ThreadPoolExecutor(1, "upload")
        self._upload: Future[None] | None = None
        self._begin_pack()

    def load(self) -> None:
        """Copy the index to the local disk.

        Raises:
            UserError: S3 refuses access, or an index object cannot be read.
        """
        read = set[str]()
        with ThreadPoolExecutor(_READERS, "index") as threads:
            while self._load_others(read, threads):
                pass
        (rows,) = self._db.execute("SELECT count(*) FROM stored").fetchone()
        if len(read) >= _MERGE_FROM + rows // _MERGED_ROWS:
            self._merge(read)

    def _load_others(self, read: set[str], threads: ThreadPoolExecutor) -> bool:
        """Read the index objects that are not in ``read``; return whether one was deleted meanwhile."""
        gone = False
        uris = iter([uri for uri in self._storage.list(join_uri(self._root, "index/")) if uri not in read])
        while some := list(islice(uris, 2 * _READERS)):
            read.update(some)
            for uri, data in zip(some, threads.map(self._read_index, some), strict=True):
                gone |= data is None
                self._remember(_entries(uri, data) if data is not None else [])
        return gone

    def _merge(self, uris: Iterable[str]) -> None:
        """Replace index objects by few with the same entries."""
        rows = self._db.execute(f"SELECT {_COLUMNS} FROM stored")  # noqa: S608 - the index's own columns
        while some := rows.fetchmany(_MERGED_ROWS):
            self._write_index(_unique_name(), some)
        try:
            self._storage.delete(uris)
        except UserError as error:
            logger.warning("picture store: merged index objects were not deleted: %s", error)

    def lookup(self, urls: Sequence[str]) -> dict[str, Stored]:
        """Return the entries of these URLs, a few hundred at most."""
        marks = ", ".join("?" * len(urls))
        found = self._db.execute(f"SELECT {_COLUMNS} FROM stored WHERE url IN ({marks})", urls)  # noqa: S608
        return {row[0]: Stored(*row) for row in found}

    def is_fresh(self, stored: Stored) -> bool:
        """Return whether an original is used without asking its server for a newer version."""
        return time.time() - stored.checked_at < self._recheck_after

    def read(self, near: Sequence[Stored]) -> list[bytes | None]:
        """Read the originals of a group of `group_reads`; None for one that is missing or changed.

        Raises:
            UserError: S3 refuses access or cannot be reached.
        """
        start = near[0].offset
        length = max(stored.offset + stored.length for stored in near) - start
        uri = self._pack_uri(near[0].pack)
        try:
            data = self._storage.read_range(uri, start, length)
        except UserError:
            if self._storage.exists(uri):
                raise
            data = b""
        originals = [data[one.offset - start : one.offset - start + one.length] for one in near]
        return [
            original if hashlib.sha256(original).hexdigest() == one.digest else None
            for original, one in zip(originals, near, strict=True)
        ]

    def forget(self, pack: str) -> None:
        """Remove a pack's entries from the local index, so that its originals are fetched again."""
        if self._db.execute("DELETE FROM stored WHERE pack = ?", (pack,)).rowcount:
            logger.warning(
                "%s: pack is missing or was changed; its pictures are fetched again", self._pack_uri(pack)
            )

    def add(self, url: str, version: Version, digest: str, original: bytes) -> None:
        """Add an original found at ``url``. It is stored once its pack is uploaded.

        Raises:
            UserError: S3 refuses the upload of a pack.
        """
        same = self._db.execute("SELECT pack, offset FROM stored WHERE digest = ?", (digest,)).fetchone()
        pack, offset = same or (self._pack, self._pack_size)
        if not same:
            self._originals.append(original)
            self._pack_size += len(original)
        self._enter(
            Stored(
                url,
                version.url,
                version.etag,
                version.last_modified,
                digest,
                pack,
                offset,
                len(original),
                time.time(),
            )
        )

    def confirm(self, stored: Stored) -> None:
        """Store that a server stated that its picture has not changed."""
        self._enter(replace(stored, checked_at=time.time()))

    def flush_if_due(self) -> None:
        """Upload the current pack if it is old or large enough. Call it regularly.

        Raises:
            UserError: S3 refuses the upload of a pack.
        """
        waited = time.monotonic() - self._pack_begun
        if self._entries and (waited >= _PACK_SECONDS or self._pack_size >= _PACK_BYTES):
            self._flush()

    def close(self) -> None:
        """Upload the current pack, and wait for all uploads.

        Raises:
            UserError: S3 refuses the upload of a pack.
        """
        try:
            if self._entries:
                self._flush()
            if self._upload:
                self._upload.result()
        finally:
            self._uploader.shutdown(cancel_futures=True)
            self._db.close()

    def _enter(self, stored: Stored) -> None:
        if not self._entries:
            self._pack_begun = time.monotonic()
        self._entries.append(stored)
        self._remember([stored])
        self.flush_if_due()

    def _remember(self, entries: Iterable[Stored]) -> None:
        marks = ", ".join("?" * len(_SCHEMA))
        changes = ", ".join(f"{name} = excluded.{name}" for name in _SCHEMA.names[1:])
        self._db.executemany(
            f"INSERT INTO stored VALUES ({marks}) ON CONFLICT (url) DO UPDATE SET {changes} "  # noqa: S608
            "WHERE excluded.checked_at > stored.checked_at",
            map(astuple, entries),
        )

    def _begin_pack(self) -> None:
        self._pack = _unique_name()
        self._pack_size = 0
        self._originals: list[bytes] = []
        self._entries: list[Stored] = []
        self._pack_begun = time.monotonic()

    def _flush(self) -> None:
        """Upload the pack in the background, one at a time to bound memory."""
        if self._upload:
            self._upload.result()
        self._upload = self._uploader.submit(self._write, self._pack, self._originals, self._entries)
        self._begin_pack()

    def _write(self, pack: str, originals: list[bytes], entries: list[Stored]) -> None:
        if originals:
            self._storage.write_bytes(self._pack_uri(pack), b"".join(originals))
        self._write_index(pack, map(astuple, entries))

    def _write_index(self, name: str, entries: Iterable[tuple[Any, ...]]) -> None:
        columns = map(list, zip(*entries, strict=True))
        table = pyarrow.table(dict(zip(_SCHEMA.names, columns, strict=True)), _SCHEMA)
        index = io.BytesIO()
        pyarrow.parquet.write_table(table, index, compression="zstd")
        self._storage.write_bytes(join_uri(self._root, "index", f"{name}.parquet"), index.getvalue())

    def _read_index(self, uri: str) -> bytes | None:
        """Return an index object; None if another run has merged and deleted it meanwhile."""
        try:
            return self._storage.read_bytes(uri)
        except UserError:
            if self._storage.exists(uri):
                raise
            return None

    def _pack_uri(self, pack: str) -> str:
        return join_uri(self._root, "packs", f"{pack}.bin")


@contextmanager
def open_store(
    storage: Storage,
    artifact_root: str,
    fetch_profile: str,
    folder: Path,
    recheck_after: timedelta = timedelta(hours=24),
) -> Iterator[PictureStore]:
    """Open the picture store of an artifact root. New originals are uploaded when the block ends.

    Each fetch profile has a separate store, so that a run gets no picture that its profile may not fetch.

    Args:
        storage: S3.
        artifact_root: ``s3://bucket/prefix``; the store is under ``pictures/``.
        fetch_profile: The profile's name.
        folder: A local, temporary folder for the index.
        recheck_after: The age from which a server is asked whether its picture has changed.

    Raises:
        UserError: S3 refuses access.
    """
    root = join_uri(artifact_root, "pictures", quote(fetch_profile, safe=""))
    store = PictureStore(storage, root, folder, recheck_after)
    try:
        store.load()
        yield store
    except BaseException:
        # Store what was fetched so far; raise the first error, not one of this upload.
        try:
            store.close()
        except UserError as error:
            logger.warning("picture store: the last pictures were not stored: %s", error)
        raise
    store.close()


def _entries(uri: str, data: bytes) -> Iterator[Stored]:
    """Yield the entries of an index object."""
    try:
        with pyarrow.parquet.ParquetFile(io.BytesIO(data)) as file:
            for batch in file.iter_batches(_ROWS, columns=_SCHEMA.names):
                yield from (Stored(**row) for row in batch.to_pylist())
    except (pyarrow.ArrowException, OSError, TypeError) as error:
        raise UserError(
            f"{uri}: not a valid index of the picture store ({str(error).splitlines()[0]}); delete it, and "
            "its pictures are fetched again"
        ) from error


def _unique_name() -> str:
    return f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{uuid.uuid4().hex[:16]}"


def group_reads(wanted: Sequence[Stored]) -> list[list[int]]:
    """Group originals that one request can read; return their positions in ``wanted``."""
    groups: list[list[int]] = []
    for place in sorted(range(len(wanted)), key=lambda place: (wanted[place].pack, wanted[place].offset)):
        if groups and _is_near(wanted[groups[-1][0]], wanted[groups[-1][-1]], wanted[place]):
            groups[-1].append(place)
        else:
            groups.append([place])
    return groups


def _is_near(first: Stored, last: Stored, following: Stored) -> bool:
    return (
        following.pack == first.pack
        and following.offset - last.offset - last.length <= _GAP_BYTES
        and following.offset + following.length - first.offset <= _READ_BYTES
    )

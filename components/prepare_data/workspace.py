"""What is known of every row and picture while a dataset is made: on disk, so that memory stays small.

One SQLite file and one file of JPEGs in a temporary folder. The modules of this component share its tables.
"""

import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fovea.task import FieldValue

_CACHE_KIB = 4 << 10

_TABLES = """
CREATE TABLE rows (
    number   INTEGER PRIMARY KEY, -- position in the source, from 0
    product  TEXT,                -- NULL where the row could not be read so far
    address  TEXT,                -- of the picture; 'row:N' where the table holds the picture itself
    "values" TEXT,                -- JSON object: the task's fields
    currency TEXT,
    row_id   TEXT,                -- a digest of what the row holds; NULL until its picture is there
    raw      TEXT NOT NULL,       -- JSON object: the used columns as the table has them
    reason   TEXT,                -- NULL while the row is kept, else why it was left out
    tokens   INTEGER,             -- length of the training sequence, NULL where it is not known
    split    TEXT                 -- train, validation or test
) STRICT;
CREATE INDEX rows_by_address ON rows (address);
CREATE INDEX rows_by_product ON rows (product);
CREATE TABLE pictures (
    address         TEXT PRIMARY KEY,
    digest          TEXT,         -- SHA-256 of the original's bytes
    offset          INTEGER,      -- of the JPEG in the spool
    length          INTEGER,
    width           INTEGER,      -- of the JPEG
    height          INTEGER,
    original_width  INTEGER,
    original_height INTEGER,
    fingerprint     BLOB,
    reason          TEXT,         -- NULL where it can be used, else a word such as not_found
    detail          TEXT          -- one line for people
) STRICT, WITHOUT ROWID;
CREATE INDEX pictures_by_digest ON pictures (digest);
CREATE TABLE originals (          -- pictures that the table itself holds
    address TEXT PRIMARY KEY,
    offset  INTEGER NOT NULL,
    length  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE assigned (           -- which split earlier runs gave to a product's picture
    number      INTEGER PRIMARY KEY, -- the first assigned of a product holds
    product     TEXT NOT NULL,
    digest      TEXT NOT NULL,
    split       TEXT NOT NULL,
    fingerprint BLOB NOT NULL,
    UNIQUE (product, digest)
) STRICT;
CREATE TABLE prints (             -- of the pictures of rows that are kept, or were in earlier runs
    id          INTEGER PRIMARY KEY, -- from 0, without gaps
    digest      TEXT NOT NULL UNIQUE,
    fingerprint BLOB NOT NULL,
    cluster     INTEGER           -- the smallest id of the pictures that look alike
) STRICT;
CREATE TABLE links (              -- pictures that show the same, by their digests; one < other
    one   TEXT NOT NULL,
    other TEXT NOT NULL,
    kind  TEXT NOT NULL,          -- same (equal fingerprints) or near
    PRIMARY KEY (one, other)
) STRICT, WITHOUT ROWID;
CREATE TABLE groups (             -- products that hang together, where there are several
    product TEXT PRIMARY KEY,
    "group" TEXT NOT NULL,        -- the first of its products, in alphabetical order
    reason  TEXT                  -- too_large where the group was broken up, else NULL
) STRICT, WITHOUT ROWID;
"""


class Workspace:
    """Rows, pictures and what was found out about them. ``db`` has one transaction that is never committed.

    It belongs to the thread that made it.
    """

    def __init__(self, folder: Path) -> None:
        """Make an empty workspace in an existing folder."""
        self.db = sqlite3.connect(folder / "workspace.sqlite", isolation_level=None)
        for pragma in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = -{_CACHE_KIB}"):
            self.db.execute(f"PRAGMA {pragma}")
        self.db.executescript(_TABLES)
        self.db.execute("BEGIN")
        self._jpegs = (folder / "pictures.bin").open("w+b")
        self._originals = (folder / "originals.bin").open("w+b")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.db.close()
        self._jpegs.close()
        self._originals.close()

    def run(self, script: str) -> None:
        """Run SQL statements that a semicolon ends each, and that hold no other one."""
        # sqlite3's own executescript would end the transaction.
        for statement in script.split(";"):
            self.db.execute(statement)

    def add_row(
        self,
        number: int,
        raw: Mapping[str, Any],
        *,
        product: str | None = None,
        address: str | None = None,
        values: Mapping[str, FieldValue] | None = None,
        currency: str | None = None,
        reason: str | None = None,
    ) -> None:
        """Add a row of the source, with what it means or the ``reason`` why it is left out."""
        self.db.execute(
            'INSERT INTO rows (number, product, address, "values", currency, raw, reason) '
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                number,
                product,
                address,
                None if values is None else json.dumps(dict(values), ensure_ascii=False),
                currency,
                json.dumps(dict(raw), ensure_ascii=False, default=str),
                reason,
            ),
        )

    def add_original(self, address: str, data: bytes) -> None:
        """Keep the bytes of a picture that the table itself holds."""
        place = (address, self._originals.seek(0, 2), self._originals.write(data))
        self.db.execute("INSERT INTO originals VALUES (?, ?, ?)", place)

    def original(self, address: str) -> bytes | None:
        """Return the bytes of a picture that the table itself holds; None where it holds none such."""
        place = self.db.execute("SELECT offset, length FROM originals WHERE address = ?", (address,))
        found = place.fetchone()
        return None if found is None else _read(self._originals, *found)

    def add_picture(
        self,
        address: str,
        *,
        digest: str,
        jpeg: bytes,
        size: tuple[int, int],
        original_size: tuple[int, int],
        fingerprint: bytes,
    ) -> None:
        """Keep a usable picture; a JPEG of the same original is not written a second time.

        Args:
            address: As the rows have it.
            digest: SHA-256 of the original's bytes, 64 hexadecimal digits.
            jpeg: The prepared picture.
            size: Its width and height in pixels.
            original_size: Those of the original.
            fingerprint: By which pictures that look alike are found.
        """
        known = self.db.execute("SELECT offset, length FROM pictures WHERE digest = ?", (digest,)).fetchone()
        offset, length = known or (self._jpegs.seek(0, 2), self._jpegs.write(jpeg))
        self.db.execute(
            "INSERT INTO pictures VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, NULL)",
            (address, digest, offset, length, *size, *original_size, fingerprint),
        )

    def add_unusable_picture(self, address: str, reason: str, detail: str) -> None:
        """Remember why there is no picture at an address."""
        self.db.execute(
            "INSERT INTO pictures (address, reason, detail) VALUES (?, ?, ?)", (address, reason, detail)
        )

    def jpeg(self, digest: str) -> bytes:
        """Return the prepared JPEG of the original with this digest; KeyError where there is none."""
        place = self.db.execute("SELECT offset, length FROM pictures WHERE digest = ?", (digest,)).fetchone()
        if place is None:
            raise KeyError(digest)
        return _read(self._jpegs, *place)

    def dropped(self) -> dict[str, int]:
        """Return how many rows were left out, by reason."""
        found = self.db.execute(
            "SELECT reason, count(*) FROM rows WHERE reason IS NOT NULL GROUP BY reason ORDER BY reason"
        )
        return dict(found.fetchall())

    def splits(self) -> dict[str, tuple[int, int]]:
        """Return the kept rows and their distinct products, by split."""
        found = self.db.execute(
            "SELECT split, count(*), count(DISTINCT product) FROM rows "
            "WHERE reason IS NULL AND split IS NOT NULL GROUP BY split"
        )
        return {split: (rows, products) for split, rows, products in found}


def _read(file: Any, offset: int, length: int) -> bytes:
    file.seek(offset)
    data: bytes = file.read(length)
    return data

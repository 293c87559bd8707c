"""The tables of a workspace."""

import sqlite3
from pathlib import Path

_CACHE_KIB = 4 << 10

_TABLES = """
CREATE TABLE rows (
    number   INTEGER PRIMARY KEY, -- position in the source, from 0
    product  TEXT,                -- NULL if the row could not be read
    address  TEXT,                -- of the picture; 'row:N' if the table contains the picture itself
    "values" TEXT,                -- JSON object: the task's fields
    currency TEXT,
    row_id   TEXT,                -- digest of the row's content; NULL until its picture is fetched
    raw      TEXT NOT NULL,       -- JSON object: the used columns as the table has them
    markup   INTEGER NOT NULL DEFAULT 0, -- 1 if HTML was decoded or removed in a value
    reason   TEXT,                -- why the row is left out; NULL if it is kept
    tokens   INTEGER,             -- length of the training sequence; NULL if not counted
    split    TEXT                 -- train, validation or test
) STRICT;
CREATE INDEX rows_by_address ON rows (address);
CREATE INDEX rows_by_product ON rows (product);
CREATE TABLE pictures (
    address         TEXT PRIMARY KEY,
    digest          TEXT,         -- SHA-256 of the original's bytes
    offset          INTEGER,      -- of the JPEG in pictures.bin
    length          INTEGER,
    width           INTEGER,      -- of the JPEG
    height          INTEGER,
    original_width  INTEGER,
    original_height INTEGER,
    fingerprint     BLOB,
    reason          TEXT,         -- why the picture cannot be used, such as not_found; NULL if it can
    detail          TEXT          -- the reason as one readable line
) STRICT, WITHOUT ROWID;
CREATE INDEX pictures_by_digest ON pictures (digest);
CREATE TABLE originals (          -- pictures that the table itself contains
    address TEXT PRIMARY KEY,
    offset  INTEGER NOT NULL,     -- in originals.bin
    length  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE assigned (           -- the splits that earlier runs assigned to products and their pictures
    number      INTEGER PRIMARY KEY, -- the first assignment of a product is the valid one
    product     TEXT NOT NULL,
    digest      TEXT NOT NULL,
    split       TEXT NOT NULL,
    fingerprint BLOB NOT NULL,
    UNIQUE (product, digest)
) STRICT;
CREATE TABLE prints (             -- fingerprints of the pictures of kept rows, in this run or earlier ones
    id          INTEGER PRIMARY KEY, -- from 0, without gaps
    digest      TEXT NOT NULL UNIQUE,
    fingerprint BLOB NOT NULL,
    cluster     INTEGER           -- the smallest id of the pictures that look alike
) STRICT;
CREATE TABLE links (              -- pairs of pictures that look alike, by their digests; one < other
    one   TEXT NOT NULL,
    other TEXT NOT NULL,
    kind  TEXT NOT NULL,          -- same (equal fingerprints) or near
    PRIMARY KEY (one, other)
) STRICT, WITHOUT ROWID;
CREATE TABLE groups (             -- products with pictures that look alike; groups of one are not stored
    product TEXT PRIMARY KEY,
    "group" TEXT NOT NULL,        -- the first of its products, in alphabetical order
    reason  TEXT                  -- too_large if the group was broken up, else NULL
) STRICT, WITHOUT ROWID;
"""


def create_database(path: Path) -> sqlite3.Connection:
    """Create a database with empty tables. It has one transaction, which is never committed."""
    db = sqlite3.connect(path, isolation_level=None)
    for pragma in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = -{_CACHE_KIB}"):
        db.execute(f"PRAGMA {pragma}")
    db.executescript(_TABLES)
    db.execute("BEGIN")
    return db

"""The pictures of the rows: prepared JPEGs, and the originals that the table itself contains."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


class Pictures:
    """Pictures by address, as the rows refer to them. Their bytes are in two files next to the database."""

    def __init__(self, db: sqlite3.Connection, folder: Path) -> None:
        self._db = db
        self._jpegs = (folder / "pictures.bin").open("w+b")
        self._originals = (folder / "originals.bin").open("w+b")

    def close(self) -> None:
        """Close the files."""
        self._jpegs.close()
        self._originals.close()

    def add_original(self, address: str, data: bytes) -> None:
        """Store the bytes of a picture that the table itself contains."""
        place = (address, self._originals.seek(0, 2), self._originals.write(data))
        self._db.execute("INSERT INTO originals VALUES (?, ?, ?)", place)

    def original(self, address: str) -> bytes | None:
        """Return the bytes of a picture that the table itself contains; None if it does not."""
        found = self._db.execute("SELECT offset, length FROM originals WHERE address = ?", (address,))
        place = found.fetchone()
        return None if place is None else _read(self._originals, *place)

    def count_needed(self) -> int:
        """Return the number of distinct pictures of the kept rows."""
        found = self._db.execute("SELECT count(DISTINCT address) FROM rows WHERE reason IS NULL")
        return int(found.fetchone()[0])

    def needed(self) -> Iterator[str]:
        """Yield the address of each picture of the kept rows once, in the source's order."""
        found = self._db.execute(
            "SELECT address FROM rows WHERE reason IS NULL GROUP BY address ORDER BY min(number)"
        )
        for (address,) in found:
            yield address

    def add(
        self,
        address: str,
        *,
        digest: str,
        jpeg: bytes,
        size: tuple[int, int],
        original_size: tuple[int, int],
        fingerprint: bytes,
    ) -> None:
        """Store a usable picture. JPEGs of the same original are stored once.

        Args:
            address: The address that the rows have.
            digest: SHA-256 of the original's bytes, 64 hexadecimal digits.
            jpeg: The prepared picture.
            size: Width and height of the JPEG in pixels.
            original_size: Width and height of the original in pixels.
            fingerprint: The fingerprint that near-duplicates are found by.
        """
        known = self._db.execute("SELECT offset, length FROM pictures WHERE digest = ?", (digest,)).fetchone()
        offset, length = known or (self._jpegs.seek(0, 2), self._jpegs.write(jpeg))
        self._db.execute(
            "INSERT INTO pictures VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, NULL)",
            (address, digest, offset, length, *size, *original_size, fingerprint),
        )

    def add_unusable(self, address: str, reason: str, detail: str) -> None:
        """Store the reason why the picture at an address cannot be used."""
        self._db.execute(
            "INSERT INTO pictures (address, reason, detail) VALUES (?, ?, ?)", (address, reason, detail)
        )

    def jpeg(self, digest: str) -> bytes:
        """Return the prepared JPEG of an original; KeyError if there is none with this digest."""
        found = self._db.execute("SELECT offset, length FROM pictures WHERE digest = ?", (digest,))
        place = found.fetchone()
        if place is None:
            raise KeyError(digest)
        return _read(self._jpegs, *place)


def _read(file: BinaryIO, offset: int, length: int) -> bytes:
    file.seek(offset)
    return file.read(length)

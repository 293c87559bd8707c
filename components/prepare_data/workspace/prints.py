"""The fingerprints of pictures, which of them look alike, and their clusters."""

import sqlite3
from collections.abc import Iterable, Iterator


class Prints:
    """Fingerprints of the pictures of this run and of earlier ones, with IDs from 0 without gaps."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def collect(self) -> None:
        """Replace the fingerprints by those of the kept rows and of earlier assignments; drop all links."""
        self._db.execute("DELETE FROM prints")
        self._db.execute("DELETE FROM links")
        # One fingerprint per picture, even if an earlier run scaled the picture to another size.
        self._db.execute(
            "INSERT INTO prints (id, digest, fingerprint) "
            "SELECT row_number() OVER (ORDER BY digest) - 1, digest, coalesce(min(own), min(earlier)) FROM ("
            "  SELECT digest, fingerprint AS own, NULL AS earlier"
            "  FROM rows JOIN pictures USING (address) WHERE rows.reason IS NULL"
            "  UNION ALL SELECT digest, NULL, fingerprint FROM assigned"
            ") GROUP BY digest"
        )

    def __len__(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM prints").fetchone()[0])

    def __iter__(self) -> Iterator[bytes]:
        """Yield all fingerprints, by ID."""
        for (fingerprint,) in self._db.execute("SELECT fingerprint FROM prints ORDER BY id"):
            yield fingerprint

    def get(self, number: int) -> tuple[str, bytes]:
        """Return the digest and the fingerprint of a picture, by its ID."""
        found = self._db.execute("SELECT digest, fingerprint FROM prints WHERE id = ?", (number,))
        digest, fingerprint = found.fetchone()
        return digest, fingerprint

    def link(self, one: str, other: str, kind: str) -> None:
        """Store that two pictures, given by their digests, look alike: ``same`` or ``near``."""
        self._db.execute(
            "INSERT OR IGNORE INTO links VALUES (?, ?, ?)", (min(one, other), max(one, other), kind)
        )

    def set_clusters(self, clusters: Iterable[tuple[int, int]]) -> None:
        """Set the clusters of pictures, given as (ID, cluster); any other picture is its own cluster."""
        self._db.execute("UPDATE prints SET cluster = id")
        self._db.executemany(
            "UPDATE prints SET cluster = ? WHERE id = ?", ((cluster, number) for number, cluster in clusters)
        )

"""The products: their splits in this run and in earlier ones, and their groups.

While splits are assigned, the tables that `Products.collect_pairs` and the methods after it create contain:

    pairs     each kept product and picture, with the picture's cluster; ``new`` if no earlier run assigned it
    sharing   the clusters that several products have in common
    members   these products, with the ID of the first product of their group
    known     the split of each product that an earlier run assigned
    taken     the splits of each cluster in earlier runs
    forced    the splits that new pairs must be in
    decided   the split of each product with new pairs, NULL if it would be in two
"""

import sqlite3
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

from fovea.records import Groups


class Assigned(NamedTuple):
    """The split of a product and one of its pictures."""

    product: str
    digest: str
    split: str
    fingerprint: bytes


class Undecided(NamedTuple):
    """A product with new pictures: the split it must be in, or None if any will do."""

    product: str
    split: str | None
    is_contradictory: bool
    """Whether it must be in several splits."""


class Products:
    """The splits and groups of products."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def add_assigned(self, assigned: Iterable[Assigned]) -> None:
        """Add assignments of earlier runs; of two for the same product and picture, the first is valid."""
        self._db.executemany(
            "INSERT OR IGNORE INTO assigned (product, digest, split, fingerprint) VALUES (?, ?, ?, ?)",
            assigned,
        )

    def new_assignments(self) -> Iterator[Assigned]:
        """Yield the assignments of this run that no earlier run made, by product and digest."""
        found = self._db.execute(
            # Sorted without the fingerprints, which are most of the data.
            "SELECT product, digest, split, (SELECT fingerprint FROM prints WHERE digest = new.digest) FROM ("
            "  SELECT DISTINCT rows.product, digest, rows.split"
            "  FROM rows JOIN pictures USING (address) LEFT JOIN assigned USING (product, digest)"
            "  WHERE rows.reason IS NULL AND assigned.split IS NULL ORDER BY rows.product, digest"
            ") AS new"
        )
        yield from map(Assigned._make, found)

    def clear_splits(self, reason: str) -> None:
        """Remove the rows' splits, and keep the rows again that were left out for ``reason``."""
        self._db.execute("UPDATE rows SET split = NULL, reason = nullif(reason, ?)", (reason,))

    def collect_pairs(self) -> None:
        """Collect the pairs of products and pictures of the kept rows; remove all groups.

        The pictures' clusters must be known.
        """
        self._run(
            """
            DELETE FROM groups;
            DROP TABLE IF EXISTS pairs;
            CREATE TABLE pairs AS
                SELECT product, digest, cluster, count(*) AS size, assigned.split IS NULL AS new
                FROM rows JOIN pictures USING (address) JOIN prints USING (digest)
                LEFT JOIN assigned USING (product, digest)
                WHERE rows.reason IS NULL GROUP BY product, digest;
            CREATE INDEX pairs_by_cluster ON pairs (cluster, product);
            CREATE INDEX pairs_by_product ON pairs (product);
            """
        )

    def count_rows(self) -> int:
        """Return the number of rows of all pairs."""
        return self._db.execute("SELECT sum(size) FROM pairs").fetchone()[0] or 0

    def count_rows_of(self, products: Iterable[str]) -> int:
        """Return the number of rows of these products."""
        return sum(
            self._db.execute("SELECT sum(size) FROM pairs WHERE product = ?", (product,)).fetchone()[0]
            for product in products
        )

    def collect_sharing(self, *, undecided: bool) -> int:
        """Collect the products that share clusters, and return their number.

        Args:
            undecided: Use only new pairs whose cluster no earlier run assigned, of products whose group was
                not broken up.
        """
        condition = (
            "WHERE new AND cluster NOT IN (SELECT cluster FROM taken) "
            "AND product NOT IN (SELECT product FROM groups WHERE reason IS NOT NULL)"
            if undecided
            else ""
        )
        self._run(
            f"""
            DROP TABLE IF EXISTS sharing;
            DROP TABLE IF EXISTS members;
            CREATE TABLE sharing AS
                SELECT cluster, product FROM pairs JOIN (
                    SELECT cluster FROM pairs {condition} GROUP BY cluster HAVING count(DISTINCT product) > 1
                ) USING (cluster) {condition} GROUP BY cluster, product;
            CREATE TABLE members (id INTEGER PRIMARY KEY, product TEXT UNIQUE, root INTEGER);
            INSERT INTO members (id, product)
                SELECT row_number() OVER (ORDER BY product) - 1, product FROM sharing GROUP BY product
            """  # noqa: S608 - the condition is one of the two above
        )
        return int(self._db.execute("SELECT count(*) FROM members").fetchone()[0])

    def sharing(self) -> Iterator[tuple[int, int]]:
        """Yield (cluster, member) by cluster. Members are numbered from 0, in the products' order."""
        yield from self._db.execute(
            "SELECT cluster, id FROM sharing JOIN members USING (product) ORDER BY cluster"
        )

    def set_roots(self, roots: Iterable[int]) -> None:
        """Set the first member of each member's group, in the members' order."""
        self._db.executemany(
            "UPDATE members SET root = ? WHERE id = ?", ((root, member) for member, root in enumerate(roots))
        )

    def connected(self) -> Iterator[list[str]]:
        """Yield the products of each group of members, in alphabetical order."""
        found = self._db.execute("SELECT root, product FROM members ORDER BY root, id")
        for _, group in groupby(found, itemgetter(0)):
            yield [product for _, product in group]

    def add_group(self, products: list[str], *, too_large: bool) -> None:
        """Add a group, named after its first product. A group that is too large is broken up."""
        self._db.executemany(
            "INSERT INTO groups VALUES (?, ?, ?)",
            ((product, products[0], "too_large" if too_large else None) for product in products),
        )

    def count_groups(self) -> Groups:
        """Count the groups and their products."""
        groups, products, broken_up = self._db.execute(
            'SELECT count(DISTINCT "group"), count(*), '
            'count(DISTINCT "group") FILTER (WHERE reason IS NOT NULL) FROM groups'
        ).fetchone()
        return Groups(groups=groups, products=products, broken_up=broken_up)

    def apply_earlier_assignments(self) -> None:
        """Find the splits that earlier assignments force on new pairs, and drop pairs forced into two."""
        self._run(
            """
            DROP TABLE IF EXISTS known;
            DROP TABLE IF EXISTS taken;
            DROP TABLE IF EXISTS forced;
            DROP TABLE IF EXISTS decided;
            CREATE TABLE known (product TEXT PRIMARY KEY, split TEXT) WITHOUT ROWID;
            INSERT OR IGNORE INTO known SELECT product, split FROM assigned ORDER BY number;
            CREATE TABLE taken (cluster INTEGER, split TEXT, PRIMARY KEY (cluster, split)) WITHOUT ROWID;
            INSERT INTO taken SELECT DISTINCT cluster, split FROM assigned JOIN prints USING (digest);
            DELETE FROM pairs WHERE new AND (
                SELECT count(*) FROM (
                    SELECT split FROM known WHERE known.product = pairs.product
                    UNION SELECT split FROM taken WHERE taken.cluster = pairs.cluster)) > 1;
            CREATE TABLE forced (product TEXT, split TEXT, PRIMARY KEY (product, split)) WITHOUT ROWID;
            INSERT INTO forced
                SELECT product, split FROM pairs JOIN taken USING (cluster) WHERE new
                UNION SELECT product, split FROM pairs JOIN known USING (product) WHERE new;
            CREATE TABLE decided (product TEXT PRIMARY KEY, split TEXT) WITHOUT ROWID;
            """
        )

    def forced_splits(self, products: Iterable[str]) -> set[str]:
        """Return the splits that earlier assignments force on these products."""
        found = (
            self._db.execute("SELECT split FROM forced WHERE product = ?", (product,)) for product in products
        )
        return {split for splits in found for (split,) in splits}

    def decide(self, products: Iterable[str], split: str | None) -> None:
        """Set the split of products; None if they would be in two."""
        self._db.executemany("INSERT INTO decided VALUES (?, ?)", ((product, split) for product in products))

    def undecided(self) -> Iterator[Undecided]:
        """Yield the products with new pictures that have no decision; decide each as it is yielded."""
        found = self._db.execute(
            "SELECT product, min(split), count(split) > 1 "
            "FROM (SELECT DISTINCT product FROM pairs WHERE new) LEFT JOIN forced USING (product) "
            "WHERE product NOT IN (SELECT product FROM decided) GROUP BY product"
        )
        for product, split, is_contradictory in found:
            yield Undecided(product, split, bool(is_contradictory))

    def write_splits(self, reason: str) -> None:
        """Copy the splits to the rows: earlier ones, then decisions. Leave out rows without one."""
        self._db.execute(
            "UPDATE rows SET split = found.split FROM ("
            "  SELECT product, address, iif(pairs.new, decided.split, known.split) AS split"
            "  FROM pairs JOIN pictures USING (digest)"
            "  LEFT JOIN decided USING (product) LEFT JOIN known USING (product)"
            ") AS found WHERE rows.reason IS NULL AND rows.product = found.product"
            " AND rows.address = found.address"
        )
        self._db.execute("UPDATE rows SET reason = ? WHERE reason IS NULL AND split IS NULL", (reason,))

    def count_in_several_splits(self) -> int:
        """Return the number of groups and single products with rows in more than one split."""
        (found,) = self._db.execute(
            "SELECT count(*) FROM (SELECT 1 FROM rows LEFT JOIN groups USING (product) "
            "WHERE rows.reason IS NULL AND split IS NOT NULL "
            'GROUP BY CASE WHEN groups.reason IS NULL THEN coalesce("group", product) ELSE product END '
            "HAVING count(DISTINCT split) > 1)"
        ).fetchone()
        return int(found)

    def _run(self, script: str) -> None:
        """Run SQL statements separated by semicolons."""
        # executescript would commit the transaction.
        for statement in script.split(";"):
            self._db.execute(statement)

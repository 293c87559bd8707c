"""Which split a product belongs to: by a stable hash, what looks alike together, and as it was before.

Products whose pictures look alike are one group. What was assigned once stays: every run adds what is new to
it to the assignments under the artifact root, and the next run begins from those. So a larger feed moves no
row, and a row that is new and would join two splits is left out.

The assignments are a log: numbered Parquet objects that are never rewritten, each written on the condition
that nobody else wrote that number. With them a run that is killed after it added to them, and starts again,
comes to the same splits: kept rows are known then, and those it left out are as new as before.

Some S3 servers (rclone's) ignore such a condition. So what was written is read back, and a run that finds
another's there begins again. A write that comes after the reading is not seen: on such a server let one
preparation of a ``split_name`` run at a time.
"""

import hashlib
import tempfile
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from components.prepare_data.near_duplicates import cluster_pictures, find_root
from components.prepare_data.workspace import Workspace
from fovea.storage import Storage, join_uri, sha256_file

SPLITS = ("train", "validation", "test")
IN_TWO_SPLITS = "near_duplicates_in_two_splits"

LARGEST_GROUP = 0.01
"""A larger share of the rows in one group is not one product's pictures, but a placeholder, say."""
LARGEST_SMALL_GROUP = 20
"""So many rows may be one group in however small a table."""

_FORMAT = 1
"""Raised when fingerprints are no longer comparable with the assignments' own."""
_BATCH = 1000

_COLUMNS = pyarrow.schema(
    [
        ("product", pyarrow.string()),
        ("digest", pyarrow.string()),
        ("split", pyarrow.string()),
        ("fingerprint", pyarrow.binary()),
    ]
)


@dataclass(frozen=True)
class SplitPlan:
    """Which shares of the products are held out, and the seed of the choice."""

    seed: int
    validation_fraction: float
    test_fraction: float

    def split_of(self, product: str) -> str:
        """Return where a product's name leads, on every machine."""
        number = _hash("split", self.seed, product)
        if number < self.test_fraction:
            return "test"
        return "validation" if number < self.test_fraction + self.validation_fraction else "train"

    def speaker(self, products: Iterable[str]) -> str:
        """Return the product that speaks for a group."""
        # One hash chooses the speaker, another its split: else the choice of the smallest would put groups
        # into the test split more often than single products.
        return min(products, key=lambda product: _hash("group", self.seed, product))


class Assignments:
    """The splits that earlier runs assigned, in S3."""

    def __init__(self, storage: Storage, artifact_root: str, name: str, plan: SplitPlan) -> None:
        """Find the assignments called ``name``; another plan is another series."""
        shares = f"{plan.seed}-{plan.validation_fraction}-{plan.test_fraction}"
        series = f"{name}-{shares}-v{_FORMAT}"
        self._uri = join_uri(artifact_root, "splits", series) + "/"
        self._storage = storage
        self._read = 0

    def load(self, workspace: Workspace) -> None:
        """Bring what was not read yet into the workspace's table ``assigned``."""
        with tempfile.TemporaryDirectory() as folder:
            for uri in self._storage.list(self._uri):
                number = int(uri.removeprefix(self._uri).partition(".")[0])
                if number <= self._read:
                    continue
                path = Path(folder, "assigned.parquet")
                self._storage.read_file(uri, path)
                with pyarrow.parquet.ParquetFile(path) as file:
                    for batch in file.iter_batches(_BATCH):
                        # Of two that assign the same picture of a product, the first holds.
                        workspace.db.executemany(
                            "INSERT OR IGNORE INTO assigned (product, digest, split, fingerprint) "
                            "VALUES (:product, :digest, :split, :fingerprint)",
                            batch.to_pylist(),
                        )
                self._read = number

    def add(self, workspace: Workspace) -> bool:
        """Add the workspace's new rows; return False where another run added something meanwhile."""
        new = workspace.db.execute(
            # Sorted without the fingerprints, which are most of it.
            "SELECT product, digest, split, (SELECT fingerprint FROM prints WHERE digest = new.digest) FROM ("
            "  SELECT DISTINCT rows.product, digest, rows.split"
            "  FROM rows JOIN pictures USING (address) LEFT JOIN assigned USING (product, digest)"
            "  WHERE rows.reason IS NULL AND assigned.split IS NULL ORDER BY rows.product, digest"
            ") AS new"
        )
        with tempfile.TemporaryDirectory() as folder:
            mine, there = Path(folder, "mine.parquet"), Path(folder, "there.parquet")
            if not _write(mine, new):
                return True
            uri = f"{self._uri}{self._read + 1:08}.parquet"
            with mine.open("rb") as file:
                if not self._storage.write_bytes(uri, file, only_if_absent=True):
                    return False
            self._storage.read_file(uri, there)
            return sha256_file(there) == sha256_file(mine)


def _write(path: Path, rows: Any) -> int:
    count = 0
    with pyarrow.parquet.ParquetWriter(path, _COLUMNS, compression="zstd") as writer:
        while batch := rows.fetchmany(_BATCH):
            columns = [pyarrow.array(column) for column in zip(*batch, strict=True)]
            writer.write_batch(pyarrow.RecordBatch.from_arrays(columns, schema=_COLUMNS))
            count += len(batch)
    return count


def assign_splits(workspace: Workspace, plan: SplitPlan) -> None:
    """Give every kept row a split, or leave it out where what it resembles lies in two.

    Fills ``split`` of ``rows``, and the tables ``prints``, ``links`` and ``groups``. A product without known
    relatives goes where its name and the seed alone lead.
    """
    db = workspace.db
    db.execute("UPDATE rows SET split = NULL, reason = nullif(reason, ?)", (IN_TWO_SPLITS,))
    _find_clusters(workspace)
    _find_groups(workspace)
    _fix_what_is_known(workspace)
    # What shares a cluster that is taken follows that, and needs no company.
    new = (
        "WHERE new AND cluster NOT IN (SELECT cluster FROM taken) "
        "AND product NOT IN (SELECT product FROM groups WHERE reason IS NOT NULL)"
    )
    for members in _groups(workspace, new):
        forced = {split for product in members for split in _forced(workspace, product)}
        _decide(workspace, members, forced or {plan.split_of(plan.speaker(members))})
    alone = db.execute(
        "SELECT product, count(split), min(split) FROM (SELECT DISTINCT product FROM pairs WHERE new) "
        "LEFT JOIN forced USING (product) WHERE product NOT IN (SELECT product FROM decided) GROUP BY product"
    )
    while batch := alone.fetchmany(_BATCH):
        for product, splits, split in batch:
            possible = {split, None} if splits > 1 else {split or plan.split_of(product)}
            _decide(workspace, [product], possible)
    _write_down(workspace)


def _find_clusters(workspace: Workspace) -> None:
    """Group the pictures of this run and of earlier ones by what they show."""
    db = workspace.db
    for table in ("prints", "links", "groups"):
        db.execute(f"DELETE FROM {table}")  # noqa: S608 - the program's own names
    # One fingerprint a picture, although an earlier run may have scaled it to another size.
    db.execute(
        "INSERT INTO prints (id, digest, fingerprint) "
        "SELECT row_number() OVER (ORDER BY digest) - 1, digest, coalesce(min(own), min(earlier)) FROM ("
        "  SELECT digest, fingerprint AS own, NULL AS earlier"
        "  FROM rows JOIN pictures USING (address) WHERE rows.reason IS NULL"
        "  UNION ALL SELECT digest, NULL, fingerprint FROM assigned"
        ") GROUP BY digest"
    )
    cluster_pictures(db)
    workspace.run(
        """
        DROP TABLE IF EXISTS pairs;
        CREATE TABLE pairs AS -- of product and picture, new where no earlier run assigned it
            SELECT product, digest, cluster, count(*) AS size, assigned.split IS NULL AS new
            FROM rows JOIN pictures USING (address) JOIN prints USING (digest)
            LEFT JOIN assigned USING (product, digest)
            WHERE rows.reason IS NULL GROUP BY product, digest;
        CREATE INDEX pairs_by_cluster ON pairs (cluster, product);
        CREATE INDEX pairs_by_product ON pairs (product);
        """
    )


def _find_groups(workspace: Workspace) -> None:
    """Fill ``groups``, from this run's rows alone; those that are too large are broken up."""
    db = workspace.db
    rows = db.execute("SELECT sum(size) FROM pairs").fetchone()[0] or 0
    limit = max(LARGEST_GROUP * rows, LARGEST_SMALL_GROUP)
    for members in _groups(workspace, ""):
        sizes = (
            db.execute("SELECT sum(size) FROM pairs WHERE product = ?", (product,)) for product in members
        )
        too_large = sum(size.fetchone()[0] for size in sizes) > limit
        db.executemany(
            "INSERT INTO groups VALUES (?, ?, ?)",
            ((product, members[0], "too_large" if too_large else None) for product in members),
        )


def _fix_what_is_known(workspace: Workspace) -> None:
    """Leave out new rows that what is known pulls into two splits; note where it pulls the others."""
    workspace.run(
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
        CREATE TABLE decided (product TEXT PRIMARY KEY, split TEXT) WITHOUT ROWID; -- NULL: in two splits
        """
    )


def _forced(workspace: Workspace, product: str) -> list[str]:
    found = workspace.db.execute("SELECT split FROM forced WHERE product = ?", (product,))
    return [split for (split,) in found]


def _decide(workspace: Workspace, products: Iterable[str], possible: Collection[str | None]) -> None:
    """Note the split of products; with more than one possible there is none."""
    split = next(iter(possible)) if len(possible) == 1 else None
    workspace.db.executemany("INSERT INTO decided VALUES (?, ?)", ((product, split) for product in products))


def _write_down(workspace: Workspace) -> None:
    """Bring the decisions to the rows: old pairs as they were, new ones as decided, the others left out."""
    workspace.db.execute(
        "UPDATE rows SET split = found.split FROM ("
        "  SELECT product, address, iif(pairs.new, decided.split, known.split) AS split"
        "  FROM pairs JOIN pictures USING (digest)"
        "  LEFT JOIN decided USING (product) LEFT JOIN known USING (product)"
        ") AS found WHERE rows.reason IS NULL AND rows.product = found.product"
        " AND rows.address = found.address"
    )
    workspace.db.execute(
        "UPDATE rows SET reason = ? WHERE reason IS NULL AND split IS NULL", (IN_TWO_SPLITS,)
    )


def _groups(workspace: Workspace, condition: str) -> Iterator[list[str]]:
    """Yield the products that hang together by clusters of pictures, each list in alphabetical order.

    Only the pairs that meet the condition count. In memory lie 8 bytes a product, and one list.
    """
    db = workspace.db
    workspace.run(
        f"""
        DROP TABLE IF EXISTS sharing;
        DROP TABLE IF EXISTS members;
        CREATE TABLE sharing AS -- clusters that several products share
            SELECT cluster, product FROM pairs JOIN (
                SELECT cluster FROM pairs {condition} GROUP BY cluster HAVING count(DISTINCT product) > 1
            ) USING (cluster) {condition} GROUP BY cluster, product;
        CREATE TABLE members (id INTEGER PRIMARY KEY, product TEXT UNIQUE, root INTEGER);
        INSERT INTO members (id, product)
            SELECT row_number() OVER (ORDER BY product) - 1, product FROM sharing GROUP BY product
        """  # noqa: S608 - the condition is this module's own
    )
    roots = np.arange(db.execute("SELECT count(*) FROM members").fetchone()[0])
    here, first = -1, 0
    for cluster, member in db.execute(
        "SELECT cluster, id FROM sharing JOIN members USING (product) ORDER BY cluster"
    ):
        if cluster != here:
            here, first = cluster, member
        one, other = sorted((find_root(roots, first), find_root(roots, member)))
        roots[other] = one
    db.executemany(
        "UPDATE members SET root = ? WHERE id = ?",
        ((find_root(roots, each), each) for each in range(len(roots))),
    )
    found = db.execute("SELECT root, product FROM members ORDER BY root, id")
    for _, group in groupby(found, itemgetter(0)):
        yield [product for _, product in group]


def _hash(purpose: str, seed: int, product: str) -> float:
    """Return a number in [0, 1) that is the same on every machine."""
    digest = hashlib.sha256(f"{purpose}:{seed}:{product}".encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48

"""Splits of products: by a stable hash, the same for products that look alike, and the same in every run.

Products whose pictures look alike form a group. Every run adds the splits of new products and pictures to the
assignments under the artifact root, and later runs start from those. So a larger feed moves no row, and a new
row that would join two splits is left out.

The assignments are a log of numbered Parquet objects. None is overwritten: each is written on the condition
that its number is not taken. A run that is killed after it added an object and starts again gets the same
splits, because the rows it kept are known then, and the rows it left out are still new.

Some S3 servers, such as rclone's, ignore the condition. Therefore each object is read back, and a run that
finds another run's object starts again. It does not notice a write after that, so on such a server, run one
preparation per ``split_name`` at a time.
"""

import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

from components.prepare_data.near_duplicates import cluster_pictures, find_root
from components.prepare_data.workspace import Assigned, Products, Workspace
from fovea.storage import Storage, join_uri, sha256_file

SPLITS = ("train", "validation", "test")
IN_TWO_SPLITS = "near_duplicates_in_two_splits"

LARGEST_GROUP = 0.01
"""The largest share of the rows in one group; a larger group is more likely to show a placeholder."""
LARGEST_SMALL_GROUP = 20
"""The rows that a group may have in any table, however small."""

_FORMAT = 1
"""Increased when fingerprints can no longer be compared with those of earlier assignments."""
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
    """The shares of the products to hold out, and the seed that chooses them."""

    seed: int
    validation_fraction: float
    test_fraction: float

    def split_of(self, product: str) -> str:
        """Return the split that a product's code hashes to, the same on every machine."""
        number = _hash("split", self.seed, product)
        if number < self.test_fraction:
            return "test"
        return "validation" if number < self.test_fraction + self.validation_fraction else "train"

    def representative(self, products: Iterable[str]) -> str:
        """Return the product whose split a group follows."""
        # Not the hash that chooses the split: its smallest value would put groups into the test split more
        # often than single products.
        return min(products, key=lambda product: _hash("group", self.seed, product))


class Assignments:
    """The splits that earlier runs assigned, stored in S3."""

    def __init__(self, storage: Storage, artifact_root: str, name: str, plan: SplitPlan) -> None:
        """Use the assignments called ``name``. Each plan has separate assignments."""
        shares = f"{plan.seed}-{plan.validation_fraction}-{plan.test_fraction}"
        series = f"{name}-{shares}-v{_FORMAT}"
        self._uri = join_uri(artifact_root, "splits", series) + "/"
        self._storage = storage
        self._read = 0

    def load(self, workspace: Workspace) -> None:
        """Add the assignments that were not read yet to the workspace."""
        with tempfile.TemporaryDirectory() as folder:
            for uri in self._storage.list(self._uri):
                number = int(uri.removeprefix(self._uri).partition(".")[0])
                if number <= self._read:
                    continue
                path = Path(folder, "assigned.parquet")
                self._storage.read_file(uri, path)
                workspace.products.add_assigned(_read(path))
                self._read = number

    def add(self, workspace: Workspace) -> bool:
        """Write the workspace's new assignments; return False if another run has written some meanwhile."""
        with tempfile.TemporaryDirectory() as folder:
            mine, there = Path(folder, "mine.parquet"), Path(folder, "there.parquet")
            if not _write(mine, workspace.products.new_assignments()):
                return True
            uri = f"{self._uri}{self._read + 1:08}.parquet"
            with mine.open("rb") as file:
                if not self._storage.write_bytes(uri, file, only_if_absent=True):
                    return False
            self._storage.read_file(uri, there)
            return sha256_file(there) == sha256_file(mine)


def _read(path: Path) -> Iterator[Assigned]:
    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(_BATCH):
            yield from (Assigned(**row) for row in batch.to_pylist())


def _write(path: Path, assigned: Iterator[Assigned]) -> int:
    """Write assignments, and return their number."""
    count = 0
    with pyarrow.parquet.ParquetWriter(path, _COLUMNS, compression="zstd") as writer:
        while batch := list(islice(assigned, _BATCH)):
            columns = [pyarrow.array(column) for column in zip(*batch, strict=True)]
            writer.write_batch(pyarrow.RecordBatch.from_arrays(columns, schema=_COLUMNS))
            count += len(batch)
    return count


def assign_splits(workspace: Workspace, plan: SplitPlan) -> None:
    """Assign a split to every kept row, and leave out rows that look like rows in two splits.

    The split of a product that looks like no other follows from its code and the seed.
    """
    products = workspace.products
    products.clear_splits(IN_TWO_SPLITS)
    workspace.prints.collect()
    cluster_pictures(workspace.prints)
    products.collect_pairs()
    _find_groups(products)
    products.apply_earlier_assignments()
    # Pairs in a cluster with an earlier split follow that split, so they need no group.
    for members in _connected(products, undecided=True):
        splits = products.forced_splits(members) or {plan.split_of(plan.representative(members))}
        products.decide(members, splits.pop() if len(splits) == 1 else None)
    for product, split, is_contradictory in products.undecided():
        products.decide([product], None if is_contradictory else split or plan.split_of(product))
    products.write_splits(IN_TWO_SPLITS)


def _find_groups(products: Products) -> None:
    """Group the products of this run, and break up groups that are too large."""
    limit = max(LARGEST_GROUP * products.count_rows(), LARGEST_SMALL_GROUP)
    for members in _connected(products):
        products.add_group(members, too_large=products.count_rows_of(members) > limit)


def _connected(products: Products, *, undecided: bool = False) -> Iterator[list[str]]:
    """Yield the products connected by shared clusters of pictures, each list in alphabetical order.

    Memory use is 8 bytes per product, and one list.
    """
    roots = np.arange(products.collect_sharing(undecided=undecided))
    here, first = -1, 0
    for cluster, member in products.sharing():
        if cluster != here:
            here, first = cluster, member
        one, other = sorted((find_root(roots, first), find_root(roots, member)))
        roots[other] = one
    products.set_roots(find_root(roots, each) for each in range(len(roots)))
    return products.connected()


def _hash(purpose: str, seed: int, product: str) -> float:
    """Return a number in [0, 1) that is the same on every machine."""
    digest = hashlib.sha256(f"{purpose}:{seed}:{product}".encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48

"""Which split a product belongs to: by a stable hash, products with the same picture together."""

import hashlib
from collections.abc import Iterable

SPLITS = ("train", "validation", "test")


def assign_splits(
    pairs: Iterable[tuple[str, str]], *, seed: int, validation_fraction: float, test_fraction: float
) -> dict[str, str]:
    """Return the split of each product, given (product, digest of a picture) of every row.

    A product's split depends on its name and the seed alone, so rows that are added later move none. Products
    that share a picture are one group and go where one of them, chosen by hash, goes.
    """
    groups = _Groups()
    for product, digest in pairs:
        # The prefixes keep a product that is named like a picture's digest apart from it.
        groups.join(f"product:{product}", f"picture:{digest}")
    members: dict[str, list[str]] = {}
    for node in groups.nodes():
        kind, _, name = node.partition(":")
        if kind == "product":
            members.setdefault(groups.find(node), []).append(name)
    splits = {}
    for products in members.values():
        # One hash chooses the product that speaks for its group, another its split: else the choice of the
        # smallest would put groups into the test split more often than single products.
        speaker = min(products, key=lambda product: _hash("group", seed, product))
        share = _hash("split", seed, speaker)
        split = (
            "test"
            if share < test_fraction
            else "validation"
            if share < test_fraction + validation_fraction
            else "train"
        )
        splits.update(dict.fromkeys(products, split))
    return splits


def _hash(purpose: str, seed: int, product: str) -> float:
    """Return a number in [0, 1) that is the same on every machine."""
    digest = hashlib.sha256(f"{purpose}:{seed}:{product}".encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48


class _Groups:
    """Which nodes hang together (union-find)."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def nodes(self) -> Iterable[str]:
        return list(self._parent)

    def find(self, node: str) -> str:
        self._parent.setdefault(node, node)
        while self._parent[node] != node:
            self._parent[node] = self._parent[self._parent[node]]
            node = self._parent[node]
        return node

    def join(self, one: str, other: str) -> None:
        self._parent[self.find(one)] = self.find(other)

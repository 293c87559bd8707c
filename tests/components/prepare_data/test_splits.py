"""Splits: stable, without leaks, and the same again after an interruption."""

import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.prepare_data import splits
from components.prepare_data.near_duplicates import FINGERPRINT_BYTES
from components.prepare_data.splits import IN_TWO_SPLITS, SPLITS, Assignments, SplitPlan, assign_splits
from components.prepare_data.workspace import Workspace
from tests.components.prepare_data.workspaces import query

Pair = tuple[str, str]
"""A product and a picture; pictures look alike whose names begin with the same letter."""
FRACTIONS = {"validation_fraction": 0.3, "test_fraction": 0.3}


class Shelf:
    """A place for assignments in memory, which may be raced for."""

    minds_conditions = True

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def list(self, uri: str) -> list[str]:
        return sorted(name for name in self.objects if name.startswith(uri))

    def read_file(self, uri: str, path: Path) -> None:
        path.write_bytes(self.objects[uri])

    def write_bytes(self, uri: str, data, *, only_if_absent: bool) -> bool:  # type: ignore[no-untyped-def]
        assert only_if_absent
        if uri in self.objects and self.minds_conditions:
            return False
        self.objects[uri] = data.read()
        return True


def fingerprint(picture: str) -> bytes:
    family = np.random.default_rng(ord(picture[0])).integers(0, 256, FINGERPRINT_BYTES, np.uint8)
    family[-1] = (ord(picture[-1]) + len(picture)) % 8 + 100
    return family.tobytes()


def workspace_of(pairs: Iterable[Pair], folder: str) -> Workspace:
    workspace = Workspace(Path(folder))
    for number, (product, picture) in enumerate(pairs):
        workspace.rows.add(number, {}, product=product, address=picture, values={})
    for picture in list(workspace.pictures.needed()):
        workspace.pictures.add(
            picture,
            digest=picture,
            jpeg=b"",
            size=(1, 1),
            original_size=(1, 1),
            fingerprint=fingerprint(picture),
        )
    return workspace


class Outcome:
    def __init__(self, pairs: list[Pair], workspace: Workspace) -> None:
        found = query(workspace, "SELECT split, reason FROM rows ORDER BY number").fetchall()
        self.rows = [(pair, *each) for pair, each in zip(pairs, found, strict=True)]
        self.split = {pair: split for pair, split, reason in self.rows if reason is None}
        self.groups = query(workspace, "SELECT * FROM groups ORDER BY product").fetchall()

    def of(self, product: str) -> str | None:
        found = {split for (name, _), split in self.split.items() if name == product}
        assert len(found) <= 1, "a product is in two splits"
        return found.pop() if found else None


def run(pairs: list[Pair], shelf: Shelf | None = None, seed: int = 0, **fractions: float) -> Outcome:
    """Assign splits as the step does, and keep them where there is a shelf."""
    shares = {**FRACTIONS, **fractions}
    plan = SplitPlan(seed, **shares)
    kept = Assignments(shelf or Shelf(), "s3://b", "default", plan)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder, workspace_of(pairs, folder) as workspace:
        while True:
            kept.load(workspace)
            assign_splits(workspace, plan)
            if kept.add(workspace):
                return Outcome(pairs, workspace)


PAIRS = st.lists(
    st.tuples(st.text("abcdefgh", min_size=1, max_size=1), st.text("uvwxyz", min_size=1, max_size=2)),
    max_size=14,
)


@given(PAIRS, st.integers(0, 5))
def test_neither_a_product_nor_what_looks_alike_lies_in_two_splits(pairs: list[Pair], seed: int) -> None:
    outcome = run(pairs, seed=seed)
    assert outcome.split.keys() == set(pairs), "a first run leaves nothing out"
    by_family = defaultdict(set)
    for (product, picture), split in outcome.split.items():
        assert outcome.of(product) == split
        by_family[picture[0]].add(split)
    assert all(len(found) == 1 for found in by_family.values())


@given(PAIRS, PAIRS, PAIRS, st.randoms(), st.booleans())
@settings(max_examples=150)
def test_a_larger_feed_moves_no_row_and_joins_no_splits(first, second, third, random, small) -> None:  # type: ignore[no-untyped-def]
    """Also where groups are broken up, which happens to small ones when no group is small enough."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splits, "LARGEST_SMALL_GROUP", 2 if small else 1000)
        shelf = Shelf()
        feed: list[Pair] = []
        before: dict[Pair, str] = {}
        for more in (first, second, third):
            feed = [*feed, *more]
            random.shuffle(feed)
            outcome = run(feed, shelf)
            assert before.items() <= outcome.split.items()
            assert {reason for _, _, reason in outcome.rows} <= {None, IN_TWO_SPLITS}
            if not small:
                fresh = {pair: split for pair, split in outcome.split.items() if pair not in before}
                for (_, picture), split in fresh.items():
                    others = {each for (_, other), each in outcome.split.items() if other[0] == picture[0]}
                    assert others == {split}
            before = outcome.split


@given(PAIRS, PAIRS, st.booleans())
@settings(max_examples=150)
def test_a_run_that_is_killed_after_it_kept_its_splits_comes_to_the_same(first, second, small) -> None:  # type: ignore[no-untyped-def]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splits, "LARGEST_SMALL_GROUP", 2 if small else 1000)
        shelf = Shelf()
        run(first, shelf)
        undisturbed, again = run(second, shelf), run(second, shelf)
    assert undisturbed.rows == again.rows
    assert undisturbed.groups == again.groups


def single(count: int, prefix: str = "product") -> list[Pair]:
    """Products without relatives."""
    return [(f"{prefix} {number}", chr(0x4E00 + number)) for number in range(count)]


def in_split(split: str, count: int = 400) -> list[Pair]:
    return [pair for pair, found in run(single(count)).split.items() if found == split]


def test_a_new_row_between_two_splits_is_left_out() -> None:
    shelf = Shelf()
    feed = single(400)
    run(feed, shelf)
    train, test = in_split("train")[0], in_split("test")[0]
    joining = [("new", train[1] + "a"), ("new", test[1] + "a")]
    known = [(train[0], test[1] + "b")]
    chain = [("one", train[1] + "c"), ("one", "!"), ("two", "!b"), ("two", test[1] + "c")]
    beside = [("sound", train[1] + "d"), ("sound", "?")]
    outcome = run([*feed, *joining, *known, *chain, *beside], shelf)
    lost = {pair for pair, _, reason in outcome.rows if reason == IN_TWO_SPLITS}
    assert lost == {*joining, *known, *chain}
    assert outcome.of("sound") == "train"
    assert outcome.of(train[0]) == "train"


def test_a_new_product_follows_a_picture_that_is_no_longer_in_the_feed() -> None:
    shelf = Shelf()
    feed = single(400)
    run(feed, shelf)
    gone = in_split("test")[:10]
    rest = [pair for pair in feed if pair not in gone]
    new = [(f"new {number}", picture + "a") for number, (_, picture) in enumerate(gone)]
    outcome = run([*rest, *new], shelf)
    assert {outcome.of(product) for product, _ in new} == {"test"}


def test_a_group_that_is_too_large_is_broken_up() -> None:
    """Forty products show the same placeholder."""
    shelf = Shelf()
    placeholder = [(f"bare {number:02}", "#") for number in range(40)]
    outcome = run([*single(100), *placeholder], shelf)
    assert len(outcome.split) == 140
    assert {outcome.of(product) for product, _ in placeholder} == set(SPLITS)
    assert [group[1:] for group in outcome.groups] == [("bare 00", "too_large")] * 40

    later = run([*single(100), *placeholder, ("bare 40", "#b"), ("bare 00", "~")], shelf)
    assert [pair for pair, _, reason in later.rows if reason] == [("bare 40", "#b")]
    assert later.of("bare 00") == outcome.of("bare 00")


def test_one_product_with_many_pictures_is_no_group() -> None:
    outcome = run([("scarf", chr(0x4E00 + number)) for number in range(50)])
    assert outcome.groups == []
    assert outcome.of("scarf") is not None


def test_runs_at_the_same_time_agree() -> None:
    """The slower one begins again from what the faster one kept."""
    shelf = Shelf()

    class Slow(Shelf):
        objects = shelf.objects
        raced = False

        def __init__(self) -> None: ...

        def write_bytes(self, uri: str, data, *, only_if_absent: bool) -> bool:  # type: ignore[no-untyped-def]
            if not self.raced:
                self.raced = True
                faster = run([("new", train[1] + "a")], shelf)
                assert faster.of("new") == "train"
            return super().write_bytes(uri, data, only_if_absent=only_if_absent)

    run(single(400), shelf)
    train = in_split("train")[0]
    test = in_split("test")[0]
    slower = run([("new", test[1] + "b")], Slow())
    assert slower.rows == [(("new", test[1] + "b"), None, IN_TWO_SPLITS)]
    assert sorted(name[-16:] for name in shelf.objects) == ["00000001.parquet", "00000002.parquet"]


def test_runs_at_the_same_time_agree_where_s3_ignores_conditions() -> None:
    """What was overwritten before it was read back begins again."""
    train, test = in_split("train")[0], in_split("test")[0]

    class Overwritten(Shelf):
        minds_conditions = False
        others: bytes | None = None

        def write_bytes(self, uri: str, data, *, only_if_absent: bool) -> bool:  # type: ignore[no-untyped-def]
            written = super().write_bytes(uri, data, only_if_absent=only_if_absent)
            if self.others is not None:
                self.objects[uri], self.others = self.others, None
            return written

    shelf, elsewhere = Overwritten(), Shelf()
    run(single(400), shelf)
    elsewhere.objects.update(shelf.objects)
    run([("new", train[1] + "a")], elsewhere)
    shelf.others = elsewhere.objects[max(elsewhere.objects)]
    slower = run([("new", test[1] + "b")], shelf)
    assert slower.rows == [(("new", test[1] + "b"), None, IN_TWO_SPLITS)]
    assert shelf.others is None


def test_only_what_is_new_is_added() -> None:
    shelf = Shelf()
    run(single(10), shelf)
    run(single(10), shelf)
    assert len(shelf.objects) == 1
    run(single(12), shelf)
    sizes = [
        pyarrow.parquet.read_table(pyarrow.BufferReader(data)).num_rows for data in shelf.objects.values()
    ]
    assert sizes == [10, 2]


def test_other_shares_and_seeds_are_other_series() -> None:
    shelf = Shelf()
    run(single(300), shelf)
    other = run(single(300), shelf, seed=1)
    assert other.split == run(single(300), seed=1).split != run(single(300)).split
    run(single(300), shelf, test_fraction=0.1)
    assert len(shelf.objects) == 3


def test_shares_are_about_what_was_asked_for() -> None:
    twins = [(f"twin {number}", f"{chr(0x4E00 + number // 2)}") for number in range(6000)]
    for pairs in (single(6000), twins):
        counts = Counter(run(pairs, test_fraction=0.1, validation_fraction=0.05).split.values())
        assert counts.keys() == set(SPLITS)
        assert abs(counts["test"] / 6000 - 0.1) < 0.015
        assert abs(counts["validation"] / 6000 - 0.05) < 0.015


def test_the_same_on_every_machine() -> None:
    """Known answers: if these change, VERSION of the step must change."""
    pairs = [(str(number), chr(0x4E00 + number)) for number in range(40)]
    found = run(pairs, test_fraction=0.1, validation_fraction=0.05).split
    assert [int(product) for (product, _), split in found.items() if split == "test"] == [19, 36]

"""Splits: stable, and without leaks."""

from collections import Counter, defaultdict

from hypothesis import given
from hypothesis import strategies as st

from components.prepare_data.splits import SPLITS, assign_splits

FRACTIONS = {"validation_fraction": 0.05, "test_fraction": 0.1}
PAIRS = st.lists(st.tuples(st.text("abcdefgh", min_size=1, max_size=2), st.text("0123456789", max_size=1)))


@given(PAIRS, st.integers(0, 5))
def test_no_picture_lies_in_two_splits(pairs: list[tuple[str, str]], seed: int) -> None:
    splits = assign_splits(pairs, seed=seed, validation_fraction=0.3, test_fraction=0.3)
    assert splits.keys() == {product for product, _ in pairs}
    by_picture = defaultdict(set)
    for product, picture in pairs:
        by_picture[picture].add(splits[product])
    assert all(len(found) == 1 for found in by_picture.values())


@given(PAIRS, st.lists(st.text("xyz", min_size=1, max_size=5)), st.randoms())
def test_products_added_later_move_none(pairs, more, random) -> None:  # type: ignore[no-untyped-def]
    before = assign_splits(pairs, seed=0, **FRACTIONS)
    larger = [*pairs, *((product, f"of {product}") for product in more)]
    random.shuffle(larger)
    after = assign_splits(larger, seed=0, **FRACTIONS)
    assert {product: after[product] for product in before} == before


def test_shares_are_about_what_was_asked_for() -> None:
    alone = [(f"product {number}", f"picture {number}") for number in range(20_000)]
    twins = [(f"twin {number}", f"picture of twins {number // 2}") for number in range(20_000)]
    for pairs in (alone, twins):
        counts = Counter(assign_splits(pairs, seed=1, **FRACTIONS).values())
        assert counts.keys() == set(SPLITS)
        assert abs(counts["test"] / 20_000 - 0.1) < 0.01
        assert abs(counts["validation"] / 20_000 - 0.05) < 0.01


def test_another_seed_splits_another_way() -> None:
    pairs = [(str(number), str(number)) for number in range(1000)]
    assert assign_splits(pairs, seed=0, **FRACTIONS) != assign_splits(pairs, seed=1, **FRACTIONS)


def test_the_same_on_every_machine() -> None:
    """Known answers: if these change, VERSION of the step must change."""
    splits = assign_splits([(str(number), str(number)) for number in range(40)], seed=0, **FRACTIONS)
    assert [int(product) for product, split in splits.items() if split == "test"] == [19, 36]

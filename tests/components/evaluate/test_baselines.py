from hypothesis import given
from hypothesis import strategies as st

from components.evaluate.baselines import shuffle_among_groups

GROUPS = st.lists(st.sampled_from("abcdefgh"), max_size=40)
SEEDS = st.integers(0, 2**32 - 1)


@given(groups=GROUPS, seed=SEEDS)
def test_no_group_is_shown_a_picture_of_its_own(groups: list[str], seed: int) -> None:
    shown = shuffle_among_groups(groups, seed)
    if len(set(groups)) < 2:
        assert shown is None
        return
    assert shown is not None
    assert len(shown) == len(groups)
    assert all(groups[other] != group for group, other in zip(groups, shown, strict=True))


@given(groups=GROUPS, seed=SEEDS)
def test_every_group_gives_its_pictures_to_one_other(groups: list[str], seed: int) -> None:
    shown = shuffle_among_groups(groups, seed) or []
    taken = {(group, groups[other]) for group, other in zip(groups, shown, strict=False)}
    if shown:
        assert len(taken) == len(set(groups)) == len({giver for _, giver in taken})


@given(groups=GROUPS, seed=SEEDS)
def test_the_same_seed_shuffles_alike(groups: list[str], seed: int) -> None:
    assert shuffle_among_groups(groups, seed) == shuffle_among_groups(list(groups), seed)


def test_seeds_differ() -> None:
    groups = [str(number) for number in range(50)]
    assert shuffle_among_groups(groups, 0) != shuffle_among_groups(groups, 1)

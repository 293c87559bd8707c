from hypothesis import given
from hypothesis import strategies as st

from components.evaluate.shuffle import shuffle_among_products

PRODUCTS = st.lists(st.sampled_from("abcdefgh"), max_size=40)
SEEDS = st.integers(0, 2**32 - 1)


@given(products=PRODUCTS, seed=SEEDS)
def test_no_product_is_shown_a_picture_of_its_own(products: list[str], seed: int) -> None:
    shown = shuffle_among_products(products, seed)
    if len(set(products)) < 2:
        assert shown is None
        return
    assert shown is not None
    assert len(shown) == len(products)
    assert all(products[other] != product for product, other in zip(products, shown, strict=True))


@given(products=PRODUCTS, seed=SEEDS)
def test_every_product_gives_its_pictures_to_one_other(products: list[str], seed: int) -> None:
    shown = shuffle_among_products(products, seed) or []
    taken = {(product, products[other]) for product, other in zip(products, shown, strict=False)}
    if shown:
        assert len(taken) == len(set(products)) == len({giver for _, giver in taken})


@given(products=PRODUCTS, seed=SEEDS)
def test_the_same_seed_shuffles_alike(products: list[str], seed: int) -> None:
    assert shuffle_among_products(products, seed) == shuffle_among_products(list(products), seed)


def test_seeds_differ() -> None:
    products = [str(number) for number in range(50)]
    assert shuffle_among_products(products, 0) != shuffle_among_products(products, 1)

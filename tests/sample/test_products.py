import math
import statistics
from collections import Counter, defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st

from fovea.task import product_task
from sample.drawing import COLOURS, KINDS, PATTERNS, SIZES, random_look, seeded
from sample.products import (
    CATEGORIES,
    FLAWS,
    Product,
    category_of,
    flaw_count,
    make_products,
    title_of,
    usual_price,
)

PRODUCTS = list(make_products(3040, 0))


def visible(product: Product) -> tuple[str, ...]:
    look = product.look
    return look.kind, look.colour, look.pattern, look.size


def test_the_same_seed_gives_the_same_products_and_another_seed_others():
    assert list(make_products(100, 3)) == list(make_products(100, 3))
    codes = {product.code for product in make_products(100, 3)}
    assert not codes & {product.code for product in make_products(100, 4)}


def test_codes_and_looks_are_unique():
    assert len({product.code for product in PRODUCTS}) == len(PRODUCTS)
    assert len({product.look for product in PRODUCTS}) == len(PRODUCTS)


def test_a_title_says_what_can_be_seen_and_nothing_else():
    titles = defaultdict(set)
    for product in PRODUCTS:
        if product.flaw not in ("non_latin_title", "script_in_title"):
            titles[product.title].add(visible(product))
            assert 3 <= len(product.title.split()) <= 5
    assert all(len(looks) == 1 for looks in titles.values())
    assert len(titles) > 1000


@given(seed=st.integers(0, 2**32))
def test_answers_survive_a_round_trip_through_the_task(seed: int):
    look = random_look(seeded(seed))
    task = product_task()
    values = {
        "product": title_of(look),
        "category": category_of(look),
        "full_price": round(usual_price(look), -1),
    }
    assert task.parse(task.answer(values)).fields == values


def test_categories_are_roughly_even():
    counts = Counter(category_of(product.look) for product in PRODUCTS)
    assert set(counts) == set(CATEGORIES)
    assert max(counts.values()) < 0.2 * len(PRODUCTS)
    assert min(counts.values()) > 0.06 * len(PRODUCTS)
    for attribute, values in (("kind", KINDS), ("colour", COLOURS), ("pattern", PATTERNS), ("size", SIZES)):
        seen = Counter(getattr(product.look, attribute) for product in PRODUCTS)
        assert set(seen) == set(values)
        assert min(seen.values()) > 0.25 * len(PRODUCTS) / len(values)


def test_a_perfect_reader_of_pictures_is_within_five_per_cent_of_half_the_prices():
    errors = [abs(usual_price(product.look) / product.full_price - 1) for product in PRODUCTS]
    assert 0.02 < statistics.median(errors) < 0.05
    # Without looking, the middle price is far off.
    middle = statistics.median(product.full_price for product in PRODUCTS)
    assert statistics.median(abs(middle / product.full_price - 1) for product in PRODUCTS) > 0.35


def test_prices_are_plausible():
    for product in PRODUCTS:
        assert 100 <= product.full_price <= 5000
        assert product.full_price % 10 == 0
        assert 0 < product.price <= product.full_price
    discounted = sum(product.price < product.full_price for product in PRODUCTS)
    assert math.isclose(discounted / len(PRODUCTS), 0.15, abs_tol=0.03)


def test_each_flaw_has_its_rate_and_most_products_remain():
    counts = Counter(product.flaw for product in PRODUCTS)
    for flaw in FLAWS:
        if flaw.name == "duplicate_row":
            assert len(PRODUCTS) == 3040 - flaw_count(flaw, 3040)
        else:
            assert counts[flaw.name] == flaw_count(flaw, 3040)
            assert abs(counts[flaw.name] / 3040 - flaw.rate) < 0.0005
    dropped = sum(flaw_count(flaw, 3040) for flaw in FLAWS if flaw.expected == "drop")
    assert 3040 - dropped >= 2700
    assert (3040 - dropped) // 10 > 250


@given(rows=st.integers(40, 400), seed=st.integers(0, 2**31))
@settings(max_examples=30)
def test_a_flaw_befalls_what_can_have_it(rows: int, seed: int):
    for product in make_products(rows, seed):
        if product.flaw == "greyscale":
            assert product.look.colour in ("black", "white")
        if product.flaw == "alpha":
            assert product.look.colour != "white"
        if product.flaw == "thousands_separator":
            assert product.full_price >= 1000
        if product.flaw not in ("very_wide", "very_small"):
            assert 300 <= min(product.width, product.height) <= max(product.width, product.height) <= 640

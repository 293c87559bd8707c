import statistics
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score

from components.evaluate.metrics import Roles, majority_share, measure
from fovea.errors import UserError
from fovea.task import Task, TextField, product_task

TASK = product_task()
WRONG = {"product": "?", "category": "?", "full_price": 1e9}


def fields(product: str, category: str, price: float) -> dict[str, Any]:
    return {"product": product, "category": category, "full_price": price}


TRUTHS = [
    fields("Red Bag", "BAGS", 100.0),
    fields("Blue Bag", "BAGS", 200.0),
    fields("Boot", "SHOES", 400.0),
    fields("Belt", "BELTS", 50.0),
]
PRODUCTS = ["1", "2", "2", "3"]


def test_figures_by_hand() -> None:
    answers = [
        fields("Red Bag", "BAGS", 110.0),  # all right, the price just within 10 %
        fields("Blue bag", "BAGS", 150.0),  # the title's case is wrong, the price 25 % off
        fields("Boot", "BAGS", 400.0),  # the category is wrong
        None,  # cannot be read
    ]
    metrics = measure(TASK, TRUTHS, answers, PRODUCTS)
    assert metrics.model_dump() == {
        "samples": 4,
        "products": 3,
        "parse_rate": 0.75,
        "title_exact": 0.5,
        "category_accuracy": 0.5,
        "price_median_ape": pytest.approx((0.1 + 0.25) / 2),
        "price_within_10pct": 0.5,
    }
    assert majority_share(TASK, TRUTHS) == 0.5


def test_the_right_answers_are_perfect_and_none_are_worthless() -> None:
    assert measure(TASK, TRUTHS, TRUTHS, PRODUCTS).model_dump() == {
        "samples": 4,
        "products": 3,
        "parse_rate": 1.0,
        "title_exact": 1.0,
        "category_accuracy": 1.0,
        "price_median_ape": 0.0,
        "price_within_10pct": 1.0,
    }
    nothing = measure(TASK, TRUTHS, [None] * 4, PRODUCTS)
    assert (nothing.parse_rate, nothing.category_accuracy, nothing.price_median_ape) == (0.0, 0.0, 1.0)


def test_an_unreadable_answer_counts_as_a_price_100_percent_off() -> None:
    metrics = measure(TASK, TRUTHS[:3], [TRUTHS[0], None, None], PRODUCTS[:3])
    assert metrics.price_median_ape == 1.0


def test_there_must_be_rows_and_one_field_of_each_type() -> None:
    with pytest.raises(ValueError, match="no rows"):
        measure(TASK, [], [], [])
    with pytest.raises(ValueError, match="longer"):
        measure(TASK, TRUTHS, TRUTHS + TRUTHS, PRODUCTS)
    task = Task(
        name="titles",
        version=1,
        question="What is this?",
        template="{title}",
        fields={"title": TextField(column="title")},
    )
    with pytest.raises(UserError, match="one text, one category and one price"):
        Roles.of(task)


FIELDS = st.builds(fields, st.sampled_from("ab"), st.sampled_from("xyz"), st.floats(0.01, 1e6))
ROWS = st.lists(st.tuples(FIELDS, st.none() | FIELDS, st.sampled_from("pqr")), min_size=1, max_size=30)


@given(rows=ROWS)
def test_figures_agree_with_other_peoples(rows: list[tuple[Any, Any, str]]) -> None:
    truths, answers, products = map(list, zip(*rows, strict=True))
    metrics = measure(TASK, truths, answers, products)
    said = [(answer or WRONG)["category"] for answer in answers]
    assert metrics.category_accuracy == pytest.approx(
        accuracy_score([truth["category"] for truth in truths], said)
    )
    errors = [
        1.0 if answer is None else abs(answer["full_price"] - truth["full_price"]) / truth["full_price"]
        for truth, answer in zip(truths, answers, strict=True)
    ]
    assert metrics.price_median_ape == statistics.median(errors)
    assert metrics.products == len(set(products))


@given(rows=ROWS, seed=st.randoms(use_true_random=False))
def test_order_does_not_matter_and_fractions_are_fractions(
    rows: list[tuple[Any, Any, str]], seed: Any
) -> None:
    metrics = measure(TASK, *map(list, zip(*rows, strict=True)))
    seed.shuffle(rows)
    assert measure(TASK, *map(list, zip(*rows, strict=True))) == metrics
    fractions = metrics.model_dump(exclude={"samples", "products", "price_median_ape"})
    assert all(0 <= value <= metrics.parse_rate for value in fractions.values())
    truths = [truth for truth, _, _ in rows]
    assert 1 / 3 <= majority_share(TASK, truths) <= 1


@given(rows=ROWS, place=st.integers(0, 29))
def test_losing_an_answer_never_improves_a_share(rows: list[tuple[Any, Any, str]], place: int) -> None:
    truths, answers, products = map(list, zip(*rows, strict=True))
    before = measure(TASK, truths, answers, products)
    answers[place % len(answers)] = None
    after = measure(TASK, truths, answers, products)
    for name in ("parse_rate", "title_exact", "category_accuracy", "price_within_10pct"):
        assert getattr(after, name) <= getattr(before, name)


def test_a_price_in_another_currency_is_no_price() -> None:
    task = product_task(currency_column="currency_code")
    truths = [truth | {"currency": "EUR"} for truth in TRUTHS]
    answers = [truth | {"currency": "USD" if number else "EUR"} for number, truth in enumerate(TRUTHS)]
    metrics = measure(task, truths, answers, PRODUCTS)
    assert (metrics.price_median_ape, metrics.price_within_10pct) == (1.0, 0.25)
    assert measure(task, truths, truths, PRODUCTS).price_median_ape == 0

"""Prices, in the ways that feeds write them."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fovea.errors import UnusableError
from fovea.task.prices import parse_price


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("1390", 1390.0),
        ("1390.0", 1390.0),
        ("1,390.00", 1390.0),
        ("1.390,00", 1390.0),
        ("1 390,00", 1390.0),
        ("1\u00a0390,00", 1390.0),
        ("1\u202f390,00 €", 1390.0),
        ("1'390.00", 1390.0),
        ("1’390.00", 1390.0),
        ("1,390", 1390.0),
        ("1,390,000", 1390000.0),
        ("1.390.000", 1390000.0),
        ("1,39,000.50", 139000.5),
        ("12,50", 12.5),
        ("12,5", 12.5),
        ("0.99", 0.99),
        ("0.990", 0.99),
        ("1390.125", 1390.12),
        ("1390,-", 1390.0),
        ("1.390,— €", 1390.0),
        ("$1,390.00", 1390.0),
        ("US$ 1,390", 1390.0),
        ("1390 USD", 1390.0),
        ("USD 1390", 1390.0),
        ("CHF 1'390.00", 1390.0),
        ("Fr. 1'390.00", 1390.0),
        ("Rs.1,39,000", 139000.0),
        ("1390 zł", 1390.0),
        ("１３９０円", 1390.0),
        ("  1390  ", 1390.0),
    ],
)
def test_reads(text: str, amount: float) -> None:
    assert parse_price(text).amount == amount


@pytest.mark.parametrize("text", ["", " ", "-", "N/A", "null", "None", "NaN"])
def test_says_what_is_missing(text: str) -> None:
    assert refused(text) == "missing"


@pytest.mark.parametrize(
    "text",
    [
        "free",
        "10 - 20",
        "from 10",
        "-5",
        "1,2,3",
        "1.390,00,00",
        "1,390.00.1",
        "1e3",
        "inf",
        ".",
        "12 34",
        "1.39.0",
        "$10 €",
        "10%",
        "٣٤",
        "1" * 13,
        "1,390.00 / 2",
        "<b>10</b>",
    ],
)
def test_refuses_what_is_no_price(text: str) -> None:
    assert refused(text) == "unreadable"


@pytest.mark.parametrize("text", ["0", "0.00", "0.001"])
def test_refuses_nothing(text: str) -> None:
    assert refused(text) == "not_positive"


def test_a_point_before_three_digits_could_mean_two_things() -> None:
    assert refused("1.390") == "ambiguous"
    assert parse_price("1.390", ",").amount == 1390.0
    assert parse_price("1.390", ".").amount == 1.39
    assert parse_price("1,390", ",").amount == 1.39
    with pytest.raises(UnusableError):
        parse_price("1.39", ",")


def test_tells_the_currency() -> None:
    assert parse_price("1390").currencies == frozenset()
    assert parse_price("1390 €").currencies == {"EUR"}
    assert parse_price("gbp 1390").currencies == {"GBP"}
    assert {"USD", "CAD"} <= parse_price("$1390").currencies
    assert parse_price("$1390 CAD").currencies == {"CAD"}
    assert refused("€ 1390 USD") == "unreadable"


@given(
    cents=st.integers(1, 10**11),
    marks=st.sampled_from(
        [(".", ","), (".", " "), (".", "'"), (".", ""), (",", "."), (",", "\u00a0"), (",", "")]
    ),
    around=st.sampled_from(["{}", "${}", "{} €", "EUR {}", "{} GBP", " {} "]),
)
def test_every_way_of_writing_an_amount_means_that_amount(
    cents: int, marks: tuple[str, str], around: str
) -> None:
    decimal, thousands = marks
    text = f"{cents // 100:,}".replace(",", thousands) + f"{decimal}{cents % 100:02}"
    assert parse_price(around.format(text)).amount == cents / 100
    assert parse_price(around.format(text), decimal).amount == cents / 100  # type: ignore[arg-type]


@given(st.text(max_size=30))
def test_any_text_is_a_price_above_zero_or_refused(text: str) -> None:
    with contextlib.suppress(UnusableError):
        assert 0 < parse_price(text).amount < 1e12


def refused(text: str) -> str:
    with pytest.raises(UnusableError) as caught:
        parse_price(text)
    return caught.value.reason

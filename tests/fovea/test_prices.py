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
        ("12,99¹", 12.99),
        ("19⁹⁹ €", 19.99),
        ("1.234.-", 1234.0),
        ("Rs. 1,299/-", 1299.0),
        ("1 299:-", 1299.0),
        ("US $789.99", 789.99),
        ("₱1,299", 1299.0),
        ("129,90 TL", 129.9),
        ("Rp 129.000,00", 129000.0),
        ("R 1 299,00", 1299.0),
        ("1 490,00 руб.", 1490.0),
        ("12,999.00 ر.س.", 12999.0),
        (".75", 0.75),
        (",89 €", 0.89),
        ("12,99 € incl. VAT", 12.99),
        ("$12.99/each", 12.99),
        ("$426.20/EA", 426.2),
        ("12,99 €/Stück", 12.99),
        ("12,99 € inkl. MwSt.", 12.99),
        ("149,00 € TTC", 149.0),
        ("34,50 € *", 34.5),
        ("US$:12.99", 12.99),
        ("2 285,81 грн.", 2285.81),
        ("6 300 Р", 6300.0),
        ("TND 12,345.500", 12345.5),
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
        "12.99 excl. VAT",
        "$15.95/mo",
        "59,90 € / kg",
        "205,68 € 205.68",
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


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("12,50-", "not_positive"),
        ("1390-", "ambiguous"),
        ("TND 12,345", "ambiguous"),
        ("KWD 1.250", "ambiguous"),
        ("Rp 129.000", "ambiguous"),
        ("12¹", "ambiguous"),
        ("1⁹⁹⁹", "ambiguous"),
        ("12,9¹", "ambiguous"),
    ],
)
def test_does_not_guess(text: str, reason: str) -> None:
    assert refused(text) == reason


@given(cents=st.integers(1, 10**9), raised=st.sampled_from("¹²³"))
def test_a_footnote_never_becomes_a_digit(cents: int, raised: str) -> None:
    assert parse_price(f"{cents // 100},{cents % 100:02}{raised}").amount == cents / 100


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

"""Rows: cleaned, or dropped with a reason."""

import unicodedata
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from components.prepare_data.cleaning import clean_row
from components.prepare_data.parameters import PrepareDataParameters
from fovea.errors import UnusableError
from fovea.task import product_task
from fovea.text import clean_text

TASK = product_task()
PARAMETERS = PrepareDataParameters(source="table.csv")
GOOD = {
    "product_code": "80401",
    "title": "Check Scarf",
    "category3_code": "SCARVES",
    "full_price": "1,390.00",
    "currency_code": "USD",
    "imageurl": "https://shop.test/1.jpg",
}


def reason(**changes: str) -> str:
    with pytest.raises(UnusableError) as caught:
        clean_row(GOOD | changes, TASK, PARAMETERS)
    return caught.value.reason


def test_a_good_row() -> None:
    row = clean_row(GOOD, TASK, PARAMETERS)
    assert row.values == {"product": "Check Scarf", "category": "SCARVES", "full_price": 1390.0}
    assert (row.product_id, row.currency, row.picture) == ("80401", "USD", "https://shop.test/1.jpg")


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("title", "  ", "title_empty"),
        ("title", "\u200b", "title_empty"),
        ("title", "x" * 201, "title_too_long"),
        ("title", "a\x00b", "title_control_character"),
        ("title", "Lamp \ud83d", "title_invalid_text"),
        ("product_code", "\udc00", "product_code_invalid_text"),
        ("category3_code", "\ud83d", "category3_code_invalid_text"),
        ("imageurl", "\ud83d.jpg", "imageurl_invalid_text"),
        ("title", "a <|end|> b", "title_special_token"),
        ("title", "a <|image_1|> b", "title_special_token"),
        ("title", "a </s> b", "title_special_token"),
        ("category3_code", "A, Category: B", "answer_not_readable_back"),
        ("category3_code", "", "category3_code_empty"),
        ("product_code", "", "product_code_empty"),
        ("full_price", "", "full_price_missing"),
        ("full_price", "cheap", "full_price_unreadable"),
        ("full_price", "€ 1390", "full_price_in_other_currency"),
        ("currency_code", "dollars", "currency_code_unreadable"),
        ("imageurl", " ", "imageurl_empty"),
    ],
)
def test_says_why_a_row_cannot_be_used(column: str, value: str, expected: str) -> None:
    assert reason(**{column: value}) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" Two\n lines\t\u00a0here ", "Two lines here"),
        ("<script>alert(1)</script>", "<script>alert(1)</script>"),
        ("e\u0301te\u0301", "\u00e9t\u00e9"),
        ("zero\u200bwidth", "zerowidth"),
        ("<|not a token", "<|not a token"),
        ("タータン スカーフ", "タータン スカーフ"),
    ],
)
def test_titles_are_tidied_and_otherwise_kept(text: str, expected: str) -> None:
    assert clean_text(text, 200) == expected


@given(st.text(max_size=60))
def test_clean_text_is_what_the_task_accepts_and_stays_as_it_is(text: str) -> None:
    try:
        cleaned = clean_text(text, 40)
    except UnusableError:
        return
    assert clean_text(cleaned, 40) == cleaned
    assert unicodedata.is_normalized("NFC", cleaned)
    field = TASK.fields["product"]
    assert field.parse(field.format(cleaned)) == cleaned


@pytest.mark.parametrize(
    ("price", "column", "expected"),
    [
        ("1390", "USD", "USD"),
        ("$1390", "CAD", "CAD"),
        ("1390", "usd", "USD"),
        ("1390 €", "", "EUR"),
        ("$1390", "", None),
        ("1390", "", None),
    ],
)
def test_the_currency_is_what_column_and_price_agree_on(
    price: str, column: str, expected: str | None
) -> None:
    row = clean_row(GOOD | {"full_price": price, "currency_code": column}, TASK, PARAMETERS)
    assert row.currency == expected


CONVERT = PrepareDataParameters(
    source="table.csv", currencies="convert", rate_column="to_eur", target_currency="EUR"
)
STATE = PrepareDataParameters(source="table.csv", currencies="state")


@pytest.mark.parametrize(
    ("price", "currency", "rate", "expected"),
    [
        ("1,390.00", "USD", "0.92", 1278.8),
        ("1390", "JPY", "0,0065", 9.04),
        ("1390", "EUR", "", 1390.0),
        ("1390", "EUR", "1", 1390.0),
        ("1390", "EUR", "0.92", "to_eur_contradicts_currency"),
        ("1390", "USD", "", "to_eur_missing"),
        ("1390", "USD", "soon", "to_eur_unreadable"),
        ("1390", "USD", "-1", "to_eur_unreadable"),
        ("1390", "USD", "0", "to_eur_not_positive"),
        ("1", "USD", "0.0001", "full_price_not_positive"),
        ("999999999999", "USD", "9", "full_price_unreadable"),
        ("1390", "", "0.5", 695.0),
    ],
)
def test_prices_are_converted_by_the_rows_own_rate(
    price: str, currency: str, rate: str, expected: float | str
) -> None:
    raw = GOOD | {"full_price": price, "currency_code": currency, "to_eur": rate}
    if isinstance(expected, str):
        with pytest.raises(UnusableError, match=expected):
            clean_row(raw, TASK, CONVERT)
        return
    row = clean_row(raw, TASK, CONVERT)
    assert (row.values["full_price"], row.currency) == (expected, "EUR")


def test_the_answer_states_the_currency() -> None:
    task = STATE.task()
    row = clean_row(GOOD | {"currency_code": "eur"}, task, STATE)
    assert task.answer(row.values).endswith("Full Price: 1390.0 EUR")
    assert task.parse(task.answer(row.values)).fields == row.values
    signed = clean_row(GOOD | {"currency_code": "", "full_price": "CHF 1'390.-"}, task, STATE)
    assert signed.values["currency"] == "CHF"
    with pytest.raises(UnusableError, match="currency_code_missing"):
        clean_row(GOOD | {"currency_code": ""}, task, STATE)


@pytest.mark.parametrize(
    "wrong",
    [
        {"currencies": "convert", "rate_column": "rate"},
        {"currencies": "convert", "target_currency": "EUR"},
        {"rate_column": "rate"},
        {"currencies": "state", "currency_column": ""},
        {"currencies": "convert", "rate_column": "rate", "target_currency": "euro"},
    ],
)
def test_settings_of_currencies_that_do_not_fit_together(wrong: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        PrepareDataParameters.model_validate({"source": "table.csv", **wrong})


def test_columns_are_mapped_to_the_fields() -> None:
    parameters = PrepareDataParameters(
        source="table.csv", title_column="name", category_column="kind", price_column="price"
    )
    raw = {**GOOD, "name": "Scarf", "kind": "SOFT", "price": Decimal("12.346")}
    assert clean_row(raw, parameters.task(), parameters).values == {
        "product": "Scarf",
        "category": "SOFT",
        "full_price": 12.35,
    }


@given(
    column=st.sampled_from(sorted(GOOD)),
    text=st.text(st.characters(), max_size=30) | st.text("0123456789.,-€$ \ud83d\0"),
)
def test_any_text_in_any_column_is_kept_or_has_a_reason(column: str, text: str) -> None:
    try:
        row = clean_row(GOOD | {column: text}, TASK, PARAMETERS)
    except UnusableError as error:
        told = error.reason
    else:
        told = f"{column} {row}"
    assert told.startswith((column, "full_price", "answer_not_readable_back"))
    told.encode()

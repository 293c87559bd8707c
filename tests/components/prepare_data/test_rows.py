"""Rows: cleaned, or dropped with a reason."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.prepare_data.parameters import PrepareParameters
from components.prepare_data.rows import clean_row, clean_text
from components.prepare_data.unusable import UnusableError
from fovea.task import product_task

TASK = product_task()
PARAMETERS = PrepareParameters(source="table.csv")
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

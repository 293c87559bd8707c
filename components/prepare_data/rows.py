"""Rows: from the table's text to checked values, or the reason why not."""

import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from components.prepare_data.parameters import PrepareParameters
from components.prepare_data.prices import Price, parse_price
from components.prepare_data.unusable import UnusableError
from fovea.task import FieldValue, PriceField, Task

T = TypeVar("T")

MAX_PRODUCT_LENGTH = 200

# Anything that reads like one of the model's markers: <|end|>, <|image_1|>, </s>.
_SPECIAL_TOKEN = re.compile(r"<\|[^|]*\|>|</?s>|<unk>", re.IGNORECASE)


@dataclass(frozen=True)
class Row:
    """One usable row: ``picture`` is the address as the table has it, ``values`` the answer's fields."""

    product_id: str
    picture: str
    values: Mapping[str, FieldValue]
    currency: str | None


def clean_text(text: str, max_length: int) -> str:
    """Return text in Unicode's composed form, with single spaces and no invisible characters.

    Markup such as ``<script>`` is text like any other.

    Raises:
        UnusableError: ``empty``, ``too_long``, ``control_character`` or ``special_token``.
    """
    words = " ".join(unicodedata.normalize("NFC", text).split())
    # Format characters (zero-width, direction marks, soft hyphens) show nothing: no picture could tell them.
    words = "".join(character for character in words if unicodedata.category(character) != "Cf").strip()
    if not words:
        raise UnusableError("empty")
    if len(words) > max_length:
        raise UnusableError("too_long")
    if not words.isprintable():
        raise UnusableError("control_character")
    if _SPECIAL_TOKEN.search(words):
        raise UnusableError("special_token")
    return words


def clean_row(raw: Mapping[str, str], task: Task, parameters: PrepareParameters) -> Row:
    """Check one row of the table.

    Raises:
        UnusableError: the reason begins with the column's name, or is ``answer_not_readable_back``.
    """
    product = _of(parameters.product_column, clean_text, raw, MAX_PRODUCT_LENGTH)
    currency = _currency(raw.get(parameters.currency_column, ""), parameters.currency_column)
    values: dict[str, FieldValue] = {}
    for name, field in task.fields.items():
        if isinstance(field, PriceField):
            price: Price = _of(field.column, parse_price, raw, parameters.decimal_mark)
            currency = _agreed_currency(currency, price, field.column)
            values[name] = price.amount
        else:
            values[name] = _of(field.column, clean_text, raw, field.max_length)
    picture = raw[parameters.image_column].strip()
    if not picture:
        raise UnusableError(f"{parameters.image_column}_empty")
    try:
        task.answer(values)
    except ValueError as error:
        raise UnusableError("answer_not_readable_back") from error
    return Row(product, picture, values, currency)


def _of(column: str, read: Callable[..., T], raw: Mapping[str, str], *options: object) -> T:
    """Return what ``read`` makes of a column; the reason why not then begins with the column's name."""
    try:
        return read(raw[column], *options)
    except UnusableError as error:
        raise UnusableError(f"{column}_{error.reason}") from None


def _currency(text: str, column: str) -> str | None:
    code = text.strip().upper()
    if code and not re.fullmatch("[A-Z]{3}", code):
        raise UnusableError(f"{column}_unreadable")
    return code or None


def _agreed_currency(currency: str | None, price: Price, column: str) -> str | None:
    """Return the currency that the column and the price's own sign agree on."""
    if not price.currencies or currency in price.currencies:
        return currency
    if currency is not None:
        raise UnusableError(f"{column}_in_other_currency")
    return next(iter(price.currencies)) if len(price.currencies) == 1 else None

"""Rows: from the table's text to checked values, or the reason why not."""

import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import TypeVar

from components.prepare_data.parameters import PrepareDataParameters
from components.prepare_data.prices import Price, UnusableError, convert, parse_price, parse_rate
from components.prepare_data.sources.source import Source
from components.prepare_data.sources.tables import Value
from components.prepare_data.workspace import Workspace
from fovea.errors import UserError
from fovea.task import CurrencyField, FieldValue, PriceField, Task

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


def read_rows(source: Source, workspace: Workspace, task: Task, parameters: PrepareDataParameters) -> None:
    """Bring the source's rows into the workspace, each cleaned or with the reason why it is left out.

    Raises:
        UserError: the source cannot be read, lacks a column, has no usable row, or mixes currencies.
    """
    columns = [
        parameters.image_column,
        parameters.product_column,
        *(field.column for field in task.fields.values()),
        *filter(None, (parameters.currency_column, parameters.rate_column)),
    ]
    rows = source.rows(list(dict.fromkeys(columns)), parameters.image_column)
    for number, found in enumerate(islice(rows, parameters.max_rows or None)):
        if found.malformed is not None:
            workspace.add_row(number, {"line": found.malformed}, reason="malformed_line")
            continue
        raw = dict(found.values)
        if found.picture is not None:
            raw[parameters.image_column] = f"row:{number}"
        try:
            row = clean_row(raw, task, parameters)
        except UnusableError as error:
            workspace.add_row(number, raw, reason=error.reason)
            continue
        if found.picture is not None:
            workspace.add_original(row.picture, found.picture)
        workspace.add_row(
            number,
            raw,
            product=row.product_id,
            address=row.picture,
            values=row.values,
            currency=row.currency,
        )
    _check(workspace, source.location, parameters)


def _check(workspace: Workspace, location: str, parameters: PrepareDataParameters) -> None:
    counts = workspace.db.execute(
        "SELECT currency, count(*) FROM rows WHERE reason IS NULL GROUP BY currency ORDER BY 2 DESC, 1"
    ).fetchall()
    if not counts:
        raise UserError(f"{location}: no row can be used ({told(workspace.dropped()) or 'it has none'})")
    if len(counts) > 1 and parameters.currencies == "refuse":
        mix = ", ".join(f"{currency or 'none named'} in {count} rows" for currency, count in counts)
        raise UserError(
            f"{location}: prices are in several currencies ({mix}), which would make them meaningless; "
            "convert them (currencies=convert, with a rate_column), or have the answer state them "
            "(currencies=state)"
        )


def told(dropped: Mapping[str, int]) -> str:
    """Return reasons and their numbers of rows in a line, the most frequent first."""
    return ", ".join(
        f"{reason} {count}" for reason, count in sorted(dropped.items(), key=lambda item: -item[1])
    )


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


def clean_row(raw: Mapping[str, Value], task: Task, parameters: PrepareDataParameters) -> Row:
    """Check one row of the table.

    Raises:
        UnusableError: the reason begins with the column's name, or is ``answer_not_readable_back``.
    """
    product = _of(parameters.product_column, _text, raw, MAX_PRODUCT_LENGTH)
    currency = _currency(raw, parameters.currency_column)
    values: dict[str, FieldValue] = {}
    for name, field in task.fields.items():
        if isinstance(field, PriceField):
            price: Price = _of(field.column, parse_price, raw, parameters.decimal_mark)
            currency = _agreed_currency(currency, price, field.column)
            values[name] = price.amount
        elif not isinstance(field, CurrencyField):
            values[name] = _of(field.column, _text, raw, field.max_length)
    picture = str(raw[parameters.image_column]).strip()
    if not picture:
        raise UnusableError(f"{parameters.image_column}_empty")
    row = Row(product, picture, values, currency)
    if parameters.currencies == "convert":
        row = _converted(row, raw, task, parameters)
    row = _stating_currency(row, task)
    try:
        task.answer(row.values)
    except ValueError as error:
        raise UnusableError("answer_not_readable_back") from error
    return row


def _of(column: str, read: Callable[..., T], raw: Mapping[str, Value], *options: object) -> T:
    """Return what ``read`` makes of a column; the reason why not then begins with the column's name."""
    try:
        return read(raw[column], *options)
    except UnusableError as error:
        raise UnusableError(f"{column}_{error.reason}") from None


def _text(value: Value, max_length: int) -> str:
    return clean_text(str(value), max_length)


def _currency(raw: Mapping[str, Value], column: str) -> str | None:
    code = str(raw.get(column, "")).strip().upper()
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


def _converted(row: Row, raw: Mapping[str, Value], task: Task, parameters: PrepareDataParameters) -> Row:
    """Return the row with its prices in the target currency."""
    column, target = parameters.rate_column, parameters.target_currency
    if row.currency == target and not str(raw[column]).strip():
        return row
    rate = _of(column, parse_rate, raw)
    if row.currency == target and rate != 1:
        raise UnusableError(f"{column}_contradicts_currency")
    values = dict(row.values)
    for name, field in task.fields.items():
        if isinstance(field, PriceField):
            try:
                values[name] = convert(float(values[name]), rate)
            except UnusableError as error:
                raise UnusableError(f"{field.column}_{error.reason}") from None
    return replace(row, values=values, currency=target)


def _stating_currency(row: Row, task: Task) -> Row:
    """Return the row with its currency among the answer's values, where the task asks for it."""
    for name, field in task.fields.items():
        if isinstance(field, CurrencyField):
            if row.currency is None:
                raise UnusableError(f"{field.column}_missing")
            row = replace(row, values={**row.values, name: row.currency})
    return row

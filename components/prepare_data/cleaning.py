"""Cleaning: reads the table's rows into checked values, or gives the reason to leave a row out."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TypeVar

from components.prepare_data.parameters import PrepareDataParameters
from components.prepare_data.sources.source import Source
from components.prepare_data.sources.tables import Value
from components.prepare_data.workspace import Workspace
from fovea.errors import UnusableError, UserError
from fovea.task import FieldValue, TableRow, Task
from fovea.task.prices import parse_rate
from fovea.text import clean_text, is_missing, is_valid_text, without_markup

T = TypeVar("T")

MAX_PRODUCT_LENGTH = 200


@dataclass(frozen=True)
class Row:
    """A usable row: ``picture`` is the address as the table has it, ``values`` are the answer's fields."""

    product_id: str
    picture: str
    values: Mapping[str, FieldValue]
    currency: str | None
    had_markup: bool = False
    """Whether HTML was decoded or removed in a value."""


def read_rows(source: Source, workspace: Workspace, task: Task, parameters: PrepareDataParameters) -> None:
    """Add the source's rows to the workspace, each cleaned or with the reason why it is left out.

    Raises:
        UserError: The source cannot be read, lacks a column, has no usable row, or mixes currencies.
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
            workspace.rows.add(number, {"line": found.malformed}, reason="malformed_line")
            continue
        raw = dict(found.values)
        if found.picture is not None:
            raw[parameters.image_column] = f"row:{number}"
        try:
            row = clean_row(raw, task, parameters)
        except UnusableError as error:
            workspace.rows.add(number, raw, reason=error.reason)
            continue
        if found.picture is not None:
            workspace.pictures.add_original(row.picture, found.picture)
        workspace.rows.add(
            number,
            raw,
            product=row.product_id,
            address=row.picture,
            values=row.values,
            currency=row.currency,
            had_markup=row.had_markup,
        )
    _check(workspace, source.location, parameters)


def _check(workspace: Workspace, location: str, parameters: PrepareDataParameters) -> None:
    counts = workspace.rows.kept_by_currency()
    if not counts:
        reasons = format_reasons(workspace.rows.dropped_by_reason())
        raise UserError(f"{location}: no row can be used ({reasons or 'the table is empty'})")
    if len(counts) > 1 and parameters.currencies == "refuse":
        mix = ", ".join(f"{currency or 'no currency'} in {count} rows" for currency, count in counts.items())
        raise UserError(
            f"{location}: prices are in several currencies ({mix}); convert them (currencies=convert with a "
            "rate_column), or state the currency in the answer (currencies=state)"
        )


def format_reasons(dropped: Mapping[str, int]) -> str:
    """Format reasons and their counts as one line, the most frequent first."""
    return ", ".join(
        f"{reason} {count}" for reason, count in sorted(dropped.items(), key=lambda item: -item[1])
    )


def clean_row(raw: Mapping[str, Value], task: Task, parameters: PrepareDataParameters) -> Row:
    """Read one row of the table. A cell that says that there is no value, such as ``NULL``, is empty.

    Raises:
        UnusableError: The reason starts with the column's name, or is ``answer_not_readable_back``.
    """
    raw = {column: "" if is_missing(str(cell)) else cell for column, cell in raw.items()}
    texts = {field.column: str(raw[field.column]) for field in task.fields.values() if field.is_text}
    plain = {column: without_markup(text) for column, text in texts.items()}
    product = _of(parameters.product_column, lambda: _text(raw[parameters.product_column]))
    row = TableRow(raw | plain, parameters.decimal_mark, _currency(raw, parameters.currency_column))
    values = {
        name: _of(field.column, partial(field.read, row))
        for name, field in task.fields.items()
        if not field.is_derived
    }
    picture = str(raw[parameters.image_column]).strip()
    if not picture:
        raise UnusableError(f"{parameters.image_column}_empty")
    if not is_valid_text(picture):
        raise UnusableError(f"{parameters.image_column}_invalid_text")
    if parameters.currencies == "convert":
        values = _converted(values, row, task, parameters)
        row.currency = parameters.target_currency
    values |= {
        name: _of(field.column, partial(field.read, row))
        for name, field in task.fields.items()
        if field.is_derived
    }
    try:
        task.answer(values)
    except ValueError as error:
        raise UnusableError("answer_not_readable_back") from error
    return Row(product, picture, values, row.currency, had_markup=plain != texts)


def _of(column: str, read: Callable[[], T]) -> T:
    """Return the result of ``read``. Prefix the reason of an UnusableError with the column's name."""
    try:
        return read()
    except UnusableError as error:
        raise UnusableError(f"{column}_{error.reason}") from None
    except ValueError as error:
        raise UnusableError(f"{column}_unreadable") from error


def _text(value: Value) -> str:
    return clean_text(str(value), MAX_PRODUCT_LENGTH)


def _currency(raw: Mapping[str, Value], column: str) -> str | None:
    code = str(raw.get(column, "")).strip().upper()
    if code and not re.fullmatch("[A-Z]{3}", code):
        raise UnusableError(f"{column}_unreadable")
    return code or None


def _converted(
    values: Mapping[str, FieldValue], row: TableRow, task: Task, parameters: PrepareDataParameters
) -> dict[str, FieldValue]:
    """Convert amounts of money to the target currency."""
    column, target = parameters.rate_column, parameters.target_currency
    if row.currency == target and not str(row.cells[column]).strip():
        return dict(values)
    rate = _of(column, lambda: parse_rate(row.cells[column]))
    if row.currency == target and rate != 1:
        raise UnusableError(f"{column}_contradicts_currency")
    return {
        name: _of(task.fields[name].column, partial(task.fields[name].convert, value, rate))
        for name, value in values.items()
    }

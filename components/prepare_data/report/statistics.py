"""What a workspace says in figures: shared by the report, the dataset card and the preview."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.prepare_data.parameters import PrepareDataParameters
from components.prepare_data.splits import IN_TWO_SPLITS, SPLITS
from components.prepare_data.tokens import TOO_LONG
from components.prepare_data.workspace import SplitSize, Workspace
from fovea.task import Task
from fovea.text import printable, shorten

_PICTURE = {
    "not_found": "nothing lies at the picture's address",
    "refused": "the server refuses the picture",
    "rate_limited": "the server asks to be left alone, after several attempts",
    "server_error": "the server fails, after several attempts",
    "timeout": "the picture did not arrive in time",
    "connection_failed": "the picture's server cannot be reached",
    "forbidden_address": "the address leads where the fetch profile does not allow",
    "invalid_url": "no address that a picture can be fetched from",
    "too_many_redirects": "the picture's address redirects on and on",
    "bad_response": "the server sends something else than was asked for",
    "not_a_picture": "no JPEG, PNG, WebP or GIF",
    "damaged": "begins like a picture, but cannot be decoded to its end",
    "too_small": "too few pixels to show anything",
    "too_large": "more bytes than are allowed",
    "too_many_pixels": "more pixels than are allowed",
}
_VALUE = {
    "empty": "nothing is there",
    "missing": "nothing is there",
    "too_long": "longer than is allowed",
    "invalid_text": "holds half of a character, such as half an emoji",
    "control_character": "holds characters that cannot be shown",
    "special_token": "holds a marker that steers the model",
    "unreadable": "cannot be read",
    "ambiguous": "could mean two amounts; decimal_mark would say which",
    "not_positive": "not above zero",
    "in_other_currency": "the price's own currency is not the row's",
    "contradicts_currency": "a rate that is not 1 for the currency that is converted to",
}
_ROW = {
    "duplicate": "the same product, picture and answer as another row",
    "malformed_line": "more or fewer values than the table has columns",
    "answer_not_readable_back": "the answer would be read back as something else",
    TOO_LONG: "more tokens than the base model's context",
    IN_TWO_SPLITS: "its picture looks like others', which lie in different splits",
}
_SECRET = re.compile(r"(?i)\b([\w.-]*(?:sig|signature|token|key|credential|secret|password)[\w.-]*)=[^&#\s]+")
_USER = re.compile(r"://[^/@\s]*@")


Series = dict[str, NDArray[np.float64]]
"""Values by split, '' for rows without a split."""


@dataclass(frozen=True)
class Counts:
    """How many rows and products there are; ``read`` is all of the source's rows that were read."""

    read: int
    kept: int
    products: int
    pictures: int
    splits: dict[str, SplitSize]
    """Rows and products by split, in the order in which they are used."""
    dropped: dict[str, int]
    """Rows left out, by reason, the most frequent first."""


@dataclass(frozen=True)
class Spread:
    """How values are spread."""

    count: int
    least: float
    fifth: float
    """The 5th percentile."""
    median: float
    ninety_fifth: float
    most: float
    total: float


def uses(parameters: PrepareDataParameters, task: Task) -> dict[str, str]:
    """Return the table's column for each use."""
    others = {
        "picture": parameters.image_column,
        "same product": parameters.product_column,
        "currency": parameters.currency_column,
        "rate": parameters.rate_column,
    }
    fields = {name.replace("_", " "): field.column for name, field in task.fields.items()}
    return {use: column for use, column in (fields | others).items() if column}


def first_values(workspace: Workspace, column: str) -> tuple[str, ...]:
    """Return the first different values of a column of the table, three at most."""
    found: dict[str, None] = {}
    for raw in workspace.overview.first_raw(20):
        value = raw.get(column)
        if value not in (None, ""):
            found[shown(value, 60)] = None
    return tuple(found)[:3]


def count(workspace: Workspace) -> Counts:
    """Count the rows of a workspace; before rows are split, all that are kept are under no split."""
    splits = workspace.rows.kept_by_split()
    dropped = sorted(workspace.rows.dropped_by_reason().items(), key=lambda item: (-item[1], item[0]))
    return Counts(
        *workspace.overview.totals(),
        {split: splits[split] for split in SPLITS if split in splits},
        dict(dropped),
    )


def token_lengths(workspace: Workspace) -> Series:
    """Return the lengths of the kept rows' training sequences."""
    return _by_split(workspace.overview.tokens)


def spread(values: NDArray[np.float64]) -> Spread:
    """Return how at least one value is spread."""
    least, fifth, median, ninety_fifth, most = np.percentile(values, (0, 5, 50, 95, 100), method="nearest")
    return Spread(
        values.size,
        float(least),
        float(fifth),
        float(median),
        float(ninety_fifth),
        float(most),
        float(values.sum()),
    )


def prices(workspace: Workspace, task: Task) -> Iterator[tuple[str, str, Series]]:
    """Yield (field, currency, amounts) for each price field and the three most frequent currencies."""
    currencies = list(workspace.rows.kept_by_currency())[:3]
    for name, field in task.fields.items():
        if field.is_amount:
            for currency in currencies:
                amounts = _by_split(partial(workspace.overview.amounts, name, currency))
                if amounts:
                    yield name, currency or "", amounts


def categories(workspace: Workspace, task: Task) -> Iterator[tuple[str, dict[str, dict[str, int]]]]:
    """Yield each category field with the rows of each category by split, the most frequent category first."""
    for name, field in task.fields.items():
        if field.is_category:
            found: dict[str, dict[str, int]] = {}
            for category, split, rows in workspace.overview.category_counts(name):
                found.setdefault(str(category), {})[split] = rows
            ordered = sorted(found.items(), key=lambda item: (-sum(item[1].values()), item[0]))
            yield name, dict(ordered)


def _by_split(values_of: Callable[[str], Iterator[float]]) -> Series:
    """Return the values of each split that has any. Memory holds 8 bytes per row."""
    found = {split: np.fromiter(values_of(split), np.float64) for split in (*SPLITS, "")}
    return {split: values for split, values in found.items() if values.size}


def explain(reason: str, columns: Mapping[str, Any]) -> tuple[str, str]:
    """Return what a reason is about (a column, ``picture`` or ``row``) and what it says, for people."""
    about, _, rest = reason.partition("_")
    if about == "picture" and rest in _PICTURE:
        return "picture", _PICTURE[rest]
    if reason in _ROW:
        return "row", _ROW[reason]
    for column in sorted(columns, key=len, reverse=True):
        rest = reason.removeprefix(f"{column}_")
        if rest != reason and rest in _VALUE:
            return column, _VALUE[rest]
    return "row", reason.replace("_", " ")


def shown(value: object, length: int = 240) -> str:
    """Return a value of the table as text that people see as it is.

    It is cut, and without what cannot be seen (a terminal would obey some of it), what signs an address, and
    who opens one.
    """
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = _SECRET.sub(r"\1=…", _USER.sub("://…@", printable(text, 8 * length)))
    return shorten(text, length)

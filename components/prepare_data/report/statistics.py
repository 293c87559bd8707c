"""Statistics of a workspace, for the report, the dataset card and the preview."""

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
    "not_found": "there is no picture at the address",
    "refused": "the server refuses the picture",
    "rate_limited": "the server limits the rate of requests, after several attempts",
    "server_error": "the server fails, after several attempts",
    "timeout": "the picture did not arrive in time",
    "connection_failed": "the server cannot be reached",
    "forbidden_address": "the fetch profile does not allow the address",
    "invalid_url": "not an address that can be fetched",
    "too_many_redirects": "the address redirects too many times",
    "bad_response": "the server's response is invalid",
    "not_a_picture": "not a JPEG, PNG, WebP or GIF",
    "damaged": "the picture cannot be decoded completely",
    "too_small": "fewer pixels than are required",
    "too_large": "more bytes than are allowed",
    "too_many_pixels": "more pixels than are allowed",
}
_VALUE = {
    "empty": "no value",
    "missing": "no value",
    "too_long": "longer than is allowed",
    "invalid_text": "contains half of a character, such as half an emoji",
    "control_character": "contains control characters",
    "special_token": "contains a special token of the model",
    "unreadable": "cannot be read",
    "ambiguous": "could mean two amounts; set decimal_mark",
    "not_positive": "not above zero",
    "in_other_currency": "the price's own currency is not the row's",
    "contradicts_currency": "the rate of the target currency is not 1",
}
_ROW = {
    "duplicate": "the same product, picture and answer as another row",
    "malformed_line": "not as many values as columns, an unclosed quote, not a JSON object, or a name twice",
    "answer_not_readable_back": "the parser would read other values from the answer",
    TOO_LONG: "more tokens than the base model's context has",
    IN_TWO_SPLITS: "its picture looks like pictures in different splits",
}
_SECRET = re.compile(r"(?i)\b([\w.-]*(?:sig|signature|token|key|credential|secret|password)[\w.-]*)=[^&#\s]+")
_USER = re.compile(r"://[^/@\s]*@")


Series = dict[str, NDArray[np.float64]]
"""Values by split, '' for rows without a split."""


@dataclass(frozen=True)
class Counts:
    """Counts of rows, products and pictures; ``read`` are all rows read from the source."""

    read: int
    kept: int
    products: int
    pictures: int
    splits: dict[str, SplitSize]
    """Rows and products by split, in the order of `SPLITS`."""
    dropped: dict[str, int]
    """Rows that are left out by reason, the most frequent first."""


@dataclass(frozen=True)
class Spread:
    """The distribution of values."""

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
    """Count the rows of a workspace. Before rows are split, ``splits`` is empty."""
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
    """Return the distribution of at least one value."""
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
    """Return the values of each split that has any. Memory use is 8 bytes per row."""
    found = {split: np.fromiter(values_of(split), np.float64) for split in (*SPLITS, "")}
    return {split: values for split, values in found.items() if values.size}


def explain(reason: str, columns: Mapping[str, Any]) -> tuple[str, str]:
    """Return the subject of a reason (a column, ``picture`` or ``row``) and a readable explanation."""
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
    """Return a value of the table as text that is safe to show.

    The text is shortened, and contains no control characters, signatures or credentials of URLs.
    """
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = _SECRET.sub(r"\1=…", _USER.sub("://…@", printable(text, 8 * length)))
    return shorten(text, length)

"""What a workspace says in figures: shared by the report, the dataset card and the preview."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.prepare_data.parameters import PrepareDataParameters
from components.prepare_data.splits import IN_TWO_SPLITS, SPLITS
from components.prepare_data.tokens import TOO_LONG
from components.prepare_data.workspace import Workspace
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


@dataclass(frozen=True)
class Counts:
    """How many rows and products there are; ``read`` is all of the source's rows that were read."""

    read: int
    kept: int
    products: int
    pictures: int
    splits: dict[str, tuple[int, int]]
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
    for (raw,) in workspace.db.execute("SELECT raw FROM rows ORDER BY number LIMIT 20"):
        value = json.loads(raw).get(column)
        if value not in (None, ""):
            found[shown(value, 60)] = None
    return tuple(found)[:3]


def count(workspace: Workspace) -> Counts:
    """Count the rows of a workspace; before rows are split, all that are kept are under no split."""
    read, kept, products, pictures = workspace.db.execute(
        "SELECT count(*), count(*) FILTER (WHERE reason IS NULL), "
        "count(DISTINCT product) FILTER (WHERE reason IS NULL), "
        "(SELECT count(DISTINCT digest) FROM pictures WHERE digest IS NOT NULL) FROM rows"
    ).fetchone()
    splits = workspace.splits()
    dropped = sorted(workspace.dropped().items(), key=lambda item: (-item[1], item[0]))
    return Counts(
        read,
        kept,
        products,
        pictures,
        {split: splits[split] for split in SPLITS if split in splits},
        dict(dropped),
    )


def numbers(workspace: Workspace, expression: str, *arguments: str) -> dict[str, NDArray[np.float64]]:
    """Return the kept rows' values of an SQL expression by split ('' where there are none): 8 bytes a row.

    ``expression`` is the program's own, never made of what a table holds.
    """
    found = {}
    for split in (*SPLITS, ""):
        rows = workspace.db.execute(
            f"SELECT v FROM (SELECT {expression} AS v FROM rows "  # noqa: S608 - the program's own
            "WHERE reason IS NULL AND coalesce(split, '') = ?) WHERE v IS NOT NULL",
            (*arguments, split),
        )
        values = np.fromiter((value for (value,) in rows), np.float64)
        if values.size:
            found[split] = values
    return found


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


def prices(workspace: Workspace, task: Task) -> Iterator[tuple[str, str, dict[str, NDArray[np.float64]]]]:
    """Yield each price field with each currency (the three most frequent) and its amounts by split."""
    currencies = workspace.db.execute(
        "SELECT coalesce(currency, '') FROM rows WHERE reason IS NULL GROUP BY 1 "
        "ORDER BY count(*) DESC, 1 LIMIT 3"
    ).fetchall()
    for name, field in task.fields.items():
        if field.is_amount:
            for (currency,) in currencies:
                amounts = numbers(
                    workspace,
                    "CASE coalesce(currency, '') WHEN ? THEN json_extract(\"values\", ?) END",
                    currency,
                    json_path(name),
                )
                if amounts:
                    yield name, currency, amounts


def categories(workspace: Workspace, task: Task) -> Iterator[tuple[str, dict[str, dict[str, int]]]]:
    """Yield each category field and how often each name occurs by split, the most frequent first."""
    for name, field in task.fields.items():
        if field.is_category:
            found: dict[str, dict[str, int]] = {}
            for category, split, rows in workspace.db.execute(
                "SELECT json_extract(\"values\", ?), coalesce(split, ''), count(*) FROM rows "
                "WHERE reason IS NULL GROUP BY 1, 2 "
                "ORDER BY CASE split WHEN 'train' THEN 0 WHEN 'validation' THEN 1 ELSE 2 END",
                (json_path(name),),
            ):
                found.setdefault(str(category), {})[split] = rows
            ordered = sorted(found.items(), key=lambda item: (-sum(item[1].values()), item[0]))
            yield name, dict(ordered)


def products_in_several_splits(workspace: Workspace) -> int:
    """Return how many products, taken with those that hang together with them, lie in more than one split."""
    (found,) = workspace.db.execute(
        "SELECT count(*) FROM (SELECT 1 FROM rows LEFT JOIN groups USING (product) "
        "WHERE rows.reason IS NULL AND split IS NOT NULL "
        'GROUP BY CASE WHEN groups.reason IS NULL THEN coalesce("group", product) ELSE product END '
        "HAVING count(DISTINCT split) > 1)"
    ).fetchone()
    return int(found)


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


def json_path(name: str) -> str:
    """Return SQLite's path of a field in a JSON object."""
    return f'$."{name}"'

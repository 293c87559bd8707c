"""What came of each row: an answer held against the truth. Figures follow from this alone."""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
from numpy.typing import NDArray

from fovea.errors import UserError
from fovea.task import FieldValue, Task

Fields = Mapping[str, FieldValue]
"""The fields of an answer by name."""
Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Text = NDArray[np.str_]

WITHOUT_PRICE = 1.0
"""The relative error of an answer without a price: as if it had said nothing at all, 100 %."""
NO_CATEGORY = ""
"""The category of an answer that could not be read; no category has this name."""
CHALLENGER = "challenger"
"""The model that would be deployed, by its name among the models of a comparison."""
BASELINES = "baselines.parquet"

_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Roles:
    """Which field of a task is the title, which the category, which the price, and which its currency."""

    title: str
    category: str
    price: str
    currency: str | None

    @classmethod
    def of(cls, task: Task) -> Self:
        """Tell the fields by their types.

        Raises:
            UserError: the task has not one field of each type, but for the currency, which may be missing.
        """
        by_type: dict[str, list[str]] = {"text": [], "category": [], "price": [], "currency": []}
        for name, field in task.fields.items():
            by_type[field.type].append(name)
        currencies = by_type.pop("currency")
        if any(len(names) != 1 for names in by_type.values()) or len(currencies) > 1:
            raise UserError(
                f"task {task.name!r} cannot be evaluated: its figures need one text, one category and one "
                f"price field, it has {by_type}, and one currency at most"
            )
        return cls(
            title=by_type["text"][0],
            category=by_type["category"][0],
            price=by_type["price"][0],
            currency=currencies[0] if currencies else None,
        )


@dataclass(frozen=True)
class Outcomes:
    """What came of each row: all that figures follow from. Arrays of one length, an entry a row."""

    row_ids: Text
    groups: Text
    """Rows of one product group are drawn together."""
    parsed: Mask
    title_exact: Mask
    title_f1: Array
    category_truth: Text
    category_answer: Text
    """`NO_CATEGORY` where the answer could not be read."""
    price_truth: Array
    price_ape: Array
    """|answer - truth| / truth; `WITHOUT_PRICE` where there is none, or one in another currency."""
    price_absolute_error: Array
    """|answer - truth|; the truth itself where there is none, or one in another currency."""

    def __len__(self) -> int:
        return len(self.row_ids)

    @classmethod
    def of(
        cls,
        task: Task,
        truths: Sequence[Fields],
        answers: Sequence[Fields | None],
        groups: Sequence[str],
        row_ids: Sequence[str] | None = None,
    ) -> Self:
        """Hold answers against truths; an answer that could not be read is None.

        Args:
            task: says which field is what.
            truths: what is true of each row.
            answers: what was said of it.
            groups: the product group of each row.
            row_ids: by default the rows are numbered.

        Raises:
            ValueError: the sequences differ in length.
        """
        roles = Roles.of(task)
        names = [str(number) for number in range(len(truths))] if row_ids is None else row_ids
        rows = [
            _row(roles, truth, answer, group, name)
            for truth, answer, group, name in zip(truths, answers, groups, names, strict=True)
        ]
        columns: list[Sequence[Any]] = list(zip(*rows, strict=True)) if rows else [()] * len(fields(cls))
        return cls(*(np.asarray(column, kind) for column, kind in zip(columns, _KINDS.values(), strict=True)))

    def take(self, index: Any) -> Self:
        """Return the rows at the places of ``index``, or where a mask holds."""
        return type(self)(*(getattr(self, name)[index] for name in _KINDS))

    def aligned_with(self, other: "Outcomes") -> Self:
        """Return these rows in the order of ``other``.

        Raises:
            ValueError: they are not the same rows, or not of the same product groups.
        """
        mine, its = np.argsort(self.row_ids), np.argsort(other.row_ids)
        if not np.array_equal(self.row_ids[mine], other.row_ids[its]):
            raise ValueError("the outcomes are of different rows")
        order = np.empty_like(mine)
        order[its] = mine
        aligned = self.take(order)
        if not np.array_equal(aligned.groups, other.groups):
            raise ValueError("the outcomes are of different product groups")
        return aligned

    def to_table(self) -> pa.Table:
        """Return the outcomes as a table with a column for each attribute; `from_table` reads it."""
        return pa.table({name: pa.array(getattr(self, name).tolist()) for name in _KINDS})

    @classmethod
    def from_table(cls, table: pa.Table) -> Self:
        """Read what `to_table` made; further columns are passed over."""
        return cls(*(np.asarray(table[name].to_pylist(), kind) for name, kind in _KINDS.items()))


_KINDS = {
    "row_ids": np.str_,
    "groups": np.str_,
    "parsed": np.bool_,
    "title_exact": np.bool_,
    "title_f1": np.float64,
    "category_truth": np.str_,
    "category_answer": np.str_,
    "price_truth": np.float64,
    "price_ape": np.float64,
    "price_absolute_error": np.float64,
}


def _row(roles: Roles, truth: Fields, answer: Fields | None, product: str, name: str) -> tuple[Any, ...]:
    category, price = str(truth[roles.category]), float(truth[roles.price])
    if answer is None:
        return name, product, False, False, 0.0, category, NO_CATEGORY, price, WITHOUT_PRICE, price
    # A price in another currency is another price, whatever its number.
    other = roles.currency is not None and answer[roles.currency] != truth[roles.currency]
    error = abs(float(answer[roles.price]) - price)
    title, said = str(truth[roles.title]), str(answer[roles.title])
    return (
        name,
        product,
        True,
        said == title,
        token_f1(title, said),
        category,
        str(answer[roles.category]),
        price,
        WITHOUT_PRICE if other else error / price,
        price if other else error,
    )


def token_f1(truth: str, answer: str) -> float:
    """Return the F1 of the answer's words, in small letters and counted as often as they stand."""
    expected, said = (Counter(_WORD.findall(text.casefold())) for text in (truth, answer))
    if not expected and not said:
        return float(truth == answer)
    return 2 * (expected & said).total() / (expected.total() + said.total())


def write_baselines(baselines: Mapping[str, Outcomes], folder: Path) -> None:
    """Write ``baselines.parquet``: the columns of `Outcomes.to_table`, and ``baseline``, its name."""
    tables = [
        outcomes.to_table().append_column("baseline", [[name] * len(outcomes)])
        for name, outcomes in baselines.items()
    ]
    parquet.write_table(pa.concat_tables(tables), folder / BASELINES, compression="zstd")


def read_baselines(path: Path) -> dict[str, Outcomes]:
    """Read what `write_baselines` wrote, by the baselines' names.

    Raises:
        UserError: it cannot be read, or holds other columns.
    """
    try:
        table = parquet.read_table(path)
        names = np.asarray(table["baseline"].to_pylist(), np.str_)
        every = Outcomes.from_table(table)
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: no baselines can be read ({type(error).__name__}: {error}); evaluate the base again"
        ) from error
    return {name: every.take(names == name) for name in dict.fromkeys(names.tolist())}


def read_outcomes(paths: Collection[Path], task: Task, *, shuffled: bool = False) -> Outcomes:
    """Read an evaluation's ``predictions-*.parquet``.

    Args:
        paths: the files.
        task: its fields are the columns.
        shuffled: hold each truth against what was said of the picture that was shown instead.

    Raises:
        UserError: they cannot be read, or hold other columns.
    """
    try:
        rows = [row for path in sorted(paths) for row in parquet.read_table(path).to_pylist()]
        answers = [
            None
            if row["parse_error"] is not None
            else {name: row[f"predicted_{name}"] for name in task.fields}
            for row in rows
        ]
        if shuffled:
            said = dict(zip((row["row_id"] for row in rows), answers, strict=True))
            answers = [said[row["shuffled_row_id"]] for row in rows]
        return Outcomes.of(
            task,
            [{name: row[f"true_{name}"] for name in task.fields} for row in rows],
            answers,
            [row["product_group"] for row in rows],
            [row["row_id"] for row in rows],
        )
    except (pa.ArrowException, OSError, KeyError, TypeError) as error:
        raise UserError(
            f"{', '.join(map(str, paths)) or 'no file'}: no predictions can be read "
            f"({type(error).__name__}: {error}); evaluate the model again"
        ) from error


def each_row_once(outcomes: Outcomes) -> Array:
    """Return the weights of the rows as they are: each once."""
    if not len(outcomes):
        raise ValueError("there is nothing to measure: no rows")
    return np.ones((1, len(outcomes)))

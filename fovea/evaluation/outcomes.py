"""Outcomes: each row's answer compared with its truth. All figures follow from them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
from numpy.typing import NDArray

from fovea.errors import UserError
from fovea.predictions import Prediction
from fovea.task import Fields, Task
from fovea.task.metrics import Array, Columns, Mask

Text = NDArray[np.str_]

CHALLENGER = "challenger"
"""The model that would be deployed, by its name among the models of a comparison."""
BASELINES = "baselines.parquet"

_SEPARATOR = "."


@dataclass(frozen=True)
class Outcomes:
    """What came of each row. Arrays of one length, an entry a row."""

    task: Task
    row_ids: Text
    groups: Text
    """Rows of one product group are resampled together."""
    parsed: Mask
    fields: Mapping[str, Columns]
    """By field, the columns of `BaseField.outcome`."""

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
        """Compare answers with truths; an answer that could not be read is None.

        Args:
            task: The task, whose fields say how values are compared.
            truths: The truth of each row.
            answers: The answer to each row.
            groups: The product group of each row.
            row_ids: By default the rows are numbered.

        Raises:
            ValueError: the sequences differ in length.
        """
        names = [str(number) for number in range(len(truths))] if row_ids is None else list(row_ids)
        pairs = list(zip(truths, answers, groups, names, strict=True))
        counted = [task.comparable(truth, answer) for truth, answer, _, _ in pairs]
        columns = {
            name: _columns(
                [field.outcome(pair[0][name], each[name]) for pair, each in zip(pairs, counted, strict=True)]
            )
            for name, field in task.fields.items()
        }
        return cls(
            task=task,
            row_ids=np.asarray(names, np.str_),
            groups=np.asarray(list(groups), np.str_),
            parsed=np.asarray([answer is not None for answer in answers], np.bool_),
            fields=columns,
        )

    @classmethod
    def of_predictions(cls, task: Task, predictions: Sequence[Prediction]) -> Self:
        """Compare predictions with their rows' truths."""
        rows = [each.row for each in predictions]
        return cls.of(
            task,
            [row.truth for row in rows],
            [each.answer.fields for each in predictions],
            [row.product_group for row in rows],
            [row.row_id for row in rows],
        )

    def take(self, index: Any) -> Self:
        """Return the rows at the places of ``index``, or where a mask holds."""
        return self._map(lambda array: array[index])

    def _map(self, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Self:
        return type(self)(
            task=self.task,
            row_ids=change(self.row_ids),
            groups=change(self.groups),
            parsed=change(self.parsed),
            fields={
                name: {column: change(values) for column, values in columns.items()}
                for name, columns in self.fields.items()
            },
        )

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
        """Return the outcomes as a table: ``row_ids``, ``groups``, ``parsed`` and each ``FIELD.COLUMN``."""
        columns: dict[str, NDArray[Any]] = {
            "row_ids": self.row_ids,
            "groups": self.groups,
            "parsed": self.parsed,
            **{
                f"{name}{_SEPARATOR}{column}": values
                for name, found in self.fields.items()
                for column, values in found.items()
            },
        }
        return pa.table({name: pa.array(values.tolist()) for name, values in columns.items()})

    @classmethod
    def from_table(cls, table: pa.Table, task: Task) -> Self:
        """Return the outcomes that `to_table` made a table of; other columns are ignored.

        Raises:
            KeyError: a column is missing.
        """

        def column(name: str) -> NDArray[Any]:
            return np.asarray(table[name].to_pylist())

        names = [name.split(_SEPARATOR, 1) for name in table.column_names if _SEPARATOR in name]
        return cls(
            task=task,
            row_ids=column("row_ids").astype(np.str_),
            groups=column("groups").astype(np.str_),
            parsed=column("parsed").astype(np.bool_),
            fields={
                field: {part: column(f"{field}{_SEPARATOR}{part}") for owner, part in names if owner == field}
                for field in task.fields
            },
        )


def _columns(rows: Sequence[Mapping[str, Any]]) -> Columns:
    return {name: np.asarray([row[name] for row in rows]) for name in rows[0]} if rows else {}


def write_baselines(baselines: Mapping[str, Outcomes], folder: Path) -> None:
    """Write ``baselines.parquet``: the columns of `Outcomes.to_table`, and ``baseline``, its name."""
    tables = [
        outcomes.to_table().append_column("baseline", [[name] * len(outcomes)])
        for name, outcomes in baselines.items()
    ]
    parquet.write_table(pa.concat_tables(tables), folder / BASELINES, compression="zstd")


def read_baselines(path: Path, task: Task) -> dict[str, Outcomes]:
    """Read the file that `write_baselines` wrote, by the baselines' names.

    Raises:
        UserError: it cannot be read, or has other columns.
    """
    try:
        table = parquet.read_table(path)
        names = np.asarray(table["baseline"].to_pylist(), np.str_)
        every = Outcomes.from_table(table, task)
        found = {name: every.take(names == name) for name in dict.fromkeys(names.tolist())}
        if any(not columns for columns in every.fields.values()):
            raise KeyError("columns of a field")
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: no baselines can be read ({type(error).__name__}: {error}); evaluate the base again"
        ) from error
    return found


def each_row_once(outcomes: Outcomes) -> Array:
    """Return the weights (1, rows) that count each row once.

    Raises:
        ValueError: there are no rows.
    """
    if not len(outcomes):
        raise ValueError("there is nothing to measure: no rows")
    return np.ones((1, len(outcomes)))

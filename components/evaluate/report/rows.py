"""An evaluation's predictions as its report reads them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as parquet

from fovea.evaluation.calibration import is_right
from fovea.evaluation.outcomes import Outcomes, read_outcomes
from fovea.records import EvaluationRecord
from fovea.storage import Storage
from fovea.task import FieldValue, PriceField, Task

FILES = "predictions-*.parquet"

Row = Mapping[str, Any]


@dataclass(frozen=True)
class AnsweredRows:
    """What a model answered, row by row, and what came of it, in the same order."""

    task: Task
    rows: list[Row]
    outcomes: Outcomes

    def truth(self, row: Row) -> dict[str, FieldValue]:
        """Return what is true of a row."""
        return {name: row[f"true_{name}"] for name in self.task.fields}

    def answer(self, row: Row) -> dict[str, FieldValue] | None:
        """Return what was said of it; None where that could not be read."""
        if row["parse_error"] is not None:
            return None
        return {name: row[f"predicted_{name}"] for name in self.task.fields}

    def is_right(self, row: Row, field: str) -> bool:
        """Return whether a field of the answer is right."""
        return is_right(self.task, field, self.truth(row), self.answer(row))

    def confidence(self, row: Row, field: str) -> float | None:
        """Return how probably the field is right; None where that is not known."""
        found = row.get(f"confidence_{field}")
        return None if found is None else float(found)


def read_rows(record: EvaluationRecord, task: Task, storage: Storage) -> AnsweredRows:
    """Fetch and read an evaluation's predictions.

    Raises:
        UserError: they are missing, or not those of this task.
    """
    paths = sorted(storage.download(record, pattern=FILES).glob(FILES))
    outcomes = read_outcomes(paths, task)
    rows = [row for path in paths for row in parquet.read_table(path).to_pylist()]
    return AnsweredRows(task, rows, outcomes)


def shown(text: str, length: int = 120) -> str:
    """Return a text on one line, cut, and without what cannot be seen or turns the direction of writing."""
    line = "".join(each if each.isprintable() else _instead(each) for each in text[: 4 * length])
    line = " ".join(line.split())
    return line if len(line) <= length else line[: length - 1] + "…"


def shown_value(task: Task, field: str, value: FieldValue | None, length: int = 120) -> str:
    """Return a field's value as text; a price with two decimals."""
    if value is None:
        return "–"
    if isinstance(task.fields[field], PriceField):
        return f"{float(value):,.2f}"
    return shown(str(value), length)


def _instead(character: str) -> str:
    return " " if character.isspace() else "\N{REPLACEMENT CHARACTER}"

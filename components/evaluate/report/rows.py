"""An evaluation's predictions as its report reads them."""

from dataclasses import dataclass

from fovea.evaluation.outcomes import Outcomes
from fovea.predictions import Prediction, fetch_predictions
from fovea.records import EvaluationRecord
from fovea.storage import Storage
from fovea.task import FieldValue, Task
from fovea.text import one_line


@dataclass(frozen=True)
class AnsweredRows:
    """A model's predictions and their outcomes, in the same order."""

    task: Task
    rows: list[Prediction]
    outcomes: Outcomes

    def is_right(self, row: Prediction, field: str) -> bool:
        """Return whether a field of the answer is right."""
        return self.task.is_right(field, row.row.truth, row.answer.fields)

    def confidence(self, row: Prediction, field: str) -> float | None:
        """Return the probability that the field is right; None where it is not known."""
        return row.confidences.get(field)


def read_rows(record: EvaluationRecord, task: Task, storage: Storage) -> AnsweredRows:
    """Fetch and read an evaluation's predictions.

    Raises:
        UserError: they are missing, or not those of this task.
    """
    rows = fetch_predictions(storage, record, task)
    return AnsweredRows(task, rows, Outcomes.of_predictions(task, rows))


def shown(text: str, length: int = 120) -> str:
    """Return a text on one line, cut, and without invisible characters."""
    return one_line(text, length)


def shown_value(task: Task, field: str, value: FieldValue | None, length: int = 120) -> str:
    """Return a field's value as text."""
    return "–" if value is None else task.fields[field].show(value, length)

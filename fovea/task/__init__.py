"""What is asked of the model and what it answers: typed fields, templates and the one parser."""

from fovea.task.answer import Answer, FinishReason
from fovea.task.fields import (
    BaseField,
    CategoryField,
    CurrencyField,
    Field,
    Fields,
    FieldValue,
    PriceField,
    TableRow,
    TextField,
)
from fovea.task.task import ParsedAnswer, Task, product_task

__all__ = [
    "Answer",
    "BaseField",
    "CategoryField",
    "CurrencyField",
    "Field",
    "FieldValue",
    "Fields",
    "FinishReason",
    "ParsedAnswer",
    "PriceField",
    "TableRow",
    "Task",
    "TextField",
    "product_task",
]

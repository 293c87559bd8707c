"""What is asked of the model and what it answers: typed fields, templates and the one parser."""

from fovea.task.fields import CategoryField, CurrencyField, Field, FieldValue, PriceField, TextField
from fovea.task.task import ParsedAnswer, Task, product_task

__all__ = [
    "CategoryField",
    "CurrencyField",
    "Field",
    "FieldValue",
    "ParsedAnswer",
    "PriceField",
    "Task",
    "TextField",
    "product_task",
]

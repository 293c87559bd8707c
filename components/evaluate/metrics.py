"""Figures from truths and answers, all over all rows: a failed parse counts as wrong. Pure functions."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from fovea.errors import UserError
from fovea.records import Metrics
from fovea.task import FieldValue, Task

Fields = Mapping[str, FieldValue]
"""The fields of an answer by name."""

WITHOUT_PRICE = 1.0
"""The relative error of an answer without a price: as if it had said nothing at all, 100 %."""

# 0.1 has no exact binary form: a price that is off by just 10 % counts as within.
_WITHIN = 0.1 + 1e-9


@dataclass(frozen=True)
class Roles:
    """Which field of a task is the title, which the category, which the price, and which its currency."""

    title: str
    category: str
    price: str
    currency: str | None

    @classmethod
    def of(cls, task: Task) -> "Roles":
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


def absolute_percentage_error(truth: float, predicted: float) -> float:
    """Return |predicted - truth| / truth, a fraction; the truth is above zero."""
    return abs(predicted - truth) / truth


def measure(
    task: Task, truths: Sequence[Fields], answers: Sequence[Fields | None], products: Sequence[str]
) -> Metrics:
    """Return the figures of ``answers``, of which None is one that could not be read.

    Raises:
        ValueError: there are no rows, or the sequences differ in length.
    """
    if not truths:
        raise ValueError("there is nothing to measure: no rows")
    roles = Roles.of(task)
    rows = list(zip(truths, answers, products, strict=True))

    def price_error(truth: Fields, answer: Fields | None) -> float:
        # A price in another currency is another price, whatever its number.
        if answer is None or (roles.currency and answer[roles.currency] != truth[roles.currency]):
            return WITHOUT_PRICE
        return absolute_percentage_error(float(truth[roles.price]), float(answer[roles.price]))

    errors = [price_error(truth, answer) for truth, answer, _ in rows]

    def share(name: str) -> float:
        return sum(answer is not None and answer[name] == truth[name] for truth, answer, _ in rows) / len(
            rows
        )

    return Metrics(
        samples=len(rows),
        products=len(set(products)),
        parse_rate=sum(answer is not None for answer in answers) / len(rows),
        title_exact=share(roles.title),
        category_accuracy=share(roles.category),
        price_median_ape=median(errors),
        price_within_10pct=sum(error <= _WITHIN for error in errors) / len(rows),
    )


def majority_share(task: Task, truths: Sequence[Fields]) -> float:
    """Return the category accuracy of always answering the most frequent category of these rows."""
    name = Roles.of(task).category
    counts = Counter(truth[name] for truth in truths)
    return max(counts.values()) / len(truths)

"""Field kinds: each class holds everything about one kind of value in an answer.

How a table's cell is read, how a value is written and parsed, its types in Arrow and JSON Schema, when an
answer is right, the metrics and the slices, what the gate requires by default, and how a value is shown. Code
elsewhere asks the field and never tests its type, so a new kind is one subclass of `BaseField` with its own
``type``.
"""

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from statistics import median as middle
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, SerializeAsAny
from pydantic import Field as PydanticField

from fovea.errors import UnusableError
from fovea.task.metrics import (
    NO_ANSWER,
    Array,
    Columns,
    Mask,
    Metric,
    accuracy,
    macro_f1,
    mean,
    median,
    share_at_most,
)
from fovea.task.prices import DecimalMark, convert, parse_price
from fovea.text import SPECIAL_TOKEN, clean_text, one_line

FieldValue = str | float
Fields = Mapping[str, FieldValue]
"""The values of an answer, or of its truth, by field."""
Scalar = bool | float | str

OTHER = "(other)"
"""The slice of all categories that are too rare for a separate one."""

PRICE_TOLERANCE = 0.1
"""A price is right if it is off by at most this share of the true one."""
# 0.1 has no exact binary form: a price that is off by just 10 % counts as within.
_ROUNDING = 1e-9

_MOST_CATEGORIES = 30
_PRICE_BANDS = 4
_PRICE = re.compile(r"[0-9]{1,12}\.[0-9]{1,2}")
_CURRENCY = re.compile(r"[A-Z]{3}")
_WORD = re.compile(r"\w+")

FIELD_TYPES: dict[str, type["BaseField"]] = {}
"""The field kinds by the ``type`` that a task names them by."""


@dataclass
class TableRow:
    """A row of the table as fields read it.

    Attributes:
        cells: Its values by column.
        decimal_mark: What separates decimals in numbers; empty to infer it from each number.
        currency: The currency of the row's prices as far as it is known; a price may name it.
    """

    cells: Mapping[str, str | Decimal]
    decimal_mark: DecimalMark = ""
    currency: str | None = None


@dataclass(frozen=True)
class Requirement:
    """What the gate requires of a field by default: a limit on one of its metrics.

    Attributes:
        metric: The metric's name within the field.
        limit: A number, or the name of the gate's setting that holds it.
    """

    metric: str
    limit: float | str


class BaseField(BaseModel):
    """Base class of the field kinds: a text that is right where it equals the true one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    column: str
    """The column of the source table that the value comes from."""

    arrow_type: ClassVar[Literal["string", "float64"]] = "string"
    json_type: ClassVar[Literal["string", "number"]] = "string"
    is_derived: ClassVar[bool] = False
    """The value follows from the row's other fields, and is read after them."""
    is_text: ClassVar[bool] = False
    """Values are text for people, in which a feed's HTML means nothing."""
    is_category: ClassVar[bool] = False
    """Values are of a limited set, so that they can be counted, sliced and confused."""
    is_amount: ClassVar[bool] = False
    """Values are amounts above zero, whose distribution and relative errors say something."""
    metrics: ClassVar[tuple[Metric, ...]] = (Metric("accuracy", "right", accuracy),)
    right_metric: ClassVar[str] = "accuracy"
    """The metric that is the share of right answers."""
    requirements: ClassVar[tuple[Requirement, ...]] = ()

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Register the kind under its ``type``."""
        super().__pydantic_init_subclass__(**kwargs)
        FIELD_TYPES[cls.model_fields["type"].default] = cls

    def answered(self) -> dict[str, Any]:
        """Return what the field says about answers, its kind and limits; not where values come from."""
        return self.model_dump(exclude={"column"})

    def read(self, row: TableRow) -> FieldValue:
        """Return the value of a table's row.

        Raises:
            UnusableError: the cell holds no value; the reason is that of the cell alone.
        """
        return self.parse(clean_text(str(row.cells[self.column]), 200))

    def convert(self, value: FieldValue, rate: Decimal) -> FieldValue:
        """Return a value in another currency; only amounts of money change.

        Raises:
            UnusableError: nothing is left of the amount, or it is too large.
        """
        return value

    def format(self, value: FieldValue) -> str:
        """Return ``value`` as an answer holds it; ValueError where it cannot."""
        return str(value)

    def parse(self, text: str) -> FieldValue:
        """Return the value of ``text``; ValueError where it is not one."""
        return text

    def show(self, value: FieldValue, length: int = 120) -> str:
        """Return a value for people, on one line."""
        return one_line(str(value), length)

    def difference(self, truth: FieldValue, answer: FieldValue) -> str:
        """Return how far an answer is off, for people; empty where there is no measure of it."""
        return ""

    def comparable_by(self, fields: Mapping[str, "BaseField"]) -> tuple[str, ...]:
        """Return the fields of the task that must agree, so that values of this field can be compared."""
        return ()

    def is_right(self, truth: FieldValue, answer: FieldValue) -> bool:
        """Return whether an answer is right."""
        return answer == truth

    def outcome(self, truth: FieldValue, answer: FieldValue | None) -> Mapping[str, Scalar]:
        """Return what came of a row, by column: what the metrics are functions of.

        ``answer`` is None where the answer could not be read, or is not comparable with the truth.
        """
        return {"truth": str(truth), "answer": NO_ANSWER if answer is None else str(answer)}

    def slices(self, columns: Columns) -> dict[str, Mask]:
        """Return the rows of each slice by its name, which follows from the truths alone."""
        return {}

    @property
    def is_sliced(self) -> bool:
        """Whether the kind has slices."""
        return type(self).slices is not BaseField.slices

    def typical(self, values: Sequence[FieldValue]) -> FieldValue:
        """Return the value to guess without the picture: the most frequent one, of several the first."""
        counts = Counter(values)
        return min(counts, key=lambda value: (-counts[value], value))


class TextField(BaseField):
    """Free text, such as a title."""

    type: Literal["text"] = "text"
    max_length: int = PydanticField(default=200, gt=0)

    is_text: ClassVar[bool] = True
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("exact", "right, letter by letter", mean("exact")),
        Metric("f1", "F1 of words", mean("f1")),
    )
    right_metric: ClassVar[str] = "exact"

    def read(self, row: TableRow) -> FieldValue:
        """Return the cell's text, cleaned."""
        return clean_text(str(row.cells[self.column]), self.max_length)

    def format(self, value: FieldValue) -> str:
        """Return the text; ValueError where it is empty, too long, not printable or holds a special token."""
        if not isinstance(value, str):
            raise ValueError(f"expected text, got {type(value).__name__}")
        if not value or value != value.strip() or not value.isprintable():
            raise ValueError("text must not be empty, padded with white space or hold control characters")
        if len(value) > self.max_length:
            raise ValueError(f"text has {len(value)} characters, at most {self.max_length} are allowed")
        if SPECIAL_TOKEN.search(value):
            raise ValueError("text must not hold a special token of the model")
        return value

    def parse(self, text: str) -> FieldValue:
        """Return the text; ValueError as in `format`."""
        return self.format(text)

    def outcome(self, truth: FieldValue, answer: FieldValue | None) -> Mapping[str, Scalar]:
        """Return whether the text is the true one, and the F1 of its words."""
        if answer is None:
            return {"exact": False, "f1": 0.0}
        return {"exact": answer == truth, "f1": token_f1(str(truth), str(answer))}


class CategoryField(TextField):
    """One of a set of names; which names is a fact of the data, not of the task."""

    type: Literal["category"] = "category"  # type: ignore[assignment]

    is_category: ClassVar[bool] = True
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("accuracy", "right", accuracy),
        Metric("macro_f1", "mean F1", macro_f1),
    )
    right_metric: ClassVar[str] = "accuracy"
    requirements: ClassVar[tuple[Requirement, ...]] = (Requirement("accuracy", "min_category_accuracy"),)

    def outcome(self, truth: FieldValue, answer: FieldValue | None) -> Mapping[str, Scalar]:
        """Return the true name and the answered one."""
        return BaseField.outcome(self, truth, answer)

    def slices(self, columns: Columns) -> dict[str, Mask]:
        """Return a slice for each of the 30 most frequent names, and `OTHER` for the rest."""
        truths = columns["truth"]
        frequent = most_frequent(truths)
        found = {name: truths == name for name in frequent}
        rest = ~np.isin(truths, frequent)
        return {**found, OTHER: rest} if rest.any() else found


class PriceField(BaseField):
    """An amount of money above zero, written with a decimal point and no separators: ``1390.0``."""

    type: Literal["price"] = "price"

    arrow_type: ClassVar[Literal["string", "float64"]] = "float64"
    json_type: ClassVar[Literal["string", "number"]] = "number"
    is_amount: ClassVar[bool] = True
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("median_ape", "median error", median("ape"), lower_is_better=True),
        Metric("mean_ape", "mean error", mean("ape"), lower_is_better=True),
        Metric("within_10_percent", "within 10 %", share_at_most("ape", PRICE_TOLERANCE + _ROUNDING)),
        Metric(
            "mean_absolute_error",
            "mean error in money",
            mean("absolute_error"),
            unit="currency",
            lower_is_better=True,
        ),
    )
    right_metric: ClassVar[str] = "within_10_percent"
    requirements: ClassVar[tuple[Requirement, ...]] = (Requirement("median_ape", "max_price_median_ape"),)

    def read(self, row: TableRow) -> FieldValue:
        """Return the cell's amount; a currency that the cell names must be the row's, or becomes it."""
        price = parse_price(row.cells[self.column], row.decimal_mark)
        if price.currencies and row.currency not in price.currencies:
            if row.currency is not None:
                raise UnusableError("in_other_currency")
            row.currency = next(iter(price.currencies)) if len(price.currencies) == 1 else None
        return price.amount

    def convert(self, value: FieldValue, rate: Decimal) -> FieldValue:
        """Return the amount times ``rate``, rounded to cents."""
        return convert(float(value), rate)

    def format(self, value: FieldValue) -> str:
        """Return the amount rounded to cents; ValueError where it is not a finite amount above zero."""
        amount = round(float(value), 2)
        if not math.isfinite(amount) or not 0 < amount < 1e12:
            raise ValueError(f"a price must be a finite number above 0, got {value!r}")
        return repr(amount)

    def parse(self, text: str) -> FieldValue:
        """Return the amount; ValueError where ``text`` is not one, as this field writes it."""
        if not _PRICE.fullmatch(text) or float(text) <= 0:
            raise ValueError(f"not a price: {text[:40]!r}")
        return float(text)

    def show(self, value: FieldValue, length: int = 120) -> str:
        """Return the amount with two decimals."""
        return f"{float(value):,.2f}"

    def difference(self, truth: FieldValue, answer: FieldValue) -> str:
        """Return the relative error, as ``+12.5 %`` or, from ten times on, ``× 12``."""
        if truth == answer:
            return ""
        share = (float(answer) - float(truth)) / float(truth)
        return (
            f"× {share + 1:,.0f}" if share >= 10 else f"{'+' if share > 0 else '−'}{abs(100 * share):.1f} %"
        )

    def comparable_by(self, fields: Mapping[str, BaseField]) -> tuple[str, ...]:
        """Return the currency fields: a price in another currency is another price."""
        return tuple(name for name, field in fields.items() if isinstance(field, CurrencyField))

    def is_right(self, truth: FieldValue, answer: FieldValue) -> bool:
        """Return whether the amount is within `PRICE_TOLERANCE` of the true one."""
        wanted = float(truth)
        return abs(float(answer) - wanted) <= (PRICE_TOLERANCE + _ROUNDING) * wanted

    def outcome(self, truth: FieldValue, answer: FieldValue | None) -> Mapping[str, Scalar]:
        """Return the true amount, |answer - truth| / truth and |answer - truth|.

        Without an answer the errors are 1.0 and the whole amount, as if it had said nothing at all.
        """
        amount = float(truth)
        if answer is None:
            return {"truth": amount, "ape": 1.0, "absolute_error": amount}
        error = abs(float(answer) - amount)
        return {"truth": amount, "ape": error / amount, "absolute_error": error}

    def slices(self, columns: Columns) -> dict[str, Mask]:
        """Return four bands, cut at the quartiles of the true prices; fewer where prices are few."""
        return dict(_bands(columns["truth"]))

    def typical(self, values: Sequence[FieldValue]) -> FieldValue:
        """Return the median."""
        return middle(float(value) for value in values)


class CurrencyField(BaseField):
    """The currency of the answer's price, as a code of three capital letters: ``EUR``."""

    type: Literal["currency"] = "currency"

    is_derived: ClassVar[bool] = True

    def read(self, row: TableRow) -> FieldValue:
        """Return the row's currency, which a price may have named."""
        if row.currency is None:
            raise UnusableError("missing")
        return row.currency

    def format(self, value: FieldValue) -> str:
        """Return the code; ValueError where it is not one."""
        if not isinstance(value, str) or not _CURRENCY.fullmatch(value):
            raise ValueError(f"a currency must be a code such as EUR, got {value!r}")
        return value

    def parse(self, text: str) -> FieldValue:
        """Return the code; ValueError where ``text`` is not one."""
        return self.format(text)


def _as_field(value: Any) -> Any:
    """Return a field from its document, by its ``type``."""
    if isinstance(value, BaseField) or not isinstance(value, Mapping):
        return value
    kind = FIELD_TYPES.get(str(value.get("type")))
    if kind is None:
        raise ValueError(f"unknown type {value.get('type')!r}; there are {', '.join(FIELD_TYPES)}")
    return kind.model_validate(value)


Field = Annotated[SerializeAsAny[BaseField], BeforeValidator(_as_field)]
"""A field of any kind; a document says which by its ``type``."""


def token_f1(truth: str, answer: str) -> float:
    """Return the F1 of the answer's words, in small letters and counted as often as they occur."""
    expected, said = (Counter(_WORD.findall(text.casefold())) for text in (truth, answer))
    if not expected and not said:
        return float(truth == answer)
    return 2 * (expected & said).total() / (expected.total() + said.total())


def most_frequent(names: NDArray[np.str_]) -> list[str]:
    """Return the 30 most frequent names, of equally frequent ones the first by name."""
    counts = Counter(names.tolist())
    return sorted(counts, key=lambda name: (-counts[name], name))[:_MOST_CATEGORIES]


def _bands(prices: Array) -> Iterator[tuple[str, Mask]]:
    # Prices that occur, so that the names of the bands are exact. Only the last band has its upper end.
    edges = np.unique(np.quantile(prices, np.linspace(0, 1, _PRICE_BANDS + 1), method="nearest"))
    for low, high in itertools.pairwise(edges) if len(edges) > 1 else [(edges[0], edges[0])]:
        last = high == edges[-1]
        inside = (prices >= low) & ((prices <= high) if last else (prices < high))
        yield f"{low:.2f} to {high:.2f}", inside

"""The types a field of an answer can have, each with its way from value to text and back."""

import math
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict
from pydantic import Field as PydanticField

FieldValue = str | float

# Markers such as <|end|> steer the model, so they may stand in no value.
_SPECIAL_TOKEN = re.compile(r"<\|[^|<>]*\|>|</?s>|<unk>")
_PRICE = re.compile(r"[0-9]{1,12}\.[0-9]{1,2}")
_CURRENCY = re.compile(r"[A-Z]{3}")


class _Field(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    column: str
    """The column of the source table that the value comes from."""

    def answered(self) -> dict[str, Any]:
        """Return what the field says about answers, its kind and limits; not where values come from."""
        return self.model_dump(exclude={"column"})


def _check_text(value: FieldValue, max_length: int) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected text, got {type(value).__name__}")
    if not value or value != value.strip() or not value.isprintable():
        raise ValueError("text must not be empty, padded with white space or hold control characters")
    if len(value) > max_length:
        raise ValueError(f"text has {len(value)} characters, at most {max_length} are allowed")
    if _SPECIAL_TOKEN.search(value):
        raise ValueError("text must not hold a special token of the model")
    return value


class TextField(_Field):
    """Free text, such as a title."""

    type: Literal["text"] = "text"
    max_length: int = PydanticField(default=200, gt=0)

    def format(self, value: FieldValue) -> str:
        """Return ``value`` as it stands in an answer; ValueError where it cannot."""
        return _check_text(value, self.max_length)

    def parse(self, text: str) -> FieldValue:
        """Return the value that ``text`` stands for; ValueError where it stands for none."""
        return _check_text(text, self.max_length)


class CategoryField(TextField):
    """One of a set of names; which names is a fact of the data, not of the task."""

    type: Literal["category"] = "category"  # type: ignore[assignment]


class PriceField(_Field):
    """An amount of money above zero, written with a decimal point and no separators: ``1390.0``."""

    type: Literal["price"] = "price"

    def format(self, value: FieldValue) -> str:
        """Return the amount rounded to cents; ValueError where it is no finite amount above zero."""
        amount = round(float(value), 2)
        if not math.isfinite(amount) or not 0 < amount < 1e12:
            raise ValueError(f"a price must be a finite number above 0, got {value!r}")
        return repr(amount)

    def parse(self, text: str) -> FieldValue:
        """Return the amount; ValueError where ``text`` is not one, as this field writes it."""
        if not _PRICE.fullmatch(text) or float(text) <= 0:
            raise ValueError(f"not a price: {text[:40]!r}")
        return float(text)


class CurrencyField(_Field):
    """The currency of the answer's price, as a code of three capital letters: ``EUR``."""

    type: Literal["currency"] = "currency"

    def format(self, value: FieldValue) -> str:
        """Return the code; ValueError where it is none."""
        if not isinstance(value, str) or not _CURRENCY.fullmatch(value):
            raise ValueError(f"a currency must be a code such as EUR, got {value!r}")
        return value

    def parse(self, text: str) -> FieldValue:
        """Return the code; ValueError where ``text`` is none."""
        return self.format(text)


Field = Annotated[TextField | CategoryField | PriceField | CurrencyField, PydanticField(discriminator="type")]

"""A task: one question, an answer template over typed fields, and the parser that follows from it."""

import hashlib
import json
import re
import string
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, model_validator

from fovea.errors import UserError
from fovea.task.fields import (
    CategoryField,
    CurrencyField,
    Field,
    Fields,
    FieldValue,
    PriceField,
    TextField,
)
from fovea.text import IMAGE_MARK

TASK_FILE = "task.json"
"""The name under which a task is stored next to a model's weights."""


class ParsedAnswer(NamedTuple):
    """What the parser made of an answer: its fields, or else why there are none."""

    fields: dict[str, FieldValue] | None
    error: str | None


class Task(BaseModel):
    """What is asked about a picture and how the answer is written.

    ``template`` names every field once, in braces, with literal text between them. The prompt and the turn
    markers are those of Phi-3-Vision's chat format.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: int
    question: str
    template: str
    fields: dict[str, Field]

    @model_validator(mode="after")
    def _template_fits_fields(self) -> Self:
        parts = list(string.Formatter().parse(self.template))
        names = [name for _, name, _, _ in parts if name is not None]
        if sorted(names) != sorted(self.fields) or not names:
            raise ValueError(
                f"template {self.template!r} must name each of {sorted(self.fields)} exactly once"
            )
        literals = [literal for literal, name, _, _ in parts[1:] if name is not None]
        if not all(literals):
            raise ValueError("two fields of a template need text between them, or no parser can part them")
        return self

    @cached_property
    def digest(self) -> str:
        """``sha256:…`` of what is asked and answered.

        The columns are left out: the same task on another table is the same task.
        """
        return _sha256(json.dumps(self._asked(), sort_keys=True, separators=(",", ":"), ensure_ascii=False))

    @cached_property
    def document_digest(self) -> str:
        """``sha256:…`` of the whole task with its columns: what a dataset is made from."""
        return _sha256(self.model_dump_json())

    def difference(self, other: "Task") -> str:
        """Return how this task ("here") and another one ("there") differ; empty for the same task.

        Columns are not compared, as in `digest`.
        """
        here, there = self._asked(), other._asked()
        fields_here, fields_there = here.pop("fields"), there.pop("fields")
        found = [
            f"{part} {_shown(there[part])} there, {_shown(here[part])} here"
            for part in here
            if here[part] != there[part]
        ]
        for name in {**fields_there, **fields_here}:
            field_here, field_there = fields_here.get(name), fields_there.get(name)
            if field_here != field_there:
                found.append(f"field {name}: {_kind(field_there)} there, {_kind(field_here)} here")
        return "; ".join(found)

    def _asked(self) -> dict[str, Any]:
        """Return what is asked and answered, without the columns."""
        fields = {name: field.answered() for name, field in self.fields.items()}
        return {**self.model_dump(exclude={"fields"}), "fields": fields}

    def prompt(self) -> str:
        """Return the prompt for one picture, up to where the answer starts."""
        return f"<|user|>\n{IMAGE_MARK}{self.question}<|end|><|assistant|>\n"

    def answer(self, values: Mapping[str, FieldValue]) -> str:
        """Write ``values`` as an answer, without the ``<|end|>`` that closes it.

        Raises:
            ValueError: a value is missing or not allowed, or the answer would be read back as something else
                (a title that itself holds ``, Category: ``, say).
        """
        texts = {}
        for name, field in self.fields.items():
            if name not in values:
                raise ValueError(f"{name}: missing")
            try:
                texts[name] = field.format(values[name])
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        answer = self.template.format(**texts)
        read_back = self.parse(answer).fields
        if read_back != {name: field.parse(texts[name]) for name, field in self.fields.items()}:
            raise ValueError(f"the answer {answer!r} would be read back as {read_back}")
        return answer

    def training_text(self, values: Mapping[str, FieldValue]) -> str:
        """Return prompt, answer and closing marker: the text one example is trained on."""
        return f"{self.prompt()}{self.answer(values)}<|end|>"

    def parse(self, text: str) -> ParsedAnswer:
        """Read an answer. White space around it is forgiven; any other departure from the template is not."""
        match = self._pattern.fullmatch(text.strip())
        if match is None:
            return ParsedAnswer(None, f"does not follow the template {self.template!r}")
        fields: dict[str, FieldValue] = {}
        for name, field in self.fields.items():
            try:
                fields[name] = field.parse(match[name])
            except ValueError as error:
                return ParsedAnswer(None, f"{name}: {error}")
        return ParsedAnswer(fields, None)

    def spans(self, text: str) -> dict[str, tuple[int, int]] | None:
        """Return the span of each field in an answer: its first character, and the first one after it.

        None where ``text`` does not follow the template; whether the values are allowed is not looked at.
        """
        match = self._pattern.fullmatch(text.strip())
        if match is None:
            return None
        before = len(text) - len(text.lstrip())
        return {name: (before + match.start(name), before + match.end(name)) for name in self.fields}

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        parts = string.Formatter().parse(self.template)
        return re.compile(
            "".join(re.escape(text) + (f"(?P<{name}>.+)" if name else "") for text, name, _, _ in parts)
        )

    def comparable(self, truth: Fields, answer: Fields | None) -> dict[str, FieldValue | None]:
        """Return each field's answer as it counts against the truth.

        None where the answer could not be read, or lacks the field, or where a field that this one is
        comparable by differs: a price in another currency, say.
        """
        if answer is None:
            return dict.fromkeys(self.fields)
        return {
            name: answer.get(name)
            if all(answer.get(other) == truth[other] for other in field.comparable_by(self.fields))
            else None
            for name, field in self.fields.items()
        }

    def is_right(self, name: str, truth: Fields, answer: Fields | None) -> bool:
        """Return whether a field of an answer is right; one that could not be read (None) is not."""
        value = self.comparable(truth, answer)[name]
        return value is not None and self.fields[name].is_right(truth[name], value)

    def typical(self, truths: Sequence[Fields]) -> dict[str, FieldValue]:
        """Return the answer to guess without a look at the picture, from at least one truth."""
        guess: dict[str, FieldValue] = {}
        for name, field in sorted(
            self.fields.items(), key=lambda item: bool(item[1].comparable_by(self.fields))
        ):
            others = field.comparable_by(self.fields)
            alike = [truth for truth in truths if all(truth[other] == guess[other] for other in others)]
            guess[name] = field.typical([truth[name] for truth in alike])
        return guess

    def save(self, folder: Path) -> None:
        """Write the task into ``folder`` as task.json."""
        (folder / TASK_FILE).write_text(self.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the task from ``folder``.

        Raises:
            UserError: there is none, or it is not a task.
        """
        path = folder / TASK_FILE
        try:
            return cls.model_validate_json(path.read_text())
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path}: no task can be read here ({error}); give a model made by merge_adapter"
            ) from error


def _sha256(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def _shown(value: str | int) -> str:
    return f"'{value}'" if isinstance(value, str) else str(value)


def _kind(field: Mapping[str, Any] | None) -> str:
    """Return a field's kind and limits for people, such as ``text (max_length 200)``."""
    if field is None:
        return "none"
    limits = ", ".join(f"{name} {value}" for name, value in field.items() if name != "type")
    return f"{field['type']} ({limits})" if limits else str(field["type"])


def product_task(
    title_column: str = "title",
    category_column: str = "category3_code",
    price_column: str = "full_price",
    currency_column: str | None = None,
) -> Task:
    """Return the product catalogue's task, which is the default.

    Args:
        title_column: The source's column with the products' titles.
        category_column: With their categories.
        price_column: With their prices.
        currency_column: With the prices' currency, where the answer is to state it.
    """
    fields: dict[str, Field] = {
        "product": TextField(column=title_column),
        "category": CategoryField(column=category_column),
        "full_price": PriceField(column=price_column),
    }
    template = "Product: {product}, Category: {category}, Full Price: {full_price}"
    if currency_column is not None:
        fields["currency"] = CurrencyField(column=currency_column)
        template += " {currency}"
    return Task(
        name="product-catalogue",
        version=1,
        question="What is shown in this image?",
        template=template,
        fields=fields,
    )

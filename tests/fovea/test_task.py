import ast
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fovea.errors import UserError
from fovea.task import ParsedAnswer, PriceField, Task, TextField, product_task
from fovea.task.fields import FIELD_TYPES

TASK = product_task()
TITLES = st.text(max_size=60) | st.lists(
    st.sampled_from(["Bag", ", ", "Category: ", ", Category: ", "Full Price: ", "12.0", "{product}", "\\d+"])
).map("".join)
PRICES = st.floats(allow_nan=True, allow_infinity=True) | st.integers(-5, 10**13) | st.floats(0.01, 1e5)


def values(title: Any = "Red Bag", category: Any = "BAGS", price: Any = 1390.0) -> dict[str, Any]:
    return {"product": title, "category": category, "full_price": price}


def test_the_text_that_the_product_task_trains_on() -> None:
    assert TASK.training_text(values("Mini Bag", "BAGS", 1390)) == (
        "<|user|>\n<|image_1|>What is shown in this image?<|end|><|assistant|>\n"
        "Product: Mini Bag, Category: BAGS, Full Price: 1390.0<|end|>"
    )
    assert [field.column for field in TASK.fields.values()] == ["title", "category3_code", "full_price"]


@given(TITLES, TITLES, PRICES)
def test_what_can_be_answered_is_read_back(title: str, category: str, price: float) -> None:
    given_values = values(title, category, price)
    try:
        answer = TASK.answer(given_values)
    except ValueError:
        return
    fields, error = TASK.parse(answer)
    assert error is None
    assert fields == values(title, category, round(float(price), 2))
    assert TASK.training_text(given_values) == TASK.prompt() + answer + "<|end|>"


@given(st.text())
def test_any_text_is_parsed_or_explained(text: str) -> None:
    fields, error = TASK.parse(text)
    assert (fields is None) != (error is None)


WORD = st.text(
    st.characters(categories=["L", "N", "P", "S"], exclude_characters="|<>"), min_size=1, max_size=9
)


@given(st.lists(WORD, min_size=1, max_size=8).map(" ".join), st.integers(1, 10**11))
def test_ordinary_titles_and_prices_are_accepted(title: str, cents: int) -> None:
    answer = TASK.answer(values(title, "BAGS", cents / 100))
    assert TASK.parse(answer).fields == values(title, "BAGS", cents / 100)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (values("a <|end|> b"), "product: .* special token"),
        (values("<|image_1|>"), "product: .* special token"),
        (values(category="<s>"), "category: .* special token"),
        (values(""), "product: .* empty"),
        (values(" Bag"), "product: .* white space"),
        (values("Red\nBag"), "product: .* control characters"),
        (values("x" * 201), "at most 200"),
        (values(12.5), "product: expected text"),
        (values("Bag", "BAGS, Category: SHOES"), "read back as"),
        (values(price=math.nan), "full_price: a price must be"),
        (values(price=math.inf), "full_price: a price must be"),
        (values(price=0.0), "full_price: a price must be"),
        (values(price=0.004), "full_price: a price must be"),
        (values(price=-1.0), "full_price: a price must be"),
        (values(price=1e12), "full_price: a price must be"),
        (values(price="dear"), "full_price: "),
        ({"product": "Bag", "category": "BAGS"}, "full_price: missing"),
    ],
)
def test_values_that_would_not_survive_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TASK.answer(wrong)


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("Product: Bag, Category: BAGS, Full Price: 5.0", values("Bag", "BAGS", 5.0)),
        ("  Product: Bag, Category: BAGS, Full Price: 5.25\n", values("Bag", "BAGS", 5.25)),
        ("Product: A, B, Category: BAGS, Full Price: 5.0", values("A, B", "BAGS", 5.0)),
        ("product: Bag, Category: BAGS, Full Price: 5.0", None),
        ("Product: Bag, Category: BAGS, Full Price: 5", None),
        ("Product: Bag, Category: BAGS, Full Price: 1,390.0", None),
        ("Product: Bag, Category: BAGS, Full Price: -5.0", None),
        ("Product: Bag, Category: BAGS, Full Price: 0.0", None),
        ("Product: Bag, Category: BAGS, Full Price: 5.0 dollars", None),
        ("Product: , Category: BAGS, Full Price: 5.0", None),
        ("Product: Bag, Category: BAGS", None),
        ("Product: Bag\n, Category: BAGS, Full Price: 5.0", None),
        ("", None),
    ],
)
def test_parsing(text: str, fields: dict[str, Any] | None) -> None:
    assert TASK.parse(text).fields == fields


@pytest.mark.parametrize(
    "template",
    [
        "Product: {product}",
        "{product} {category} {full_price} {product}",
        "{product} {category} {full_price} {colour}",
        "{product}{category}, {full_price}",
        "no field at all",
    ],
)
def test_a_template_that_cannot_be_parsed_is_refused(template: str) -> None:
    with pytest.raises(ValidationError, match="template"):
        Task(**{**TASK.model_dump(), "template": template})


def test_a_template_is_literal_text() -> None:
    """What means something in a regular expression means nothing in a template."""
    task = Task(
        name="odd",
        version=1,
        question="What?",
        template="[({name})] + {price}$ .*",
        fields={"name": TextField(column="n"), "price": PriceField(column="p")},
    )
    written = task.answer({"name": "a+b", "price": 2})
    assert written == "[(a+b)] + 2.0$ .*"
    assert task.parse(written) == ParsedAnswer({"name": "a+b", "price": 2.0}, None)


def changed(**parts: Any) -> Task:
    return Task(**{**TASK.model_dump(), **parts})


def test_the_same_task_on_another_table_is_the_same_task() -> None:
    other = product_task("name", "kind", "amount")
    assert other != TASK
    assert other.digest == TASK.digest
    assert other.difference(TASK) == ""
    assert other.document_digest != TASK.document_digest
    assert product_task(currency_column="a").digest == product_task(currency_column="b").digest


def test_the_order_of_the_fields_is_no_difference() -> None:
    reordered = changed(fields=dict(reversed(TASK.model_dump()["fields"].items())))
    assert list(reordered.fields) != list(TASK.fields)
    assert reordered.digest == TASK.digest
    assert reordered.difference(TASK) == ""


FIELDS = TASK.model_dump()["fields"]
SHORT = {**FIELDS, "product": {**FIELDS["product"], "max_length": 80}}
NUMBER = {**FIELDS, "category": {"type": "price", "column": "category3_code"}}


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (changed(name="shoes"), "name 'product-catalogue' there, 'shoes' here"),
        (changed(version=2), "version 1 there, 2 here"),
        (changed(question="Why?"), "question 'What is shown in this image?' there, 'Why?' here"),
        (changed(fields=SHORT), "field product: text (max_length 200) there, text (max_length 80) here"),
        (changed(fields=NUMBER), "field category: category (max_length 200) there, price here"),
        (
            product_task(currency_column="currency_code"),
            "template 'Product: {product}, Category: {category}, Full Price: {full_price}' there, 'Product: "
            "{product}, Category: {category}, Full Price: {full_price} {currency}' here; "
            "field currency: none there, currency here",
        ),
    ],
)
def test_what_is_asked_or_answered_makes_another_task(other: Task, difference: str) -> None:
    assert other.digest != TASK.digest
    assert other.difference(TASK) == difference
    assert TASK.difference(other) != ""


def test_save_and_load(tmp_path: Path) -> None:
    TASK.save(tmp_path)
    loaded = Task.load(tmp_path)
    assert loaded == TASK
    assert loaded.digest == TASK.digest
    assert list(loaded.fields) == list(TASK.fields)
    assert Task(**{**TASK.model_dump(), "version": 2}).digest != TASK.digest


@pytest.mark.parametrize("content", [None, "", "[]", '{"name": "half"}'])
def test_what_is_no_task_is_one_error(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "task.json").write_text(content)
    with pytest.raises(UserError, match=r"task\.json: no task can be read here"):
        Task.load(tmp_path)


def test_no_module_outside_tests_the_type_of_a_field() -> None:
    kinds = {kind.__name__ for kind in FIELD_TYPES.values()}
    root = Path(__file__).parents[2]
    folders = ("cli", "pipelines", "components", "serving", "fovea", "sample", "benchmarks")
    for path in (path for folder in folders for path in (root / folder).rglob("*.py")):
        if path.parent == root / "fovea" / "task":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
                named = {name.id for name in ast.walk(node.args[1]) if isinstance(name, ast.Name)}
                assert not named & kinds, f"{path.relative_to(root)}:{node.lineno}: ask the field instead"

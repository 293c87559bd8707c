"""The report of a preparation: what it says, that it stays small, and that nothing in it does anything."""

from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from components.prepare_data.report import statistics
from components.prepare_data.report.page import MAX_BYTES, write_report
from components.prepare_data.workspace import Workspace
from fovea.task import CategoryField, PriceField, Task, TextField, product_task
from tests.components.prepare_data import workspaces

HOSTILE = "<script>alert('x')</script>\"><img src=http://evil.invalid/x onerror=alert(1)>{{ 7*7 }}"
HOSTILE_RAW = HOSTILE + "\u202e\u0000</td></table> "


class Page(HTMLParser):
    """Which elements and attributes a page has, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: Counter[str] = Counter()
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    with Workspace(tmp_path) as found:
        yield found


def report(workspace: Workspace, tmp_path: Path, task: Task | None = None, source: str = "a.csv") -> Page:
    path = tmp_path / "report.html"
    write_report(
        path, workspace=workspace, task=task or product_task(), source=source, settings={"source": source}
    )
    assert path.stat().st_size <= MAX_BYTES
    return Page(path.read_text())


def test_it_says_what_became_of_every_row(workspace: Workspace, tmp_path: Path) -> None:
    workspaces.fill(workspace)
    page = report(workspace, tmp_path)
    assert "20 of 23 rows are ready" in page.text
    assert "train: 12 rows of 12 products" in page.text
    assert "full_price: no value" in page.text
    assert "picture: there is no picture at the address" in page.text
    assert "Product: Scarf 0, Category: CATEGORY 0, Full Price: 100.0" in page.text
    assert "2 products in 1 group" in page.text
    assert "780 tokens" in page.text
    assert [(reason, rows) for reason, rows in statistics.count(workspace).dropped.items()] == [
        ("full_price_missing", 2),
        ("picture_not_found", 1),
    ]


def test_it_gives_nothing_away_that_opens_an_address(workspace: Workspace, tmp_path: Path) -> None:
    workspaces.fill(workspace)
    page = report(workspace, tmp_path, source="https://me:pass@host/a.csv?X-Amz-Signature=0f0f&page=2")
    assert "https://…@host/a.csv?X-Amz-Signature=…&page=2" in page.text
    assert "https://…@host/x?sig=… answers 404" in page.text
    assert "pw@" not in page.text
    assert "pass@" not in page.text


def test_a_leak_is_seen(workspace: Workspace, tmp_path: Path) -> None:
    workspaces.fill(workspace)
    assert "no leak" in report(workspace, tmp_path).text
    workspaces.query(workspace, "UPDATE rows SET split = 'test' WHERE product = 'p1'")
    assert "1 products are in several splits" in report(workspace, tmp_path).text
    # A group that was broken up may be in several splits.
    workspaces.query(workspace, "UPDATE groups SET reason = 'too_large'")
    page = report(workspace, tmp_path)
    assert "no leak" in page.text
    assert "broken up" in page.text


def test_hostile_values_stay_text(workspace: Workspace, tmp_path: Path) -> None:
    harmless = report(workspace_of(workspace, "Scarf", "Scarf"), tmp_path)
    with Workspace(made(tmp_path / "hostile")) as hostile:
        page = report(workspace_of(hostile, HOSTILE, HOSTILE_RAW), tmp_path)
    assert page.elements == harmless.elements
    assert {name for name, _ in page.attributes} == {name for name, _ in harmless.attributes}
    assert page.text.count(HOSTILE) > 10
    addresses = [value for name, value in page.attributes if name in {"src", "href"}]
    assert all(value.startswith(("data:image/jpeg;base64,", "#")) for value in addresses)


def workspace_of(workspace: Workspace, title: str, raw: str) -> Workspace:
    for number in range(4):
        workspaces.add_kept(workspace, number, title=title, category=f"{title}{number}")
    workspaces.add_dropped(workspace, 4, "title_too_long", title=raw)
    workspaces.add_dropped(workspace, 5, raw, title=raw)
    return workspace


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_it_stays_small_whatever_the_table_holds(workspace: Workspace, tmp_path: Path) -> None:
    """Long texts of characters that escaping makes longest, and pictures that no encoder makes small."""
    noise = workspaces.jpeg(1, 400, noise=True)
    for number in range(200):
        workspaces.add_kept(
            workspace, number, title="'" * 10_000, category=f"{number}" + '"' * 5_000, picture=noise
        )
    for first in range(20):
        workspace.products.add_group([f"p{number}" for number in range(first, 200, 20)], too_large=False)
    for number in range(200, 400):
        workspaces.add_dropped(workspace, number, f"reason_{number % 50}_{'&' * 2000}", title="&" * 100_000)
    task = Task(
        name="long",
        version=1,
        question="What? " * 1000,
        template="{product}, {category}, {full_price}",
        fields={
            "product": TextField(column="title", max_length=20_000),
            "category": CategoryField(column="category3_code", max_length=20_000),
            "full_price": PriceField(column="full_price"),
        },
    )
    page = report(workspace, tmp_path, task, source="s3://bucket/" + "<" * 10_000)
    assert page.elements["img"] > 40


def test_a_task_without_prices_and_categories_and_rows_without_tokens(
    workspace: Workspace, tmp_path: Path
) -> None:
    task = Task(
        name="titles",
        version=1,
        question="What?",
        template="It is {product}.",
        fields={"product": TextField(column="title")},
    )
    workspaces.fill(workspace)
    workspaces.query(workspace, "UPDATE rows SET tokens = NULL")
    workspaces.query(workspace, "DELETE FROM groups")
    page = report(workspace, tmp_path, task)
    assert "It is Scarf 0." in page.text
    assert "Tokens per example" not in page.text
    assert "No two products have pictures that look alike" in page.text


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("picture_too_large", ("picture", "more bytes than are allowed")),
        ("title_too_long", ("title", "longer than is allowed")),
        ("a_b_empty", ("a_b", "no value")),
        ("duplicate", ("row", "the same product, picture and answer as another row")),
        ("something_new", ("row", "something new")),
    ],
)
def test_reasons_are_explained(reason: str, expected: tuple[str, str]) -> None:
    assert statistics.explain(reason, {"title": "", "a_b": "", "b": ""}) == expected

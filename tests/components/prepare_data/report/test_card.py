"""The dataset card: what `datasets` and the hub read of it, and that it stays text."""

import re
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import yaml
from markdown_it import MarkdownIt

from components.prepare_data.report.card import write_card
from components.prepare_data.workspace import Workspace
from fovea.task import product_task
from tests.components.prepare_data import workspaces

SETTINGS = {"image_column": "imageurl", "seed": 0, "currency_column": ""}
HOSTILE = (
    "<script>alert(1)</script>",
    "[a](http://evil.invalid) ![b](http://evil.invalid/x.png)",
    "**bold** `code` | cell | ~~gone~~ \\",
    "www.evil.invalid https://evil.invalid me@evil.invalid",
    "--- # heading <!-- {{ 7 * 7 }}",
    "--- name: x",
)


def card(folder: Path, *, categories: tuple[str, ...] = ("BAGS", "SHOES"), rows: int = 20) -> str:
    with Workspace(folder) as workspace:
        for number in range(rows):
            workspaces.add_kept(workspace, number, category=categories[number % len(categories)])
        workspaces.add_dropped(workspace, rows, "full_price_missing")
        workspaces.add_dropped(workspace, rows + 1, f"new {categories[0]}")
        path = folder / "README.md"
        write_card(
            path, workspace=workspace, task=product_task(), settings={**SETTINGS, "name": categories[0]}
        )
    return path.read_text()


def test_datasets_loads_the_folder_with_its_splits(tmp_path: Path) -> None:
    text = card(tmp_path)
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["size_categories"] == ["n<1K"]
    for split in ("train", "validation", "test"):
        table = pyarrow.table({"row_id": [split]})
        pyarrow.parquet.write_table(table, tmp_path / f"{split}-00000.parquet")
    loaded = datasets.load_dataset(str(tmp_path), cache_dir=str(tmp_path / "cache"))
    assert {split: rows["row_id"] for split, rows in loaded.items()} == {
        "train": ["train"],
        "validation": ["validation"],
        "test": ["test"],
    }


def test_it_says_what_the_dataset_is(tmp_path: Path) -> None:
    text = card(tmp_path)
    assert "20 rows of 20 products" in text
    assert "| train | 12 | 12 |" in text
    assert "| BAGS | 6 | 2 | 2 |" in text
    assert "full\\_price in USD: from 100.00 to 119.00" in text
    assert "| full\\_price\\_missing | full\\_price: no value | 1 |" in text
    assert "| currency\\_column |  |" in text


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    assert card(tmp_path / "a") == card(tmp_path / "b")


def test_hostile_values_stay_text(tmp_path: Path) -> None:
    text = card(tmp_path, categories=HOSTILE)
    assert text.count("---\n") >= 2
    body = text.split("---\n", 2)[2]
    markdown = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    page = markdown.render(body)
    harmless = (tmp_path / "harmless").resolve()
    harmless.mkdir()
    plain = markdown.render(card(harmless, categories=tuple("ABCDEF")).split("---\n", 2)[2])
    for element in ("<a ", "<img", "<script", "<strong", "<s>", "<code", "<h1", "<h2", "<!--", "<td"):
        assert page.count(element) == plain.count(element), element
    # Addresses become links on the hub, unless they are broken up.
    assert "https\\:" in body
    assert not re.search(r"(?<!\\)://evil|www\.|me@", body)
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 4

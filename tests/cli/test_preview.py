"""`fovea preview`: what it prints of a table, and its errors."""

import io
from pathlib import Path

import pytest
import typer
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner, Result

from cli import preview as command
from cli.preview import preview
from components.prepare_data.report.preview import Example
from fovea.errors import UserError

app = typer.Typer()
app.command("preview")(preview)


def invoke(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, list(arguments), catch_exceptions=False)


@pytest.fixture
def table(tmp_path: Path) -> str:
    lines = ["sku,title,category3_code,full_price,currency_code,photo"]
    for number in range(12):
        Image.new("RGB", (60, 80), (number * 20, 0, 99)).save(tmp_path / f"{number}.png")
        title = "[red]\x1b]0;owned\x07 <b>" if number == 11 else f"Scarf {number}"
        lines.append(f"p{number},{title},SCARVES,{number * 100},USD,{number}.png")
    (tmp_path / "table.csv").write_text("\n".join(lines))
    return str(tmp_path / "table.csv")


COLUMNS = ("--set", "image_column=photo", "--set", "product_column=sku")


def test_it_prints_what_a_run_would_do(table: str, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    result = invoke(table, *COLUMNS, "--html", str(page), "--tokens-per-second", "1000")
    assert result.exit_code == 0
    lines = [" ".join(line.split()) for line in result.output.splitlines()]
    assert "10 of 12 rows that were looked at could be trained on" in lines
    assert "picture photo 0.png · 1.png · 2.png" in lines
    assert "1 full_price: not above zero 0" in lines
    assert "Product: Scarf 1, Category: SCARVES, Full Price: 100.0" in lines
    assert any(line.startswith("12 rows in the table; 10 kept, 8 to train on, 3 times") for line in lines)
    assert any("on yours 1,000 tokens per second (as you say)" in line for line in lines)
    # What a terminal obeys is not sent to it, and what looks like markup is shown.
    assert "\x1b" not in result.output
    assert "\x07" not in result.output
    assert "[red]" in result.output
    assert "10 of 12 rows that were looked at" in page.read_text()


def test_settings_are_those_of_a_run(table: str, tmp_path: Path) -> None:
    settings = tmp_path / "mine.yaml"
    settings.write_text(f"source: {table}\nimage_column: photo\nproduct_column: sku\nnum_train_epochs: 7\n")
    result = invoke("--settings", str(settings), "--rows", "5")
    assert "4 of 5 rows" in result.output
    assert "7 times" in result.output
    with pytest.raises(UserError, match="num_crops"):
        invoke(table, "--set", "num_crops=99")


def test_errors_say_what_to_do(table: str) -> None:
    with pytest.raises(UserError, match="name one: fovea preview"):
        invoke()
    with pytest.raises(UserError, match="has no column imageurl, product_code"):
        invoke(table)
    with pytest.raises(UserError, match="there is no such"):
        invoke(f"{table}.not")


def test_pictures_are_drawn_where_the_terminal_shows_colours() -> None:
    red = Example(Image.new("RGB", (200, 100), (255, 0, 0)), "Product: [bold]Red[/bold]")
    terminal = io.StringIO()
    console = Console(file=terminal, force_terminal=True, color_system="truecolor", width=100)
    command._print_examples(console, [red, red])
    text = terminal.getvalue()
    assert text.count("▀") == 2 * 24 * 6
    assert "\x1b[38;2;25" in text
    assert "[bold]Red[/bold]" in text


def test_help_has_an_example() -> None:
    assert "Example: fovea preview" in " ".join(invoke("--help").output.split())

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cli.sample_data import sample_data
from fovea.errors import UserError

app = typer.Typer()
app.command("sample-data")(sample_data)


def invoke(*arguments: str):
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def test_a_catalogue_is_written_then_reused(tmp_path: Path):
    out = tmp_path / "catalogue"
    arguments = ["--out", str(out), "--rows", "50", "--seed", "3"]
    first = invoke(*arguments)
    assert first.exit_code == 0
    assert f"Wrote the sample catalogue in {out}" in first.output
    assert "50 rows of 49 products, seed 3" in first.output
    assert (out / "products.csv").is_file()
    assert f"Reused the sample catalogue in {out}" in invoke(*arguments).output


def test_an_error_says_what_to_do(tmp_path: Path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="--out"):
        invoke("--out", str(tmp_path))


def test_help_has_an_example():
    assert "Example: fovea sample-data" in " ".join(invoke("--help").output.split())

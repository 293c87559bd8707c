from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cli.sample_model import sample_model
from fovea.sample import model

app = typer.Typer()
app.command("sample-model")(sample_model)


def invoke(*arguments: str):
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


@pytest.mark.parametrize(("reused", "verb"), [(False, "Made"), (True, "Reused")])
def test_it_says_whether_it_was_made_and_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reused: bool, verb: str
):
    asked = []

    def make(out: Path, recipe: model.Recipe, progress: model.ProgressCallback) -> bool:
        asked.append((out, recipe.seed))
        progress("drawing pictures", 1, 2)
        progress("drawing pictures", 2, 2)
        return reused

    monkeypatch.setattr(model, "make_sample_model", make)
    result = invoke("--out", str(tmp_path / "model"), "--seed", "7")
    assert result.exit_code == 0
    assert f"{verb} the sample model in {tmp_path / 'model'}" in result.output
    assert f"base_model={tmp_path / 'model'}" in result.output
    assert asked == [(tmp_path / "model", 7)]


def test_help_has_an_example():
    assert "Example: fovea sample-model" in " ".join(invoke("--help").output.split())

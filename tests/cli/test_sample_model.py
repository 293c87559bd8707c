from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cli.sample_model import sample_model
from fovea.errors import UserError
from fovea.phi3v import Phi3VForCausalLM
from sample import training

app = typer.Typer()
app.command("sample-model")(sample_model)


def invoke(*arguments: str):
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def test_the_shipped_model_is_written_and_then_reused(tmp_path: Path) -> None:
    out = tmp_path / "model"
    first, second = invoke("--out", str(out)), invoke("--out", str(out))
    assert (first.exit_code, second.exit_code) == (0, 0)
    assert f"Wrote the sample model in {out}" in first.output
    assert f"base_model={out}" in first.output
    assert f"Reused the sample model in {out}" in second.output


def test_train_trains_with_the_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def recipe(seed: int) -> training.Recipe:
        return training.Recipe(seed, pictures=40, tower_steps=2, tower_batch=4, steps=3, batch=5, writing=2)

    whole = training.write_sample_model
    monkeypatch.setattr(
        training,
        "write_sample_model",
        lambda folder, asked, show: whole(folder, recipe(asked.seed), show),
    )
    out = tmp_path / "model"
    result = invoke("--out", str(out), "--train", "--seed", "7")
    assert result.exit_code == 0
    assert f"Wrote the sample model in {out}" in result.output
    assert '"seed": 7' in (out / "sample-model.json").read_text()
    assert Phi3VForCausalLM.from_pretrained(out).config.vocab_size == 32064


def test_train_refuses_a_folder_that_exists(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exists; remove it, or choose another folder with --out"):
        invoke("--out", str(tmp_path), "--train")


def test_a_seed_without_train_is_refused(tmp_path: Path) -> None:
    result = invoke("--out", str(tmp_path / "model"), "--seed", "7")
    assert result.exit_code == 2
    assert "needs --train" in result.output
    assert not (tmp_path / "model").exists()


def test_help_has_an_example() -> None:
    assert "Example: fovea sample-model" in " ".join(invoke("--help").output.split())

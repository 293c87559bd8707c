"""Steps as commands: options follow from the parameters."""

import importlib
import inspect
from typing import Any, Literal

import pytest
import typer
from pydantic import BaseModel, ConfigDict
from typer.testing import CliRunner

from components.command import running, with_options
from components.deploy.parameters import DeployParameters
from components.evaluate.parameters import EvaluateParameters
from components.gate.parameters import Limits
from components.prepare_data.parameters import PrepareParameters
from components.train_lora.parameters import TrainLoraParameters
from fovea.errors import UserError


class Inner(BaseModel):
    """A model in a model."""

    pods: int = 1


class Parameters(BaseModel):
    """Some of every kind."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    source: str
    """Where from."""
    mode: Literal["fast", "slow"] = "fast"
    checked: bool = True
    inner: Inner = Inner()


def command(given: list[Any]) -> typer.Typer:
    @with_options(Parameters)
    def main(parameters: dict[str, Any], run_id: str = "manual") -> None:
        with running("step"):
            given.append((run_id, parameters))
            if parameters["source"] == "nowhere":
                raise UserError("there is no such source")

    app = typer.Typer()
    app.command()(main)
    return app


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--source a", ("manual", {"source": "a", "mode": "fast", "checked": True, "inner": "{}"})),
        (
            '--source b --mode slow --no-checked --inner {"pods":2} --run-id 7',
            ("7", {"source": "b", "mode": "slow", "checked": False, "inner": '{"pods":2}'}),
        ),
    ],
)
def test_what_is_given_comes_as_parameters(words: str, expected: tuple[str, dict[str, Any]]) -> None:
    given: list[Any] = []
    done = CliRunner().invoke(command(given), words.split())
    assert (done.exit_code, given) == (0, [expected]), done.output


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ("", 2, "Missing option '--source'"),
        ("--source a --mode other", 2, "Invalid value for '--mode'"),
        ("--source nowhere", 1, "step: there is no such source"),
    ],
)
def test_what_is_wrong_is_said(words: str, status: int, said: str) -> None:
    done = CliRunner().invoke(command([]), words.split())
    assert (done.exit_code, said in done.output) == (status, True), done.output
    assert "Traceback" not in done.output


def test_help_describes_the_parameters() -> None:
    assert "Where from." in CliRunner().invoke(command([]), ["--help"]).output


@pytest.mark.parametrize(
    ("room", "parameters"),
    [
        ("prepare_data", PrepareParameters),
        ("train_lora", TrainLoraParameters),
        ("evaluate", EvaluateParameters),
        ("gate", Limits),
        ("deploy", DeployParameters),
    ],
)
def test_every_parameter_of_a_step_is_an_option_and_described(room: str, parameters: type[BaseModel]) -> None:
    main = importlib.import_module(f"components.{room}.__main__").main
    assert parameters.model_fields.keys() <= inspect.signature(main).parameters.keys()
    assert all(field.description for field in parameters.model_fields.values())

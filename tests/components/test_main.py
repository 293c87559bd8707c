"""Components as commands: options follow from the KFP contract and from the parameters' model."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from components.__main__ import COMPONENTS, make_app
from fovea.errors import UserError

APP = make_app()


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the gate's step gets; it raises for a run that is called wrong, and refuses all others."""
    found: dict[str, Any] = {}

    def step(**arguments: Any) -> tuple[bool, str]:
        found.update(arguments)
        if arguments["run_id"] == "wrong":
            raise UserError("there is no such record")
        return arguments["run_id"] == "good", "because"

    monkeypatch.setattr("components.gate.step.gate_step", step)
    return found


RECORDS = ["--base", "b.json", "--challenger", "c.json", "--champion", "n.json", "--model", "m.json"]
COMMAND = ["gate", *RECORDS, "--artifact-root", "s3://bucket"]


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--run-id", "good"], 0, ""),
        ([], 1, ""),
        (["--run-id", "wrong"], 1, "gate: there is no such record\n"),
        (["--min-samples", "many"], 2, "Invalid value for '--min-samples'"),
        (["--gate-rules", "@no-such-file"], 2, "no-such-file cannot be read"),
    ],
)
def test_exit_status_and_message_say_how_it_went(
    words: list[str], status: int, said: str, given: dict[str, Any]
) -> None:
    done = CliRunner().invoke(APP, [*COMMAND, *words])
    assert done.exit_code == status, done.output
    assert said in done.output
    assert "Traceback" not in done.output


def test_artifacts_are_files_and_options_parameters(given: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text("defaults: true")
    words = ["--min-samples", "7", "--gate-rules", f"@{tmp_path}/rules.yaml", "--decision", "out.json"]
    CliRunner().invoke(APP, [*COMMAND, *words])
    assert (given["base_record"], given["challenger_record"]) == ("b.json", "c.json")
    assert (given["decision_record"], given["report"]) == ("out.json", "report.md")
    assert given["artifact_root"] == "s3://bucket"
    assert given["parameters"]["min_samples"] == 7
    assert given["parameters"]["gate_rules"] == "defaults: true"


def test_what_is_missing_is_named() -> None:
    done = CliRunner().invoke(APP, ["gate"])
    assert done.exit_code == 2
    assert "Missing option '--base'" in done.output


@pytest.mark.parametrize("name", COMPONENTS)
def test_help_shows_every_artifact_and_parameter(name: str) -> None:
    component, parameters = COMPONENTS[name]
    shown = CliRunner().invoke(APP, [name, "--help"], env={"COLUMNS": "200"}, terminal_width=200).output
    fields: set[str] = set(parameters.model_fields) if parameters else set()
    inputs = set(component.component_spec.inputs) - {"parameters"}
    for option in fields | inputs:
        assert f"--{option.replace('_', '-')}" in shown


def test_every_parameter_is_described() -> None:
    for _, parameters in COMPONENTS.values():
        for name, field in parameters.model_fields.items() if parameters else ():
            assert field.description, name

"""The settings of the server are declared once, and the command lines follow."""

from pathlib import Path
from typing import Annotated

import pytest
import typer
from pydantic import BaseModel, ConfigDict, Field
from typer.testing import CliRunner

from fovea.errors import UserError
from serving.__main__ import make_app, parse_arguments
from serving.options import with_options
from serving.settings import OptionNames, ServerSettings


def test_every_setting_is_an_option_with_its_description() -> None:
    shown = " ".join(CliRunner().invoke(make_app(lambda _: None), ["--help"]).output.split())
    for name, field in ServerSettings.model_fields.items():
        names = {"port": "--http-port, --port", "cors_origins": "--cors-origin"}
        assert names.get(name, f"--{name.replace('_', '-')}") in shown
        assert field.description
        assert " ".join(field.description.split()) in shown.replace("- ", "-"), name


def test_the_defaults_are_those_of_the_settings_but_for_the_address() -> None:
    assert parse_arguments([]) == ServerSettings(host="0.0.0.0")  # noqa: S104


ALL = """
    --model-dir=/m --model-record=r.json --evaluation=e.json --model-name=shop --host=::1 --http-port=0
    --device=cuda --dtype=bfloat16 --compile --max-batch-size=2 --max-waiting=0 --workers=99
    --request-seconds=1.5 --hang-seconds=9 --grace-seconds=0 --api-keys=/keys --requests-per-minute=60
    --cors-origin=https://a.example --cors-origin=https://b.example --fetch-profile=default
    --log-format=json --address-file=/a --exit-with-parent
"""


def test_all_options() -> None:
    found = parse_arguments(ALL.split())
    assert found == ServerSettings(
        model_dir=Path("/m"),
        model_record="r.json",
        evaluation="e.json",
        model_name="shop",
        host="::1",
        port=0,
        device="cuda",
        dtype="bfloat16",
        compile=True,
        max_batch_size=2,
        max_waiting=0,
        workers=99,
        request_seconds=1.5,
        hang_seconds=9,
        grace_seconds=0,
        api_keys=Path("/keys"),
        requests_per_minute=60,
        cors_origins=["https://a.example", "https://b.example"],
        fetch_profile="default",
        log_format="json",
        address_file=Path("/a"),
        exit_with_parent=True,
    )
    unchanged = [name for name, value in ServerSettings() if getattr(found, name) == value]
    assert unchanged == ["model_uri"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--model-uri s3://a --model-dir b", "give --model-uri or --model-dir, not both"),
        ("--request-seconds nan", "request_seconds = nan"),
        ("--request-seconds 0", "request_seconds = 0.0: input should be greater than 0"),
        ("--model-name=", "model_name = ''"),
    ],
)
def test_wrong_settings_are_one_line(arguments: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_arguments(arguments.split())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "option",
    ["--http-port=70000", "--workers=0", "--dtype=int8", "--log-format=xml", "--no-compile", "--wrong"],
)
def test_wrong_options_are_refused_with_a_hint(option: str) -> None:
    result = CliRunner().invoke(make_app(lambda _: None), [option])
    assert result.exit_code == 2
    assert option.partition("=")[0] in result.output


def test_a_commands_own_options_stay(capsys: pytest.CaptureFixture[str]) -> None:
    class Settings(BaseModel):
        model_config = ConfigDict(use_attribute_docstrings=True)

        size: int = Field(default=4, ge=1)
        """How large it is."""
        colour: Annotated[str, OptionNames(("--color", "--colour"))] = "red"
        """What colour it has."""
        secret: str = ""
        """No option."""

    @with_options(Settings, without=("secret",), colour="green")
    def paint(what: Annotated[str, typer.Option(help="What to paint.")] = "wall", **options: object) -> None:
        print(what, options)

    app = typer.Typer()
    app.command()(paint)
    runner = CliRunner()
    assert runner.invoke(app, []).output == "wall {'size': 4, 'colour': 'green'}\n"
    assert runner.invoke(app, ["--what=door", "--color=blue", "--size=1"]).output == (
        "door {'size': 1, 'colour': 'blue'}\n"
    )
    assert runner.invoke(app, ["--secret=x"]).exit_code == 2

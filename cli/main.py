"""The `fovea` command: shared options, errors and the list of subcommands."""

import errno
import sys
from typing import Annotated

import typer

from cli.compile import compile_command
from cli.doctor import doctor
from cli.import_model import import_model_command
from cli.predict import predict
from cli.preview import preview
from cli.rollback import rollback
from cli.run import run
from cli.sample_data import sample_data
from cli.sample_model import sample_model
from cli.serve import serve
from cli.status import status
from cli.submit import submit
from fovea import __version__
from fovea.errors import UserError

INTERRUPTED = 130
"""The exit status after Ctrl-C, as in shells."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Fine-tune Phi-3-Vision on product pictures and deploy the result.",
    epilog="Start with: fovea doctor, then fovea run",
)


def _version(asked: bool) -> None:
    if asked:
        print(f"fovea {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Handle the options before the subcommand."""


app.command("run")(run)
app.command("preview")(preview)
app.command("serve")(serve)
app.command("predict")(predict)
app.command("status")(status)
app.command("rollback")(rollback)
app.command("doctor")(doctor)
app.command("import-model")(import_model_command)
app.command("compile")(compile_command)
app.command("submit")(submit)
app.command("sample-data")(sample_data)
app.command("sample-model")(sample_model)


def main() -> None:
    """Run the command line; print errors that the user can fix as one line, without a traceback."""
    try:
        app(prog_name="fovea")
    except UserError as error:
        typer.secho(f"error: {error}", fg=typer.colors.RED, err=True)
        sys.exit(1)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            typer.secho("interrupted: all processes of the run have stopped", err=True)
        raise
    except OSError as error:
        if error.errno is None:
            raise
        typer.secho(f"error: {_explain(error)}", fg=typer.colors.RED, err=True)
        sys.exit(1)


def _explain(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return "the disk is full: free some space, or choose a folder on another disk (--state, --out)"
    return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)


if __name__ == "__main__":
    main()

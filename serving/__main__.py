"""``python -m serving``: the command that a predictor's container starts with."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import typer

from fovea.errors import UserError
from fovea.parameters import parse_parameters
from serving.options import with_options
from serving.server import serve
from serving.settings import ServerSettings


def make_app(start: Callable[[ServerSettings], None]) -> typer.Typer:
    """Return the command-line application, which calls ``start`` with the settings."""
    app = typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    # A container is reached from outside.
    @app.command()
    @with_options(ServerSettings, host="0.0.0.0")  # noqa: S104
    def command(**options: Any) -> None:
        """Serve a tuned model: KServe's V1 and V2 protocols and OpenAI's chat completions."""
        start(parse_parameters(ServerSettings, options, what="options"))

    return app


def parse_arguments(arguments: Sequence[str]) -> ServerSettings:
    """Return the settings that a command line gives a server.

    Raises:
        UserError: an option's value is not allowed.
    """
    found: list[ServerSettings] = []
    make_app(found.append)(arguments, standalone_mode=False)
    return found[0]


def main() -> None:
    """Run the server; an error that a user can correct is one line on standard error."""
    try:
        make_app(serve)(prog_name="python -m serving")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()

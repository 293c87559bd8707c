"""A step as a command of its own: its parameters as options, its errors as one line."""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

Command = Callable[..., None]

_KIND = inspect.Parameter.KEYWORD_ONLY


def with_options(parameters: type[BaseModel]) -> Callable[[Command], Command]:
    """Give a command an option for each field of a step's parameters, with its type, default and description.

    The command takes what was given as its argument ``parameters``, a dict; the step validates it. A field
    that is a model itself is given as JSON.
    """

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def with_parameters(**given: Any) -> None:
            own = {name: given.pop(name) for name in parameters.model_fields}
            command(parameters=own, **given)

        of_command = inspect.signature(command).parameters.values()
        every = [each.replace(kind=_KIND) for each in of_command if each.name != "parameters"]
        every += [_option(name, field) for name, field in parameters.model_fields.items()]
        # What typer reads.
        with_parameters.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
        with_parameters.__annotations__ = {each.name: each.annotation for each in every}
        return with_parameters

    return decorate


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    is_model = inspect.isclass(field.annotation) and issubclass(field.annotation, BaseModel)
    default = inspect.Parameter.empty if field.is_required() else "{}" if is_model else field.default
    option = typer.Option(help=field.description, metavar="JSON" if is_model else None)
    annotation = Annotated[str if is_model else field.annotation, option]  # type: ignore[valid-type]
    return inspect.Parameter(name, _KIND, default=default, annotation=annotation)


@contextmanager
def running(step: str) -> Iterator[None]:
    """Log to standard output; an error that a user can mend is one line and status 1."""
    # Here, so that --help comes at once.
    from fovea.errors import UserError
    from fovea.steps import configure_logging

    configure_logging()
    try:
        yield
    except UserError as error:
        typer.echo(f"{step}: {error}", err=True)
        raise typer.Exit(1) from error

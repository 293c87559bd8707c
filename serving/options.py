"""Command-line options that are generated from the fields of a settings model."""

import inspect
from collections.abc import Callable, Collection
from typing import Annotated, Any, TypeVar

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from serving.settings import OptionNames

Command = TypeVar("Command", bound=Callable[..., None])


def with_options(
    settings: type[BaseModel], *, without: Collection[str] = (), **defaults: Any
) -> Callable[[Command], Command]:
    """Give a typer command an option for each field of a settings model.

    The command takes their values as ``**options``, by the names of the fields.

    Args:
        settings: the model; a field's default, bounds and description are the option's.
        without: fields that get no option.
        defaults: of options that have another default than the field.
    """
    options = [
        _option(name, field, defaults.get(name))
        for name, field in settings.model_fields.items()
        if name not in without
    ]

    def decorate(command: Command) -> Command:
        taken = inspect.signature(command).parameters.values()
        own = [each for each in taken if each.kind is not inspect.Parameter.VAR_KEYWORD]
        # These two are what typer reads.
        command.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined]
        command.__annotations__ = {each.name: each.annotation for each in (*own, *options)}
        return command

    return decorate


def _option(name: str, field: FieldInfo, default: Any) -> inspect.Parameter:
    names = next((mark.names for mark in field.metadata if isinstance(mark, OptionNames)), None)
    option = typer.Option(
        *(names or [f"--{name.replace('_', '-')}"]),
        help=field.description,
        min=_bound(field, "ge"),
        max=_bound(field, "le"),
    )
    if default is None:
        default = field.get_default(call_default_factory=True)
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[field.annotation, option],
    )


def _bound(field: FieldInfo, name: str) -> float | None:
    """Return a bound that the field declares, and typer can show; pydantic checks all of them."""
    return next((getattr(mark, name) for mark in field.metadata if hasattr(mark, name)), None)

"""Runs one component without a pipeline: ``python -m components NAME --help``.

The options come from the component's KFP contract and from its parameters' model: a file for each artifact, a
value for each parameter.
"""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, get_args

import docstring_parser
import typer
from kfp.dsl import HTML, Artifact, ClassificationMetrics, Markdown, Metrics
from kfp.dsl.types.type_annotations import OutputAnnotation
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from components.deploy.component import deploy
from components.deploy.parameters import DeployParameters
from components.evaluate.component import evaluate, find_champion, report_evaluation
from components.evaluate.parameters import EvaluateParameters
from components.gate.component import gate
from components.gate.parameters import GateParameters
from components.merge_adapter.component import merge_adapter
from components.merge_adapter.parameters import MergeAdapterParameters
from components.prepare_data.component import prepare_data
from components.prepare_data.parameters import PrepareDataParameters
from components.train_lora.component import train_lora
from components.train_lora.parameters import TrainLoraParameters
from fovea.errors import UserError
from fovea.steps import configure_logging

COMPONENTS: dict[str, tuple[Any, type[BaseModel] | None]] = {
    "prepare_data": (prepare_data, PrepareDataParameters),
    "train_lora": (train_lora, TrainLoraParameters),
    "merge_adapter": (merge_adapter, MergeAdapterParameters),
    "evaluate": (evaluate, EvaluateParameters),
    "find_champion": (find_champion, None),
    "gate": (gate, GateParameters),
    "report_evaluation": (report_evaluation, None),
    "deploy": (deploy, DeployParameters),
}

_SUFFIXES = {HTML: ".html", Markdown: ".md"}
"""File name suffixes of outputs; all others are records."""
_SHOWN = (Metrics, ClassificationMetrics)
"""Outputs that are shown in KFP's UI and are not files."""


def make_app() -> typer.Typer:
    """Return the command-line application, with a command for each component."""
    app = typer.Typer(add_completion=False, no_args_is_help=True)
    app.callback()(_describe)
    for name, (component, parameters) in COMPONENTS.items():
        app.command(name, help=component.component_spec.description)(_command(name, component, parameters))
    return app


def _describe() -> None:
    """Run one component without a pipeline.

    Artifacts are files; a text parameter given as @FILE is read from that file.
    """


def _command(name: str, component: Any, parameters: type[BaseModel] | None) -> Callable[..., None]:
    contract = inspect.signature(component.python_func).parameters
    artifacts = {each: _artifact_type(contract[each].annotation) for each in contract}
    fields = parameters.model_fields if parameters else {}

    def run(**given: Any) -> None:
        values = {key: _read(value) for key, value in given.items() if key in fields}
        inputs: dict[str, Any] = {"parameters": values} if parameters else {}
        for key, artifact in artifacts.items():
            if artifact is not None:
                path = given.get(key)
                inputs[key] = (
                    None if path is None and artifact not in _SHOWN else artifact(uri=str(path or ""))
                )
            elif key != "parameters":
                inputs[key] = given[key]
        _run(name, component, inputs)

    documented = docstring_parser.parse(component.python_func.__doc__).params
    descriptions = {each.arg_name: each.description for each in documented}
    options = [_option(each, descriptions) for each in contract.values() if each.name != "parameters"]
    every = [each for each in options if each is not None] + [
        _parameter_option(key, field) for key, field in fields.items()
    ]
    # What typer reads.
    run.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in every}
    return run


def _run(name: str, component: Any, inputs: Mapping[str, Any]) -> None:
    """Run a component; a UserError becomes one line and status 1, a refusal status 1."""
    configure_logging()
    try:
        result = component.python_func(**inputs)
    except UserError as error:
        typer.echo(f"{name}: {error}", err=True)
        raise typer.Exit(1) from error
    for value in inputs.values():
        if isinstance(value, Metrics):
            for figure, number in value.metadata.items():
                typer.echo(f"{figure:32} {number:.4g}")
    if result is not None and not result[0]:
        raise typer.Exit(1)


def _artifact_type(annotation: Any) -> type[Artifact] | None:
    """Return the type of an artifact's annotation, such as ``Input[Model]``; None for a parameter's."""
    found = next(iter(get_args(annotation)), None)
    return found if inspect.isclass(found) and issubclass(found, Artifact) else None


def _option(parameter: inspect.Parameter, descriptions: Mapping[str, Any]) -> inspect.Parameter | None:
    """Return the option for an artifact or a plain input; None for an output that is not a file."""
    name, artifact = parameter.name, _artifact_type(parameter.annotation)
    is_output = OutputAnnotation in get_args(parameter.annotation)
    if artifact in _SHOWN:
        return None
    default = parameter.default
    annotation: Any = parameter.annotation
    if artifact is not None:
        annotation = Path if default is inspect.Parameter.empty else Path | None
        if is_output:
            default = Path(name + _SUFFIXES.get(artifact, ".json"))
    elif name == "run_id":
        default = "manual"
    return _keyword(name, Annotated[annotation, typer.Option(help=descriptions.get(name))], default)


def _parameter_option(name: str, field: FieldInfo) -> inspect.Parameter:
    """Return the option for a field of a parameters' model; a field that is a model is given as JSON."""
    is_model = inspect.isclass(field.annotation) and issubclass(field.annotation, BaseModel)
    default = inspect.Parameter.empty if field.is_required() else "{}" if is_model else field.default
    option = typer.Option(help=field.description, metavar="JSON" if is_model else None)
    return _keyword(name, Annotated[str if is_model else field.annotation, option], default)


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _read(value: Any) -> Any:
    """Return a parameter's value; the content of the file for ``@FILE``."""
    if not isinstance(value, str) or not value.startswith("@"):
        return value
    try:
        return Path(value[1:]).read_text()
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"{value[1:]} cannot be read ({error})") from error


if __name__ == "__main__":
    make_app()(prog_name="python -m components")

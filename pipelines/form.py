"""The pipeline's parameters in KFP's form: the settings that most runs set, and one text for all others."""

import inspect
import json
from collections.abc import Iterable, Mapping
from typing import Any

import yaml
from pydantic import BaseModel

from fovea.errors import UserError
from fovea.yaml_text import read_yaml
from pipelines.settings import RunSettings, validate_settings

FLAT = (
    "artifact_root",
    "base_model",
    "source",
    "experiment",
    "registered_model_name",
    "service_name",
    "deploy_target",
    "max_rows",
    "num_crops",
    "lora_r",
    "learning_rate",
    "num_train_epochs",
)
"""The settings that are separate parameters of the pipeline: those that most runs set."""

SETTINGS = "settings"
"""The pipeline's parameter that holds all other settings as YAML."""

_ABOUT_SETTINGS = "Any other settings, as YAML: lines of 'name: value'. docs/settings.md lists them."
_TYPES = (str, int, float, bool)


def form_parameters(defaults: Mapping[str, Any] | None = None) -> list[inspect.Parameter]:
    """Return the pipeline's parameters; a platform's ``defaults`` replace the project's."""
    defaults = defaults or {}
    found = []
    for name in FLAT:
        field = RunSettings.model_fields[name]
        default = inspect.Parameter.empty if field.is_required() else field.default
        found.append(_parameter(name, _kfp_type(field.annotation), defaults.get(name, default)))
    others = {name: value for name, value in defaults.items() if name not in FLAT}
    # On one line: KFP writes defaults into a comment above the compiled pipeline.
    found.append(_parameter(SETTINGS, str, json.dumps(others, ensure_ascii=False) if others else ""))
    # Parameters without a default come first, as in any signature.
    return sorted(found, key=lambda each: each.default is not inspect.Parameter.empty)


def _parameter(name: str, annotation: type, default: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=annotation, default=default
    )


def _kfp_type(annotation: Any) -> type:
    """Return KFP's type of a field: KFP knows no Literal."""
    return annotation if annotation in _TYPES else str


def describe_parameter(name: str) -> str:
    """Return a form parameter's description, on one line."""
    return _ABOUT_SETTINGS if name == SETTINGS else describe_setting(name)


def describe_setting(name: str) -> str:
    """Return a setting's description, on one line."""
    return " ".join((RunSettings.model_fields[name].description or "").split())


def limits_of(name: str) -> str:
    """Return the allowed values of a setting, on one line; empty if all of its type are."""
    schema = RunSettings.model_json_schema()["properties"].get(name, {})
    if "enum" in schema:
        return ", ".join(str(each) or "empty" for each in schema["enum"])
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    return " and ".join(f"{sign} {schema[key]}" for key, sign in signs.items() if key in schema)


def to_arguments(run: RunSettings) -> dict[str, Any]:
    """Return a run's settings as the pipeline's arguments; the text has those that are not the defaults."""
    values = run.model_dump(mode="json", exclude_none=True)
    changed = run.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    others = {name: value for name, value in changed.items() if name not in FLAT}
    return {**{name: values[name] for name in FLAT}, SETTINGS: _as_yaml(others)}


def from_arguments(arguments: Mapping[str, Any]) -> RunSettings:
    """Return the settings of the pipeline's arguments.

    Raises:
        UserError: ``settings`` is not YAML of settings or names a separate parameter, or a value is
            wrong.
    """
    text = str(arguments.get(SETTINGS) or "")
    try:
        others = read_yaml(text) or {}
    except yaml.YAMLError as error:
        raise UserError(f"{SETTINGS}: is not YAML ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(others, dict):
        raise UserError(f"{SETTINGS}: must hold lines of 'name: value'")
    twice = [name for name in FLAT if name in others]
    if twice:
        raise UserError(f"{SETTINGS}: {', '.join(twice)} is a separate parameter; set it there")
    flat = {name: arguments[name] for name in FLAT if name in arguments}
    return validate_settings({**flat, **others})


def _as_yaml(values: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True) if values else ""


def docstring(first: str, descriptions: Mapping[str, str]) -> str:
    """Return a docstring that KFP takes the parameters' descriptions from."""
    return f"{first}\n\nArgs:\n" + "\n".join(f"    {name}: {text}" for name, text in descriptions.items())


def settings_table(names: Iterable[str]) -> str:
    """Return a Markdown table of settings: name, default, allowed values and description."""
    rows = ["| setting | default | allowed | |", "|---|---|---|---|"]
    for name in names:
        field = RunSettings.model_fields[name]
        default = "" if field.is_required() else f"`{_shown(field.default)}`"
        rows.append(f"| `{name}` | {default} | {limits_of(name)} | {describe_setting(name)} |")
    return "\n".join(rows)


def _shown(value: Any) -> str:
    if isinstance(value, BaseModel):
        return "{}"
    return value if value and isinstance(value, str) else json.dumps(value)

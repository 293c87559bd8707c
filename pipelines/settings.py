"""A run's settings: the pipeline's parameters, from a YAML file and ``key=value`` overrides, checked."""

import difflib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from components.flow.parameters import FinetuneParameters
from fovea.errors import UserError

Settings = TypeVar("Settings", bound=BaseModel)

SAMPLE_SETTINGS = Path(__file__).with_name("sample.yaml")
"""The settings of the run on the sample catalogue and the sample model."""

_SAMPLE_MARK = "sample-model.json"
"""Lies in every sample model's folder."""


def default_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a local run takes where nothing is given: the sample model has values of its own."""
    base = given.get("base_model")
    is_sample = not base or (Path(str(base)) / _SAMPLE_MARK).is_file()
    return read_settings(SAMPLE_SETTINGS) if is_sample else {}


def read_settings(path: Path, others: Collection[str] = ()) -> dict[str, Any]:
    """Read a YAML file of settings; its keys are checked, its values not yet.

    Args:
        path: The file.
        others: Names that are settings here, too.

    Raises:
        UserError: the file cannot be read, is no mapping, or has a key that is no setting.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: cannot be read ({getattr(error, 'strerror', error)}); give a YAML file"
        ) from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is not YAML ({' '.join(str(error).split())})") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold lines of 'name: value'")
    for key in content:
        _check_key(str(key), str(path), others)
    return {str(key): value for key, value in content.items()}


def read_overrides(overrides: Sequence[str], others: Collection[str] = ()) -> dict[str, str]:
    """Read ``key=value`` overrides; of two for the same key the last one holds.

    Args:
        overrides: As they were given.
        others: Names that are settings here, too.

    Raises:
        UserError: an override is not of this form, or names no setting.
    """
    values = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise UserError(f"--set {override}: write it as --set name=value")
        _check_key(key.strip(), f"--set {override}", others)
        values[key.strip()] = value.strip()
    return values


def validate_settings(values: Mapping[str, Any]) -> FinetuneParameters:
    """Check values and fill in the defaults.

    Raises:
        UserError: names every setting that is wrong, its value and what is allowed.
    """
    return validate(FinetuneParameters, values)


def validate(model: type[Settings], values: Mapping[str, Any]) -> Settings:
    """Check values of any settings.

    Raises:
        UserError: names every setting that is wrong, its value and what is allowed.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise UserError("wrong settings: " + "; ".join(map(_explain, error.errors()))) from error


def _explain(item: Any) -> str:
    name = ".".join(map(str, item["loc"]))
    if item["type"] == "missing":
        return f"{name} is missing; give it with --set {name}=… or in a settings file"
    message = str(item["msg"]).removeprefix("Value error, ")
    return f"{name} = {item['input']!r:.80}: {_lower(message)}" if name else _lower(message)


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]


def _check_key(key: str, where: str, others: Collection[str]) -> None:
    names = [*FinetuneParameters.model_fields, *others]
    if key in names:
        return
    close = difflib.get_close_matches(key, names, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(sorted(names))}"
    raise UserError(f"{where}: there is no setting {key!r}; {hint}")

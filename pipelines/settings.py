"""A run's settings: the pipeline's parameters, from a YAML file and ``key=value`` overrides, checked."""

import difflib
import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import yaml
from pydantic import BaseModel, ValidationError

from components.deploy.parameters import LONGEST_NAME
from components.flow.parameters import FinetuneParameters
from fovea.errors import UserError

Settings = TypeVar("Settings", bound=BaseModel)

SAMPLE_SETTINGS = Path(__file__).with_name("sample.yaml")
"""The settings of the run on the sample catalogue and the sample model."""

_SAMPLE_MARK = "sample-model.json"
"""Lies in every sample model's folder."""

NAMES = ("experiment", "registered_model", "service_name")
"""The settings that say under which names a run's results are known."""


def default_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a local run's own defaults, for settings that are not given.

    The sample model has values of its own. A run with a source gets its names from the source, so that it
    does not replace the sample's service and is not compared with the sample's champion.
    """
    base, source = given.get("base_model"), given.get("source")
    is_sample_model = not base or (Path(str(base)) / _SAMPLE_MARK).is_file()
    settings = read_settings(SAMPLE_SETTINGS) if is_sample_model else {}
    return settings | (dict.fromkeys(NAMES, name_for(str(source))) if source else {})


def name_for(source: str) -> str:
    """Return the name of a table's service: its file's, its folder's or its hub dataset's.

    ``feeds/Shoes 2026.csv`` gives ``shoes-2026``. What cannot be a service's name, or is the sample's, gets
    ``catalogue`` in front.
    """
    known = unicodedata.normalize("NFKD", re.sub(r"\.[A-Za-z]+$", "", _last_part(source)))
    name = re.sub(r"[^a-z0-9]+", "-", known.encode("ascii", "ignore").decode().lower()).strip("-")
    if not name[:1].isalpha() or name == FinetuneParameters.model_fields["service_name"].default:
        name = f"catalogue-{name}"
    return name[:LONGEST_NAME].strip("-")


def _last_part(source: str) -> str:
    """Return the last part of a source's address; of a pattern, the folder that it starts in."""
    scheme, mark, rest = source.partition("://")
    if not mark:
        path = Path(_before_pattern(source) or ".")
        return path.resolve().name if path.name in ("", "..") else path.name
    if scheme.lower() in ("http", "https"):
        path = Path(unquote(urlsplit(source).path))
    elif scheme == "hf":
        # owner/name@revision/configuration:split
        path = Path(*re.split("[@:]", rest)[0].split("/")[:2])
    else:
        path = Path(_before_pattern(rest))
    return path.name


def _before_pattern(path: str) -> str:
    return re.split(r"[^/]*[*?]", path, maxsplit=1)[0]


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

"""A run's settings: every component's parameters in one model; read from YAML and ``key=value``.

They are checked when a run is submitted, and again by preflight, since a run can also be started from the UI.
"""

import difflib
import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeVar
from urllib.parse import unquote, urlsplit

import yaml
from pydantic import Field, model_validator

from components.deploy.parameters import LONGEST_NAME, DeployParameters
from components.evaluate.parameters import EvaluateParameters
from components.gate.parameters import GateParameters
from components.merge_adapter.parameters import MergeAdapterParameters
from components.prepare_data.parameters import PrepareDataParameters
from components.train_lora.parameters import TrainLoraParameters
from fovea.errors import UserError
from fovea.parameters import Parameters, parse_parameters
from fovea.yaml_text import read_yaml

P = TypeVar("P", bound=Parameters)

_PLACEHOLDER = "{{$"
"""Kubeflow Pipelines takes text with it for a placeholder, and fails."""

SAMPLE_SETTINGS = Path(__file__).with_name("sample.yaml")
"""The settings of the run on the sample catalogue and the sample model."""

_SAMPLE_MARK = "sample-model.json"
"""A file in every sample model's folder."""

NAMES = ("experiment", "registered_model_name", "service_name")
"""The settings that name a run's results."""

COMPONENTS: dict[str, type[Parameters]] = {
    "prepare_data": PrepareDataParameters,
    "train_lora": TrainLoraParameters,
    "merge_adapter": MergeAdapterParameters,
    "evaluate": EvaluateParameters,
    "gate": GateParameters,
    "deploy": DeployParameters,
}
"""The components that take parameters, and their models."""


class RunSettings(
    DeployParameters,
    GateParameters,
    EvaluateParameters,
    MergeAdapterParameters,
    TrainLoraParameters,
    PrepareDataParameters,
):
    """The settings of a run: the parameters of its components, and where its results are kept."""

    artifact_root: str = Field(pattern=r"^s3://[^/\s]+(/\S*)?$")
    """Where everything that the run makes is stored: s3://bucket/prefix."""
    base_model: str = Field(pattern=r"^s3://[^/\s]+/\S+\.json$")
    """Record of the base model in S3: s3://…/index/import_model/….json."""
    on_refusal: Literal["fail", "end"] = "fail"
    """What a refusal of the gate does to the run: fail, or end it as not deployed."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_placeholders(cls, values: Any) -> Any:
        for name, value in dict(values).items():
            if _PLACEHOLDER in (value if isinstance(value, str) else repr(value)):
                raise ValueError(
                    f"{name} must not contain {_PLACEHOLDER}, which Kubeflow Pipelines would replace"
                )
        return values

    @model_validator(mode="after")
    def _check_test_split(self) -> Self:
        if not self.test_fraction:
            raise ValueError("test_fraction must be above 0: the gate judges by the test split")
        return self

    def parameters(self, component: str) -> dict[str, Any]:
        """Return a component's own parameters, as JSON values without null, which KFP does not take."""
        return self.model_dump(
            mode="json", include=set(COMPONENTS[component].model_fields), exclude_none=True
        )

    def of(self, model: type[P]) -> P:
        """Return the parameters of one component."""
        return model(**{name: getattr(self, name) for name in model.model_fields})


def default_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a local run's own defaults, for settings that are not given.

    The sample model has its own values. A run with a source gets its names from the source, so that it
    does not replace the sample's service and is not compared with the sample's champion.
    """
    base, source = given.get("base_model"), given.get("source")
    is_sample_model = not base or (Path(str(base)) / _SAMPLE_MARK).is_file()
    settings = read_settings(SAMPLE_SETTINGS) if is_sample_model else {}
    return settings | (dict.fromkeys(NAMES, name_for(str(source))) if source else {})


def name_for(source: str) -> str:
    """Return the name of a table's service: its file's, its folder's or its hub dataset's.

    ``feeds/Shoes 2026.csv`` gives ``shoes-2026``. A name that is not valid for a service, or is the
    sample's, gets the prefix ``catalogue``.
    """
    known = unicodedata.normalize("NFKD", re.sub(r"\.[A-Za-z]+$", "", _last_part(source)))
    name = re.sub(r"[^a-z0-9]+", "-", known.encode("ascii", "ignore").decode().lower()).strip("-")
    if not name[:1].isalpha() or name == RunSettings.model_fields["service_name"].default:
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
    """Read a YAML file of settings and check its keys; values are checked later.

    Args:
        path: The file.
        others: Additional names that are allowed.

    Raises:
        UserError: the file cannot be read, is not a mapping, or has an unknown key.
    """
    try:
        content = read_yaml(path.read_text())
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
    """Read ``key=value`` overrides; of two for the same key the last one is used.

    Args:
        overrides: The overrides, as given on the command line.
        others: Additional names that are allowed.

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


def validate_settings(values: Mapping[str, Any]) -> RunSettings:
    """Check values and fill in the defaults.

    Raises:
        UserError: names every setting that is wrong, its value and what is allowed.
    """
    return parse_parameters(
        RunSettings,
        values,
        what="settings",
        missing="{name} is missing; give it with --set {name}=… or in a settings file",
    )


def _check_key(key: str, where: str, others: Collection[str]) -> None:
    names = [*RunSettings.model_fields, *others]
    if key in names:
        return
    if key in RunSettings.renamed():
        raise UserError(f"{where}: {key} is now called {RunSettings.renamed()[key]}")
    close = difflib.get_close_matches(key, names, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(sorted(names))}"
    raise UserError(f"{where}: there is no setting {key!r}; {hint}")

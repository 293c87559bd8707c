"""A run's settings: every parameter with its default and what is allowed; from YAML and ``key=value``.

The pipeline's own parameters have the same names and defaults. They are checked when a run is submitted, and
again by preflight, since a run can also be started by hand.
"""

import difflib
import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar
from urllib.parse import unquote, urlsplit

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from components.deploy.kserve_parameters import KServeJson
from components.deploy.parameters import LONGEST_NAME
from components.gate.parameters import read_rules
from components.prepare_data.parameters import run_task
from fovea.errors import UserError
from fovea.task import Task

Settings = TypeVar("Settings", bound=BaseModel)

SAMPLE_SETTINGS = Path(__file__).with_name("sample.yaml")
"""The settings of the run on the sample catalogue and the sample model."""

_SAMPLE_MARK = "sample-model.json"
"""Lies in every sample model's folder."""

NAMES = ("experiment", "registered_model", "service_name")
"""The settings that say under which names a run's results are known."""

Fraction = Annotated[float, Field(ge=0, le=1)]
Column = Annotated[str, Field(min_length=1, max_length=200)]


def _are_rules(text: str) -> str:
    """Refuse rules that the gate would not take; what lies in S3 is read by preflight."""
    if not text.startswith("s3://"):
        try:
            read_rules(text)
        except UserError as error:
            raise ValueError(str(error)) from error
    return text


# A name that MLflow, S3 keys and Kubernetes objects all take.
Name = Annotated[str, Field(pattern=r"^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$")]


class FinetuneParameters(BaseModel):
    """The parameters of one run, field by field those of the pipeline."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    # Where things are
    artifact_root: Annotated[str, Field(pattern=r"^s3://[^/\s]+(/\S*)?$")]
    base_model: Annotated[str, Field(pattern=r"^s3://[^/\s]+/\S+\.json$")]
    source: Annotated[str, Field(min_length=1)]
    experiment: Annotated[str, Field(min_length=1, max_length=200)] = "fovea"
    registered_model: Name = "fovea"
    fetch_profile: Name = "default"

    # Data
    image_column: Column = "imageurl"
    title_column: Column = "title"
    category_column: Column = "category3_code"
    price_column: Column = "full_price"
    product_column: Column = "product_code"
    currency_column: str = "currency_code"
    currencies: Literal["refuse", "convert", "state"] = "refuse"
    rate_column: str = ""
    target_currency: Annotated[str, Field(pattern="^([A-Z]{3})?$")] = ""
    decimal_mark: Literal["", ".", ","] = ""
    longest_side: Annotated[int, Field(ge=28, le=4096)] = 1344
    max_rows: Annotated[int, Field(ge=0)] = 0
    min_rows: Annotated[int, Field(ge=1)] = 20
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.05
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    split_name: Name = "default"
    recheck_hours: Annotated[int, Field(ge=0)] = 24

    # Training
    num_crops: Annotated[int, Field(ge=1, le=16)] = 4
    rank: Annotated[int, Field(ge=1, le=256)] = 16
    alpha: Annotated[float, Field(gt=0)] = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    target_modules: Literal["decoder", "decoder+projector", "decoder+tower", "decoder+projector+tower"] = (
        "decoder"
    )
    learning_rate: Annotated[float, Field(ge=0, le=1)] = 1e-4
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup_ratio: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    weight_decay: Fraction = 0.0
    epochs: Annotated[float, Field(gt=0, le=1000)] = 3.0
    max_steps: Annotated[int, Field(ge=0)] = 0
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 32
    device_batch_size: Annotated[int, Field(ge=1, le=512)] = 4
    gradient_checkpointing: bool = True
    compile: bool = False
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    evaluation_steps: Annotated[int, Field(ge=0)] = 0
    answered_samples: Annotated[int, Field(ge=0, le=1000)] = 8
    early_stopping: Annotated[int, Field(ge=0)] = 0
    keep: Literal["last", "best_loss", "best_answers"] = "last"
    checkpoint_minutes: Annotated[float, Field(ge=0)] = 10.0
    resume_from: Annotated[str, Field(pattern=r"^(s3://[^/\s]+/\S+\.json)?$")] = ""

    # Evaluation
    max_samples: Annotated[int, Field(ge=0)] = 0
    generation_batch_size: Annotated[int, Field(ge=1, le=1024)] = 16
    max_new_tokens: Annotated[int, Field(ge=1, le=1024)] = 64
    calibration_samples: Annotated[int, Field(ge=0)] = 500

    # What the gate asks for
    min_samples: Annotated[int, Field(ge=1)] = 200
    min_parse_rate: Fraction = 0.98
    min_category_accuracy: Fraction = 0.9
    max_price_median_ape: Annotated[float, Field(ge=0)] = 0.15
    min_picture_reliance: Fraction = 0.3
    champion_margin: Fraction = 0.03
    gate_rules: Annotated[str, Field(max_length=64 * 1024), AfterValidator(_are_rules)] = ""
    on_refusal: Literal["fail", "end"] = "fail"

    # Deployment
    service_name: Name = "fovea"
    deploy_target: Literal["local", "kserve"] = "local"
    kserve: KServeJson = "{}"

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation_fraction and test_fraction together must leave rows to train on")
        if {bool(self.rate_column), bool(self.target_currency)} != {self.currencies == "convert"}:
            raise ValueError(
                "currencies=convert needs rate_column and target_currency, and nothing else does"
            )
        if self.currencies == "state" and not self.currency_column:
            raise ValueError("currencies=state needs a currency_column")
        if self.batch_size % self.device_batch_size:
            raise ValueError("batch_size must be a multiple of device_batch_size")
            raise ValueError("batch_size must be a multiple of device_batch_size")
        if self.keep == "best_answers" and not self.answered_samples:
            raise ValueError("keep=best_answers needs answered_samples above 0")
        return self

    def task(self) -> Task:
        """Return what the run's models are asked and answer."""
        return run_task(self)


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

"""Parameters of steps: the base class of their models, and the parameters that several steps share.

A parameter is declared here or in its component's ``parameters.py``, and nowhere else. The pipeline's
signature and documentation, the command-line options, preflight's validation and the docs' table are
generated from the declaration.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fovea.errors import UserError

NOT_IN_RESULT = object()
"""Marks, as ``Annotated[type, NOT_IN_RESULT]``, a parameter that does not change the step's result.

Such a parameter is not part of the step's input key: another value finds the earlier result again.
"""


@dataclass(frozen=True)
class FormerName:
    """The name that a parameter had in earlier versions; used as ``Annotated[type, FormerName("old")]``."""

    name: str


P = TypeVar("P", bound=BaseModel)

Name = Annotated[str, Field(pattern=r"^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$")]
"""A name that MLflow, S3 keys and Kubernetes objects all take."""


class Parameters(BaseModel):
    """Base class of a step's parameters. A field's docstring is its description."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    def in_result(self) -> dict[str, Any]:
        """Return the parameters that change the step's result, as JSON values."""
        left_out = {
            name for name, field in type(self).model_fields.items() if NOT_IN_RESULT in field.metadata
        }
        return self.model_dump(mode="json", exclude=left_out)

    @classmethod
    def renamed(cls) -> dict[str, str]:
        """Return the former names of parameters, each with the name it has now."""
        return {
            mark.name: name
            for name, field in cls.model_fields.items()
            for mark in field.metadata
            if isinstance(mark, FormerName)
        }

    @model_validator(mode="before")
    @classmethod
    def _refuse_former_names(cls, values: Any) -> Any:
        former = [
            (old, new) for old, new in cls.renamed().items() if old in values and old not in cls.model_fields
        ]
        if former:
            raise ValueError("; ".join(f"{old} is now called {new}" for old, new in former))
        return values


class NumCrops(Parameters):
    """The parameter ``num_crops``."""

    num_crops: int = Field(default=4, ge=1, le=16)
    """Crops a picture is cut into at most, 1 to 16, in training, evaluation and serving. It decides the cost:
    a square picture takes 2509 tokens at 16 crops, 757 at 4, 313 at 1."""


class Seed(Parameters):
    """The parameter ``seed``."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the split, and of the training's initialisation, order and dropout."""


class Experiment(Parameters):
    """The parameter ``experiment``."""

    experiment: Annotated[str, NOT_IN_RESULT] = Field(default="fovea", min_length=1, max_length=200)
    """MLflow experiment that the run is logged to."""


def parse_parameters(
    model: type[P], values: Mapping[str, Any], *, what: str = "parameters", missing: str = "{name} is missing"
) -> P:
    """Validate parameters.

    Args:
        model: The parameters' model.
        values: The values by name.
        what: What the message calls them.
        missing: What the message says of a parameter that is missing.

    Raises:
        UserError: names each parameter that is wrong, its value and what is allowed.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise UserError(
            f"wrong {what}: " + "; ".join(_explain(item, missing) for item in error.errors())
        ) from error


def _explain(item: Any, missing: str) -> str:
    name = ".".join(map(str, item["loc"]))
    if item["type"] == "missing":
        return missing.format(name=name)
    message = str(item["msg"]).removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    return f"{name} = {item['input']!r:.80}: {message}" if name else message

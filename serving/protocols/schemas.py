"""Schemas that several protocols share: what is said about a picture, and the parameters of a request."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

FieldValues = dict[str, str | float | None]
Confidences = dict[str, Annotated[float, Field(ge=0.0, le=1.0)] | None]
KnownConfidences = Annotated[
    Confidences | None,
    Field(
        description="The probability that each field is right, as far as held-out products told; null for a "
        "field that it is not known of. Null altogether where the model was not calibrated, for other "
        "questions than the task's, and for an answer that does not follow the task."
    ),
]
FinishReason = Literal["stop", "length"]
MaxNewTokens = Annotated[int, Field(ge=1, le=1024)]
MinConfidence = Annotated[
    float,
    Field(
        ge=0.0,
        le=1.0,
        description="A field whose confidence is lower or not known is null. Refused above 0 without "
        "confidences.",
    ),
]

DEFAULT_MAX_NEW_TOKENS = 64
MAX_INSTANCES = 32


class Strict(BaseModel):
    """Base class of schemas that refuse members they do not know."""

    model_config = ConfigDict(extra="forbid")


class Open(BaseModel):
    """Base class of schemas that ignore members they do not know: clients send many that change nothing."""

    model_config = ConfigDict(extra="ignore")


class TaskName(BaseModel):
    """Which task the fields belong to."""

    name: str
    version: int


class TokenUsage(BaseModel):
    """How many tokens a prompt, its picture included, and its answer took."""

    prompt_tokens: int
    completion_tokens: int


class Prediction(BaseModel):
    """What the model says about one picture.

    ``fields`` is null where the text does not follow the task, and ``parse_error`` says why. Where the
    picture could not be used, ``error`` says why and all else is null.
    """

    fields: FieldValues | None
    confidence: KnownConfidences = None
    parse_error: str | None
    text: str | None
    finish_reason: FinishReason | None
    usage: TokenUsage | None
    model_digest: str
    task: TaskName
    error: str | None = None


class PredictResponse(BaseModel):
    """Predictions in the order of the instances."""

    predictions: list[Prediction]

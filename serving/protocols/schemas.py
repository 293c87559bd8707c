"""Requests and responses of the protocols: KServe's V1 and V2, and OpenAI's chat completions."""

import struct
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from serving.protocols.errors import RequestError

FieldValues = dict[str, str | float | None]
Confidences = dict[str, Annotated[float, Field(ge=0.0, le=1.0)] | None]
FinishReason = Literal["stop", "length"]
MaxNewTokens = Annotated[int, Field(ge=1, le=1024)]
Confidence = Annotated[float, Field(ge=0.0, le=1.0)]

DEFAULT_MAX_NEW_TOKENS = 64
MAX_INSTANCES = 32

_CONFIDENCE = (
    "The probability that each field is right, as far as held-out products told; null for a field that it is "
    "not known of. Null altogether where the model was not calibrated, for other questions than the task's, "
    "and for an answer that does not follow the task."
)
_MIN_CONFIDENCE = (
    "A field whose confidence is lower or not known is null. Refused above 0 without confidences."
)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Open(BaseModel):
    """Clients of OpenAI's protocol send many more settings than bear on an answer here."""

    model_config = ConfigDict(extra="ignore")


class TaskName(BaseModel):
    """Which task the fields belong to."""

    name: str
    version: int


class Error(BaseModel):
    """Why a request was refused, over V1 and V2."""

    error: str


class TokenUsage(BaseModel):
    """How many tokens a prompt, its picture included, and its answer took."""

    prompt_tokens: int
    completion_tokens: int


# KServe V1


class InlinePicture(_Strict):
    """A picture's bytes."""

    b64: str = Field(description="A JPEG, PNG, WebP or GIF file in base64, or a data: URL of one.")


class PictureUrl(_Strict):
    """A picture as a URL."""

    url: str = Field(
        description="A data: URL; or an http: or https: address, where the server fetches those."
    )


class Instance(_Strict):
    """One picture to describe."""

    image: InlinePicture | PictureUrl

    @property
    def encoded_picture(self) -> str:
        """The base64 or URL, whichever was given."""
        return self.image.b64 if isinstance(self.image, InlinePicture) else self.image.url


class PredictParameters(_Strict):
    """How to answer. Answers are always the model's most likely ones (greedy)."""

    max_new_tokens: MaxNewTokens = DEFAULT_MAX_NEW_TOKENS
    min_confidence: Confidence = Field(default=0.0, description=_MIN_CONFIDENCE)


class PredictRequest(_Strict):
    """Body of ``POST /v1/models/{model_name}:predict``."""

    instances: list[Instance] = Field(min_length=1, max_length=MAX_INSTANCES)
    parameters: PredictParameters = PredictParameters()


class Prediction(BaseModel):
    """What the model says about one picture.

    ``fields`` is null where the text does not follow the task, and ``parse_error`` says why. Where the
    picture could not be used, ``error`` says why and all else is null.
    """

    fields: FieldValues | None
    confidence: Confidences | None = Field(default=None, description=_CONFIDENCE)
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


# KServe V2 (Open Inference Protocol)


class InferParameters(_Open):
    """How to answer, as over V1. Others are taken, and change nothing."""

    max_new_tokens: MaxNewTokens = DEFAULT_MAX_NEW_TOKENS
    min_confidence: Confidence = 0.0


class TensorParameters(_Open):
    """How a tensor is sent."""

    binary_data_size: int | None = Field(
        default=None, ge=0, description="Its bytes follow after the JSON (binary tensor data extension)."
    )


class InputTensor(_Open):
    """The pictures: files in base64, ``data:`` URLs or addresses; or, as binary data, the files' bytes."""

    name: Literal["image"]
    shape: list[Annotated[int, Field(ge=1, le=MAX_INSTANCES)]] = Field(min_length=1, max_length=2)
    datatype: Literal["BYTES"]
    parameters: TensorParameters = TensorParameters()
    data: list[str] | None = Field(default=None, max_length=MAX_INSTANCES)

    def pictures(self, binary: bytes) -> list[str | bytes]:
        """Return the pictures, from the JSON or from what follows it.

        Raises:
            RequestError: it is not as the shape says.
        """
        size = self.parameters.binary_data_size
        if (size is None) == (self.data is None):
            raise RequestError(
                "inputs.0: send data, or binary_data_size and the bytes", param="inputs.0.data"
            )
        found: list[str | bytes] = [*self.data] if self.data is not None else _elements(binary, size or 0)
        count = 1
        for extent in self.shape:
            count *= extent
        if count != len(found):
            raise RequestError(
                f"inputs.0.shape: is for {count} pictures, and there are {len(found)}", param="inputs.0.shape"
            )
        return found


def _elements(binary: bytes, size: int) -> list[str | bytes]:
    """Split a BYTES tensor: the length of each element in 4 bytes, little-endian, and the element."""
    if size != len(binary):
        raise RequestError(
            f"inputs.0: binary_data_size is {size}, and {len(binary)} bytes follow the JSON",
            param="inputs.0.parameters.binary_data_size",
        )
    found: list[str | bytes] = []
    place = 0
    while place < size:
        end = place + 4 + (struct.unpack_from("<I", binary, place)[0] if place + 4 <= size else size)
        if end > size or len(found) == MAX_INSTANCES:
            raise RequestError("inputs.0: the binary data is no tensor of 1 to 32 pictures", param="inputs.0")
        found.append(binary[place + 4 : end])
        place = end
    return found


class InferBody(_Open):
    """Body of ``POST /v2/models/{model_name}/infer``."""

    id: str | None = Field(default=None, max_length=256)
    parameters: InferParameters = InferParameters()
    inputs: list[InputTensor] = Field(min_length=1, max_length=1)


OUTPUT_NAMES = ("fields", "confidence", "parse_error", "text", "finish_reason", "error")
"""The outputs of V2: what a prediction over V1 holds."""


class OutputTensor(BaseModel):
    """One of the outputs: an element for each picture."""

    name: str
    shape: list[int]
    datatype: Literal["BYTES"] = "BYTES"
    data: list[str]


class InferAnswer(BaseModel):
    """Outputs ``fields`` and ``confidence`` (JSON), ``parse_error``, ``text``, ``finish_reason``, ``error``.

    Each has an element for each picture; one that is null over V1 is ``null`` in JSON and else empty.
    """

    model_name: str
    model_version: str = Field(description="The model's digest.")
    id: str | None
    parameters: dict[str, str | int]
    outputs: list[OutputTensor]


# OpenAI chat completions


class ImageUrl(_Open):
    """OpenAI's way to hand over a picture."""

    url: str = Field(
        description="data:image/…;base64,… or an http: or https: address, where the server fetches those."
    )


class ImagePart(_Open):
    """A picture within a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


class TextPart(_Open):
    """Text within a message."""

    type: Literal["text"]
    text: str


ContentPart = Annotated[ImagePart | TextPart, Field(discriminator="type")]


class ChatMessage(_Open):
    """One message of a conversation. Its pictures come before its text, as in training."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[ContentPart]


class JsonSchema(_Open):
    """A schema that the fields are to follow; it can name some of the task's fields, or all."""

    name: str = Field(max_length=64)
    json_schema: dict[str, Any] = Field(alias="schema", default_factory=dict)


class TextFormat(_Open):
    """The answer is the model's text."""

    type: Literal["text"]


class JsonObjectFormat(_Open):
    """The answer is the fields as JSON."""

    type: Literal["json_object"]


class JsonSchemaFormat(_Open):
    """The answer is the fields as JSON, those of a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class StreamOptions(_Open):
    """What a stream holds besides the answer."""

    include_usage: bool | None = None


class ChatRequest(_Open):
    """Body of ``POST /openai/v1/chat/completions``.

    Answers are always the most likely ones: ``temperature``, ``top_p`` and ``seed`` change nothing.
    """

    model: str
    messages: list[ChatMessage] = Field(min_length=1, max_length=32)
    max_tokens: MaxNewTokens | None = None
    max_completion_tokens: MaxNewTokens | None = None
    response_format: ResponseFormat | None = None
    min_confidence: Confidence = Field(default=0.0, description=_MIN_CONFIDENCE)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: int | None = 1
    logprobs: bool | None = None
    tools: list[Any] | None = None

    @property
    def max_new_tokens(self) -> int:
        """The limit under either of its two names."""
        return self.max_completion_tokens or self.max_tokens or DEFAULT_MAX_NEW_TOKENS


class ChatAnswer(BaseModel):
    """The assistant's message. ``refusal`` says why there are no fields where a schema asks for some."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: str | None = None


class ChatChoice(BaseModel):
    """The one answer."""

    index: int = 0
    message: ChatAnswer
    logprobs: None = None
    finish_reason: FinishReason


class ChatUsage(TokenUsage):
    """Tokens, with their sum."""

    total_tokens: int


class FoveaExtra(BaseModel):
    """What this project adds to OpenAI's response: the answer's fields and which model gave them."""

    fields: FieldValues | None
    confidence: Confidences | None = Field(default=None, description=_CONFIDENCE)
    parse_error: str | None
    text: str
    model_digest: str
    task: TaskName


class ChatResponse(BaseModel):
    """A chat completion."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: ChatUsage
    system_fingerprint: str
    fovea: FoveaExtra


class ChatDelta(BaseModel):
    """What a chunk adds to the message."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: str | None = None


class ChatChunkChoice(BaseModel):
    """The one answer's next piece."""

    index: int = 0
    delta: ChatDelta
    logprobs: None = None
    finish_reason: FinishReason | None = None


class ChatChunk(BaseModel):
    """A piece of a streamed chat completion; the last one with a choice holds ``fovea``."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: ChatUsage | None = None
    system_fingerprint: str
    fovea: FoveaExtra | None = None


class OpenAIErrorDetail(BaseModel):
    """An error in OpenAI's terms."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(BaseModel):
    """Why a request was refused, under /openai/."""

    error: OpenAIErrorDetail


class ModelCard(BaseModel):
    """One model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "fovea"
    model_digest: str


class ModelList(BaseModel):
    """The models that are served."""

    object: Literal["list"] = "list"
    data: list[ModelCard]

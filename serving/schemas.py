"""Requests and responses of the protocols: KServe's V1 and OpenAI's chat completions."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

FieldValues = dict[str, str | float]
MaxNewTokens = Annotated[int, Field(ge=1, le=1024)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Open(BaseModel):
    """Clients of OpenAI's protocol send many more settings than bear on an answer here."""

    model_config = ConfigDict(extra="ignore")


class TaskName(BaseModel):
    """Which task the fields belong to."""

    name: str
    version: int


# KServe V1


class InlinePicture(_Strict):
    """A picture's bytes."""

    b64: str = Field(description="A JPEG, PNG, WebP or GIF file in base64, or a data: URL of one.")


class PictureUrl(_Strict):
    """A picture as a URL."""

    url: str = Field(description="A data: URL. Addresses are not fetched.")


class Instance(_Strict):
    """One picture to describe."""

    image: InlinePicture | PictureUrl

    @property
    def encoded_picture(self) -> str:
        """The base64 or URL, whichever was given."""
        return self.image.b64 if isinstance(self.image, InlinePicture) else self.image.url


class PredictParameters(_Strict):
    """How to answer. Answers are always the model's most likely ones (greedy)."""

    max_new_tokens: MaxNewTokens = 64


class PredictRequest(_Strict):
    """Body of ``POST /v1/models/{model}:predict``."""

    instances: list[Instance] = Field(min_length=1, max_length=32)
    parameters: PredictParameters = PredictParameters()


class TokenUsage(BaseModel):
    """How many tokens a prompt, its picture included, and its answer took."""

    prompt_tokens: int
    completion_tokens: int


class Prediction(BaseModel):
    """What the model says about one picture. ``fields`` is null where the text does not follow the task."""

    fields: FieldValues | None
    parse_error: str | None
    text: str
    finish_reason: Literal["stop", "length"]
    usage: TokenUsage
    model_digest: str
    task: TaskName


class PredictResponse(BaseModel):
    """Predictions in the order of the instances."""

    predictions: list[Prediction]


# OpenAI chat completions


class ImageUrl(_Open):
    """OpenAI's way to hand over a picture."""

    url: str = Field(description="data:image/…;base64,… Addresses are not fetched.")


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


class ResponseFormat(_Open):
    """How the answer is written: the model's text, or its fields as JSON."""

    type: Literal["text", "json_object"] = "text"


class ChatRequest(_Open):
    """Body of ``POST /openai/v1/chat/completions``.

    Answers are always the most likely ones: ``temperature``, ``top_p`` and ``seed`` change nothing.
    """

    model: str
    messages: list[ChatMessage] = Field(min_length=1, max_length=32)
    max_tokens: MaxNewTokens | None = None
    max_completion_tokens: MaxNewTokens | None = None
    response_format: ResponseFormat = ResponseFormat()
    stream: bool = False
    n: int | None = 1
    logprobs: bool | None = None
    tools: list[Any] | None = None

    @property
    def max_new_tokens(self) -> int:
        """The limit under either of its two names."""
        return self.max_completion_tokens or self.max_tokens or PredictParameters().max_new_tokens


class ChatAnswer(BaseModel):
    """The assistant's message."""

    role: Literal["assistant"] = "assistant"
    content: str


class ChatChoice(BaseModel):
    """The one answer."""

    index: int = 0
    message: ChatAnswer
    logprobs: None = None
    finish_reason: Literal["stop", "length"]


class ChatUsage(TokenUsage):
    """Tokens, with their sum."""

    total_tokens: int


class FoveaExtra(BaseModel):
    """What this project adds to OpenAI's response: the answer's fields and which model gave them."""

    fields: FieldValues | None
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

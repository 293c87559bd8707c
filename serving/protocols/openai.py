"""OpenAI's chat completions and list of models, over a `ServedModel`."""

import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from collections.abc import Set as AbstractSet
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from fovea.evaluation.calibration import Calibration
from fovea.task import Answer
from fovea.text import SPECIAL_TOKEN
from serving.engine.model import Question, ServedModel
from serving.engine.pictures import Picture
from serving.errors import RequestError
from serving.protocols.answers import check_confidence, confidences, fields_of, task_name
from serving.protocols.openapi import errors, json_body
from serving.protocols.protocol import ErrorBody, Protocol
from serving.protocols.requests import Served, note, read_body, seconds_for, unless_gone
from serving.protocols.schemas import (
    DEFAULT_MAX_NEW_TOKENS,
    FieldValues,
    FinishReason,
    KnownConfidences,
    MaxNewTokens,
    MinConfidence,
    Open,
    TaskName,
    TokenUsage,
)

logger = logging.getLogger("serving")

_MAX_TEXT = 8192
_MAX_PICTURES = 16

# Members of a request that change nothing at any value: answers are the most likely ones.
_NO_EFFECT = {
    "temperature",
    "top_p",
    "seed",
    "user",
    "metadata",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "parallel_tool_calls",
}
# Values of other members that ask for nothing. null always does.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "stop": ([], ""),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "store": (False,),
}

_SCHEMA = "response_format.json_schema.schema"
_ANNOTATIONS = {"title", "description", "default", "examples", "deprecated"}
# What the server keeps of a schema, or what asks for nothing.
_OBJECT_KEYWORDS = {*_ANNOTATIONS, "$schema", "$id", "type", "properties", "required", "additionalProperties"}
_FIELD_KEYWORDS = {*_ANNOTATIONS, "type", "anyOf"}

# The type and code of an error, by status.
_ERROR_KINDS = {
    401: ("authentication_error", "invalid_api_key"),
    404: ("not_found_error", "not_found"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
}


class ImageUrl(Open):
    """A picture in OpenAI's format."""

    url: str = Field(
        description="data:image/…;base64,… or an http: or https: address, where the server fetches those."
    )


class ImagePart(Open):
    """A picture within a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


class TextPart(Open):
    """Text within a message."""

    type: Literal["text"]
    text: str


ContentPart = Annotated[ImagePart | TextPart, Field(discriminator="type")]


class ChatMessage(Open):
    """One message of a conversation. Its pictures come before its text, as in training."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[ContentPart] | None = Field(
        default=None, description="null or nothing in a message of the assistant that has no text, only."
    )


class JsonSchema(Open):
    """A schema that the fields are to follow; it can name some of the task's fields, or all."""

    name: str = Field(max_length=64)
    json_schema: dict[str, Any] = Field(alias="schema", default_factory=dict)


class TextFormat(Open):
    """The answer is the model's text."""

    type: Literal["text"]


class JsonObjectFormat(Open):
    """The answer is the fields as JSON."""

    type: Literal["json_object"]


class JsonSchemaFormat(Open):
    """The answer is the fields as JSON, those of a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class StreamOptions(Open):
    """What a stream holds besides the answer."""

    include_usage: bool | None = None


class ChatRequest(Open):
    """Body of ``POST /openai/v1/chat/completions``.

    Answers are always the most likely ones: ``temperature``, ``top_p`` and ``seed`` change nothing. A member
    that asks for more than is described here is refused.
    """

    # What is not declared is kept, so that it can be refused by its name.
    model_config = ConfigDict(extra="allow")

    model: str
    messages: list[ChatMessage] = Field(min_length=1, max_length=32)
    max_tokens: MaxNewTokens | None = None
    max_completion_tokens: MaxNewTokens | None = None
    response_format: ResponseFormat | None = None
    min_confidence: MinConfidence = 0.0
    stream: bool | None = False
    stream_options: StreamOptions | None = None

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
    confidence: KnownConfidences = None
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


class OpenAIError(ErrorBody):
    """Why a request was refused, under /openai/."""

    error: OpenAIErrorDetail

    @classmethod
    def of(cls, error: RequestError) -> Self:
        """Return the body for an error, with OpenAI's type and code of its status."""
        usual = ("invalid_request_error", None) if error.status < 500 else ("server_error", None)
        kind, code = _ERROR_KINDS.get(error.status, usual)
        return cls(
            error=OpenAIErrorDetail(message=str(error), type=kind, param=error.param, code=error.code or code)
        )


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


router = APIRouter(prefix="/openai/v1", tags=["OpenAI"])


@router.get("/models", summary="The model that is served")
async def models(served: Served) -> ModelList:
    """List the one model that is served."""
    return ModelList(data=[_card(served)])


@router.get("/models/{model:path}", summary="The model", responses=errors(404, kind=OpenAIError))
async def model(model: str, served: Served) -> ModelCard:
    """Describe the model that is served."""
    _check_model(served, model)
    return _card(served)


@router.post(
    "/chat/completions",
    response_model=ChatResponse,
    responses={
        200: {
            "description": "The answer; with `stream`, events of which each holds a ChatChunk",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
        **errors(400, 404, 408, 413, 415, 429, 500, 503, 504, kind=OpenAIError),
    },
    openapi_extra=json_body(ChatRequest),
    summary="Answer a conversation that shows at least one picture",
)
async def chat_completions(request: Request, served: Served) -> Response:
    """Answer at once, or as a stream of pieces."""
    asked = await read_body(request, ChatRequest)
    _check_model(served, asked.model)
    _refuse_what_is_not_offered(asked, served)
    prompt, pictures = chat_prompt(asked.messages, served.predictor.task.question)
    calibration = served.calibration_for(prompt)
    check_confidence(calibration, asked.min_confidence)
    note(request, pictures=len(pictures))
    question = Question(prompt, pictures, asked.max_new_tokens)
    seconds = seconds_for(request, served)
    if asked.stream:
        pieces = served.stream(question, seconds)
        # An error before the first piece is answered with its own status.
        first = await unless_gone(request, _next(pieces))
        events = _events(_Reply(served, asked, calibration), first, pieces)
        return StreamingResponse(events, media_type="text/event-stream", headers=_NO_BUFFER)
    answer = await unless_gone(request, served.answer_one(question, seconds))
    note(request, tokens=answer.completion_tokens)
    return JSONResponse(_Reply(served, asked, calibration).whole(answer).model_dump())


OPENAI = Protocol(
    title="OpenAI chat completions",
    prefix="/openai",
    router=router,
    bodies=(ChatRequest, ChatChunk),
    error=OpenAIError,
)

# Proxies would hold a stream back.
_NO_BUFFER = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def _card(served: ServedModel) -> ModelCard:
    return ModelCard(id=served.name, created=served.created, model_digest=served.digest)


def _check_model(served: ServedModel, name: str) -> None:
    if name != served.name:
        raise RequestError(
            f"there is no model {name[:100]!r} here", status=404, param="model", code="model_not_found"
        )


async def _next(pieces: AsyncIterator[str | Answer]) -> str | Answer:
    return await anext(pieces)


def chat_prompt(messages: Sequence[ChatMessage], question: str) -> tuple[str, list[Picture]]:
    """Write a conversation as the model's prompt.

    A message's pictures come before its text, as they did in training, so that one picture with the task's
    question gives exactly the task's prompt. A picture without text asks that ``question``.

    Returns:
        The prompt, and its pictures.

    Raises:
        RequestError: there is no picture, the last message is not the user's, or a text holds a marker.
    """
    prompt = ""
    pictures: list[Picture] = []
    for number, message in enumerate(messages):
        where = f"messages[{number}].content"
        urls, text = _parts(message, where)
        if SPECIAL_TOKEN.search(text) or len(text) > _MAX_TEXT:
            raise RequestError(
                f"{where}: text must have at most {_MAX_TEXT} characters and hold none of the model's "
                "markers, such as <|end|>",
                param=where,
            )
        if urls and message.role != "user":
            raise RequestError(f"{where}: only the user's messages can hold pictures", param=where)
        first = len(pictures) + 1
        marks = "".join(f"<|image_{first + offset}|>" for offset in range(len(urls)))
        pictures += urls
        role = "system" if message.role == "developer" else message.role
        prompt += f"<|{role}|>\n{marks}{text or (question if urls else '')}<|end|>"
    if len(pictures) > _MAX_PICTURES:
        raise RequestError(f"at most {_MAX_PICTURES} pictures are allowed", param="messages")
    if not pictures:
        raise RequestError("a picture is needed: a part of type image_url with a data: URL", param="messages")
    if messages[-1].role != "user":
        raise RequestError("the last message must be the user's", param="messages")
    return prompt + "<|assistant|>\n", pictures


def _parts(message: ChatMessage, where: str) -> tuple[list[Picture], str]:
    if message.content is None and message.role != "assistant":
        raise RequestError(
            f"{where}: only a message of the assistant can be without; send a text or parts", param=where
        )
    if message.content is None or isinstance(message.content, str):
        return [], (message.content or "").strip()
    urls, texts = [], []
    for number, part in enumerate(message.content):
        if isinstance(part, ImagePart):
            urls.append(Picture(f"{where}[{number}].image_url.url", part.image_url.url))
        else:
            texts.append(part.text.strip())
    return urls, "\n".join(texts)


def _refuse_what_is_not_offered(request: ChatRequest, served: ServedModel) -> None:
    for name, asked in (request.model_extra or {}).items():
        if name not in _NO_EFFECT and asked is not None and asked not in _NEUTRAL.get(name, ()):
            raise RequestError(f"{name[:40]} is not offered; leave it out", param=name[:40])
    if isinstance(request.response_format, JsonSchemaFormat):
        schema = request.response_format.json_schema.json_schema
        _check_schema(schema, served, may_be_null=request.min_confidence > 0)


def _check_schema(schema: dict[str, Any], served: ServedModel, *, may_be_null: bool) -> None:
    """Refuse a schema that asks for what the answer's fields are not, or for what is not checked."""
    where = _SCHEMA
    _check_keywords(schema, _OBJECT_KEYWORDS, where)
    fields = served.predictor.task.fields
    properties = schema.get("properties")
    if schema.get("type") != "object" or not isinstance(properties, dict) or not properties:
        raise RequestError(f"{where}: must be of an object with properties", param=where)
    for name, wanted in properties.items():
        if name not in fields:
            raise RequestError(
                f"{where}: the task has no field {str(name)[:40]!r}; it has {', '.join(fields)}", param=where
            )
        _check_field(name, wanted, fields[name].json_type, may_be_null=may_be_null)
    required = schema.get("required", [])
    if not isinstance(required, list) or not all(name in properties for name in map(str, required)):
        raise RequestError(f"{where}.required: must name some of the properties", param=where)


def _check_field(name: str, wanted: Any, kind: str, *, may_be_null: bool) -> None:
    """Refuse a property's schema where the field's values need not follow it."""
    where = f"{_SCHEMA}.properties.{name}"
    if wanted is True:
        return
    if not isinstance(wanted, dict):
        raise RequestError(f"{where}: must be a schema", param=where)
    options = wanted.get("anyOf")
    _check_keywords(wanted, _FIELD_KEYWORDS - ({"type"} if options is not None else {"anyOf"}), where)
    for option in options if isinstance(options, list) else []:
        _check_keywords(option, _FIELD_KEYWORDS - {"anyOf"}, f"{where}.anyOf")
    if kind not in _types(wanted):
        raise RequestError(f"{where}: the field {name} is a {kind}", param=where)
    if may_be_null and "null" not in _types(wanted):
        raise RequestError(
            f"{where}: the field {name} is null below min_confidence; add null to its type", param=where
        )


def _check_keywords(schema: Any, known: AbstractSet[str], where: str) -> None:
    """Refuse keywords that the server does not check: answers could break what they ask for."""
    beyond = sorted(map(str, schema.keys() - known)) if isinstance(schema, dict) else ["a part that is none"]
    if beyond:
        raise RequestError(
            f"{where}: {beyond[0][:40]} is not offered, because answers are not held to it; leave it out, "
            "and check the answer yourself",
            param=where,
        )


def _types(schema: dict[str, Any]) -> list[Any]:
    """Return the types that a schema allows; any, where it does not say."""
    options = schema.get("anyOf")
    if isinstance(options, list):
        return [kind for option in options if isinstance(option, dict) for kind in _types(option)]
    kinds = schema.get("type", ["string", "number", "null"])
    return kinds if isinstance(kinds, list) else [kinds]


class _Reply:
    """Writes the answer to one request, whole or in pieces."""

    def __init__(self, served: ServedModel, asked: ChatRequest, calibration: Calibration | None) -> None:
        self._served = served
        self._asked = asked
        self._calibration = calibration
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())

    @property
    def is_text(self) -> bool:
        """Whether the answer is the model's text, and can be given out while it comes."""
        return self._asked.response_format is None or self._asked.response_format.type == "text"

    def whole(self, answer: Answer) -> ChatResponse:
        """Return the response that holds all."""
        message = ChatAnswer(**self._content(answer))
        return ChatResponse(
            id=self._id,
            created=self._created,
            model=self._served.name,
            choices=[ChatChoice(message=message, finish_reason=answer.finish_reason)],
            usage=_usage(answer),
            system_fingerprint=self._served.digest,
            fovea=self._extra(answer),
        )

    def piece(self, delta: ChatDelta) -> ChatChunk:
        """Return the next piece of a stream."""
        return self._chunk(choices=[ChatChunkChoice(delta=delta)])

    def last(self, answer: Answer) -> list[ChatChunk]:
        """Return what ends a stream: the reason it ends for, and the tokens where they are asked for."""
        content = ChatDelta() if self.is_text else ChatDelta(**self._content(answer))
        choice = ChatChunkChoice(delta=content, finish_reason=answer.finish_reason)
        chunks = [self._chunk(choices=[choice], fovea=self._extra(answer))]
        options = self._asked.stream_options
        if options is not None and options.include_usage:
            chunks.append(self._chunk(choices=[], usage=_usage(answer)))
        return chunks

    def _chunk(self, **values: Any) -> ChatChunk:
        return ChatChunk(
            id=self._id,
            created=self._created,
            model=self._served.name,
            system_fingerprint=self._served.digest,
            **values,
        )

    def _content(self, answer: Answer) -> dict[str, str | None]:
        if self.is_text:
            return {"content": answer.text}
        fields = self._fields(answer)
        if isinstance(self._asked.response_format, JsonSchemaFormat):
            if fields is None:
                return {"content": None, "refusal": answer.parse_error}
            named = self._asked.response_format.json_schema.json_schema["properties"]
            return {"content": _json({name: fields[name] for name in named})}
        return {"content": _json(fields if fields is not None else {"parse_error": answer.parse_error})}

    def _fields(self, answer: Answer) -> FieldValues | None:
        sure = confidences(self._calibration, answer)
        return fields_of(answer, sure, self._asked.min_confidence)

    def _extra(self, answer: Answer) -> FoveaExtra:
        return FoveaExtra(
            fields=self._fields(answer),
            confidence=confidences(self._calibration, answer),
            parse_error=answer.parse_error,
            text=answer.text,
            model_digest=self._served.digest,
            task=task_name(self._served),
        )


def _json(values: FieldValues) -> str:
    return json.dumps(values, ensure_ascii=False)


def _usage(answer: Answer) -> ChatUsage:
    return ChatUsage(
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        total_tokens=answer.prompt_tokens + answer.completion_tokens,
    )


async def _events(
    reply: _Reply, first: str | Answer, pieces: AsyncIterator[str | Answer]
) -> AsyncIterator[bytes]:
    """Write a stream as server-sent events. An error that comes now is one, too: the status is sent."""
    yield _event(reply.piece(ChatDelta(role="assistant", content="" if reply.is_text else None)))
    try:
        piece: str | Answer | None = first
        while piece is not None:
            if isinstance(piece, Answer):
                for chunk in reply.last(piece):
                    yield _event(chunk)
            elif reply.is_text:
                yield _event(reply.piece(ChatDelta(content=piece)))
            piece = await anext(pieces, None)
    except RequestError as error:
        yield _failure(error)
        return
    except Exception:
        logger.exception("a stream failed")
        yield _failure(RequestError("the server failed at this", status=500))
        return
    yield b"data: [DONE]\n\n"


def _event(chunk: ChatChunk) -> bytes:
    # What a chunk does not add has no member at all, as OpenAI's clients have it.
    content = chunk.model_dump(exclude={name for name in ("usage", "fovea") if getattr(chunk, name) is None})
    for choice in content["choices"]:
        choice["delta"] = {name: value for name, value in choice["delta"].items() if value is not None}
    return b"data: " + json.dumps(content, ensure_ascii=False).encode() + b"\n\n"


def _failure(error: RequestError) -> bytes:
    return b"data: " + OpenAIError.of(error).model_dump_json().encode() + b"\n\n"

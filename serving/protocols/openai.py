"""OpenAI's chat completions and list of models, over a `ServedModel`."""

import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from fovea.evaluation.calibration import Calibration
from fovea.task import Answer
from fovea.text import SPECIAL_TOKEN
from serving.engine.model import Question, ServedModel
from serving.engine.pictures import Picture
from serving.protocols.answers import check_confidence, confidences, fields_of
from serving.protocols.errors import OPENAI_PREFIX, RequestError, error_response
from serving.protocols.openapi import errors, json_body
from serving.protocols.requests import note, read_body, seconds_for, unless_gone
from serving.protocols.schemas import (
    ChatAnswer,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatDelta,
    ChatMessage,
    ChatRequest,
    ChatResponse,
    ChatUsage,
    FieldValues,
    FoveaExtra,
    ImagePart,
    JsonSchemaFormat,
    ModelCard,
    ModelList,
    OpenAIError,
)

logger = logging.getLogger("serving")

# Markers steer the model, so no text of a caller's may hold one.
_MAX_TEXT = 8192
_MAX_PICTURES = 16


def openai_router(served: ServedModel) -> APIRouter:
    """Return the routes below /openai/v1."""
    router = APIRouter(prefix="/openai/v1", tags=["OpenAI"])

    @router.get("/models", summary="The model that is served")
    async def models() -> ModelList:
        """List the one model that is served."""
        return ModelList(data=[_card(served)])

    @router.get("/models/{model:path}", summary="The model", responses=errors(404, kind=OpenAIError))
    async def model(model: str) -> ModelCard:
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
            **errors(400, 404, 408, 413, 429, 500, 503, 504, kind=OpenAIError),
        },
        openapi_extra=json_body(ChatRequest),
        summary="Answer a conversation that shows at least one picture",
    )
    async def chat_completions(request: Request) -> Response:
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
            # Whatever refuses the request does so before the first piece, with its own status.
            first = await unless_gone(request, _next(pieces))
            events = _events(_Reply(served, asked, calibration), first, pieces)
            return StreamingResponse(events, media_type="text/event-stream", headers=_NO_BUFFER)
        answer = await unless_gone(request, served.answer_one(question, seconds))
        note(request, tokens=answer.completion_tokens)
        return JSONResponse(_Reply(served, asked, calibration).whole(answer).model_dump())

    return router


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
    if isinstance(message.content, str):
        return [], message.content.strip()
    urls, texts = [], []
    for number, part in enumerate(message.content):
        if isinstance(part, ImagePart):
            urls.append(Picture(f"{where}[{number}].image_url.url", part.image_url.url))
        else:
            texts.append(part.text.strip())
    return urls, "\n".join(texts)


def _refuse_what_is_not_offered(request: ChatRequest, served: ServedModel) -> None:
    refused = {
        "n": request.n not in (None, 1),
        "logprobs": request.logprobs,
        "tools": request.tools,
    }
    for name, asked in refused.items():
        if asked:
            raise RequestError(f"{name} is not offered; leave it out", param=name)
    if isinstance(request.response_format, JsonSchemaFormat):
        _check_schema(request.response_format.json_schema.json_schema, served)


def _check_schema(schema: dict[str, Any], served: ServedModel) -> None:
    """Refuse a schema that asks for what the answer's fields are not."""
    where = "response_format.json_schema.schema"
    fields = served.predictor.task.fields
    properties = schema.get("properties")
    if schema.get("type") != "object" or not isinstance(properties, dict) or not properties:
        raise RequestError(f"{where}: must be of an object with properties", param=where)
    for name, wanted in properties.items():
        if name not in fields:
            raise RequestError(
                f"{where}: the task has no field {str(name)[:40]!r}; it has {', '.join(fields)}", param=where
            )
        kind = fields[name].json_type
        if isinstance(wanted, dict) and kind not in _types(wanted):
            raise RequestError(f"{where}: the field {name} is a {kind}", param=where)


def _types(schema: dict[str, Any]) -> list[Any]:
    """Return the types that a schema allows; any, where it does not say."""
    options = schema.get("anyOf")
    if isinstance(options, list):
        return [kind for option in options if isinstance(option, dict) for kind in _types(option)]
    kinds = schema.get("type", ["string", "number"])
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
            task=self._served.task,
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
    return b"data: " + bytes(error_response(OPENAI_PREFIX, error).body) + b"\n\n"

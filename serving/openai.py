"""OpenAI's chat completions and list of models, over a `ServedModel`."""

import json
import re
import time
import uuid
from collections.abc import Sequence

from fastapi import APIRouter

from fovea.inference import Answer
from serving.errors import RequestError
from serving.model import ServedModel
from serving.schemas import (
    ChatAnswer,
    ChatChoice,
    ChatMessage,
    ChatRequest,
    ChatResponse,
    ChatUsage,
    FoveaExtra,
    ImagePart,
    ModelCard,
    ModelList,
)

# Markers steer the model, so no text of a caller's may hold one.
_MARKER = re.compile(r"<\|[^|<>]*\|>|</?s>")
_MAX_TEXT = 8192
_MAX_PICTURES = 16


def openai_router(served: ServedModel) -> APIRouter:
    """Return the routes below /openai/v1."""
    router = APIRouter(prefix="/openai/v1", tags=["openai"])

    @router.get("/models")
    async def models() -> ModelList:
        """List the one model that is served."""
        card = ModelCard(id=served.name, created=served.created, model_digest=served.digest)
        return ModelList(data=[card])

    @router.post("/chat/completions")
    async def chat_completions(request: ChatRequest) -> ChatResponse:
        """Answer a conversation that shows at least one picture."""
        if request.model != served.name:
            raise RequestError(f"there is no model {request.model!r} here", status=404, param="model")
        _refuse_what_is_not_offered(request)
        prompt, pictures = chat_prompt(request.messages, served.predictor.task.question)
        (answer,) = await served.answer([(prompt, pictures)], request.max_new_tokens)
        return _response(served, request, answer)

    return router


def chat_prompt(messages: Sequence[ChatMessage], question: str) -> tuple[str, list[tuple[str, str]]]:
    """Write a conversation as the model's prompt.

    A message's pictures come before its text, as they did in training, so that one picture with the task's
    question gives exactly the task's prompt. A picture without text asks that ``question``.

    Returns:
        The prompt, and its pictures as (where each stands in the request, URL).

    Raises:
        RequestError: there is no picture, the last message is not the user's, or a text holds a marker.
    """
    prompt = ""
    pictures: list[tuple[str, str]] = []
    for number, message in enumerate(messages):
        where = f"messages[{number}].content"
        urls, text = _parts(message, where)
        if _MARKER.search(text) or len(text) > _MAX_TEXT:
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


def _parts(message: ChatMessage, where: str) -> tuple[list[tuple[str, str]], str]:
    if isinstance(message.content, str):
        return [], message.content.strip()
    urls, texts = [], []
    for number, part in enumerate(message.content):
        if isinstance(part, ImagePart):
            urls.append((f"{where}[{number}].image_url.url", part.image_url.url))
        else:
            texts.append(part.text.strip())
    return urls, "\n".join(texts)


def _refuse_what_is_not_offered(request: ChatRequest) -> None:
    refused = {
        "stream": request.stream,
        "n": request.n not in (None, 1),
        "logprobs": request.logprobs,
        "tools": request.tools,
    }
    for name, asked in refused.items():
        if asked:
            raise RequestError(f"{name} is not offered yet; leave it out", param=name)


def _response(served: ServedModel, request: ChatRequest, answer: Answer) -> ChatResponse:
    content = answer.text
    if request.response_format.type == "json_object":
        values = answer.fields if answer.fields is not None else {"parse_error": answer.parse_error}
        content = json.dumps(values, ensure_ascii=False)
    return ChatResponse(
        id=f"chatcmpl-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=served.name,
        choices=[ChatChoice(message=ChatAnswer(content=content), finish_reason=answer.finish_reason)],
        usage=ChatUsage(
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
            total_tokens=answer.prompt_tokens + answer.completion_tokens,
        ),
        system_fingerprint=served.digest,
        fovea=FoveaExtra(
            fields=answer.fields,
            parse_error=answer.parse_error,
            text=answer.text,
            model_digest=served.digest,
            task=served.task,
        ),
    )

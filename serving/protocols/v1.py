"""KServe's V1 protocol."""

from typing import Any

from fastapi import APIRouter, Request

from fovea.inference import Answer
from serving.engine.model import Question, ServedModel
from serving.engine.pictures import Picture
from serving.protocols.answers import check_confidence, confidences, fields_of
from serving.protocols.errors import RequestError
from serving.protocols.openapi import errors, json_body
from serving.protocols.requests import check_model, check_ready, note, read_body, seconds_for, unless_gone
from serving.protocols.schemas import Prediction, PredictRequest, PredictResponse, TokenUsage


def v1_router(served: ServedModel) -> APIRouter:
    """Return the routes below /v1."""
    router = APIRouter(prefix="/v1", tags=["V1"])

    @router.get("/models", summary="The models' names")
    async def models() -> dict[str, list[str]]:
        """List the one model that is served."""
        return {"models": [served.name]}

    @router.get("/models/{model_name}", summary="Whether a model answers", responses=errors(404, 503))
    async def model_ready(model_name: str) -> dict[str, str | bool]:
        """Answer 200 while the model answers requests, and 503 once it has failed."""
        check_ready(served, model_name)
        return {"name": model_name, "ready": True}

    @router.post(
        "/models/{model_name}:predict",
        responses=errors(400, 404, 408, 413, 429, 500, 503, 504),
        openapi_extra=json_body(PredictRequest),
        summary="Describe pictures",
    )
    async def predict(model_name: str, request: Request) -> PredictResponse:
        """Answer with a prediction for each picture, in their order.

        A picture that cannot be used has an ``error`` in its place; where none can, the request is refused.
        """
        check_model(served, model_name)
        body = await read_body(request, PredictRequest)
        found = await predictions(
            served,
            request,
            [
                Picture(f"instances[{number}].image", instance.encoded_picture)
                for number, instance in enumerate(body.instances)
            ],
            body.parameters.max_new_tokens,
            body.parameters.min_confidence,
        )
        return PredictResponse(predictions=found)

    return router


async def predictions(
    served: ServedModel,
    request: Request,
    pictures: list[Picture],
    max_new_tokens: int,
    min_confidence: float,
) -> list[Prediction]:
    """Ask the task's question about each picture.

    Raises:
        RequestError: there is an answer to none.
    """
    check_confidence(served.calibration, min_confidence)
    prompt = served.predictor.task.prompt()
    note(request, pictures=len(pictures))
    asked = [Question(prompt, [picture], max_new_tokens) for picture in pictures]
    found = await unless_gone(request, served.answer(asked, seconds_for(request, served)))
    if all(isinstance(each, RequestError) for each in found):
        raise next(each for each in found if isinstance(each, RequestError))
    note(request, tokens=sum(each.completion_tokens for each in found if isinstance(each, Answer)))
    return [_prediction(served, each, min_confidence) for each in found]


def _prediction(served: ServedModel, found: Answer | RequestError, min_confidence: float) -> Prediction:
    which: dict[str, Any] = {"model_digest": served.digest, "task": served.task}
    if isinstance(found, RequestError):
        return Prediction(
            fields=None,
            parse_error=None,
            text=None,
            finish_reason=None,
            usage=None,
            error=str(found),
            **which,
        )
    sure = confidences(served.calibration, found)
    return Prediction(
        fields=fields_of(found, sure, min_confidence),
        confidence=sure,
        parse_error=found.parse_error,
        text=found.text,
        finish_reason=found.finish_reason,
        usage=TokenUsage(prompt_tokens=found.prompt_tokens, completion_tokens=found.completion_tokens),
        **which,
    )

"""What KServe's V1 and V2 have in common: the model's name in the path, and predictions about pictures."""

from typing import Any

from fastapi import Request

from fovea.task import Answer
from serving.engine.model import Question, ServedModel
from serving.engine.pictures import Picture
from serving.errors import RequestError
from serving.protocols.answers import check_confidence, confidences, fields_of, task_name
from serving.protocols.requests import note, seconds_for, unless_gone
from serving.protocols.schemas import Prediction, TokenUsage


def check_model(served: ServedModel, name: str) -> None:
    """Check the model's name in a path.

    Raises:
        RequestError: 404, another model is served.
    """
    if name != served.name:
        raise RequestError(f"Model with name {name} does not exist.", status=404)


def check_ready(served: ServedModel, name: str) -> None:
    """Check that a model answers requests.

    Raises:
        RequestError: 404, another model is served; 503, the model has failed or the server is stopping.
    """
    check_model(served, name)
    if not served.batcher.alive:
        raise RequestError(f"Model with name {name} is not ready.", status=503)


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
    which: dict[str, Any] = {"model_digest": served.digest, "task": task_name(served)}
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

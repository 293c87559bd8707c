"""The model as it is served: requests of every protocol come together here."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from pydantic import ValidationError

from fovea.inference import Answer, Predictor
from fovea.pictures import PictureLimits
from serving.batching import Batcher
from serving.errors import RequestError, describe_validation
from serving.kserve_api import InferRequest, Model
from serving.pictures import decode_base64_picture
from serving.schemas import Instance, Prediction, PredictRequest, PredictResponse, TaskName, TokenUsage

MAX_TOKENS = 4096
"""Prompt and answer together: up to here Phi-3-Vision keeps its short rotary factors."""

# Work beside the generating thread: decoding a picture and cutting it into crops.
_MAX_PREPARING = 4


@dataclass
class ServedModel:
    """A loaded model with the names it is known by."""

    name: str
    digest: str
    predictor: Predictor
    batcher: Batcher
    # Training and evaluation take strips of any shape, so a caller's may be asked about too.
    limits: PictureLimits = field(default_factory=lambda: PictureLimits(max_bytes=20 << 20, min_side=1))
    created: int = field(default_factory=lambda: int(time.time()))
    _preparing: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_MAX_PREPARING))

    @property
    def task(self) -> TaskName:
        """The task that the model was tuned for."""
        return TaskName(name=self.predictor.task.name, version=self.predictor.task.version)

    async def answer(
        self, requests: Sequence[tuple[str, Sequence[tuple[str, str]]]], max_new_tokens: int
    ) -> list[Answer]:
        """Answer prompts about pictures.

        Args:
            requests: of each, the prompt and its pictures, as (where it stands in the request, base64 or
                data: URL).
            max_new_tokens: the length of an answer at most.

        Raises:
            RequestError: a picture cannot be used, or a prompt is too long.
        """
        samples = await asyncio.gather(
            *(
                self._in_thread(self._prepare, prompt, pictures, max_new_tokens)
                for prompt, pictures in requests
            )
        )
        return await self.batcher.generate(samples, max_new_tokens)

    async def _in_thread(self, function: Any, *arguments: Any) -> Any:
        async with self._preparing:
            return await asyncio.to_thread(function, *arguments)

    def _prepare(self, prompt: str, pictures: Sequence[tuple[str, str]], max_new_tokens: int) -> Any:
        images: list[Image.Image] = [
            decode_base64_picture(text, self.limits, where) for where, text in pictures
        ]
        sample = self.predictor.prepare(prompt, images)
        if sample.tokens + max_new_tokens > MAX_TOKENS:
            raise RequestError(
                f"the request takes {sample.tokens} tokens, pictures included, and asks for {max_new_tokens} "
                f"more; {MAX_TOKENS} are allowed together"
            )
        return sample

    def warm_up(self) -> None:
        """Answer once, so that a model that cannot is noticed before anybody is served."""
        grey = Image.new("RGB", (64, 64), "grey")
        sample = self.predictor.prepare(self.predictor.task.prompt(), [grey])
        self.predictor.generate_batch([sample], max_new_tokens=2)


class KServeModel(Model):  # type: ignore[misc]
    """KServe's V1 protocol over a `ServedModel`."""

    def __init__(self, served: ServedModel) -> None:
        super().__init__(served.name)
        self.served = served
        self.ready = True

    async def predict(
        self,
        payload: Any,
        headers: dict[str, str] | None = None,
        response_headers: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        """Answer ``{"instances": [{"image": {"b64": …}}, …]}`` with a prediction for each picture."""
        request = _read_request(payload)
        prompt = self.served.predictor.task.prompt()
        pictures = [
            (prompt, [_picture(number, instance)]) for number, instance in enumerate(request.instances)
        ]
        answers = await self.served.answer(pictures, request.parameters.max_new_tokens)
        response = PredictResponse(predictions=[self._prediction(answer) for answer in answers])
        return response.model_dump()

    def _prediction(self, answer: Answer) -> Prediction:
        return Prediction(
            fields=answer.fields,
            parse_error=answer.parse_error,
            text=answer.text,
            finish_reason=answer.finish_reason,
            usage=TokenUsage(prompt_tokens=answer.prompt_tokens, completion_tokens=answer.completion_tokens),
            model_digest=self.served.digest,
            task=self.served.task,
        )


def _picture(number: int, instance: Instance) -> tuple[str, str]:
    return f"instances[{number}].image", instance.encoded_picture


def _read_request(payload: Any) -> PredictRequest:
    if isinstance(payload, InferRequest):
        raise RequestError(
            'the V2 protocol is not offered yet; send {"instances": …} to /v1/models/{model}:predict'
        )
    if isinstance(payload, bytes):
        # What kserve hands over when the content type is not application/json.
        try:
            payload = json.loads(payload)
        except ValueError as error:
            raise RequestError("the body is not JSON") from error
    try:
        return PredictRequest.model_validate(payload)
    except ValidationError as error:
        raise describe_validation(error.errors()) from error

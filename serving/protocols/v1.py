"""KServe's V1 protocol."""

from fastapi import APIRouter, Request
from pydantic import Field

from serving.engine.pictures import Picture
from serving.protocols.kserve import check_model, check_ready, predictions
from serving.protocols.openapi import errors, json_body
from serving.protocols.protocol import Protocol
from serving.protocols.requests import Served, read_body
from serving.protocols.schemas import (
    DEFAULT_MAX_NEW_TOKENS,
    MAX_INSTANCES,
    MaxNewTokens,
    MinConfidence,
    PredictResponse,
    Strict,
)


class InlinePicture(Strict):
    """A picture's bytes."""

    b64: str = Field(description="A JPEG, PNG, WebP or GIF file in base64, or a data: URL of one.")


class PictureUrl(Strict):
    """A picture as a URL."""

    url: str = Field(
        description="A data: URL; or an http: or https: address, where the server fetches those."
    )


class Instance(Strict):
    """One picture to describe."""

    image: InlinePicture | PictureUrl

    @property
    def encoded_picture(self) -> str:
        """The base64 or URL, whichever was given."""
        return self.image.b64 if isinstance(self.image, InlinePicture) else self.image.url


class PredictParameters(Strict):
    """How to answer. Answers are always the model's most likely ones (greedy)."""

    max_new_tokens: MaxNewTokens = DEFAULT_MAX_NEW_TOKENS
    min_confidence: MinConfidence = 0.0


class PredictRequest(Strict):
    """Body of ``POST /v1/models/{model_name}:predict``."""

    instances: list[Instance] = Field(min_length=1, max_length=MAX_INSTANCES)
    parameters: PredictParameters = PredictParameters()


router = APIRouter(prefix="/v1", tags=["V1"])


@router.get("/models", summary="The models' names")
async def models(served: Served) -> dict[str, list[str]]:
    """List the one model that is served."""
    return {"models": [served.name]}


@router.get("/models/{model_name}", summary="Whether a model answers", responses=errors(404, 503))
async def model_ready(model_name: str, served: Served) -> dict[str, str | bool]:
    """Answer 200 while the model answers requests, and 503 once it has failed."""
    check_ready(served, model_name)
    return {"name": model_name, "ready": True}


@router.post(
    "/models/{model_name}:predict",
    responses=errors(400, 404, 408, 413, 415, 429, 500, 503, 504),
    openapi_extra=json_body(PredictRequest),
    summary="Describe pictures",
)
async def predict(model_name: str, request: Request, served: Served) -> PredictResponse:
    """Answer with a prediction for each picture, in their order.

    A picture that cannot be used has an ``error`` in its place; where none can, the request is refused.
    """
    check_model(served, model_name)
    body = await read_body(request, PredictRequest)
    pictures = [
        Picture(f"instances[{number}].image", instance.encoded_picture)
        for number, instance in enumerate(body.instances)
    ]
    asked = body.parameters
    found = await predictions(served, request, pictures, asked.max_new_tokens, asked.min_confidence)
    return PredictResponse(predictions=found)


V1 = Protocol(
    title="KServe V1",
    prefix=router.prefix,
    router=router,
    bodies=(PredictRequest,),
    keyless=("/models/*",),
)

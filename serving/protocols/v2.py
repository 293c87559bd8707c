"""KServe's V2 protocol, the Open Inference Protocol."""

import json

from fastapi import APIRouter, Request
from kserve.protocol.rest.v2_datamodels import (
    ListModelsResponse,
    MetadataTensor,
    ModelMetadataResponse,
    ModelReadyResponse,
    ServerLiveResponse,
    ServerMetadataResponse,
    ServerReadyResponse,
)

from fovea import __version__
from serving.engine.model import ServedModel
from serving.engine.pictures import Picture
from serving.protocols.errors import RequestError
from serving.protocols.openapi import errors, json_body
from serving.protocols.requests import check_model, check_ready, parse
from serving.protocols.schemas import OUTPUT_NAMES, InferAnswer, InferBody, OutputTensor, Prediction
from serving.protocols.v1 import predictions

_JSON_LENGTH = "inference-header-content-length"

_INPUTS = [MetadataTensor(name="image", datatype="BYTES", shape=[-1])]
_OUTPUTS = [MetadataTensor(name=name, datatype="BYTES", shape=[-1]) for name in OUTPUT_NAMES]


def v2_router(served: ServedModel) -> APIRouter:
    """Return the routes below /v2."""
    router = APIRouter(prefix="/v2", tags=["V2"])

    @router.get("", summary="The server")
    async def metadata() -> ServerMetadataResponse:
        """Describe the server and the extensions of the protocol that it supports."""
        return ServerMetadataResponse(name="fovea", version=__version__, extensions=["binary_tensor_data"])

    @router.get("/models", summary="The models' names")
    async def models() -> ListModelsResponse:
        """List the one model that is served."""
        return ListModelsResponse(models=[served.name])

    @router.get("/models/{model_name}", summary="A model's inputs and outputs", responses=errors(404))
    async def model_metadata(model_name: str) -> ModelMetadataResponse:
        """Describe the tensors of requests and responses."""
        check_model(served, model_name)
        return ModelMetadataResponse(name=model_name, platform="", inputs=_INPUTS, outputs=_OUTPUTS)

    @router.get("/models/{model_name}/ready", summary="Whether a model answers", responses=errors(404, 503))
    async def model_ready(model_name: str) -> ModelReadyResponse:
        """Answer 200 while the model answers requests, and 503 once it has failed."""
        check_ready(served, model_name)
        return ModelReadyResponse(name=model_name, ready=True)

    @router.get("/health/live", responses=errors(503), summary="Whether the process should live on")
    async def live() -> ServerLiveResponse:
        """Answer 503 once the model has failed for good or stands still at its work; busy is not dead."""
        if not served.batcher.alive:
            raise RequestError("the model has failed, or stands still", status=503)
        return ServerLiveResponse(live=True)

    @router.get("/health/ready", responses=errors(503), summary="Whether requests are answered")
    async def ready() -> ServerReadyResponse:
        """Answer 200 after the model has answered a first time, until it fails or the server stops."""
        if not served.batcher.alive:
            raise RequestError("the server is stopping, or the model has failed", status=503)
        return ServerReadyResponse(ready=True)

    @router.post(
        "/models/{model_name}/infer",
        responses=errors(400, 404, 408, 413, 429, 500, 503, 504),
        openapi_extra=json_body(InferBody),
        summary="Describe pictures",
    )
    async def infer(model_name: str, request: Request) -> InferAnswer:
        """Answer with an element of each output for each picture of the input ``image``."""
        check_model(served, model_name)
        body, binary = await _read(request)
        pictures = [
            Picture(f"inputs[0].data[{number}]", content)
            for number, content in enumerate(body.inputs[0].pictures(binary))
        ]
        asked = body.parameters
        found = await predictions(served, request, pictures, asked.max_new_tokens, asked.min_confidence)
        return InferAnswer(
            model_name=served.name,
            model_version=served.digest,
            id=body.id,
            parameters={"task": served.task.name, "task_version": served.task.version},
            outputs=[
                OutputTensor(name=name, shape=[len(found)], data=[_element(each, name) for each in found])
                for name in OUTPUT_NAMES
            ],
        )

    return router


def _element(prediction: Prediction, name: str) -> str:
    """Write one value of a prediction: JSON where it is an object, else text, empty for null."""
    value = getattr(prediction, name)
    if name in ("fields", "confidence"):
        return json.dumps(value, ensure_ascii=False)
    return value or ""


async def _read(request: Request) -> tuple[InferBody, bytes]:
    """Read the JSON, and the binary data that may follow it."""
    content = await request.body()
    length = request.headers.get(_JSON_LENGTH)
    if length is None:
        return parse(content, InferBody), b""
    if not length.isascii() or not length.isdigit() or int(length[:12]) > len(content):
        raise RequestError(f"{_JSON_LENGTH}: must be how many bytes of the body are JSON", param=_JSON_LENGTH)
    return parse(content[: int(length)], InferBody), content[int(length) :]

"""KServe's V2 protocol, the Open Inference Protocol."""

import json

from fastapi import APIRouter, Request

from serving.engine.model import ServedModel
from serving.engine.pictures import Picture
from serving.kserve_api import DataPlane, V2Endpoints
from serving.protocols.errors import RequestError
from serving.protocols.openapi import errors, json_body
from serving.protocols.requests import parse
from serving.protocols.schemas import (
    OUTPUT_NAMES,
    InferAnswer,
    InferBody,
    Live,
    OutputTensor,
    Prediction,
    Ready,
)
from serving.protocols.v1 import predictions

_JSON_LENGTH = "inference-header-content-length"


def v2_router(served: ServedModel, plane: DataPlane) -> APIRouter:
    """Return the routes below /v2."""
    router = APIRouter(prefix="/v2", tags=["V2"])
    kserve = V2Endpoints(plane)
    router.add_api_route("", kserve.metadata, methods=["GET"], summary="The server")
    router.add_api_route("/models", kserve.models, methods=["GET"], summary="The models' names")
    router.add_api_route(
        "/models/{model_name}",
        kserve.model_metadata,
        methods=["GET"],
        summary="A model's inputs and outputs",
        responses=errors(404),
    )
    router.add_api_route(
        "/models/{model_name}/ready",
        kserve.model_ready,
        methods=["GET"],
        summary="Whether a model answers",
        responses=errors(404, 503),
    )

    @router.get("/health/live", responses=errors(503), summary="Whether the process should live on")
    async def live() -> Live:
        """Answer 503 once the model has failed for good or stands still at its work; busy is not dead."""
        if not served.batcher.alive:
            raise RequestError("the model has failed, or stands still", status=503)
        return Live(live=True)

    @router.get("/health/ready", responses=errors(503), summary="Whether requests are answered")
    async def ready() -> Ready:
        """Answer 200 after the model has answered a first time, until it fails or the server stops."""
        if not await plane.model_ready(served.name):
            raise RequestError("the server is stopping, or the model has failed", status=503)
        return Ready(ready=True)

    @router.post(
        "/models/{model_name}/infer",
        responses=errors(400, 404, 408, 413, 429, 500, 503, 504),
        openapi_extra=json_body(InferBody),
        summary="Describe pictures",
    )
    async def infer(model_name: str, request: Request) -> InferAnswer:
        """Answer with an element of each output for each picture of the input ``image``."""
        await plane.get_model(model_name)
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

"""KServe's V2 protocol, the Open Inference Protocol."""

import json
import struct
from typing import Annotated, Literal

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
from pydantic import BaseModel, Field

from fovea import __version__
from serving.engine.pictures import Picture
from serving.errors import RequestError
from serving.protocols.answers import task_name
from serving.protocols.kserve import check_model, check_ready, predictions
from serving.protocols.openapi import errors, json_body
from serving.protocols.protocol import Protocol
from serving.protocols.requests import Served, parse
from serving.protocols.schemas import (
    DEFAULT_MAX_NEW_TOKENS,
    MAX_INSTANCES,
    MaxNewTokens,
    MinConfidence,
    Open,
    Prediction,
)

_JSON_LENGTH = "inference-header-content-length"


class InferParameters(Open):
    """How to answer, as over V1. Others are taken, and change nothing."""

    max_new_tokens: MaxNewTokens = DEFAULT_MAX_NEW_TOKENS
    min_confidence: MinConfidence = 0.0


class TensorParameters(Open):
    """How a tensor is sent."""

    binary_data_size: int | None = Field(
        default=None, ge=0, description="Its bytes follow after the JSON (binary tensor data extension)."
    )


class InputTensor(Open):
    """The pictures: files in base64, ``data:`` URLs or addresses; or, as binary data, the files' bytes."""

    name: Literal["image"]
    shape: list[Annotated[int, Field(ge=1, le=MAX_INSTANCES)]] = Field(min_length=1, max_length=2)
    datatype: Literal["BYTES"]
    parameters: TensorParameters = TensorParameters()
    data: list[str] | None = Field(default=None, max_length=MAX_INSTANCES)

    def pictures(self, binary: bytes) -> list[str | bytes]:
        """Return the pictures, from the JSON or from what follows it.

        Raises:
            RequestError: it is not as the shape says.
        """
        size = self.parameters.binary_data_size
        if (size is None) == (self.data is None):
            raise RequestError(
                "inputs.0: send data, or binary_data_size and the bytes", param="inputs.0.data"
            )
        found: list[str | bytes] = [*self.data] if self.data is not None else _elements(binary, size or 0)
        count = 1
        for extent in self.shape:
            count *= extent
        if count != len(found):
            raise RequestError(
                f"inputs.0.shape: is for {count} pictures, and there are {len(found)}", param="inputs.0.shape"
            )
        return found


def _elements(binary: bytes, size: int) -> list[str | bytes]:
    """Split a BYTES tensor: the length of each element in 4 bytes, little-endian, and the element."""
    if size != len(binary):
        raise RequestError(
            f"inputs.0: binary_data_size is {size}, and {len(binary)} bytes follow the JSON",
            param="inputs.0.parameters.binary_data_size",
        )
    found: list[str | bytes] = []
    place = 0
    while place < size:
        end = place + 4 + (struct.unpack_from("<I", binary, place)[0] if place + 4 <= size else size)
        if end > size or len(found) == MAX_INSTANCES:
            raise RequestError("inputs.0: the binary data is no tensor of 1 to 32 pictures", param="inputs.0")
        found.append(binary[place + 4 : end])
        place = end
    return found


class InferBody(Open):
    """Body of ``POST /v2/models/{model_name}/infer``."""

    id: str | None = Field(default=None, max_length=256)
    parameters: InferParameters = InferParameters()
    inputs: list[InputTensor] = Field(min_length=1, max_length=1)


OUTPUT_NAMES = ("fields", "confidence", "parse_error", "text", "finish_reason", "error")
"""The outputs of V2: what a prediction over V1 holds."""


class OutputTensor(BaseModel):
    """One of the outputs: an element for each picture."""

    name: str
    shape: list[int]
    datatype: Literal["BYTES"] = "BYTES"
    data: list[str]


class InferAnswer(BaseModel):
    """Outputs ``fields`` and ``confidence`` (JSON), ``parse_error``, ``text``, ``finish_reason``, ``error``.

    Each has an element for each picture; one that is null over V1 is ``null`` in JSON and else empty.
    """

    model_name: str
    model_version: str = Field(description="The model's digest.")
    id: str | None
    parameters: dict[str, str | int]
    outputs: list[OutputTensor]


_INPUTS = [MetadataTensor(name="image", datatype="BYTES", shape=[-1])]
_OUTPUTS = [MetadataTensor(name=name, datatype="BYTES", shape=[-1]) for name in OUTPUT_NAMES]

router = APIRouter(prefix="/v2", tags=["V2"])


@router.get("", summary="The server")
async def metadata() -> ServerMetadataResponse:
    """Describe the server and the extensions of the protocol that it supports."""
    return ServerMetadataResponse(name="fovea", version=__version__, extensions=["binary_tensor_data"])


@router.get("/models", summary="The models' names")
async def models(served: Served) -> ListModelsResponse:
    """List the one model that is served."""
    return ListModelsResponse(models=[served.name])


@router.get("/models/{model_name}", summary="A model's inputs and outputs", responses=errors(404))
async def model_metadata(model_name: str, served: Served) -> ModelMetadataResponse:
    """Describe the tensors of requests and responses."""
    check_model(served, model_name)
    return ModelMetadataResponse(name=model_name, platform="", inputs=_INPUTS, outputs=_OUTPUTS)


@router.get("/models/{model_name}/ready", summary="Whether a model answers", responses=errors(404, 503))
async def model_ready(model_name: str, served: Served) -> ModelReadyResponse:
    """Answer 200 while the model answers requests, and 503 once it has failed."""
    check_ready(served, model_name)
    return ModelReadyResponse(name=model_name, ready=True)


@router.get("/health/live", responses=errors(503), summary="Whether the process should live on")
async def live(served: Served) -> ServerLiveResponse:
    """Answer 503 once the model has failed for good or stands still at its work; busy is not dead."""
    if not served.batcher.alive:
        raise RequestError("the model has failed, or stands still", status=503)
    return ServerLiveResponse(live=True)


@router.get("/health/ready", responses=errors(503), summary="Whether requests are answered")
async def ready(served: Served) -> ServerReadyResponse:
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
async def infer(model_name: str, request: Request, served: Served) -> InferAnswer:
    """Answer with an element of each output for each picture of the input ``image``."""
    check_model(served, model_name)
    body, binary = await _read(request)
    pictures = [
        Picture(f"inputs[0].data[{number}]", content)
        for number, content in enumerate(body.inputs[0].pictures(binary))
    ]
    asked = body.parameters
    found = await predictions(served, request, pictures, asked.max_new_tokens, asked.min_confidence)
    task = task_name(served)
    return InferAnswer(
        model_name=served.name,
        model_version=served.digest,
        id=body.id,
        parameters={"task": task.name, "task_version": task.version},
        outputs=[
            OutputTensor(name=name, shape=[len(found)], data=[_element(each, name) for each in found])
            for name in OUTPUT_NAMES
        ],
    )


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
    if not length.isascii() or not length.isdigit() or len(length) > 12 or int(length) > len(content):
        raise RequestError(f"{_JSON_LENGTH}: must be how many bytes of the body are JSON", param=_JSON_LENGTH)
    return parse(content[: int(length)], InferBody), content[int(length) :]


V2 = Protocol(
    title="KServe V2",
    prefix=router.prefix,
    router=router,
    bodies=(InferBody,),
    keyless=("", "/health/*", "/models/*"),
)

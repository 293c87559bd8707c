"""KServe's V2 protocol, the Open Inference Protocol."""

import json
import math
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
from serving.engine.model import ServedModel
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


_Row = Annotated[list[str], Field(min_length=1, max_length=MAX_INSTANCES)]


class InputTensor(Open):
    """The pictures: files in base64, ``data:`` URLs or addresses; or, as binary data, the files' bytes."""

    name: Literal["image"]
    shape: list[Annotated[int, Field(ge=1, le=MAX_INSTANCES)]] = Field(min_length=1, max_length=2)
    datatype: Literal["BYTES"]
    parameters: TensorParameters = TensorParameters()
    data: list[str] | list[_Row] | None = Field(
        default=None,
        max_length=MAX_INSTANCES,
        description="Flat, or nested as a shape of two dimensions says.",
    )

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
        found = self._flat() if self.data is not None else _elements(binary, size or 0)
        count = math.prod(self.shape)
        if len(found) > MAX_INSTANCES:
            raise RequestError(f"inputs.0.data: holds more than {MAX_INSTANCES} pictures", param="inputs.0")
        if count != len(found):
            raise RequestError(
                f"inputs.0.shape: is for {count} pictures, and there are {len(found)}", param="inputs.0.shape"
            )
        return found

    def _flat(self) -> list[str | bytes]:
        """Return the elements of the data, row by row where it is nested."""
        rows = [row for row in self.data or () if isinstance(row, list)]
        if not rows:
            return [item for item in self.data or () if isinstance(item, str)]
        if self.shape[0] != len(rows) or any(self.shape[1:] != [len(row)] for row in rows):
            raise RequestError(
                f"inputs.0.data: is nested otherwise than the shape {self.shape} says; correct one of them",
                param="inputs.0.data",
            )
        return [item for row in rows for item in row]


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


class RequestedOutput(Open):
    """An output that is to be returned; outputs always come as JSON."""

    name: str


class InferBody(Open):
    """Body of ``POST /v2/models/{model_name}/infer``."""

    id: str | None = Field(default=None, max_length=256)
    parameters: InferParameters = InferParameters()
    inputs: list[InputTensor] = Field(min_length=1, max_length=1)
    outputs: list[RequestedOutput] = Field(
        default_factory=list, max_length=32, description="Those to return; all where none is named."
    )

    def output_names(self) -> list[str]:
        """Return the names of the outputs to return.

        Raises:
            RequestError: there is no output of a name.
        """
        for number, output in enumerate(self.outputs):
            if output.name not in OUTPUT_NAMES:
                raise RequestError(
                    f"outputs.{number}.name: there is no output {output.name[:40]!a}; there are "
                    f"{', '.join(OUTPUT_NAMES)}",
                    param=f"outputs.{number}.name",
                )
        return list(dict.fromkeys(output.name for output in self.outputs)) or list(OUTPUT_NAMES)


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

VERSION = "1"
"""The name of the version that is served; the model's digest is another name of it."""
_VERSIONED = "/models/{model_name}/versions/{model_version}"
_INFER_ERRORS = errors(400, 404, 408, 413, 415, 429, 500, 503, 504)

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
    return ModelMetadataResponse(
        name=model_name, versions=[VERSION], platform="", inputs=_INPUTS, outputs=_OUTPUTS
    )


@router.get(f"{_VERSIONED}", summary="The inputs and outputs of a model's version", responses=errors(404))
async def version_metadata(model_name: str, model_version: str, served: Served) -> ModelMetadataResponse:
    """Describe the tensors of requests and responses."""
    _check_version(served, model_name, model_version)
    return await model_metadata(model_name, served)


@router.get("/models/{model_name}/ready", summary="Whether a model answers", responses=errors(404, 503))
async def model_ready(model_name: str, served: Served) -> ModelReadyResponse:
    """Answer 200 while the model answers requests, and 503 once it has failed."""
    check_ready(served, model_name)
    return ModelReadyResponse(name=model_name, ready=True)


@router.get(f"{_VERSIONED}/ready", summary="Whether a model's version answers", responses=errors(404, 503))
async def version_ready(model_name: str, model_version: str, served: Served) -> ModelReadyResponse:
    """Answer 200 while the model answers requests, and 503 once it has failed."""
    _check_version(served, model_name, model_version)
    return await model_ready(model_name, served)


@router.head("/health/live", include_in_schema=False)
@router.get("/health/live", responses=errors(503), summary="Whether the process should live on")
async def live(served: Served) -> ServerLiveResponse:
    """Answer 503 once the model has failed for good or stands still at its work; busy is not dead."""
    if not served.batcher.alive:
        raise RequestError("the model has failed, or stands still", status=503)
    return ServerLiveResponse(live=True)


@router.head("/health/ready", include_in_schema=False)
@router.get("/health/ready", responses=errors(503), summary="Whether requests are answered")
async def ready(served: Served) -> ServerReadyResponse:
    """Answer 200 after the model has answered a first time, until it fails or the server stops."""
    if not served.batcher.alive:
        raise RequestError("the server is stopping, or the model has failed", status=503)
    return ServerReadyResponse(ready=True)


@router.post(
    "/models/{model_name}/infer",
    responses=_INFER_ERRORS,
    openapi_extra=json_body(InferBody),
    summary="Describe pictures",
)
async def infer(model_name: str, request: Request, served: Served) -> InferAnswer:
    """Answer with an element of each output for each picture of the input ``image``."""
    check_model(served, model_name)
    body, binary = await _read(request)
    names = body.output_names()
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
            for name in names
        ],
    )


@router.post(
    f"{_VERSIONED}/infer",
    responses=_INFER_ERRORS,
    openapi_extra=json_body(InferBody),
    summary="Describe pictures, by a version of the model",
)
async def version_infer(model_name: str, model_version: str, request: Request, served: Served) -> InferAnswer:
    """Answer as ``/infer`` without a version does."""
    _check_version(served, model_name, model_version)
    return await infer(model_name, request, served)


def _check_version(served: ServedModel, name: str, version: str) -> None:
    """Check a version in a path: the one that is served, as `VERSION` or as the model's digest.

    Raises:
        RequestError: 404, another model or version is served.
    """
    check_model(served, name)
    if version not in (VERSION, served.digest):
        raise RequestError(f"Model with name {name} has no version {version[:100]}.", status=404)


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

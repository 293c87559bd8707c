"""A protocol is one object: the server learns another one by its registration alone."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest
from fastapi import APIRouter, Request
from openapi_spec_validator import validate
from pydantic import BaseModel
from starlette.testclient import TestClient

from serving.engine.model import Question
from serving.engine.pictures import Picture
from serving.errors import RequestError
from serving.middleware.access import ApiKeys
from serving.protocols.openapi import describe, errors, json_body
from serving.protocols.protocol import ErrorBody, Protocol
from serving.protocols.registry import PROTOCOLS
from serving.protocols.requests import Served, read_body, seconds_for
from tests.serving.conftest import encoded, picture
from tests.serving.in_process import application, load

GOOD = encoded(picture(1))
KEY = "shop-0123456789abcdef"


class Caption(BaseModel):
    """Body of ``POST /captions/new``."""

    png: str


class Problem(ErrorBody):
    """An error as RFC 9457 writes it."""

    status: int
    detail: str

    @classmethod
    def of(cls, error: RequestError) -> Self:
        return cls(status=error.status, detail=str(error))


router = APIRouter(prefix="/captions")


@router.get("/models")
async def models(served: Served) -> list[str]:
    return [served.name]


@router.post("/new", responses=errors(400, kind=Problem), openapi_extra=json_body(Caption))
async def caption(request: Request, served: Served) -> str:
    body = await read_body(request, Caption)
    question = Question(served.predictor.task.prompt(), [Picture("png", body.png)], 64)
    return (await served.answer_one(question, seconds_for(request, served))).text


CAPTIONS = Protocol(
    title="Captions",
    prefix="/captions",
    router=router,
    bodies=(Caption,),
    error=Problem,
    keyless=("/models",),
)


@pytest.fixture(scope="module")
def client(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A server with keys that speaks this protocol, too."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"shop: {KEY}")
    with application(load(model_folder), keys=ApiKeys(keys), protocols=(*PROTOCOLS, CAPTIONS)) as found:
        found.headers["x-api-key"] = KEY
        yield found


def test_its_routes_answer_beside_the_others(client: TestClient) -> None:
    answer = client.post("/captions/new", json={"png": GOOD})
    asked = {"instances": [{"image": {"b64": GOOD}}]}
    (prediction,) = client.post("/v1/models/fovea:predict", json=asked).json()["predictions"]
    assert (answer.status_code, answer.json()) == (200, prediction["text"])


@pytest.mark.parametrize(
    ("request_", "status", "detail"),
    [
        # Of the route, of the model, of FastAPI, and of the two bounds before any route.
        ({"url": "/captions/new", "json": {}}, 400, "png: Field required"),
        ({"url": "/captions/new", "json": {"png": "!"}}, 400, "png: not base64"),
        ({"url": "/captions/none", "json": {}}, 404, "Not Found"),
        ({"url": "/captions/models", "json": {}}, 405, "Method Not Allowed"),
        ({"url": "/captions/new", "content": b" " * (65 << 20)}, 413, "larger than"),
        ({"url": "/captions/new", "headers": {"x-api-key": ""}}, 401, "an API key is needed"),
    ],
)
def test_its_errors_have_its_format(
    client: TestClient, request_: dict[str, Any], status: int, detail: str
) -> None:
    answer = client.post(**request_)
    assert answer.status_code == answer.json()["status"] == status
    assert detail in answer.json()["detail"]
    assert answer.json().keys() == {"status", "detail"}


def test_other_paths_keep_their_formats(client: TestClient) -> None:
    for path in ("/captionsandmore", "/v1/none", "/none"):
        assert client.get(path).json() == {"error": "Not Found"}
    assert client.get("/openai/none").json()["error"]["code"] == "not_found"


def test_its_open_paths_need_no_key(client: TestClient) -> None:
    assert client.get("/captions/models", headers={"x-api-key": ""}).json() == ["fovea"]


def test_the_document_describes_it(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    validate(document)
    assert "Captions" in document["info"]["description"]
    assert {"Caption", "Problem"} <= set(document["components"]["schemas"])
    operation = document["paths"]["/captions/new"]["post"]
    refused = operation["responses"]["401"]["content"]["application/json"]["schema"]["$ref"]
    assert refused == "#/components/schemas/Problem"


def test_the_document_says_which_paths_need_a_key(client: TestClient) -> None:
    for template, operations in describe((*PROTOCOLS, CAPTIONS), with_keys=True)["paths"].items():
        path = template.replace("{model_name}", "fovea").replace("{model}", "fovea")
        for method, operation in operations.items():
            answer = client.request(method, path, headers={"x-api-key": ""})
            assert (answer.status_code == 401) == ("security" in operation), (method, template)


def test_a_server_can_speak_one_protocol_alone(model_folder: Path) -> None:
    with application(load(model_folder), protocols=(CAPTIONS,)) as client:
        assert client.post("/captions/new", json={"png": base64.b64encode(b"no").decode()}).status_code == 400
        assert client.get("/v2/health/ready").status_code == 404
        assert list(client.get("/openapi.json").json()["paths"]) == ["/captions/models", "/captions/new"]

"""KServe's V2 protocol, and KServe's own client over V1 and V2."""

import asyncio
import base64
import json
import struct
from typing import Any

import numpy as np
import pytest
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

import fovea
from tests.serving.conftest import RunningServer, encoded, picture

PATH = "/v2/models/fovea/infer"
GOOD, OTHER = encoded(picture(1)), encoded(picture(2))


def request(*data: str, **more: Any) -> dict[str, Any]:
    tensor = {"name": "image", "shape": [len(data)], "datatype": "BYTES", "data": list(data)}
    return {"inputs": [tensor], **more}


def outputs(answer: dict[str, Any]) -> dict[str, list[str]]:
    return {output["name"]: output["data"] for output in answer["outputs"]}


def test_answers_are_those_of_v1(server: RunningServer) -> None:
    expected = server.predict([GOOD, "!", OTHER]).json()["predictions"]
    answer = server.client.post(PATH, json=request(GOOD, "!", OTHER, id="7")).json()
    assert (answer["id"], answer["model_name"]) == ("7", "fovea")
    assert answer["model_version"] == expected[0]["model_digest"]
    assert answer["parameters"] == {"task": "product-catalogue", "task_version": 1}
    found = outputs(answer)
    assert [json.loads(fields) for fields in found["fields"]] == [each["fields"] for each in expected]
    assert found["text"] == [each["text"] or "" for each in expected]
    assert found["finish_reason"] == ["stop", "", "stop"]
    assert found["error"][1].startswith("inputs[0].data[1]: not base64")
    assert {output["datatype"] for output in answer["outputs"]} == {"BYTES"}
    assert all(output["shape"] == [3] for output in answer["outputs"])


def test_metadata(server: RunningServer) -> None:
    assert server.client.get("/v2").json() == {
        "name": "fovea",
        "version": fovea.__version__,
        "extensions": ["binary_tensor_data"],
    }
    assert server.client.get("/v2/models").json() == {"models": ["fovea"]}
    described = server.client.get("/v2/models/fovea").json()
    assert [tensor["name"] for tensor in described["inputs"]] == ["image"]
    named = [tensor["name"] for tensor in described["outputs"]]
    assert named == list(outputs(server.client.post(PATH, json=request(GOOD)).json()))


def binary(*items: bytes, size: int | None = None, length: object = None) -> tuple[bytes, dict[str, str]]:
    """A body with a binary tensor, and its headers."""
    data = b"".join(struct.pack("<I", len(item)) + item for item in items)
    tensor = {
        "name": "image",
        "shape": [max(1, len(items))],
        "datatype": "BYTES",
        "parameters": {"binary_data_size": len(data) if size is None else size},
    }
    head = json.dumps({"inputs": [tensor]}).encode()
    headers = {"inference-header-content-length": str(len(head) if length is None else length)}
    return head + data, headers


def test_pictures_as_binary_data(server: RunningServer) -> None:
    content, headers = binary(base64.b64decode(GOOD), base64.b64decode(OTHER))
    answer = server.client.post(PATH, content=content, headers=headers)
    assert outputs(answer.json()) == outputs(server.client.post(PATH, json=request(GOOD, OTHER)).json())


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        binary(b"a", size=3),
        binary(b"a", length=99999),
        binary(b"a", length="a"),
        binary(b"a", length="9" * 5000),
        binary(size=0),
        binary(*[b"a"] * 33),
        (binary(b"a")[0][:-3] + b"\xff\xff\xff", binary(b"a")[1]),
    ],
)
def test_binary_data_that_is_none(server: RunningServer, content: bytes, headers: dict[str, str]) -> None:
    assert server.client.post(PATH, content=content, headers=headers).status_code == 400


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "inputs"),
        (request(), "shape"),
        (request(GOOD, inputs=[]), "inputs"),
        ({"inputs": [{**request(GOOD)["inputs"][0], "shape": [2]}]}, "is for 2 pictures, and there are 1"),
        ({"inputs": [{**request(GOOD)["inputs"][0], "datatype": "FP32"}]}, "datatype"),
        ({"inputs": [{**request(GOOD)["inputs"][0], "name": "text"}]}, "name"),
        ({"inputs": [{**request(GOOD)["inputs"][0], "data": None}]}, "send data"),
        (request("!"), "inputs[0].data[0]: not base64"),
        (request(GOOD, parameters={"max_new_tokens": 0}), "max_new_tokens"),
    ],
)
def test_nonsense_is_refused_with_its_reason(server: RunningServer, body: Any, message: str) -> None:
    response = server.client.post(PATH, json=body)
    assert response.status_code == 400
    assert message in response.json()["error"]


def test_kserves_client(server: RunningServer) -> None:
    async def scenario() -> None:
        v2 = InferenceRESTClient(RESTConfig(protocol="v2", verbose=False))
        assert await v2.is_server_ready(server.address)
        assert await v2.is_server_live(server.address)
        assert await v2.is_model_ready(server.address, "fovea")
        for as_binary in (True, False):
            tensor = InferInput("image", [2], "BYTES")
            pictures = [base64.b64decode(GOOD), base64.b64decode(OTHER)] if as_binary else [GOOD, OTHER]
            tensor.set_data_from_numpy(np.array(pictures, dtype=object), binary_data=as_binary)
            asked = InferRequest("fovea", [tensor])
            answer = await v2.infer(server.address, asked, model_name="fovea")
            fields = next(output for output in answer.outputs if output.name == "fields")
            assert set(json.loads(fields.data[0])) == {"product", "category", "full_price"}
        v1 = InferenceRESTClient(RESTConfig(protocol="v1"))
        body = {"instances": [{"image": {"b64": GOOD}}]}
        answer = await v1.infer(server.address, body, model_name="fovea")
        assert answer["predictions"][0]["fields"] == json.loads(fields.data[0])

    asyncio.run(scenario())


def test_nested_data_follow_the_shape(server: RunningServer) -> None:
    flat = outputs(server.client.post(PATH, json=request(GOOD, OTHER)).json())
    for shape, data in (([2, 1], [[GOOD], [OTHER]]), ([1, 2], [[GOOD, OTHER]]), ([1, 2], [GOOD, OTHER])):
        tensor = {**request()["inputs"][0], "shape": shape, "data": data}
        assert outputs(server.client.post(PATH, json={"inputs": [tensor]}).json()) == flat


@pytest.mark.parametrize(
    ("shape", "data"),
    [([2], [[GOOD, OTHER]]), ([2, 1], [[GOOD, OTHER]]), ([2, 2], [[GOOD], [OTHER]]), ([1, 1], [[[GOOD]]])],
)
def test_data_nested_otherwise_than_the_shape(server: RunningServer, shape: list[int], data: Any) -> None:
    tensor = {**request()["inputs"][0], "shape": shape, "data": data}
    response = server.client.post(PATH, json={"inputs": [tensor]})
    assert response.status_code == 400
    assert "data" in response.json()["error"]


def test_only_the_requested_outputs_are_returned(server: RunningServer) -> None:
    named = [{"name": "text"}, {"name": "fields", "parameters": {}}]
    assert list(outputs(server.client.post(PATH, json=request(GOOD, outputs=named)).json())) == [
        "text",
        "fields",
    ]
    refused = server.client.post(PATH, json=request(GOOD, outputs=[{"name": "text"}, {"name": "label"}]))
    assert refused.status_code == 400
    assert refused.json()["error"].startswith("outputs.1.name: there is no output 'label'; there are fields,")


def test_a_version_is_the_model(server: RunningServer) -> None:
    model = server.client.get("/v2/models/fovea").json()
    assert model["versions"] == ["1"]
    answer = server.client.post(PATH, json=request(GOOD)).json()
    for version in ("1", answer["model_version"]):
        path = f"/v2/models/fovea/versions/{version}"
        assert server.client.get(path).json() == model
        assert server.client.get(f"{path}/ready").json()["ready"] is True
        assert server.client.post(f"{path}/infer", json=request(GOOD)).json() == answer
    for path in ("/v2/models/fovea/versions/2", "/v2/models/other/versions/1"):
        assert server.client.get(path).status_code == 404
        assert server.client.post(f"{path}/infer", json=request(GOOD)).status_code == 404


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/health/ready"])
def test_health_answers_head(server: RunningServer, path: str) -> None:
    response = server.client.head(path)
    assert (response.status_code, response.content) == (200, b"")

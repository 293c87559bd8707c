"""Odd addresses and text in requests: refused with 400, never a fault of the server."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from fovea.fetch import client as fetching
from fovea.fetch.profiles import FetchProfile
from tests.serving.in_process import application, load

ODD = {
    "half an emoji": "http://a.example/\ud83d",
    "a port above 65535": "http://93.184.216.34:99999/a.jpg",
    "a host that IDNA refuses": "http://xn--/a.jpg",
    "a label of 64 characters": f"http://{'a' * 64}.example/a.jpg",
    "a long address": "http://a.example/" + "x" * 70_000,
    "s3": "S3://bucket/a.jpg",
    "s3 without a key": "s3://bucket",
    "NUL": "http://a.example/\0",
    "NUL in a name": "a\0b.jpg",
}


def chat(url: str) -> tuple[str, Any]:
    part = {"type": "image_url", "image_url": {"url": url}}
    return "/openai/v1/chat/completions", {
        "model": "fovea",
        "messages": [{"role": "user", "content": [part]}],
    }


def v1(url: str) -> tuple[str, Any]:
    return "/v1/models/fovea:predict", {"instances": [{"image": {"url": url}}]}


def v2(url: str) -> tuple[str, Any]:
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [url]}
    return "/v2/models/fovea/infer", {"inputs": [tensor]}


PROTOCOLS = [chat, v1, v2]


@pytest.fixture(scope="module", params=[None, FetchProfile()], ids=["no fetching", "fetching"])
def client(request: pytest.FixtureRequest, model_folder: Path) -> Iterator[TestClient]:
    with application(load(model_folder), profile=request.param) as client:
        yield client


@pytest.fixture(autouse=True, scope="module")
def no_name_resolves() -> Iterator[None]:
    original = fetching._resolve

    async def resolve(host: str, port: int) -> list[Any]:
        try:
            # The resolver checks a name in this way before it asks for it.
            host.encode("idna")
        except UnicodeError:
            return await original(host, port)
        raise fetching.FetchError("connection_failed", host, "no such name")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetching, "_resolve", resolve)
        yield


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("address", ODD.values(), ids=ODD.keys())
def test_an_odd_address_is_refused(client: TestClient, protocol: Any, address: str) -> None:
    path, body = protocol(address)
    assert client.post(path, content=json.dumps(body)).status_code == 400


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    protocol=st.sampled_from(PROTOCOLS),
    start=st.sampled_from(["", "http://", "https://a.example:", "data:", "data:image/png;base64,", "s3://"]),
    text=st.text(st.characters(), max_size=30),
)
def test_any_text_as_an_address_is_refused(client: TestClient, protocol: Any, start: str, text: str) -> None:
    path, body = protocol(start + text)
    assert client.post(path, content=json.dumps(body)).status_code == 400


@pytest.mark.parametrize(
    ("header", "value"), [("inference-header-content-length", "0" * 5000), ("content-length", "9" * 5000)]
)
def test_a_number_of_thousands_of_digits_is_refused(client: TestClient, header: str, value: str) -> None:
    path, _ = v2("")
    assert client.post(path, content=b"{}", headers={header: value}).status_code in (400, 413)

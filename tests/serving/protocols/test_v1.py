"""KServe's V1 protocol."""

import base64
import gzip
import io
import json
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fovea.inference import Predictor
from tests.serving.conftest import RunningServer, encoded, picture

GOOD = encoded(Image.new("RGB", (60, 40), "red"))


@pytest.fixture(scope="module")
def predictor(model_folder: Path) -> Predictor:
    """The same model in this process."""
    return Predictor.load(model_folder, device="cpu")


def test_answers_are_those_of_the_library(server: RunningServer, predictor: Predictor) -> None:
    pictures = [picture(number) for number in range(12)]
    response = server.predict([encoded(image) for image in pictures])
    assert response.status_code == 200
    expected = predictor.answer(pictures)
    assert len({answer.text for answer in expected}) > 2
    digest = server.client.get("/openai/v1/models").json()["data"][0]["model_digest"]
    assert response.json()["predictions"] == [
        {
            "fields": answer.fields,
            "confidence": None,
            "parse_error": None,
            "text": answer.text,
            "finish_reason": "stop",
            "usage": {
                "prompt_tokens": answer.prompt_tokens,
                "completion_tokens": answer.completion_tokens,
            },
            "model_digest": digest,
            "task": {"name": "product-catalogue", "version": 1},
            "error": None,
        }
        for answer in expected
    ]
    assert digest.startswith("sha256:")


def test_many_callers_at_once_get_their_own_answers(server: RunningServer, predictor: Predictor) -> None:
    pictures = [picture(number) for number in range(24)]
    expected = [answer.text for answer in predictor.answer(pictures)]

    def ask(number: int) -> str:
        limit = (32, 48)[number % 2]
        response = server.predict([encoded(pictures[number])], max_new_tokens=limit)
        return str(response.json()["predictions"][0]["text"])

    with ThreadPoolExecutor(24) as pool:
        assert list(pool.map(ask, range(24))) == expected


def test_other_ways_to_hand_a_picture_over(server: RunningServer) -> None:
    usual = server.predict([GOOD]).json()
    url = f"data:image/png;base64,{GOOD}"
    for image in ({"b64": url}, {"url": url}):
        response = server.client.post("/v1/models/fovea:predict", json={"instances": [{"image": image}]})
        assert response.json() == usual
    # Without a content type.
    untyped = server.client.post(
        "/v1/models/fovea:predict", content=b'{"instances": [{"image": {"b64": "%s"}}]}' % GOOD.encode()
    )
    assert untyped.json() == usual
    for kind in ("JPEG", "WEBP", "GIF"):
        assert server.predict([encoded(picture(3), kind)]).status_code == 200


def test_fewer_tokens_cut_the_answer(server: RunningServer) -> None:
    (prediction,) = server.predict([GOOD], max_new_tokens=3).json()["predictions"]
    assert prediction["finish_reason"] == "length"
    assert prediction["fields"] is None
    assert prediction["usage"]["completion_tokens"] == 3


def png_header(width: int, height: int) -> str:
    """A PNG that claims to be large and holds nothing."""

    def chunk(content: bytes) -> bytes:
        return struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))

    header = chunk(b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT" + zlib.compress(b""))).decode()


def truncated() -> str:
    """A JPEG that ends in the middle."""
    buffer = io.BytesIO()
    Image.effect_noise((200, 200), 90).save(buffer, "JPEG")
    return base64.b64encode(buffer.getvalue()[:2000]).decode()


def instance(image: Any) -> dict[str, Any]:
    """A request about one picture."""
    return {"instances": [{"image": image}]}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "instances: Field required"),
        ([], "an object"),
        ("instances", "an object"),
        ({"instances": 3}, "array"),
        ({"instances": []}, "at least 1"),
        ({"instances": [{"image": {"b64": GOOD}}] * 33}, "at most 32"),
        ({"instances": [{}]}, "instances.0.image: Field required"),
        (instance({"b64": 1}), "instances.0.image"),
        (instance({"b64": GOOD, "more": 1}), "instances.0.image"),
        (instance({"b64": "not base64!"}), "instances[0].image: not base64"),
        (instance({"b64": ""}), "instances[0].image: the file is empty"),
        (instance({"b64": "é"}), "instances[0].image: not base64"),
        (instance({"b64": base64.b64encode(b"<html>").decode()}), "instances[0].image: not a picture"),
        (instance({"b64": truncated()}), "instances[0].image: cannot be decoded"),
        (instance({"b64": png_header(9000, 9000)}), "instances[0].image: 9000 x 9000 pixels"),
        (instance({"url": "https://example.com/a.jpg"}), "does not fetch"),
        (instance({"url": "http://169.254.169.254/"}), "does not fetch"),
        (instance({"url": "data:image/png,abc"}), "must read data:"),
        (instance({"url": "file:///etc/passwd"}), "not base64"),
        ({**instance({"b64": GOOD}), "parameters": {"max_new_tokens": 0}}, "parameters.max_new_tokens"),
        ({**instance({"b64": GOOD}), "parameters": {"max_new_tokens": 5000}}, "parameters.max_new_tokens"),
        ({**instance({"b64": GOOD}), "parameters": {"temperature": 1}}, "parameters.temperature"),
        ({"instances": [{"image": {"b64": "?"}}, {"image": {"b64": "!"}}]}, "instances[0].image"),
        ({**instance({"b64": GOOD}), "parameters": {"min_confidence": 2}}, "parameters.min_confidence"),
        ({**instance({"b64": GOOD}), "parameters": {"min_confidence": 0.5}}, "gives no confidences"),
    ],
)
def test_nonsense_is_refused_with_its_reason(server: RunningServer, body: Any, message: str) -> None:
    response = server.client.post("/v1/models/fovea:predict", json=body)
    assert response.status_code == 400
    assert message in response.json()["error"]


def test_large_pictures_are_refused(server: RunningServer) -> None:
    response = server.predict([base64.b64encode(bytes(21 << 20)).decode()])
    assert response.status_code == 400
    assert "at most 20,971,520 bytes" in response.json()["error"]


@pytest.mark.parametrize("path", ["/v1/models/fovea:predict", "/openai/v1/chat/completions"])
@pytest.mark.parametrize("declared", [True, False])
def test_large_bodies_are_refused(server: RunningServer, path: str, declared: bool) -> None:
    chunk = b" " * (1 << 20)
    content = chunk * 65 if declared else (chunk for _ in range(65))
    response = server.client.post(path, content=content, headers={"content-type": "application/json"})
    assert response.status_code == 413
    assert "larger than" in response.text


def test_one_bad_picture_fails_alone(server: RunningServer) -> None:
    response = server.predict([GOOD, "!", png_header(9000, 9000), GOOD])
    assert response.status_code == 200
    first, second, third, last = response.json()["predictions"]
    assert first == last
    assert first["fields"] is not None
    assert first["error"] is None
    assert second["error"].startswith("instances[1].image: not base64")
    assert third["error"].startswith("instances[2].image: 9000 x 9000 pixels")
    for refused in (second, third):
        assert {refused[name] for name in ("fields", "text", "usage", "parse_error")} == {None}
        assert refused["model_digest"] == first["model_digest"]


def test_an_answer_that_does_not_parse_is_an_answer(server: RunningServer) -> None:
    response = server.predict([GOOD], max_new_tokens=3)
    assert response.status_code == 200
    (prediction,) = response.json()["predictions"]
    assert (prediction["fields"], prediction["error"]) == (None, None)
    assert "template" in prediction["parse_error"]
    assert prediction["text"]


@pytest.mark.parametrize(("header", "status"), [("0.000001", 504), ("0", 400), ("soon", 400), ("nan", 400)])
def test_a_client_says_how_long_it_waits(server: RunningServer, header: str, status: int) -> None:
    body = {"instances": [{"image": {"b64": GOOD}}]}
    response = server.client.post(
        "/v1/models/fovea:predict", json=body, headers={"x-request-timeout": header}
    )
    assert response.status_code == status


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values, max_size=3),
    max_leaves=8,
)
bodies = json_values | st.fixed_dictionaries(
    {"instances": json_values | st.lists(st.fixed_dictionaries({"image": json_values}), max_size=3)},
    optional={"parameters": json_values, "model": json_values, "messages": json_values},
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=bodies, path=st.sampled_from(["/v1/models/fovea:predict", "/openai/v1/chat/completions"]))
def test_no_body_is_an_error_of_the_server(server: RunningServer, body: Any, path: str) -> None:
    assert server.client.post(path, json=body).status_code in (200, 400, 404)


def test_base64_may_have_line_breaks(server: RunningServer) -> None:
    text = encoded(picture(3))
    broken = "\r\n".join(text[start : start + 76] for start in range(0, len(text), 76))
    expected = server.predict([text]).json()
    assert server.predict([broken]).json() == expected
    assert server.predict([f"data:image/png;base64,{broken}"]).json() == expected


def test_gzip_is_decoded_and_other_encodings_are_named(server: RunningServer) -> None:
    body = json.dumps(instance({"b64": encoded(picture(3))})).encode()
    path = "/v1/models/fovea:predict"

    def send(content: bytes, encoding: str) -> httpx.Response:
        return server.client.post(path, content=content, headers={"content-encoding": encoding})

    expected = server.client.post(path, content=body).json()
    assert send(gzip.compress(body), "gzip").json() == expected
    assert send(body, "identity").json() == expected
    assert send(gzip.compress(bytes(65 << 20)), "gzip").status_code == 413
    for content in (body, gzip.compress(body)[:-20], gzip.compress(body) + b"more"):
        assert send(content, "gzip").status_code == 400
    refused = send(body, "br")
    assert refused.status_code == 415
    assert "'br' is not offered" in refused.json()["error"]

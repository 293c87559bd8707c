"""The application under faults, full queues, hostile addresses, and with keys."""

import base64
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from fovea.fetch.profiles import FetchProfile
from serving.engine.batching import BatchLimits
from serving.engine.pictures import decode
from serving.middleware.access import ApiKeys
from tests.feed_server import FeedServer, says
from tests.serving.conftest import encoded, picture, wait_until
from tests.serving.in_process import Controlled, application, load

PREDICT = "/v1/models/fovea:predict"
CHAT = "/openai/v1/chat/completions"
GOOD = encoded(picture(1))


@pytest.fixture(scope="module")
def predictor(model_folder: Path) -> Controlled:
    return load(model_folder)


@pytest.fixture
def client(predictor: Controlled) -> Iterator[TestClient]:
    with application(predictor) as found:
        yield found


def body(*pictures: str, **parameters: Any) -> dict[str, Any]:
    return {"instances": [{"image": {"b64": each}} for each in pictures], "parameters": parameters}


def chat(url: str, **options: Any) -> dict[str, Any]:
    part = {"type": "image_url", "image_url": {"url": url}}
    return {"model": "fovea", "messages": [{"role": "user", "content": [part]}], **options}


def test_a_full_queue_is_said_at_once_and_it_recovers(predictor: Controlled) -> None:
    with (
        application(predictor, limits=BatchLimits(max_batch_size=2, max_waiting=2)) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        predictor.gate.clear()
        waiting = [pool.submit(client.post, PREDICT, json=body(GOOD)) for _ in range(4)]
        wait_until(lambda: "vllm:num_requests_waiting" in client.get("/metrics").text)
        wait_until(lambda: client.post(PREDICT, json=body(GOOD, GOOD, GOOD)).status_code == 429)
        wait_until(lambda: client.post(CHAT, json=chat(f"data:image/png;base64,{GOOD}")).status_code == 429)
        refused = client.post(CHAT, json=chat(f"data:image/png;base64,{GOOD}"))
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["type"] == "rate_limit_error"
        # No body is even read.
        assert client.post(PREDICT, content=b" " * (65 << 20)).status_code == 429
        assert client.get("/v2/health/live").status_code == 200
        predictor.gate.set()
        assert {future.result().status_code for future in waiting} == {200}
        assert client.post(PREDICT, json=body(GOOD, GOOD)).status_code == 200


def test_a_request_has_a_deadline(predictor: Controlled) -> None:
    with application(predictor, settings={"request_seconds": 0.3}) as client:
        predictor.gate.clear()
        late = client.post(PREDICT, json=body(GOOD))
        assert late.status_code == 504
        assert late.json()["error"] == "not answered within 0.3 seconds"
        late = client.post(CHAT, json=chat(f"data:image/png;base64,{GOOD}", stream=True))
        assert (late.status_code, late.json()["error"]["type"]) == (504, "server_error")
        predictor.gate.set()
        wait_until(lambda: client.post(PREDICT, json=body(GOOD)).status_code == 200)


def test_a_model_that_failed_for_good_is_not_alive(predictor: Controlled) -> None:
    with application(predictor) as client:
        assert client.get("/v2/health/live").json() == {"live": True}
        predictor.broken = True
        failed = client.post(PREDICT, json=body(GOOD))
        assert failed.status_code == 500
        assert "CUDA" not in failed.text
        wait_until(lambda: client.get("/v2/health/live").status_code == 503)
        for path in ("/v2/health/ready", "/v2/models/fovea/ready", "/v1/models/fovea"):
            assert client.get(path).status_code == 503, path
        refused = client.post(CHAT, json=chat(f"data:image/png;base64,{GOOD}"))
        assert refused.status_code == 503
        assert refused.json()["error"]["type"] == "server_error"


def test_a_model_that_stands_still_is_not_alive(predictor: Controlled) -> None:
    with (
        application(predictor, limits=BatchLimits(hang_seconds=0.2)) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        predictor.gate.clear()
        stuck = pool.submit(client.post, PREDICT, json=body(GOOD))
        wait_until(lambda: client.get("/v2/health/live").status_code == 503)
        predictor.gate.set()
        assert stuck.result().status_code == 200
        wait_until(lambda: client.get("/v2/health/live").status_code == 200)


def test_the_event_loop_is_free_while_a_picture_is_decoded(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoding stands still, and others are answered meanwhile."""
    begun, others_answered = threading.Event(), threading.Event()

    def slow(*arguments: Any) -> Any:
        begun.set()
        assert others_answered.wait(60)
        return decode(*arguments)

    monkeypatch.setattr("serving.engine.model.decode", slow)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client.post, PREDICT, json=body(GOOD))
        assert begun.wait(60)
        assert client.get("/v2/health/live").status_code == 200
        others_answered.set()
        assert asked.result().status_code == 200


def test_pictures_are_not_fetched_unless_it_is_allowed(client: TestClient) -> None:
    for url in ("https://example.com/a.png", "HTTP://example.com/a.png"):
        refused = client.post(CHAT, json=chat(url))
        assert refused.status_code == 400
        assert "does not fetch pictures" in refused.json()["error"]["message"]


def test_pictures_are_fetched_by_the_profiles_rules(predictor: Controlled) -> None:
    answers = {
        "/a.png": says(base64.b64decode(GOOD)),
        "/page": says(b"<html>"),
        "/away": says(b"", "302 Found", Location="http://169.254.169.254/latest/meta-data"),
        "/large": says(bytes(21 << 20)),
    }
    profile = FetchProfile(allowed_networks=(ip_network("127.0.0.0/8"),))
    with FeedServer(answers) as feed, application(predictor, profile=profile) as client:
        inline = client.post(CHAT, json=chat(f"data:image/png;base64,{GOOD}")).json()
        fetched = client.post(CHAT, json=chat(f"{feed.url}/a.png")).json()
        assert fetched["fovea"] == inline["fovea"]
        instances = [{"image": {"url": f"{feed.url}{path}"}} for path in ("/a.png", *answers, "/none")]
        found = client.post(PREDICT, json={"instances": instances}).json()["predictions"]
        assert found[0] == found[1]
        assert [each["error"] for each in found[2:]] == [
            "instances[2].image: not a picture in one of JPEG, PNG, WEBP, GIF",
            "instances[3].image: cannot be fetched (no such address may be reached)",
            "instances[4].image: cannot be fetched (too large)",
            "instances[5].image: cannot be fetched (not found)",
        ]
        assert feed.asked["/a.png"] == 3


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:1/", "http://169.254.169.254/", "http://[::1]/", "http://name.invalid/", "http://"],
)
def test_addresses_of_this_network_and_none_look_alike(predictor: Controlled, url: str) -> None:
    with application(predictor, profile=FetchProfile()) as client:
        refused = client.post(CHAT, json=chat(url))
        assert refused.status_code == 400
        message = refused.json()["error"]["message"]
        assert "no such address may be reached" in message or "invalid url" in message


def test_keys_and_their_rate(predictor: Controlled, tmp_path: Path) -> None:
    key = "shop-0123456789abcdef"
    (tmp_path / "shop").write_text(key)
    keys = ApiKeys(tmp_path)
    with application(predictor, keys=keys, settings={"requests_per_minute": 2}) as client:
        assert client.post(PREDICT, json=body(GOOD)).status_code == 401
        assert client.post("/v2/models/fovea/infer", json={}).status_code == 401
        # A body is not even read without a key.
        assert client.post(PREDICT, content=b" " * (65 << 20)).status_code == 401
        headers = {"authorization": f"Bearer {key}"}
        for expected in (200, 200, 429):
            assert client.post(PREDICT, json=body(GOOD), headers=headers).status_code == expected
        described = client.get("/openapi.json").json()
        assert described["paths"]["/v1/models/{model_name}:predict"]["post"]["security"] == [{"key": []}]


def test_other_sites_may_ask_only_where_they_are_named(predictor: Controlled) -> None:
    origin = {"origin": "https://shop.example", "access-control-request-method": "POST"}
    with application(predictor) as client:
        assert client.options(PREDICT, headers=origin).status_code == 405
        answer = client.get("/v1/models/fovea", headers=origin)
        assert "access-control-allow-origin" not in answer.headers
    with application(predictor, settings={"cors_origins": ["https://shop.example"]}) as client:
        assert client.options(PREDICT, headers=origin).status_code == 200
        answer = client.get("/v1/models/fovea", headers=origin)
        assert answer.headers["access-control-allow-origin"] == "https://shop.example"
        other = client.get("/v1/models/fovea", headers={"origin": "https://other.example"})
        assert "access-control-allow-origin" not in other.headers

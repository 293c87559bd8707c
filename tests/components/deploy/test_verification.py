"""A server that answers wrongly is told from one that answers as evaluated."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.deploy.verification import Expectation, Probe, Verification, most_that_differ, verify
from fovea.evaluation.calibration import Calibration, FieldCalibration
from fovea.task import product_task

TASK = product_task()
DIGEST = "sha256:" + "1" * 64
PROBES = [
    Probe(
        row_id=f"row-{number}",
        picture=bytes([number]),
        text=f"Product: Scarf {number}, Category: SCARVES, Full Price: 120.0",
        truth={"product": "Scarf", "category": "SCARVES", "full_price": 125.0},
    )
    for number in range(20)
]
BY_PICTURE = {probe.base64: probe for probe in PROBES}

Change = Callable[[dict[str, Any]], Any]


def answer(picture: str) -> dict[str, Any]:
    """A right answer about a picture."""
    text = BY_PICTURE[picture].text
    task = {"name": TASK.name, "version": TASK.version}
    return {"text": text, "fields": TASK.parse(text).fields, "model_digest": DIGEST, "task": task}


def served(
    change_v1: Change,
    change_chat: Change,
    dtype: str = "float32",
    calibration: Calibration | None = None,
    probes: Sequence[Probe] = PROBES,
) -> Verification:
    """Verify a stand-in for the server whose answers may be changed."""

    def respond(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        if request.url.path == "/v1/models/fovea:predict":
            answers = [answer(instance["image"]["b64"]) for instance in body["instances"]]
            content = {"predictions": [change_v1(one) or one for one in answers]}
        else:
            url = body["messages"][0]["content"][0]["image_url"]["url"]
            one = answer(url.partition(",")[2])
            one = change_chat(one) or one
            content = {"choices": [{"message": {"content": one["text"]}}], "fovea": one}
        return httpx.Response(200, json=content)

    with httpx.Client(transport=httpx.MockTransport(respond), base_url="http://server") as client:
        return verify(client, probes, Expectation("fovea", DIGEST, TASK, 32, dtype, calibration=calibration))


def unchanged(one: dict[str, Any]) -> None:
    """Leave an answer as it is."""


def test_right_answers() -> None:
    result = served(unchanged, unchanged)
    assert (result.passed, result.asked, result.agreed) == (True, 20, 20)


@pytest.mark.parametrize("protocol", ["V1", "chat"])
@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"model_digest": "sha256:old"}, "answers with model sha256:old"),
        ({"task": {"name": "other", "version": 1}}, "answers task"),
        ({"fields": None}, "0 of 20"),
        ({"text": "rubbish"}, "0 of 20"),
    ],
)
def test_wrong_answers(protocol: str, wrong: dict[str, Any], reason: str) -> None:
    changes = [unchanged, lambda one: {**one, **wrong}]
    result = served(*(changes if protocol == "chat" else changes[::-1]))
    assert not result.passed
    assert reason in result.reason
    assert protocol in result.reason


CALIBRATION = Calibration(
    fields={
        "category": FieldCalibration(slope=1.0, intercept=0.0, rows=100, right=50),
        "product": FieldCalibration(rows=0, right=0, reason="0 answers to fit on"),
    }
)


def test_confidences_are_of_the_fields_that_were_calibrated() -> None:
    def sure(**fields: float | None) -> Change:
        return lambda one: {**one, "confidence": fields}

    right, other = sure(category=0.9, product=None), sure(category=0.9, product=0.8)
    assert served(right, right, calibration=CALIBRATION).passed
    for change in (unchanged, other):
        for changes in ((change, right), (right, change)):
            result = served(*changes, calibration=CALIBRATION)
            assert not result.passed
            assert "the evaluation calibrated category" in result.reason
    assert "calibrated no field" in served(right, right).reason


def change_some(count: int) -> Change:
    """Change the answers to the first ``count`` pictures."""
    texts = {probe.text for probe in PROBES[:count]}
    return lambda one: {**one, "text": "x"} if one["text"] in texts else one


@pytest.mark.parametrize(
    ("dtype", "likelihood", "differing", "passed"),
    [
        ("float32", 0.5, 1, False),
        ("bfloat16", 0.99, 1, False),
        ("bfloat16", 0.8, 2, True),
        ("bfloat16", 0.8, 3, False),
        ("float16", 0.6, 9, True),
        ("float16", 0.6, 10, False),
    ],
)
def test_how_many_may_differ(dtype: str, likelihood: float, differing: int, passed: bool) -> None:
    probes = [replace(probe, likelihood=likelihood) for probe in PROBES]
    result = served(change_some(differing), unchanged, dtype, probes=probes)
    assert (result.passed, result.agreed) == (passed, 20 - differing)
    assert "row-0" in result.reason


@given(st.lists(st.none() | st.floats(0.0, 1.0), min_size=1, max_size=20))
def test_the_surer_the_evaluation_was_the_fewer_may_differ(likelihoods: list[float | None]) -> None:
    allowed = most_that_differ(likelihoods)
    assert sum(each is None for each in likelihoods) <= allowed <= len(likelihoods)
    assert most_that_differ([1.0 if each is None else max(each, 0.99) for each in likelihoods]) == 0
    assert most_that_differ([*likelihoods, 1.0]) == allowed


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (httpx.Response(500, text="broken"), "answered 500: broken"),
        (httpx.Response(200, text="<html>"), "cannot be read"),
        (httpx.Response(200, json={"predictions": []}), "0 predictions for 20 pictures"),
        (httpx.Response(200, json={"predictions": [{}]}), "cannot be read"),
        (httpx.Response(200, json=[]), "cannot be read"),
    ],
)
def test_what_is_no_answer(response: httpx.Response, reason: str) -> None:
    transport = httpx.MockTransport(lambda _: response)
    with httpx.Client(transport=transport, base_url="http://server") as client:
        result = verify(client, PROBES, Expectation("fovea", DIGEST, TASK, 32, "float32"))
    assert not result.passed
    assert reason in result.reason


def test_a_server_that_is_gone() -> None:
    with httpx.Client(base_url="http://127.0.0.1:1", timeout=2, trust_env=False) as client:
        result = verify(client, PROBES, Expectation("fovea", DIGEST, TASK, 32, "float32"))
    assert not result.passed
    assert "no answer" in result.reason

"""How sure the model is, over every protocol; what it is not sure of, left out; what is not known, said."""

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from fovea.errors import UserError
from fovea.evaluation.calibration import Calibration, FieldCalibration
from fovea.records import EvaluationRecord, GenerationParameters
from fovea.task import Answer, Task, product_task
from serving.application import _calibration
from serving.engine.loading import find_evaluation, locate_model
from tests.serving.conftest import StartServer, encoded, picture
from tests.serving.in_process import CALIBRATION, Controlled, application, load
from tests.some_records import SOME_DIGEST, some_evaluation

PICTURES = [picture(number) for number in range(6)]


@pytest.fixture(scope="module")
def predictor(model_folder: Path) -> Controlled:
    return load(model_folder)


@pytest.fixture(scope="module")
def answers(predictor: Controlled) -> list[Answer]:
    return predictor.answer(PICTURES)


@pytest.fixture(scope="module")
def client(predictor: Controlled) -> Iterator[TestClient]:
    with application(predictor, calibration=CALIBRATION) as found:
        yield found


def evaluation(task: Task, calibration: Calibration | None = CALIBRATION, **fields: Any) -> EvaluationRecord:
    """The record of an evaluation that found this calibration."""
    return some_evaluation(task_digest=task.digest, calibration=calibration, **fields)


def predict(client: TestClient, **parameters: Any) -> list[dict[str, Any]]:
    body = {
        "instances": [{"image": {"b64": encoded(image)}} for image in PICTURES],
        "parameters": parameters,
    }
    response = client.post("/v1/models/fovea:predict", json=body)
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()["predictions"]
    return found


def chat(client: TestClient, text: str = "", **options: Any) -> Any:
    url = {"url": f"data:image/png;base64,{encoded(PICTURES[0])}"}
    content = [{"type": "image_url", "image_url": url}, {"type": "text", "text": text}]
    body = {"model": "fovea", "messages": [{"role": "user", "content": content}], **options}
    return client.post("/openai/v1/chat/completions", json=body)


def test_each_answer_has_the_calibrated_confidence_of_its_fields(
    client: TestClient, answers: list[Answer]
) -> None:
    found = predict(client)
    assert len({prediction["confidence"]["category"] for prediction in found}) > 1
    for prediction, answer in zip(found, answers, strict=True):
        assert prediction["fields"] == answer.fields
        # What else was in the batch changes the last digits.
        assert prediction["confidence"] == pytest.approx(CALIBRATION.confidences(answer.scores), abs=1e-5)
        assert prediction["confidence"]["product"] is None


def test_fields_below_a_confidence_are_null(client: TestClient) -> None:
    usual = predict(client)
    least = statistics.median(prediction["confidence"]["category"] for prediction in usual)
    shown = set()
    for prediction in predict(client, min_confidence=least):
        for name, sure in prediction["confidence"].items():
            is_sure = sure is not None and sure >= least
            assert (prediction["fields"][name] is not None) == is_sure
            shown.add((name, is_sure))
    # What is not known is not sure.
    assert {("product", False), ("category", True), ("category", False)} <= shown
    assert ("product", True) not in shown


def test_over_v2(client: TestClient) -> None:
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [encoded(PICTURES[0])]}
    body = {"inputs": [tensor], "parameters": {"min_confidence": 0.999999}}
    response = client.post("/v2/models/fovea/infer", json=body).json()
    outputs = {each["name"]: each["data"][0] for each in response["outputs"]}
    (usual, *_) = predict(client)
    assert json.loads(outputs["confidence"]) == pytest.approx(usual["confidence"], abs=1e-5)
    assert set(json.loads(outputs["fields"]).values()) == {None}


def test_over_chat_for_the_tasks_own_question_alone(client: TestClient) -> None:
    (usual, *_) = predict(client)
    for text in ("", product_task().question):
        found = chat(client, text).json()["fovea"]
        assert found["confidence"] == pytest.approx(usual["confidence"], abs=1e-5)
    strict = chat(client, min_confidence=0.999999, response_format={"type": "json_object"}).json()
    assert set(json.loads(strict["choices"][0]["message"]["content"]).values()) == {None}
    assert chat(client, "What colour is it?").json()["fovea"]["confidence"] is None
    refused = chat(client, "What colour is it?", min_confidence=0.5)
    assert refused.status_code == 400
    assert "no confidences for this question" in refused.json()["error"]["message"]


def test_a_schema_must_allow_null_below_a_confidence(client: TestClient) -> None:
    def wanted(kind: Any) -> dict[str, Any]:
        found = {"type": "object", "properties": {"full_price": {"type": kind}}}
        return {"type": "json_schema", "json_schema": {"name": "a", "schema": found}}

    refused = chat(client, min_confidence=0.5, response_format=wanted("number"))
    assert refused.status_code == 400
    assert "add null to its type" in refused.json()["error"]["message"]
    for kind, least in (("number", 0.0), (["number", "null"], 0.5)):
        assert chat(client, min_confidence=least, response_format=wanted(kind)).status_code == 200


def test_a_stream_ends_with_them(client: TestClient) -> None:
    events = chat(client, stream=True).text.strip().split("\n\n")
    last = json.loads(events[-2].removeprefix("data: "))
    assert set(last["fovea"]["confidence"]) == {"product", "category", "full_price"}


def test_an_answer_that_cannot_be_read_or_was_cut_has_none(client: TestClient) -> None:
    for prediction in predict(client, max_new_tokens=2):
        assert prediction["confidence"] is None
    # The price is there, but nothing says that it ends here.
    for prediction in predict(client, max_new_tokens=8):
        assert prediction["fields"]["full_price"]
        assert prediction["confidence"]["full_price"] is None
        assert prediction["confidence"]["category"] is not None


def test_without_a_calibration_none_is_made_up(predictor: Controlled) -> None:
    with application(predictor) as client:
        assert all(prediction["confidence"] is None for prediction in predict(client))
        refused = chat(client, min_confidence=0.1)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "min_confidence")


def test_the_calibration_is_the_evaluations_of_this_model(predictor: Controlled, tmp_path: Path) -> None:
    record = evaluation(predictor.task)
    (tmp_path / "evaluation.json").write_text(record.to_json())
    assert find_evaluation(str(tmp_path / "evaluation.json"), SOME_DIGEST) == record
    assert _calibration(record, predictor) == CALIBRATION
    with pytest.raises(UserError, match=r"is of model sha256:0000.* not of sha256:1111"):
        find_evaluation(str(tmp_path / "evaluation.json"), "sha256:" + "1" * 64)
    assert _calibration(evaluation(product_task("name", "kind", "amount")), predictor) == CALIBRATION
    with pytest.raises(UserError, match=r"another task \(sha256:\w+\) than the model answers, product-cat"):
        _calibration(evaluation(product_task(currency_column="currency")), predictor)
    other = GenerationParameters(max_new_tokens=64, num_crops=1, dtype="float32")
    with pytest.raises(UserError, match="num_crops"):
        _calibration(evaluation(predictor.task, generation=other), predictor)


def test_an_empty_calibration_is_none(predictor: Controlled) -> None:
    nothing = FieldCalibration(rows=0, right=0, reason="0 answers to fit on, 50 are needed")
    empty = Calibration(fields=dict.fromkeys(predictor.task.fields, nothing))
    for record in (None, evaluation(predictor.task, None), evaluation(predictor.task, empty)):
        assert _calibration(record, predictor) is None


def test_a_server_is_given_the_evaluation(
    model_folder: Path, start_server: StartServer, predictor: Controlled, tmp_path: Path
) -> None:
    _, digest = locate_model(str(model_folder))
    record = evaluation(predictor.task, model_digest=digest)
    path = tmp_path / "evaluation.json"
    path.write_text(record.to_json())
    with start_server("--model-dir", str(model_folder), "--evaluation", str(path)) as server:
        (prediction,) = server.predict([encoded(PICTURES[0])]).json()["predictions"]
        assert set(prediction["confidence"]) == {"product", "category", "full_price"}
        assert "no confidence is given of product: 10 answers to fit on" in server.log.read_text()

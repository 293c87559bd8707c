"""The server as a process: what it says about itself, how it starts, how it ends."""

import http.client
import json
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fovea.errors import UserError
from fovea.records import ModelRecord, StepInputs
from fovea.steps import RunContext, run_step
from fovea.storage import index_uri
from serving.engine.loading import locate_model
from tests.serving.conftest import REPOSITORY, RunningServer, StartServer, encoded, idle, picture, wait_until
from tests.tiny_model import write_tiny_model


def test_health_and_metrics(server: RunningServer) -> None:
    for path in ("/", "/v1/models/fovea", "/v2/health/live", "/v2/health/ready", "/v2/models/fovea/ready"):
        assert server.client.get(path).status_code == 200, path
    server.predict([encoded(picture(0))]).raise_for_status()
    wait_until(lambda: idle(server))
    shown = server.client.get("/metrics").text
    for name in (
        'vllm:num_requests_running{model_name="fovea"} 0.0',
        'vllm:num_requests_waiting{model_name="fovea"} 0.0',
        'vllm:request_success_total{finished_reason="stop",model_name="fovea"}',
        'vllm:time_to_first_token_seconds_count{model_name="fovea"}',
        'vllm:generation_tokens_total{model_name="fovea"}',
        'fovea_batch_size_bucket{le="1.0",model_name="fovea"}',
        "fovea_picture_decode_seconds_count",
        'fovea_http_requests_total{route="/v1/models/{model_name}:predict",status="200"}',
    ):
        assert name in shown, name
    for route in ("/v2/repository/models/fovea/unload", "/v1/models/fovea:explain"):
        assert server.client.post(route, json={}).status_code in (404, 405)


def test_a_request_has_an_id_and_a_line_without_its_picture(server: RunningServer) -> None:
    given = {"x-request-id": "order-66"}
    body = {"instances": [{"image": {"b64": encoded(picture(0))}}]}
    response = server.client.post("/v1/models/fovea:predict", json=body, headers=given)
    assert response.headers["x-request-id"] == "order-66"
    made = server.client.get("/v1/models/fovea", headers={"x-request-id": "new\tline"})
    assert len(made.headers["x-request-id"]) == 32
    # The line is written once the answer is out.
    wait_until(lambda: "order-66" in server.log.read_text())
    (line,) = [line for line in server.log.read_text().splitlines() if "order-66" in line]
    assert "POST /v1/models/{model_name}:predict 200 in" in line
    assert "pictures=1, tokens=9" in line
    assert encoded(picture(0))[:40] not in server.log.read_text()


def test_an_error_of_a_caller_is_a_line_in_the_log(server: RunningServer) -> None:
    assert server.client.post("/v1/models/fovea:predict", content=b"{").status_code == 400
    assert server.client.post("/v1/models/other:predict", json={"instances": []}).status_code == 404
    for status in (400, 404):
        wait_until(lambda: f"POST /v1/models/{{model_name}}:predict {status} in" in server.log.read_text())  # noqa: B023
    assert "Traceback" not in server.log.read_text()


def test_the_openapi_document_describes_the_chat(server: RunningServer) -> None:
    document = server.client.get("/openapi.json").json()
    assert "/openai/v1/chat/completions" in document["paths"]
    assert {"ChatRequest", "ChatResponse"} <= set(document["components"]["schemas"])


def test_a_model_by_its_record_and_a_graceful_end(s3: str, start_server: StartServer, tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "noise")
    record = run_step(
        ModelRecord,
        StepInputs(step="merge_adapter", version=1, parameters={}, parents={}),
        RunContext(artifact_root=s3, run_id="test"),
        work=lambda attempt: (
            shutil.copytree(folder, attempt.payload, dirs_exist_ok=True)
            and {"architecture": "Phi3VForCausalLM", "num_crops": 4}
        ),
    )
    uri = index_uri(s3, record.step, record.input_key)
    # A folder that was downloaded by somebody else is held against the record, too.
    assert locate_model(str(folder), record=uri) == (folder, record.digest)
    (tmp_path / "record.json").write_text(record.to_json())
    (tmp_path / "other").mkdir()
    shutil.copytree(folder, tmp_path / "other", dirs_exist_ok=True)
    (tmp_path / "other" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"config.json: is not what .*record.json names"):
        locate_model(str(tmp_path / "other"), record=str(tmp_path / "record.json"))
    with start_server("--model-uri", uri, "--model-name", "shop") as server:
        address = server.address.removeprefix("http://")
        connection = http.client.HTTPConnection(address, timeout=60)
        connection.request("GET", "/openai/v1/models")
        (card,) = json.loads(connection.getresponse().read())["data"]
        assert (card["id"], card["model_digest"]) == ("shop", record.digest)
        # A request is under way when the server is told to end.
        body = {
            "instances": [{"image": {"b64": encoded(picture(0))}}],
            "parameters": {"max_new_tokens": 96},
        }
        connection.request("POST", "/v1/models/shop:predict", json.dumps(body))
        server.process.send_signal(signal.SIGTERM)
        (prediction,) = json.loads(connection.getresponse().read())["predictions"]
        assert prediction["fields"] is None
        assert "template" in prediction["parse_error"]
        assert (prediction["finish_reason"], prediction["usage"]["completion_tokens"]) == ("length", 96)
        assert prediction["model_digest"] == record.digest
        assert server.process.wait(30) == 0
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(tuple(address.split(":")), timeout=5)


def test_options_that_kserve_also_has_are_the_servers(start_server: StartServer, model_folder: Path) -> None:
    """Importing kserve reads the command line, too."""
    with start_server("--model-dir", str(model_folder), "--workers", "2", "--model-name", "shop") as server:
        assert server.client.get("/v1/models").json() == {"models": ["shop"]}
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(30) == 0
    lines = server.log.read_text().splitlines()
    assert {line.split()[2] for line in lines} == {"INFO"}, lines


def failed_start(*options: str) -> str:
    """Run a server that cannot start; return what it says."""
    result = subprocess.run(
        [sys.executable, "-m", "serving", *options],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    return line


def test_a_taken_port_is_said_in_one_line(model_folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = failed_start("--model-dir", str(model_folder), "--host", "127.0.0.1", "--http-port", str(port))
    assert line.startswith(f"error: port {port} on 127.0.0.1 cannot be used")


def test_a_missing_model_is_said_in_one_line(tmp_path: Path) -> None:
    line = failed_start("--model-dir", str(tmp_path), "--http-port", "0")
    assert line.startswith(f"error: {tmp_path}: no model here")

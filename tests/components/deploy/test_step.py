"""Only a model that passed, and that answers as it was evaluated, is made known."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from components.deploy.parameters import Deployment
from components.deploy.release import Release
from components.deploy.step import deployment_uri
from components.deploy.targets.local import LocalServer, ServerError
from fovea.errors import UserError
from fovea.records import ModelReference
from fovea.steps import RunContext, StepReport
from fovea.storage import Storage, index_uri
from fovea.task import Answer, Task, product_task
from tests.components.deploy.conftest import ROWS, TRUTH, World, decide, evaluate

REPOSITORY = Path(__file__).resolve().parents[3]


def record_uri(world: World) -> str:
    return index_uri(world.root, world.model.step, world.model.input_key)


@pytest.fixture
def one_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The server of the test's first deployment is kept for the next, which would start the same one."""
    real, addresses = LocalServer.running, list[str]()
    with ExitStack() as stack:

        @contextmanager
        def running(server: LocalServer, timeout: float) -> Iterator[str]:
            if not addresses:
                addresses.append(stack.enter_context(real(server, timeout)))
            yield addresses[0]

        monkeypatch.setattr(LocalServer, "running", running)
        yield


@pytest.mark.usefixtures("one_server")
def test_a_model_that_answers_as_evaluated_is_deployed(world: World, answers: list[Answer]) -> None:
    verdict = world.deploy(service_name="shop", deploy_probes=ROWS + 10)
    assert verdict == (
        True,
        f"{ROWS} of {ROWS} held-out pictures answered over V1 and chat as in the evaluation",
    )
    storage = Storage()
    text = storage.read_bytes(deployment_uri(world.root, "shop"))
    assert text == (world.folder / "out" / "deployment").read_bytes()
    document = Deployment.model_validate_json(text)
    assert document.model == ModelReference(digest=world.model.digest, record_uri=record_uri(world))
    assert document.decision_digest == world.decision.digest
    # It was started on the evaluation's calibration, and asked for the confidences.
    calibration = world.evaluation.calibration
    assert calibration is not None
    assert document.calibration_digest == calibration.digest
    assert (document.probes, document.agreed, document.run_id) == (ROWS, ROWS, "run-1")
    example = document.example
    assert (example.row_id, example.text, example.answer) == ("row-0", answers[0].text, answers[0].fields)
    assert example.truth == TRUTH
    assert example.latency_ms > 0
    assert document.predict_path == "/v1/models/shop:predict"
    report = StepReport.model_validate_json(storage.read_bytes(f"{world.root}/runs/run-1/deploy.json"))
    assert (report.reused, report.record_uri) == (False, deployment_uri(world.root, "shop"))

    # One answer that differs refuses, and what is known to be deployed stays.
    texts = [answer.text for answer in answers]
    texts[2] = texts[2].replace(".0", ".5")
    context = RunContext(artifact_root=world.root, run_id="run-0")
    evaluation = evaluate(context, world.model, world.dataset, texts)
    decision = decide(context, world.model, evaluation)
    verdict = world.deploy(evaluation=evaluation, decision=decision, service_name="shop", deploy_probes=3)
    assert not verdict.deployed
    assert "2 of 3 held-out pictures" in verdict.reason
    assert texts[2] in verdict.reason
    assert storage.read_bytes(deployment_uri(world.root, "shop")) == text
    written = json.loads((world.folder / "out" / "deployment").read_text())
    assert written == {"deployed": False, "reason": verdict.reason}


def refused(world: World, **changed: Any) -> str:
    """Deploy what must be refused without any server; return the reason."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalServer, "running", None)
        verdict = world.deploy(**changed)
    assert not verdict.deployed
    assert not list(Storage().list(f"{world.root}/deployments/"))
    return str(verdict.reason)


def test_what_the_gate_refused_is_refused(settled: World) -> None:
    context = RunContext(artifact_root=settled.root, run_id="run-0")
    decision = decide(context, settled.model, settled.evaluation, passed=False)
    assert refused(settled, decision=decision) == "the gate refused the model: parse_rate is 0.1"


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("decision", {"model_digest": "sha256:" + "0" * 64}, "the decision is on another model"),
        ("decision", {"parents": {}}, "the decision rests on another evaluation"),
        ("evaluation", {"model_digest": "sha256:" + "0" * 64}, "the evaluation is of another model"),
        ("dataset", {"longest_side": 1}, "the evaluation used another dataset"),
        ("model", {"num_crops": 16}, "the decision is on another model"),
    ],
)
def test_records_that_do_not_belong_together(
    settled: World, name: str, change: dict[str, Any], reason: str
) -> None:
    assert refused(settled, **{name: getattr(settled, name).model_copy(update=change)}) == reason


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        (product_task("name", "kind", "amount"), None),
        (
            product_task().model_copy(update={"question": "Why?"}),
            "the evaluation asked another task: question 'What is shown in this image?' there, 'Why?' here",
        ),
    ],
)
def test_a_task_is_what_is_asked_and_answered(settled: World, task: Task, reason: str | None) -> None:
    model = settled.model.model_copy(update={"task": Task.model_validate(task.model_dump())})
    own = {"model_digest": model.digest}
    evaluation = settled.evaluation.model_copy(update=own)
    parents = {"challenger": evaluation.digest}
    decision = settled.decision.model_copy(update={**own, "parents": parents})
    release = Release(model, evaluation, settled.dataset, decision, settled.root)
    assert release.refusal() == reason


def test_an_evaluation_of_an_unknown_task_is_refused(settled: World) -> None:
    evaluation = settled.evaluation.model_copy(update={"task_digest": "sha256:" + "0" * 64})
    decision = settled.decision.model_copy(update={"parents": {"challenger": evaluation.digest}})
    reason = Release(settled.model, evaluation, settled.dataset, decision, settled.root).refusal()
    here = product_task().digest[:19]
    assert reason == f"the evaluation asked another task: sha256:000000000000 there, {here} here"


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"deploy_target": "knative"}, "deploy_target = .knative.: input should be 'local' or 'kserve'"),
        ({"kserve": "{"}, "kserve = .*must be a JSON object"),
        ({"kserve": {"gpu": 1}}, "kserve.gpu = 1: extra inputs"),
        ({"kserve": {"traffic_steps": [50, 10]}}, "must grow"),
        ({"kserve": {"replicas": 2, "max_replicas": 1}}, "max_replicas"),
        ({"deploy_target": "kserve", "service_name": "x" * 41}, "may have 40 characters"),
        ({"deploy_port": 70000}, "deploy_port"),
        ({"deploy_probes": 0}, "deploy_probes"),
        ({"service_name": "../x"}, "service_name"),
    ],
)
def test_wrong_parameters(settled: World, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        settled.deploy(**parameters)
    assert Storage().exists(f"{settled.root}/runs/run-1/failure.json")


def test_a_local_run_does_not_wait_for_the_kubernetes_client() -> None:
    code = "import sys, components.deploy.step; sys.exit('kubernetes' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0


def test_kserve_without_a_way_to_a_cluster_is_a_verdict(
    settled: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "missing"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert "set KUBECONFIG" in refused(settled, deploy_target="kserve")


def test_a_taken_port_is_the_reason(settled: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        verdict = settled.deploy(deploy_port=port)
    assert not verdict.deployed
    assert f"port {port} on 127.0.0.1 cannot be used" in verdict.reason


def test_a_model_changed_in_the_bucket_is_the_reason(world: World) -> None:
    storage = Storage()
    storage.write_bytes(world.model.uri + "config.json", b"{}")
    verdict = world.deploy()
    assert not verdict.deployed
    assert "is not the file its record names" in verdict.reason


def test_a_server_that_takes_too_long_is_stopped(settled: World) -> None:
    with (
        pytest.raises(ServerError, match=r"was not ready after 0 s"),
        LocalServer(record_uri(settled), "fovea").running(timeout=0.1),
    ):
        pass


def test_the_server_ends_with_the_process_that_started_it(settled: World) -> None:
    script = (
        "import sys\n"
        "from components.deploy.targets.local import LocalServer\n"
        "with LocalServer(sys.argv[1], 'fovea').running(120) as address:\n"
        "    print(address, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, record_uri(settled)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    host, port = parent.stdout.readline().strip().removeprefix("http://").split(":")
    listening = socket.create_connection((host, int(port)), timeout=10)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    with listening:
        # The server closes its connections when it ends.
        listening.settimeout(30)
        assert listening.recv(1) == b""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except OSError:
            return
    pytest.fail("the server outlived the process that started it")

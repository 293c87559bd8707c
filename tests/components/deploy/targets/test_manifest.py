"""The manifest, and what follows from it without a cluster."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from components.deploy.kserve_parameters import KServeParameters
from components.deploy.targets import questions
from components.deploy.targets.manifest import (
    Served,
    canary_entry,
    deployment_name,
    difference,
    digest_of,
    in_place,
    inference_service,
    owned,
    predictor,
)
from components.deploy.targets.questions import HeldOutQuestions
from components.deploy.targets.rollout import address_of
from components.deploy.verification import Expectation, Probe
from fovea.task import product_task

REPOSITORY = Path(__file__).resolve().parents[4]
DIGEST = "sha256:" + "1" * 64
SERVED = Served("shop", DIGEST, "s3://models/a.json", "bfloat16", "s3://models/evaluation.json")


def test_a_whole_manifest() -> None:
    asked = KServeParameters(
        service_account_name="reader",
        node_selector={"pool": "gpu"},
        tolerations=({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},),  # type: ignore[arg-type]
    )
    new = predictor(SERVED, asked)
    manifest = inference_service("shop", "ns", new, canary_entry(new, 0, 0))
    assert manifest["metadata"]["annotations"] == {"serving.kserve.io/deploymentMode": "Standard"}
    stable, (canary,) = manifest["spec"]["predictor"], manifest["spec"]["canary"]
    assert stable["model"]["args"] == [
        "--model-uri=s3://models/a.json",
        "--dtype=bfloat16",
        "--evaluation=s3://models/evaluation.json",
    ]
    assert stable["model"]["resources"]["limits"] == {"memory": "24Gi", "nvidia.com/gpu": "1"}
    assert stable["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert (stable["serviceAccountName"], stable["nodeSelector"]) == ("reader", {"pool": "gpu"})
    assert digest_of(stable) == DIGEST
    assert canary["trafficPercent"] == 0
    assert canary["predictor"]["minReplicas"] == 1
    assert "maxReplicas" not in canary["predictor"]
    assert json.loads(json.dumps(manifest)) == manifest


def test_pods_may_live_as_long_as_the_server_asks() -> None:
    runtime = yaml.safe_load((REPOSITORY / "manifests" / "base" / "serving-runtime.yaml").read_text())
    (container,) = runtime["spec"]["containers"]
    before = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    (grace,) = [arg for arg in container["args"] if arg.startswith("--grace-seconds=")]
    allowed = predictor(SERVED, KServeParameters())["terminationGracePeriodSeconds"]
    assert allowed >= before + int(grace.partition("=")[2]) + 5


def test_the_name_follows_from_what_pods_are_made_of_alone() -> None:
    def name(digest: str = DIGEST, **asked: Any) -> str:
        served = Served("shop", digest, "s3://models/a.json", "float32", asked.pop("evaluation_uri", ""))
        return str(predictor(served, KServeParameters(**asked))["name"])

    assert name() == name(replicas=3, max_replicas=5, rollout="recreate", traffic_steps=[5])
    others = [
        name(digest="sha256:" + "2" * 64),
        name(memory="8Gi"),
        name(gpus=0),
        name(evaluation_uri="s3://a"),
    ]
    assert len({name(), *others}) == 5
    assert len(deployment_name("x" * 40, name())) <= 63


def test_in_place_keeps_the_deployment() -> None:
    new, old = predictor(SERVED, KServeParameters()), {"name": "mold"}
    assert in_place(new, old)["name"] == "mold"
    assert "name" not in in_place(new, {})
    assert in_place(new, old)["deploymentStrategy"] == {"type": "Recreate"}


@given(st.recursive(st.text(max_size=3) | st.lists(st.integers(), max_size=2), lambda each: st.dictionaries(
    st.text(max_size=3), each, max_size=3), max_leaves=8))  # fmt: skip
def test_what_a_manager_owns_is_extracted(document: Any) -> None:
    def fields(value: Any) -> dict[str, Any]:
        return {f"f:{key}": fields(each) for key, each in value.items()} if isinstance(value, dict) else {}

    if isinstance(document, dict):
        wider = {**document, "somebody else's": 1}
        mine = owned(wider, fields(document)) if document else {}
        assert mine == document


def test_a_difference_is_shown_and_none_is_empty() -> None:
    one = inference_service("shop", "ns", {"name": "a", "minReplicas": 1})
    other = inference_service("shop", "ns", {"name": "a", "minReplicas": 2})
    assert difference(one, one) == ""
    assert "-    minReplicas: 1\n+    minReplicas: 2" in difference(one, other)


@pytest.mark.parametrize(
    ("cluster_ip", "port", "expected"),
    [
        ("10.0.0.1", {"port": 80, "targetPort": 8080}, "http://shop-predictor.ns.svc.cluster.local:80"),
        ("None", {"port": 80, "targetPort": 8080}, "http://shop-predictor.ns.svc.cluster.local:8080"),
        ("None", {"port": 8080, "targetPort": "http"}, "http://shop-predictor.ns.svc.cluster.local:8080"),
    ],
)
def test_a_headless_service_is_asked_at_its_pods_port(
    cluster_ip: str, port: dict[str, Any], expected: str
) -> None:
    metadata = {"name": "shop-predictor", "namespace": "ns"}
    assert address_of({"metadata": metadata, "spec": {"clusterIP": cluster_ip, "ports": [port]}}) == expected


@pytest.mark.parametrize(
    "wrong",
    [
        {"memory": "lots"}, {"gpus": -1}, {"namespace": "Shop"}, {"traffic_steps": [0]}, {"rollout": "blue"},
        {"tolerations": [{"effect": "Never"}]}, {"storage_uri": "s3://x"}, "[]", "{",
    ],
)  # fmt: skip
def test_what_is_not_allowed(wrong: Any) -> None:
    with pytest.raises(ValidationError):
        KServeParameters.model_validate(wrong)


@pytest.mark.parametrize(
    ("errors", "digest", "reason"),
    [
        ((0, 0), DIGEST, ""),
        ((0, 5), DIGEST, "5 of 105 requests of callers ended with 5xx"),
        ((3, 3), "sha256:old", "1 of 1 questions failed: model sha256:old answers"),
    ],
)
def test_callers_errors_are_watched(
    monkeypatch: pytest.MonkeyPatch, errors: tuple[int, int], digest: str, reason: str
) -> None:
    scrapes = iter(zip((0, 100), errors, strict=True))

    def respond(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/metrics":
            good, bad = next(scrapes)
            lines = [
                "# TYPE fovea_http_requests_total counter",
                f'fovea_http_requests_total{{route="/v1",status="200"}} {good}',
                f'fovea_http_requests_total{{route="/v1",status="503"}} {bad}',
            ]
            return httpx.Response(200, text="\n".join(lines) + "\n")
        return httpx.Response(200, json={"predictions": [{"model_digest": digest}]})

    def client(address: str, seconds: float) -> httpx.Client:
        return httpx.Client(transport=httpx.MockTransport(respond), base_url=address, timeout=seconds)

    monkeypatch.setattr(questions, "_client", client)
    probe = Probe("row-0", b"x", "text", {})
    expected = Expectation("shop", DIGEST, product_task(), 32, "float32", max_answer_seconds=5.0)
    asked = HeldOutQuestions([probe], expected, pause_seconds=0.0)
    assert asked.watch("http://server", 0.0) == reason

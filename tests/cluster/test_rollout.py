"""Rollouts on a real API server; a double plays KServe's controller and the kubelet."""

from typing import Any

import pytest
from kubernetes import client

from components.deploy.targets.manifest import deployment_name
from tests.cluster.conftest import SERVICE, Place, digest

# Where only waiting shows that something is wrong; the others are known long before.
LIMITS = {"unschedulable": {"schedule_seconds": 6.0}, "never_ready": {"start_seconds": 3.0}}


def test_first_unchanged_canary_and_promotion(place: Place) -> None:
    first = place.deploy("a")
    assert (first.verification.reason, first.kind) == (
        "3 of 3 held-out pictures answered over V1 and chat as in the evaluation",
        "first",
    )
    assert first.verification.passed
    pods = place.pods()
    assert set(pods.values()) == {digest("a")}

    again = place.deploy("a")
    assert (again.verification.passed, again.kind) == (True, "unchanged")
    assert place.pods() == pods

    second = place.deploy("b", traffic_steps=(10, 50))
    assert (second.verification.passed, second.kind) == (True, "canary"), second.verification.reason
    assert place.double.traffic == [0, 10, 50]
    live = place.live()
    assert live is not None
    assert "canary" not in live["spec"]
    assert place.stable_digest() == digest("b")
    place.until(lambda: set(place.pods().values()) == {digest("b")})


def test_the_canary_is_promoted_without_a_restart(place: Place) -> None:
    assert place.deploy("a").verification.passed
    seen: list[set[str]] = []
    rollout = place.rollout("b")
    promote = rollout._promote

    def watched() -> Any:
        seen.append({uid for uid, model in place.pods().items() if model == digest("b")})
        return promote()

    rollout._promote = watched  # type: ignore[method-assign]
    with rollout.lease.held():
        assert rollout.run().verification.passed
    assert len(seen[0]) == 1
    place.until(lambda: set(place.pods()) == seen[0])


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ({"start": "crash"}, "ends with 1 (3 restarts): error: config.json is not the file"),
        ({"start": "unschedulable"}, "finds no node: 0/2 nodes are available: 2 Insufficient nvidia.com/gpu"),
        ({"start": "image"}, "the image registry.example/fovea:1 of pod"),
        ({"start": "out_of_memory"}, "was killed for want of memory (24Gi)"),
        ({"start": "storage"}, "the storage initialiser of pod"),
        ({"start": "never_ready"}, "s after the pods had a node: pod"),
        ({"digest": digest("a")}, f"answers with model {digest('a')}, not {digest('b')}"),
        ({"text": "rubbish"}, "0 of 3 held-out pictures"),
        ({"status": 500}, "answered 500"),
        ({"seconds": 0.4}, "answers take 0."),
        ({"fails_under_traffic": True}, "at 50 % of the traffic: "),
    ],
)
def test_a_bad_model_gets_no_traffic(place: Place, behaviour: dict[str, Any], reason: str) -> None:
    assert place.deploy("a").verification.passed
    pods = place.pods()
    place.behave("b", **behaviour)
    limits = LIMITS.get(behaviour.get("start", ""), {})
    seconds = 0.2 if "seconds" in behaviour else 30.0
    outcome = place.deploy("b", max_answer_seconds=seconds, **limits)
    assert not outcome.verification.passed
    assert reason in outcome.verification.reason
    assert outcome.verification.reason.endswith("; the previous model answers as before")
    assert place.stable_digest() == digest("a")
    # Deployments go at once, and their pods a moment later.
    place.until(lambda: place.pods() == pods)
    if "fails_under_traffic" not in behaviour:
        assert set(place.double.traffic) <= {0}


def test_a_first_model_that_fails_leaves_nothing(place: Place) -> None:
    place.behave("a", text="rubbish")
    outcome = place.deploy("a")
    assert "0 of 3 held-out pictures" in outcome.verification.reason
    assert outcome.verification.reason.endswith("; the service was removed again")
    assert place.live() is None


def test_ready_is_false_where_patch_and_wait_believes_it(place: Place) -> None:
    """The naive wait passes on the old model, and ours does not."""
    assert place.deploy("a").verification.passed
    place.behave("b", start="crash")
    live = place.live()
    assert live is not None
    patch = {"spec": {"predictor": {"annotations": {"fovea.dev/model-digest": digest("b")}}}}
    patched = client.CustomObjectsApi(place.admin).patch_namespaced_custom_object(
        "serving.kserve.io", "v1beta1", place.namespace, "inferenceservices", SERVICE, patch
    )
    generation = patched["metadata"]["generation"]
    assert generation > live["metadata"]["generation"]
    naive: dict[str, Any] = {}
    rollout = place.rollout("a")
    rollout._until(lambda: bool(naive.update(place.live() or {}) or _seems_ready(naive, generation)), 30, "x")
    assert _seems_ready(naive, generation)
    # What it believes is the new model's readiness is the old one's.
    name = deployment_name(SERVICE, naive["spec"]["predictor"]["name"])
    address = place.double.address_of({"metadata": {"name": name}})
    assert rollout.questions.identify(address) == digest("a")
    # The same model by ours: the pods are looked at, and their crash is the reason.
    place.verified["manifest"] = None
    outcome = place.deploy("b", rollout="recreate")
    assert "ends with 1 (3 restarts)" in outcome.verification.reason


def _seems_ready(service: dict[str, Any], generation: int) -> bool:
    status = service.get("status", {})
    conditions = {each["type"]: each["status"] for each in status.get("conditions", [])}
    return status.get("observedGeneration", 0) >= generation and conditions.get("Ready") == "True"


def test_recreate_with_one_gpu(place: Place) -> None:
    place.double.gpus = 1
    assert place.deploy("a").verification.passed
    refused = place.deploy("b", schedule_seconds=2.0)
    assert "or set rollout to recreate" in refused.verification.reason
    outcome = place.deploy("b", rollout="auto", schedule_seconds=6.0)
    assert (outcome.verification.passed, outcome.kind) == (True, "recreate"), outcome.verification.reason
    place.until(lambda: set(place.pods().values()) == {digest("b")})


def test_recreate_brings_the_old_model_back(place: Place) -> None:
    place.double.gpus = 1
    assert place.deploy("a").verification.passed
    place.behave("b", text="rubbish")
    outcome = place.deploy("b", rollout="recreate")
    assert "0 of 3" in outcome.verification.reason
    assert outcome.verification.reason.endswith("; the previous model answers as before")
    place.until(lambda: set(place.pods().values()) == {digest("a")})

"""Rights, conflicts, outages and neighbours, on a real API server."""

import os
import select
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client

from components.deploy.kserve_parameters import KServeParameters
from components.deploy.targets.cluster import Cluster, ClusterError, ConflictError
from components.deploy.targets.lease import LeaseLostError
from components.deploy.targets.manifest import canary_entry, inference_service, predictor
from components.deploy.targets.target import RolloutOutcome
from tests.cluster.conftest import QUICK, SERVICE, Place, digest

MANIFEST = Path(__file__).resolve().parents[2] / "manifests" / "base" / "deployer.yaml"
VERBS = {"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


def role_rules() -> list[dict[str, Any]]:
    """The rules of the Role fovea-deployer."""
    documents = list(yaml.safe_load_all(MANIFEST.read_text()))
    (role,) = [each for each in documents if each["kind"] == "Role"]
    return list(role["rules"])


def granted_verbs() -> set[tuple[str, str]]:
    """What the Role grants, as (resource, verb)."""
    return {
        (resource, verb) for rule in role_rules() for resource in rule["resources"] for verb in rule["verbs"]
    }


def record(api: Any, monkeypatch: pytest.MonkeyPatch) -> set[tuple[str, str]]:
    """The requests of a client from now on, as (resource, verb) of Kubernetes' authorisation."""
    done: set[tuple[str, str]] = set()
    send = api.request

    def recorded(method: str, url: str, *arguments: Any, **named: Any) -> Any:
        plural, *names = url.split("/namespaces/")[1].split("/")[1:]
        resource = f"{plural}/{names[1]}" if len(names) > 1 else plural
        done.add((resource, VERBS[method] if names or method == "POST" else "list"))
        response = send(method, url, *arguments, **named)
        if response.status == 201 and method == "PATCH":
            done.add((resource, "create"))
        return response

    monkeypatch.setattr(api, "request", recorded)
    return done


def test_the_role_is_enough_and_no_more(
    place: Place,
    alice: Any,
    granted: Callable[[list[dict[str, Any]]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a user with these rights alone; every right is used."""
    granted(role_rules())
    done = record(alice, monkeypatch)
    place.cluster = Cluster(alice, place.namespace)
    place.behave("z", text="rubbish")
    assert not place.deploy("z").verification.passed  # and is removed again
    assert place.deploy("a").verification.passed
    assert place.deploy("b").verification.passed
    place.behave("c", start="crash")
    assert "ends with 1" in place.deploy("c").verification.reason
    place.behave("d", start="never_ready")
    assert "not ready" in place.deploy("d", start_seconds=1.0).verification.reason
    assert place.stable_digest() == digest("b")
    assert done == granted_verbs()


def test_a_namespace_without_rights(place: Place, alice: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # As if the API server had been up for long.
    monkeypatch.setattr("components.deploy.targets.cluster._START_SECONDS", 0.0)
    cluster = Cluster(alice, place.namespace)
    with pytest.raises(ClusterError, match=r"may not get leases .* bind the Role fovea-deployer"):
        place.deploy("a", cluster=cluster)
    assert place.live() is None


def test_a_field_that_somebody_set_stays_or_is_a_conflict(place: Place) -> None:
    assert place.deploy("a").verification.passed
    objects = client.CustomObjectsApi(place.admin)

    def edit(predictor: dict[str, Any]) -> None:
        objects.patch_namespaced_custom_object(
            "serving.kserve.io", "v1beta1", place.namespace, "inferenceservices", SERVICE,
            {"spec": {"predictor": predictor}}, field_manager="engineer",
        )  # fmt: skip

    edit({"priorityClassName": "shop-critical"})
    assert place.deploy("b").verification.passed
    live = place.live()
    assert live is not None
    assert live["spec"]["predictor"]["priorityClassName"] == "shop-critical"

    edit({"minReplicas": 2})
    outcome = place.deploy("c")
    assert not outcome.verification.passed
    assert "others own what is to be set" in outcome.verification.reason
    assert "minReplicas" in outcome.verification.reason
    assert "engineer" in outcome.verification.reason
    assert place.stable_digest() == digest("b")


def test_a_dry_run_shows_and_changes_nothing(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    assert place.deploy("a").verification.passed
    before = place.live()
    with caplog.at_level("INFO", "fovea"):
        outcome = place.deploy("b", dry_run=True)
    assert (outcome.verification.passed, outcome.kind) == (False, "dry_run")
    assert "+        - --model-uri=s3://models/b.json" in caplog.text.replace("      - --", "        - --")
    after = place.live()
    assert before is not None
    assert after is not None
    assert before["spec"] == after["spec"]
    assert before["metadata"]["generation"] == after["metadata"]["generation"]


def test_what_the_api_server_refuses_is_known_before(place: Place) -> None:
    outcome = place.deploy("a", node_selector={"pool": "gpu"}, cpu="4")
    assert outcome.verification.passed
    manifest = inference_service(
        SERVICE, place.namespace, {"model": {"modelFormat": {"name": "x"}, "modl": 1}}
    )
    with pytest.raises(ClusterError, match="modl: field not declared"):
        place.cluster.apply(manifest, dry_run=True)


def test_somebody_elses_canary_is_left_alone(place: Place) -> None:
    assert place.deploy("a").verification.passed
    live = place.live()
    assert live is not None
    rollout = place.rollout("x")
    entry = canary_entry({**rollout.new, "name": "theirs"}, 0, 1)
    client.CustomObjectsApi(place.admin).patch_namespaced_custom_object(
        "serving.kserve.io", "v1beta1", place.namespace, "inferenceservices", SERVICE,
        {"spec": {"canary": [entry]}}, field_manager="engineer",
    )  # fmt: skip
    outcome = place.deploy("b")
    assert "has a canary of somebody else's (theirs)" in outcome.verification.reason
    after = place.live()
    assert after is not None
    assert [each["predictor"]["name"] for each in after["spec"]["canary"]] == ["theirs"]


def test_knative_and_strange_services_are_refused(place: Place) -> None:
    new = predictor(place.rollout("a").served, KServeParameters(**QUICK))
    service = inference_service(SERVICE, place.namespace, new)
    service["metadata"]["annotations"] = {"serving.kserve.io/deploymentMode": "Knative"}
    objects = client.CustomObjectsApi(place.admin)
    where = ("serving.kserve.io", "v1beta1", place.namespace, "inferenceservices")
    objects.create_namespaced_custom_object(*where, service)
    assert "runs in KServe's Knative mode" in place.deploy("b").verification.reason
    objects.delete_namespaced_custom_object(*where, SERVICE)
    service["metadata"]["annotations"] = {}
    del service["spec"]["predictor"]["annotations"]
    objects.create_namespaced_custom_object(*where, service)
    assert "was not made by fovea" in place.deploy("b").verification.reason


def test_the_leftover_of_a_killed_run_is_replaced(place: Place) -> None:
    assert place.deploy("a").verification.passed
    killed = place.rollout("x")
    killed.before = place.verified["manifest"]
    killed.stable = place.verified["manifest"]["spec"]["predictor"]
    place.cluster.apply(killed._with_canary(0))
    assert place.deploy("a").kind == "unchanged"
    live = place.live()
    assert live is not None
    assert "canary" not in live["spec"]
    place.cluster.apply(killed._with_canary(50))
    assert place.deploy("b").verification.passed
    assert place.stable_digest() == digest("b")


def test_two_deployments_do_not_interleave_and_the_older_loses(place: Place) -> None:
    """The older one, under way, makes way for a younger one, and leaves what it found."""
    assert place.deploy("a").verification.passed
    place.behave("b", start="never_ready")
    older = place.rollout("b", lease=place.lease("older", age=60), start_seconds=600.0)
    ended: list[RolloutOutcome] = []

    def run() -> None:
        with older.lease.held():
            ended.append(older.run())

    thread = threading.Thread(target=run)
    thread.start()
    older._until(lambda: "canary" in (place.live() or {}).get("spec", {}), 60, "no canary")
    younger = place.rollout("c", lease=place.lease("younger"))
    with younger.lease.held():
        thread.join()
        assert "run younger/" in ended[0].verification.reason
        assert ended[0].verification.reason.endswith("; the previous model answers as before")
        assert "canary" not in (place.live() or {})["spec"]
        assert younger.run().verification.passed
    assert place.stable_digest() == digest("c")


def test_an_older_decision_is_refused_at_once(place: Place) -> None:
    with (
        place.lease("younger").held(),
        pytest.raises(LeaseLostError, match=r"run younger/.* is deploying a younger decision"),
        place.lease("older", age=60).held(),
    ):
        pass


def test_the_lease_of_a_killed_run_expires(place: Place) -> None:
    killed = place.lease("killed", age=60, seconds=1.0)
    killed._acquire()
    with place.lease("next", seconds=1.0).held() as lease:
        lease.check()


def test_a_lease_that_was_taken_over_ends_the_rollout_without_restoring(place: Place) -> None:
    lease = place.lease("mine", seconds=1.0)
    with lease.held():
        found = place.cluster.get("leases", lease.name)
        assert found is not None
        found["spec"]["holderIdentity"] = "theirs"
        place.cluster.replace("leases", found)
        rollout = place.rollout("a", lease=lease)
        with pytest.raises(LeaseLostError, match="run theirs has taken"):
            rollout._until(lambda: False, 30, "the loss is not noticed")
    assert (place.cluster.get("leases", lease.name) or {})["spec"]["holderIdentity"] == "theirs"


def test_a_write_of_another_in_between_is_a_conflict(place: Place) -> None:
    lease = place.lease("one")
    with lease.held():
        found = place.cluster.get("leases", lease.name)
        assert found is not None
        place.cluster.replace("leases", {**found, "spec": {**found["spec"], "leaseDurationSeconds": 9}})
        with pytest.raises(ConflictError):
            place.cluster.replace("leases", found)


def test_an_api_server_that_goes_away_in_mid_rollout(place: Place, kubeconfig: Path) -> None:
    """Stopped and continued: connections hang and break, and the rollout goes on."""
    assert place.deploy("a").verification.passed
    pid = int((kubeconfig.parent / "kube-apiserver.pid").read_text())
    rollout = place.rollout("b")
    canary = rollout._canary

    def interrupted() -> Any:
        os.kill(pid, signal.SIGSTOP)
        threading.Timer(3.0, os.kill, (pid, signal.SIGCONT)).start()
        return canary()

    rollout._canary = interrupted  # type: ignore[method-assign]
    with rollout.lease.held():
        assert rollout.run().verification.passed
    assert place.stable_digest() == digest("b")


@pytest.mark.prove
def test_an_api_server_that_is_restarted_in_mid_rollout(place: Place, kubeconfig: Path) -> None:
    """Killed, and started again with the same arguments on the same store."""
    assert place.deploy("a").verification.passed
    pid_file = kubeconfig.parent / "kube-apiserver.pid"
    pid = int(pid_file.read_text())
    command = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[:-1]
    rollout = place.rollout("b", lease=place.lease("test", seconds=60.0))
    ask = rollout._ask

    def restarted() -> Any:
        if pid_file.read_text().strip() != str(pid):
            return ask()
        ended = os.pidfd_open(pid)
        os.kill(pid, signal.SIGKILL)
        select.select([ended], [], [])  # until then it has the port
        os.close(ended)
        with (kubeconfig.parent / "kube-apiserver.log").open("ab") as log:
            server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        pid_file.write_text(str(server.pid))
        return ask()

    rollout._ask = restarted  # type: ignore[method-assign]
    with rollout.lease.held():
        outcome = rollout.run()
    assert outcome.verification.passed, outcome.verification.reason
    assert place.stable_digest() == digest("b")

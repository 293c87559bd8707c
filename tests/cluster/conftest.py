"""A namespace of a real API server, with a double of KServe's controller in it, and a way to roll out."""

import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client, config

from components.deploy.kserve_parameters import KServeParameters
from components.deploy.targets.cluster import Cluster
from components.deploy.targets.lease import Lease
from components.deploy.targets.manifest import Served
from components.deploy.targets.questions import HeldOutQuestions
from components.deploy.targets.rollout import Rollout
from components.deploy.targets.target import RolloutOutcome
from components.deploy.verification import Expectation, Probe
from fovea.task import product_task
from tests.cluster.api_server import api_server
from tests.cluster.kserve_double import Behaviour, KServeDouble
from tests.manifests.kustomize import Object, build

TASK = product_task()
SERVICE = "shop"
PROBES = [
    Probe(
        row_id=f"row-{number}",
        picture=bytes([number]),
        text=f"Product: Scarf {number}, Category: SCARVES, Full Price: 120.0",
        truth={"product": "Scarf", "category": "SCARVES", "full_price": 125.0},
    )
    for number in range(3)
]
QUICK: dict[str, Any] = {
    "gpus": 1,
    "traffic_steps": (50,),
    "step_seconds": 0.0,
    "schedule_seconds": 60.0,
    "start_seconds": 60.0,
    "verify_seconds": 30.0,
    "traffic_seconds": 60.0,
    "restore_seconds": 60.0,
    "lease_seconds": 5.0,
}


def digest(letter: str) -> str:
    """A model's digest, by a letter."""
    return "sha256:" + letter * 64


def right_answer(probe: Probe) -> dict[str, Any]:
    """What the evaluation got for a picture, as the server would say it."""
    task = {"name": TASK.name, "version": TASK.version}
    return {"text": probe.text, "fields": TASK.parse(probe.text).fields, "task": task}


@pytest.fixture(scope="session")
def kubeconfig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The kubeconfig of a real API server with KServe's CRDs, or a skip."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if base.name.startswith("popen-") else base
    with api_server(shared) as path:
        yield path


@pytest.fixture(scope="session")
def admin(kubeconfig: Path) -> Any:
    """A client that may do everything."""
    return config.new_client_from_config(str(kubeconfig), "admin")


@pytest.fixture(scope="session")
def alice(kubeconfig: Path) -> Any:
    """A client that may do what a test grants."""
    return config.new_client_from_config(str(kubeconfig), "alice")


NOT_HERE = {"PodMonitor", "PrometheusRule", "LocalQueue", "CronJob"}
"""Kinds that this API server does not know: others' definitions, and what is younger than it."""


@dataclass
class Installed:
    """A kustomization in a namespace."""

    namespace: str
    objects: tuple[Object, ...]


@pytest.fixture(scope="session")
def install(kubeconfig: Path, admin: Any) -> Iterator[Callable[[str], Installed]]:
    """Install a kustomization into a namespace of its own, once, as people do."""
    core = client.CoreV1Api(admin)
    done: dict[str, Installed] = {}

    def apply(name: str) -> Installed:
        if name not in done:
            namespace = f"fovea-{name.replace('/', '-')}-{uuid.uuid4().hex[:6]}"
            core.create_namespace({"metadata": {"name": namespace}})
            done[name] = Installed(namespace, build(name))
            _apply(kubeconfig, done[name])
        return done[name]

    yield apply
    for each in done.values():
        core.delete_namespace(each.namespace)


def _apply(kubeconfig: Path, installed: Installed) -> None:
    known = [each for each in installed.objects if each["kind"] not in NOT_HERE]
    command = ["kubectl", "--kubeconfig", kubeconfig, "apply", "--server-side", "--filename=-"]
    applied = subprocess.run(
        [*command, "--namespace", installed.namespace],
        input=yaml.safe_dump_all(known),
        capture_output=True,
        text=True,
        check=False,
    )
    assert applied.returncode == 0, applied.stderr
    assert len(applied.stdout.splitlines()) == len(known)


Install = Callable[[str], Installed]


@pytest.fixture
def namespace(admin: Any) -> Iterator[str]:
    """A namespace of the test's own."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    core = client.CoreV1Api(admin)
    core.create_namespace({"metadata": {"name": name}})
    yield name
    core.delete_namespace(name)


@dataclass
class Place:
    """A namespace with the double in it."""

    admin: Any
    namespace: str
    double: KServeDouble
    cluster: Cluster
    verified: dict[str, Any] = field(default_factory=dict)

    def behave(self, letter: str, **behaviour: Any) -> None:
        """Say what becomes of a model."""
        self.double.behaviours[digest(letter)] = Behaviour(**behaviour)

    def rollout(
        self, letter: str, *, cluster: Cluster | None = None, lease: Lease | None = None, **asked: Any
    ) -> Rollout:
        """Return a rollout of a model that is not run yet."""
        cluster = cluster or self.cluster
        settings = KServeParameters(**{**QUICK, **asked})
        expected = Expectation(
            SERVICE, digest(letter), TASK, 32, "float32", max_answer_seconds=settings.max_answer_seconds
        )
        return Rollout(
            cluster,
            Served(SERVICE, digest(letter), f"s3://models/{letter}.json", "float32"),
            settings,
            HeldOutQuestions(PROBES, expected, pause_seconds=0.05),
            lease or self.lease("test", cluster=cluster, seconds=settings.lease_seconds),
            previous=self.verified.get("manifest"),
            address_of=self.double.address_of,
            poll_seconds=0.1,
        )

    def deploy(self, letter: str, **asked: Any) -> RolloutOutcome:
        """Roll a model out, under the Lease; remember what was verified, as the documents in S3 would."""
        rollout = self.rollout(letter, **asked)
        with rollout.lease.held():
            outcome = rollout.run()
        if outcome.verification.passed:
            self.verified["manifest"] = outcome.manifest
        return outcome

    def lease(self, run: str, *, age: float = 0.0, cluster: Cluster | None = None, **settings: Any) -> Lease:
        """Return a Lease of a decision that was made ``age`` seconds ago."""
        decided = datetime.now(UTC) - timedelta(seconds=age)
        return Lease(cluster or self.cluster, SERVICE, run, decided, **{"seconds": 5.0, **settings})

    def live(self) -> dict[str, Any] | None:
        """Return the InferenceService."""
        return self.cluster.get("inferenceservices", SERVICE)

    def stable_digest(self) -> str:
        """Return the digest of the model that the stable predictor is of."""
        live = self.live()
        return "" if live is None else str(live["spec"]["predictor"]["annotations"]["fovea.dev/model-digest"])

    def until(self, holds: Callable[[], bool], seconds: float = 60.0) -> None:
        """Wait until something holds."""
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def pods(self) -> dict[str, str]:
        """Return the running pods' UIDs, with their models' digests."""
        pods = client.CoreV1Api(self.admin).list_namespaced_pod(self.namespace).items
        return {
            pod.metadata.uid: pod.metadata.annotations["fovea.dev/model-digest"]
            for pod in pods
            if not pod.metadata.deletion_timestamp
        }


@pytest.fixture
def place(admin: Any, namespace: str) -> Iterator[Place]:
    """A namespace with the double at work."""
    answers = {probe.base64: right_answer(probe) for probe in PROBES}
    with KServeDouble(admin, namespace, answers) as double:
        yield Place(admin, namespace, double, Cluster(admin, namespace, outage_seconds=60.0))


@pytest.fixture
def granted(admin: Any, namespace: str) -> Callable[[list[dict[str, Any]]], None]:
    """Grant rules to alice in the namespace."""

    def grant(rules: list[dict[str, Any]]) -> None:
        api = client.RbacAuthorizationV1Api(admin)
        api.create_namespaced_role(namespace, {"metadata": {"name": "deployer"}, "rules": rules})
        binding = {
            "metadata": {"name": "deployer"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "deployer"},
            "subjects": [{"kind": "User", "name": "alice", "apiGroup": "rbac.authorization.k8s.io"}],
        }
        api.create_namespaced_role_binding(namespace, binding)

    return grant

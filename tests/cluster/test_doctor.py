"""`fovea doctor --cluster` on a real API server: what is there, what is missing, and what to do."""

import base64
import http.server
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import typer
import yaml
from kubernetes import client
from moto import mock_aws
from typer.testing import CliRunner

from cli.doctor import doctor
from components.deploy.targets.cluster import Cluster
from pipelines.cluster.doctor import Examination
from pipelines.cluster.findings import Finding
from pipelines.cluster.settings import ClusterSettings
from tests.cluster.api_server import ENVTEST
from tests.cluster.conftest import Install
from tests.left_out import Missing

IMAGE = "ghcr.io/fovea-mlops/fovea@sha256:" + "0" * 64
"""The production overlay's."""

TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
TOLERATION = {"key": "nvidia.com/gpu", "operator": "Exists"}
# Another worker of the session has nodes of its own.
POOL = f"a100-{uuid.uuid4().hex[:6]}"
SERVICE = {
    "tolerations": [TOLERATION],
    "node_selector": {"pool": POOL},
    "service_account_name": "fovea-server",
}

FREE = f"1 on {POOL}-1, 2 on {POOL}-2"


def settings(**changes: Any) -> ClusterSettings:
    placed = {"gpu_node_selector": {"pool": POOL}, "gpu_tolerations": [TOLERATION]}
    return ClusterSettings.model_validate(
        {"image": IMAGE, "scratch": "80Gi", "defaults": {"kserve": SERVICE}, **placed, **changes}
    )


@pytest.fixture(scope="module")
def two_nodes(admin: Any, install: Install) -> Iterator[None]:
    """Two nodes with two GPUs each, of which a pod holds one, and a small one without."""
    core = client.CoreV1Api(admin)
    gpus = {
        "cpu": "32",
        "memory": "256Gi",
        "ephemeral-storage": "200Gi",
        "nvidia.com/gpu": "2",
        "pods": "110",
    }
    small = {"cpu": "4", "memory": "16Gi", "ephemeral-storage": "50Gi", "pods": "110"}
    nodes = [
        (f"{POOL}-1", {"pool": POOL}, [TAINT], gpus),
        (f"{POOL}-2", {"pool": POOL}, [TAINT], gpus),
        (f"small-{POOL}", {}, [], small),
    ]
    for name, labels, taints, allocatable in nodes:
        core.create_node({"metadata": {"name": name, "labels": labels}, "spec": {"taints": taints}})
        core.patch_node_status(name, {"status": {"allocatable": allocatable, "capacity": allocatable}})
        # A new node is tainted as not ready until its kubelet has spoken.
        core.patch_node(name, {"spec": {"taints": taints}})
    namespace = install("overlays/production").namespace
    holder = {
        "name": "main",
        "image": "busy",
        "resources": {"limits": {"nvidia.com/gpu": "1"}, "requests": {"cpu": "1"}},
    }
    body = {"metadata": {"name": "busy"}, "spec": {"nodeName": f"{POOL}-1", "containers": [holder]}}
    core.create_namespaced_pod(namespace, body)
    yield
    # No kubelet would end it, and it would hold a GPU of the next node of that name.
    core.delete_namespaced_pod("busy", namespace, grace_period_seconds=0)
    for name, *_ in nodes:
        core.delete_node(name)


def look(api: Any, namespace: str, chosen: ClusterSettings, root: str = "") -> dict[str, list[Finding]]:
    found: dict[str, list[Finding]] = {}
    for each in Examination(Cluster(api, namespace), chosen, root).findings():
        found.setdefault(each.what, []).append(each)
        assert each.level == "ok" or each.remedy, each
        assert "\n" not in each.found
    return found


@pytest.mark.usefixtures("two_nodes")
def test_an_installation_that_is_whole(install: Install, admin: Any, s3: str) -> None:
    found = look(admin, install("overlays/production").namespace, settings(), s3)
    # Neither Argo nor MLflow is here; rclone's S3 does not know conditions.
    levels = {what: {each.level for each in findings} for what, findings in found.items()}
    assert levels.pop("Argo Workflows") == {"missing"}
    assert levels.pop("S3") == levels.pop("MLflow") == {"note"}
    assert levels.pop("GPUs to serve") == {"ok"}
    assert {each for level in levels.values() for each in level} == {"ok"}, found
    assert "takes a conditional write twice" in found["S3"][0].found
    assert found["GPUs to train"][0].found == f"training takes 1 on one node; free: {FREE}"
    assert "room for 3 more pods of 1" in found["GPUs to serve"][0].found
    assert [each.found for each in found["account"]] == ["fovea-pipeline", "fovea-deployer", "fovea-server"]
    assert "fetch profiles default, intranet" in found["platform"][0].found
    assert "the largest node has 200.0Gi, a training takes 80Gi" in found["disk"][0].found


@pytest.mark.usefixtures("two_nodes")
def test_what_does_not_fit(install: Install, admin: Any) -> None:
    namespace = install("overlays/production").namespace
    large = settings(
        gpus=4,
        scratch="500Gi",
        s3_secret="fovea-s3",  # noqa: S106
        kueue_queue="fovea",
        tasks={"train": {"cpu": "64", "memory": "1Ti"}},
        defaults={"kserve": {**SERVICE, "gpus": 2, "replicas": 2}},
    )
    found = look(admin, namespace, large)
    for what in ("GPUs to train", "GPUs to serve", "disk", "memory", "CPU", "Kueue", "Secret"):
        assert "missing" in {each.level for each in found[what]}, found[what]
    assert f"training takes 4 on one node; free: {FREE}" in found["GPUs to train"][0].found
    assert {each.found for each in found["Secret"]} >= {"there is no Secret fovea-s3"}
    other = settings(scratch_class="gp3", image=IMAGE.replace("0", "1"))
    found = look(admin, namespace, other)
    assert "runs have" in found["runtime"][0].found
    (class_,) = found["storage class"]
    assert class_.found == "there is no gp3"


@pytest.mark.usefixtures("two_nodes")
def test_nodes_that_a_run_may_not_use_do_not_count(install: Install, admin: Any) -> None:
    namespace = install("overlays/production").namespace
    (found,) = look(admin, namespace, settings(gpu_tolerations=[]))["GPUs to train"]
    assert (found.level, found.found.partition("; ")[2]) == ("missing", "free: no node that a run may use")
    (found,) = look(admin, namespace, settings(defaults={"kserve": {**SERVICE, "gpus": 2}}))["GPUs to serve"]
    assert found.level == "note"
    assert "room for 1 more pods of 2" in found.found


def test_a_quota_that_is_nearly_used_up(namespace: str, admin: Any) -> None:
    core = client.CoreV1Api(admin)
    hard = {"requests.nvidia.com/gpu": "2"}
    core.create_namespaced_resource_quota(namespace, {"metadata": {"name": "gpus"}, "spec": {"hard": hard}})
    status = {"hard": hard, "used": {"requests.nvidia.com/gpu": "1"}}
    core.patch_namespaced_resource_quota_status("gpus", namespace, {"status": status})
    (found,) = look(admin, namespace, settings())["quota"]
    assert (found.level, "leaves 1 of 2" in found.found) == ("note", True)
    (found,) = look(admin, namespace, settings(gpus=2))["quota"]
    assert found.level == "missing"


def test_an_empty_namespace_lacks_everything(namespace: str, admin: Any) -> None:
    found = look(admin, namespace, settings())
    for what in ("account", "rights", "services", "platform", "Secret", "runtime"):
        assert found[what][0].level == "missing", what
        assert found[what][0].remedy
    assert "kubectl apply -k" in found["account"][0].remedy
    assert namespace in found["account"][0].remedy
    assert found["KServe"][0].level == "ok"


@pytest.mark.skipif(not ENVTEST.is_dir(), reason=Missing.KSERVE_CRDS)
def test_a_kserve_without_canaries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The definition as a cluster shows it; here another server than the one that is asked holds it."""
    (path,) = (ENVTEST / "crds" / "kserve").glob("inferenceservices.yaml")
    definition = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)
    examination = Examination(Cluster(client.ApiClient(), "shop"), settings())
    monkeypatch.setattr(Examination, "_get", lambda *_: definition)
    assert [each.level for each in examination._canaries()] == ["ok"]
    for version in definition["spec"]["versions"]:
        version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"].pop("canary", None)
    assert [each.level for each in examination._canaries()] == ["missing"]


def test_too_many_rights_and_a_broken_configuration(namespace: str, admin: Any) -> None:
    core, rbac = client.CoreV1Api(admin), client.RbacAuthorizationV1Api(admin)
    rules = [{"apiGroups": ["serving.kserve.io"], "resources": ["inferenceservices"], "verbs": ["create"]}]
    rbac.create_namespaced_role(namespace, {"metadata": {"name": "much"}, "rules": rules})
    subject = {"kind": "ServiceAccount", "name": "fovea-pipeline", "namespace": namespace}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "much"}
    rbac.create_namespaced_role_binding(
        namespace, {"metadata": {"name": "much"}, "roleRef": reference, "subjects": [subject]}
    )
    broken = {"platform.yaml": "fetch_profiles: {a: {allowed_networks: [here]}}"}
    core.create_namespaced_config_map(namespace, {"metadata": {"name": "fovea-platform"}, "data": broken})
    token = {"token": base64.b64encode(b"x").decode()}
    core.create_namespaced_secret(namespace, {"metadata": {"name": "fovea-deployer-token"}, "data": token})
    found = look(admin, namespace, settings())
    assert any("may make InferenceServices" in each.found for each in found["rights"])
    assert "allowed_networks" in found["platform"][0].found
    assert found["Secret"][0].found == "fovea-deployer-token has no ca.crt, namespace"


def test_somebody_without_rights_is_told_what_could_not_be_seen(namespace: str, alice: Any) -> None:
    found = look(alice, namespace, settings())
    for what in ("accounts", "rights", "config maps", "secrets", "runtime", "nodes", "quotas"):
        (each,) = found[what]
        assert each.level == "note", what
        assert "you may not look" in each.found


def test_an_s3_that_knows_conditions(monkeypatch: pytest.MonkeyPatch) -> None:
    with mock_aws():
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
        monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
        boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="models")
        root = settings(defaults={"artifact_root": "s3://models/fovea", "kserve": SERVICE})
        (found,) = Examination(Cluster(client.ApiClient(), "shop"), root)._s3()
        (missing,) = Examination(Cluster(client.ApiClient(), "shop"), root, "s3://others/fovea")._s3()
        (unknown,) = Examination(Cluster(client.ApiClient(), "shop"), settings())._s3()
    assert (found.level, found.found[:17]) == ("ok", "s3://models/fovea")
    assert (missing.level, "s3://others" in missing.found) == ("missing", True)
    assert (unknown.level, "--artifact-root" in unknown.remedy) == ("note", True)


def test_mlflow_that_knows_not_the_host(namespace: str, admin: Any) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(403 if self.path == "/health" else 200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        data = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{server.server_port}/"}
        body = {"metadata": {"name": "fovea-services"}, "data": data}
        client.CoreV1Api(admin).create_namespaced_config_map(namespace, body)
        (found,) = look(admin, namespace, settings())["MLflow"]
        server.shutdown()
    assert (found.level, "--allowed-hosts" in found.remedy) == ("missing", True)


def test_as_it_is_typed(
    kubeconfig: Path, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    path = tmp_path / "cluster.yaml"
    path.write_text(f"image: {IMAGE}\n")
    app = typer.Typer()
    app.command()(doctor)
    shown = CliRunner().invoke(app, ["--cluster", str(path), "--namespace", namespace])
    assert shown.exit_code == 1
    assert f"namespace {namespace}" in shown.stdout
    assert "→ kubectl apply -k" in shown.stdout
    assert "missing: Argo Workflows, account, rights" in shown.stderr

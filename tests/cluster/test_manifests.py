"""The manifests on a real API server: it takes every object, and every account may do its part alone."""

import base64
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client

from components.deploy.targets import cluster
from components.deploy.targets.cluster import Cluster, ClusterError
from pipelines.cluster.settings import read_cluster_settings
from pipelines.compile import compile_resources
from tests.cluster.conftest import Install
from tests.manifests.kustomize import MANIFESTS, Object, by_kind

PRODUCTION, DEV = "overlays/production", "overlays/dev"


@pytest.mark.parametrize("name", [PRODUCTION, DEV, "components/recurring-run", "components/api-keys"])
def test_the_api_server_takes_every_object(install: Install, admin: Any, name: str) -> None:
    installed = install(name)
    runtimes = client.CustomObjectsApi(admin).list_namespaced_custom_object(
        "serving.kserve.io", "v1alpha1", installed.namespace, "servingruntimes"
    )
    assert [each["metadata"]["name"] for each in runtimes["items"]] == ["fovea"]


def as_account(api: Any, namespace: str, account: str) -> Callable[[str, str, str], bool]:
    """Say whether a service account may do something: (verb, resource, its API group)."""
    reviews = client.AuthorizationV1Api(api)

    def may(verb: str, resource: str, group: str = "", name: str = "") -> bool:
        resource, _, subresource = resource.partition("/")
        asked = {"namespace": namespace, "verb": verb, "group": group, "resource": resource, "name": name}
        review = {
            "spec": {
                "user": f"system:serviceaccount:{namespace}:{account}",
                "resourceAttributes": {**asked, "subresource": subresource},
            }
        }
        return bool(reviews.create_subject_access_review(review).status.allowed)

    return may


VERBS = ("get", "list", "watch", "create", "update", "patch", "delete", "use", "impersonate")
RESOURCES = (
    ("inferenceservices", "serving.kserve.io"), ("servingruntimes", "serving.kserve.io"),
    ("deployments", "apps"), ("replicasets", "apps"), ("pods", ""), ("pods/log", ""), ("pods/exec", ""),
    ("services", ""), ("events", ""), ("secrets", ""), ("configmaps", ""), ("serviceaccounts", ""),
    ("leases", "coordination.k8s.io"), ("workflowtaskresults", "argoproj.io"), ("workflows", "argoproj.io"),
    ("roles", "rbac.authorization.k8s.io"), ("rolebindings", "rbac.authorization.k8s.io"),
)  # fmt: skip


def stated(objects: tuple[Object, ...], account: str) -> set[tuple[str, str, str]]:
    """What the bound Roles grant an account without naming objects, as (verb, resource, group)."""
    bound = {
        binding["roleRef"]["name"]
        for binding in by_kind(objects, "RoleBinding").values()
        if any(subject["name"] == account for subject in binding["subjects"])
    }
    return {
        (verb, resource, group)
        for name in bound
        for rule in by_kind(objects, "Role")[name]["rules"]
        if "resourceNames" not in rule
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


@pytest.mark.parametrize("account", ["fovea-pipeline", "fovea-server", "fovea-deployer"])
def test_an_account_may_do_what_its_role_says_and_nothing_else(
    install: Install, admin: Any, account: str
) -> None:
    installed = install(PRODUCTION)
    may = as_account(admin, installed.namespace, account)
    asked = {(verb, resource, group) for verb in VERBS for resource, group in RESOURCES}
    assert {each for each in asked if may(*each)} == stated(installed.objects, account)
    if account == "fovea-server":
        assert not stated(installed.objects, account)


@pytest.mark.parametrize("name", [PRODUCTION, DEV])
def test_named_objects_are_the_only_ones_of_their_kind(install: Install, admin: Any, name: str) -> None:
    namespace = install(name).namespace
    may = as_account(admin, namespace, "fovea-pipeline")
    assert may("get", "configmaps", "", "kfp-launcher")
    assert not may("get", "configmaps", "", "fovea-platform")
    assert not may("get", "secrets", "", "fovea-deployer-token")
    # Keys of KFP's own bucket, where it has keys.
    assert may("get", "secrets", "", "mlpipeline-minio-artifact") is (name == DEV)
    may = as_account(admin, namespace, "default-editor")
    assert may("use", "serviceaccounts", "", "fovea-pipeline")
    assert not may("use", "serviceaccounts", "", "fovea-deployer")


def test_the_deployers_token_leads_to_the_namespace_and_no_further(
    install: Install, admin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the task `deploy` has it: the Secret's keys as files."""
    installed = install(PRODUCTION)
    core = client.CoreV1Api(admin)
    secret = _filled(core, installed.namespace)
    for key in ("token", "ca.crt", "namespace"):
        (tmp_path / key).write_bytes(base64.b64decode(secret.data[key]))
    # The server's own certificate is not of the authority that it writes into Secrets here.
    (tmp_path / "ca.crt").write_text(Path(admin.configuration.ssl_ca_cert).read_text())
    host, port = admin.configuration.host.removeprefix("https://").split(":")
    monkeypatch.setattr(cluster, "CREDENTIALS", tmp_path)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", port)
    mine = Cluster.connect()
    assert mine.namespace == installed.namespace
    assert mine.get("inferenceservices", "nothing") is None
    monkeypatch.setattr(cluster, "_START_SECONDS", 0.0)
    with pytest.raises(ClusterError, match="may not get inferenceservices"):
        Cluster.connect("default").get("inferenceservices", "nothing")
    with pytest.raises(ClusterError, match="may not list services"):
        mine.list("services")


def _filled(core: Any, namespace: str) -> Any:
    deadline = time.monotonic() + 60
    while True:
        secret = core.read_namespaced_secret("fovea-deployer-token", namespace)
        if secret.data and "token" in secret.data:
            return secret
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_the_pipeline_is_taken_as_custom_resources(namespace: str, kubeconfig: Path, tmp_path: Path) -> None:
    """Whose definition is strict: a field that it does not know is refused."""
    cluster_file = MANIFESTS / "overlays" / "production" / "cluster.yaml"
    settings = read_cluster_settings(cluster_file)
    path = tmp_path / "pipeline.yaml"
    path.write_text(compile_resources(settings, namespace=namespace))
    command = ["kubectl", "--kubeconfig", kubeconfig, "apply", "--server-side", "--filename", path]
    applied = subprocess.run(command, capture_output=True, text=True, check=False)
    assert applied.returncode == 0, applied.stderr
    assert applied.stdout.count("serverside-applied") == 2

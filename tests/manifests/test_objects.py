"""Every overlay and component builds, its objects are valid, and its pods may do little."""

import json
import re
from collections.abc import Iterator
from typing import Any

import kubernetes_validate
import pytest
import typer
import yaml

from cli.main import app
from cli.submit import _POD_TOKEN
from fovea.platform import Platform
from pipelines.cluster.doctor import RIGHTS
from pipelines.cluster.settings import ClusterSettings
from pipelines.settings import validate_settings
from serving.__main__ import parse_arguments
from tests.manifests.kustomize import ALL, COMPONENTS, MANIFESTS, OVERLAYS, Object, build, by_kind, pod_specs

KUBERNETES = "1.33"
FOREIGN = {
    "ServingRuntime",  # held against KServe's definition elsewhere
    "PodMonitor",
    "PrometheusRule",
    "LocalQueue",
    "AuthorizationPolicy",
    "RequestAuthentication",
}
"""Kinds that are not Kubernetes' own."""

every_kustomization = pytest.mark.parametrize("name", ALL)
WITH_PODS = [*OVERLAYS, "components/recurring-run", "components/api-keys"]

_VALID: set[str] = set()


@every_kustomization
def test_objects_are_valid(name: str) -> None:
    for each in build(name):
        text = json.dumps(each, sort_keys=True)
        if each["kind"] not in FOREIGN and text not in _VALID:
            kubernetes_validate.validate(each, KUBERNETES, strict=True)
            _VALID.add(text)


@every_kustomization
def test_objects_can_be_told_apart_and_found(name: str) -> None:
    objects = build(name)
    identities = [(each["kind"], each["metadata"]["name"]) for each in objects]
    assert len(identities) == len(set(identities))
    own = [each for each in objects if name not in COMPONENTS or each in build("base")]
    assert all(each["metadata"]["labels"]["app.kubernetes.io/part-of"] == "fovea" for each in own)
    # One kustomization serves any namespace; the gateway's is another one.
    namespaces = {each["metadata"].get("namespace") for each in objects}
    assert namespaces == ({"istio-system"} if "gateway" in name else {None})


@every_kustomization
def test_no_secret_is_in_them(name: str) -> None:
    for secret in by_kind(build(name), "Secret").values():
        assert not secret.get("data")
        assert not secret.get("stringData")


def containers(name: str) -> Iterator[tuple[str, Object, Object]]:
    for where, pod in pod_specs(build(name)).items():
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            yield where, pod, container


@pytest.mark.parametrize("name", WITH_PODS)
def test_pods_are_restricted(name: str) -> None:
    """What the Pod Security Standard `restricted` asks for, and a root that cannot be written."""
    for where, pod, container in containers(name):
        security = {**pod.get("securityContext", {}), **container["securityContext"]}
        assert security["runAsNonRoot"] is True, where
        assert security["runAsUser"] > 0, where
        assert security["allowPrivilegeEscalation"] is False, where
        assert security["readOnlyRootFilesystem"] is True, where
        assert security["capabilities"] == {"drop": ["ALL"]}, where
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, where
        volumes = {kind for volume in pod["volumes"] for kind in volume if kind != "name"}
        assert volumes <= {"emptyDir", "configMap", "secret", "projected", "persistentVolumeClaim"}, where
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod), where
        assert all("sizeLimit" in volume["emptyDir"] for volume in pod["volumes"] if "emptyDir" in volume)


@pytest.mark.parametrize("name", WITH_PODS)
def test_pods_have_limits_and_probes(name: str) -> None:
    for where, _, container in containers(name):
        resources = container["resources"]
        assert {"cpu", "memory"} <= set(resources["requests"]), where
        assert "memory" in resources["limits"], where
        if where.startswith("Deployment"):
            assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container), where


@pytest.mark.parametrize("name", WITH_PODS)
def test_pods_have_no_token_of_the_cluster(name: str) -> None:
    objects = build(name)
    accounts = by_kind(objects, "ServiceAccount")
    for where, pod in pod_specs(objects).items():
        if where.startswith("ServingRuntime"):
            pod = {"automountServiceAccountToken": accounts["fovea-server"]["automountServiceAccountToken"]}
        assert pod["automountServiceAccountToken"] is False, where


@every_kustomization
def test_what_is_referred_to_is_there(name: str) -> None:
    """Config maps are made with the rest; Secrets that people make are named in the kustomization."""
    objects = build(name)
    told = "".join(path.read_text() for path in MANIFESTS.rglob("kustomization.yaml"))
    for where, pod in pod_specs(objects).items():
        for kind, key in references(pod):
            if kind == "ConfigMap":
                assert key in by_kind(objects, kind), f"{where}: {key}"
            else:
                assert f"{key}" in told, f"{where}: {key}"
    for binding in by_kind(objects, "RoleBinding").values():
        assert binding["roleRef"]["name"] in by_kind(objects, "Role")
        for subject in binding["subjects"]:
            known = by_kind(objects, "ServiceAccount")
            assert subject["name"] in known or subject["name"] == "default-editor"


def references(pod: Object) -> Iterator[tuple[str, str]]:
    for volume in pod["volumes"]:
        if "configMap" in volume:
            yield "ConfigMap", volume["configMap"]["name"]
        if "secret" in volume:
            yield "Secret", volume["secret"]["secretName"]
    for container in pod["containers"]:
        for source in container.get("envFrom", []):
            for kind, key in (("ConfigMap", "configMapRef"), ("Secret", "secretRef")):
                if key in source:
                    yield kind, source[key]["name"]


@pytest.mark.parametrize("name", ["base", *OVERLAYS])
def test_the_platforms_configuration_is_read(name: str) -> None:
    text = by_kind(build(name), "ConfigMap")["fovea-platform"]["data"]["platform.yaml"]
    platform = Platform.model_validate(yaml.safe_load(text))
    assert platform.fetch_profile("default").allowed_networks == ()


def test_every_policy_chooses_pods_by_labels_that_they_have() -> None:
    objects = build("overlays/dev")
    labels = {
        label
        for kind in ("Deployment", "Job")
        for each in by_kind(objects, kind).values()
        for label in each["spec"]["template"]["metadata"]["labels"].items()
    }
    for each in by_kind(objects, "NetworkPolicy").values():
        selector = each["spec"]["podSelector"]
        assert selector, "a policy for every pod would cut KFP's own off"
        assert set(selector.get("matchLabels", {}).items()) <= labels
        # KFP's and KServe's labels, on pods that they make.
        keys = {expression["key"] for expression in selector.get("matchExpressions", [])}
        assert keys <= {"pipeline/runid", "serving.kserve.io/inferenceservice"}


def test_the_server_with_keys_has_these_options() -> None:
    runtime = by_kind(build("components/api-keys"), "ServingRuntime")["fovea"]
    (container,) = runtime["spec"]["containers"]
    settings = parse_arguments([*container["args"], "--model-uri=s3://bucket/index/merge_adapter/x.json"])
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert str(settings.api_keys) == mounts["api-keys"]
    assert settings.requests_per_minute


def test_the_recurring_run_is_submitted_with_options_that_there_are() -> None:
    objects = build("components/recurring-run")
    (container,) = pod_specs(objects)["CronJob/fovea-submit"]["containers"]
    assert container["command"] == ["fovea", "submit"]
    command = typer.main.get_command(app).commands["submit"]  # type: ignore[attr-defined]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word.partition("=")[0] for word in container["args"]} <= known
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert str(_POD_TOKEN.parent) in mounted
    files = {
        name: text
        for each in by_kind(objects, "ConfigMap").values()
        for name, text in each["data"].items()
        if each["metadata"]["name"].startswith("fovea-recurring-run")
    }
    settings = ClusterSettings.model_validate(yaml.safe_load(files["cluster.yaml"]))
    assert validate_settings({**settings.defaults, **yaml.safe_load(files["run.yaml"])})


def test_images_are_set_in_one_place() -> None:
    for name, pattern in (("dev", r"fovea:cpu"), ("production", r"\S+@sha256:[0-9a-f]{64}")):
        for where, _, container in containers(f"overlays/{name}"):
            assert re.fullmatch(pattern, container["image"]), where


def rules(role: Object) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = role["rules"]
    return found


@pytest.mark.parametrize(
    "name", ["overlays/production", "components/s3-static-secret", "components/recurring-run"]
)
def test_roles_name_what_they_grant(name: str) -> None:
    objects = build(name)
    assert not by_kind(objects, "ClusterRole")
    assert not by_kind(objects, "ClusterRoleBinding")
    for role in by_kind(objects, "Role").values():
        for rule in rules(role):
            assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
            if "secrets" in rule["resources"]:
                assert rule["resourceNames"]
                assert rule["verbs"] == ["get"]


def test_the_doctor_asks_for_what_the_roles_grant() -> None:
    roles = by_kind(build("base"), "Role")
    for account, asked in RIGHTS.items():
        granted = {
            (verb, group, resource)
            for rule in rules(roles[account])
            if "resourceNames" not in rule
            for group in rule["apiGroups"]
            for resource in rule["resources"]
            for verb in rule["verbs"]
        }
        assert set(asked) == granted, account

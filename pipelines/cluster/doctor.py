"""A check of a cluster before a run costs money: what is there, what is missing, and what to do about it.

Everything is read with the user's own rights; what they do not allow is reported as a note. Nothing is
changed, except that one small object is left in S3.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import httpx
import urllib3
import yaml
from kubernetes.dynamic.exceptions import (  # type: ignore[import-untyped]
    DynamicApiError,
    ForbiddenError,
    NotFoundError,
)
from kubernetes.utils import parse_quantity  # type: ignore[import-untyped]
from pydantic import ValidationError

from components.deploy.kserve_parameters import KServeParameters
from components.deploy.targets.cluster import Cluster, as_document
from fovea.errors import UserError
from fovea.platform import Platform
from fovea.records import now
from fovea.storage import Storage
from pipelines.cluster.findings import Finding
from pipelines.cluster.nodes import Nodes
from pipelines.cluster.settings import ClusterSettings

PIPELINE_ACCOUNT = "fovea-pipeline"
DEPLOYER = "fovea-deployer"

_INSTALL = "kubectl apply -k manifests/overlays/production --namespace {namespace}"
RIGHTS = {
    PIPELINE_ACCOUNT: (
        ("create", "argoproj.io", "workflowtaskresults"),
        ("patch", "argoproj.io", "workflowtaskresults"),
        ("get", "", "pods"),
    ),
    DEPLOYER: (
        *((verb, "serving.kserve.io", "inferenceservices") for verb in ("get", "create", "patch", "delete")),
        *((verb, "coordination.k8s.io", "leases") for verb in ("get", "create", "update")),
        ("get", "apps", "deployments"),
        ("list", "apps", "replicasets"),
        ("list", "", "pods"),
        ("list", "", "events"),
        ("get", "", "pods/log"),
        ("get", "", "services"),
    ),
}
"""What the accounts' Roles grant, as (verb, API group, resource), but for rules about objects by name."""
_TIMEOUT_SECONDS = 15.0
_TIMEOUT = (5, 15)
"""Seconds to connect to the API server and to wait for its answer; its client ignores a single float."""


class _ForbiddenError(Exception):
    """The user has no right to read this."""


@dataclass(frozen=True)
class Examination:
    """An examination of one namespace of a cluster.

    Args:
        cluster: the namespace.
        settings: the platform's settings for the runs.
        artifact_root: where runs will keep their artifacts; empty where that is not known.
    """

    cluster: Cluster
    settings: ClusterSettings
    artifact_root: str = ""

    def findings(self) -> Iterator[Finding]:
        """Check everything, and yield what was found.

        Raises:
            UserError: the API server cannot be reached, or does not accept the user's credentials.
        """
        yield self._server()
        for look in (
            self._kinds,
            self._accounts,
            self._rights,
            self._config_maps,
            self._secrets,
            self._runtime,
            self._nodes,
            self._quotas,
            self._storage_class,
        ):
            try:
                yield from look()
            except _ForbiddenError as error:
                yield Finding("note", look.__name__.strip("_").replace("_", " "), str(error), "ask an admin")
        yield from self._mlflow()
        yield from self._s3()

    @property
    def _install(self) -> str:
        return _INSTALL.format(namespace=self.cluster.namespace)

    def _get(self, path: str, **query: str) -> dict[str, Any] | None:
        """Return what the API server has at a path, or None."""
        return _request(self.cluster, "GET", f"{path}?{urlencode(query)}" if query else path)

    def _own(self, plural: str, name: str = "", group: str = "/api/v1") -> dict[str, Any] | None:
        return self._get(
            f"{group}/namespaces/{self.cluster.namespace}/{plural}" + (f"/{name}" if name else "")
        )

    def _server(self) -> Finding:
        version = (self._get("/version") or {}).get("gitVersion", "of an unknown version")
        return Finding("ok", "API server", f"{version}, namespace {self.cluster.namespace}")

    def _kinds(self) -> Iterator[Finding]:
        for group, version, what, remedy in (
            ("serving.kserve.io", "v1beta1", "KServe", "install KServe 0.20 or newer, in Standard mode"),
            ("argoproj.io", "v1alpha1", "Argo Workflows", "install Kubeflow Pipelines 2.17 or newer"),
            *(
                [("kueue.x-k8s.io", "v1beta1", "Kueue", "install Kueue, or leave kueue_queue out")]
                if self.settings.kueue_queue
                else []
            ),
        ):
            found = self._get(f"/apis/{group}")
            served = [each["version"] for each in (found or {}).get("versions", [])]
            if version in served:
                yield Finding("ok", what, f"{group} serves {', '.join(served)}")
            else:
                yield Finding("missing", what, f"{group}/{version} is not there", remedy)
        yield from self._canaries()

    def _canaries(self) -> Iterator[Finding]:
        """Check whether KServe has canaries in Standard mode, which came with 0.20."""
        name = "inferenceservices.serving.kserve.io"
        found = self._get(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}")
        if found is None:
            return
        schemas = {each["name"]: each["schema"]["openAPIV3Schema"] for each in found["spec"]["versions"]}
        fields = schemas.get("v1beta1", {}).get("properties", {}).get("spec", {}).get("properties", {})
        if "canary" in fields:
            yield Finding("ok", "canaries", "KServe's definition has spec.canary")
        else:
            yield Finding(
                "missing",
                "canaries",
                "KServe's definition has no spec.canary",
                "upgrade KServe to 0.20 or newer",
            )

    def _accounts(self) -> Iterator[Finding]:
        service = self._service()
        for name in (PIPELINE_ACCOUNT, DEPLOYER, service.service_account_name):
            if not name:
                continue
            if self._own("serviceaccounts", name) is None:
                yield Finding("missing", "account", f"there is no service account {name}", self._install)
            else:
                yield Finding("ok", "account", name)
        may = self._may_i("use", "", "serviceaccounts", PIPELINE_ACCOUNT)
        if not may:
            remedy = (
                f"kubectl create rolebinding … --role=fovea-submitter --namespace {self.cluster.namespace}"
            )
            yield Finding(
                "note", "submitting", f"you may not use {PIPELINE_ACCOUNT}, which newer KFP asks", remedy
            )

    def _rights(self) -> Iterator[Finding]:
        for account, wanted in RIGHTS.items():
            lacking = [
                f"{verb} {what}" for verb, group, what in wanted if not self._may(account, verb, group, what)
            ]
            if lacking:
                yield Finding("missing", "rights", f"{account} may not {', '.join(lacking)}", self._install)
            else:
                yield Finding("ok", "rights", f"{account} may do its {len(wanted)} things")
        if self._may(PIPELINE_ACCOUNT, "create", "serving.kserve.io", "inferenceservices"):
            remedy = "take the binding away; the task deploy alone has a token for that"
            yield Finding("note", "rights", f"{PIPELINE_ACCOUNT} may make InferenceServices", remedy)

    def _may(self, account: str, verb: str, group: str, resource: str) -> bool:
        namespace = self.cluster.namespace
        resource, _, subresource = resource.partition("/")
        wanted = {"namespace": namespace, "verb": verb, "group": group, "resource": resource}
        wanted["subresource"] = subresource
        user = f"system:serviceaccount:{namespace}:{account}"
        return self._review("localsubjectaccessreviews", {"user": user, "resourceAttributes": wanted})

    def _may_i(self, verb: str, group: str, resource: str, name: str) -> bool:
        wanted = {"verb": verb, "group": group, "resource": resource, "name": name}
        own = {"resourceAttributes": {**wanted, "namespace": self.cluster.namespace}}
        return self._review("selfsubjectaccessreviews", own)

    def _review(self, plural: str, spec: Mapping[str, Any]) -> bool:
        group = "/apis/authorization.k8s.io/v1"
        is_local = plural.startswith("local")
        path = f"{group}/namespaces/{self.cluster.namespace}/{plural}" if is_local else f"{group}/{plural}"
        metadata = {"namespace": self.cluster.namespace} if is_local else {}
        answer = _request(self.cluster, "POST", path, {"metadata": metadata, "spec": dict(spec)})
        return bool((answer or {}).get("status", {}).get("allowed"))

    def _config_maps(self) -> Iterator[Finding]:
        services = self._own("configmaps", self.settings.services)
        if services is None:
            yield Finding(
                "missing", "services", f"there is no ConfigMap {self.settings.services}", self._install
            )
        else:
            named = ", ".join(f"{key}={value}" for key, value in sorted((services.get("data") or {}).items()))
            yield Finding("ok", "services", named or "none named: S3 is Amazon's, nothing is tracked")
        platform = self._own("configmaps", self.settings.platform)
        if platform is None:
            yield Finding(
                "missing", "platform", f"there is no ConfigMap {self.settings.platform}", self._install
            )
            return
        try:
            read = Platform.model_validate(yaml.safe_load(platform["data"]["platform.yaml"]) or {})
        except (KeyError, TypeError, yaml.YAMLError, ValidationError) as error:
            told = " ".join(str(error).split())[:200]
            yield Finding(
                "missing", "platform", f"platform.yaml: {told}", "mend it; see docs/platform-engineer.md"
            )
        else:
            yield Finding(
                "ok", "platform", f"fetch profiles {', '.join(sorted({'default', *read.fetch_profiles}))}"
            )

    def _secrets(self) -> Iterator[Finding]:
        settings = self.settings
        wanted: list[tuple[str, tuple[str, ...]]] = [
            (settings.deployer_secret, ("token", "ca.crt", "namespace"))
        ]
        if settings.s3_secret:
            wanted.append((settings.s3_secret, ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")))
        if settings.mlflow_secret:
            wanted.append((settings.mlflow_secret, ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")))
        if settings.api_keys_secret:
            wanted.append((settings.api_keys_secret, ("deployer",)))
        wanted += [(name, ()) for name in (*settings.feed_secrets, *settings.image_pull_secrets)]
        for name, keys in wanted:
            secret = self._own("secrets", name)
            lacking = sorted(set(keys) - set((secret or {}).get("data") or {}))
            if secret is None:
                yield Finding(
                    "missing", "Secret", f"there is no Secret {name}", "make it; see docs/security.md"
                )
            elif lacking:
                yield Finding("missing", "Secret", f"{name} has no {', '.join(lacking)}", "add it")
            else:
                yield Finding("ok", "Secret", name)

    def _runtime(self) -> Iterator[Finding]:
        name = self._service().runtime
        found = self._own("servingruntimes", name, "/apis/serving.kserve.io/v1alpha1")
        if found is None:
            yield Finding("missing", "runtime", f"there is no ServingRuntime {name}", self._install)
            return
        image = found["spec"]["containers"][0].get("image", "")
        if "@sha256:" not in image:
            remedy = "pin it: kustomize's images, digest"
            yield Finding("note", "runtime", f"{name}: {image} is no digest", remedy)
        elif image != self.settings.image:
            told = f"{name} serves with {image}, runs have {self.settings.image}"
            yield Finding("note", "runtime", told, "right during an upgrade; else make them the same")
        else:
            yield Finding("ok", "runtime", f"{name}: {image}")

    def _nodes(self) -> Iterator[Finding]:
        nodes = Nodes.read(self._get("/api/v1/nodes"), self._get("/api/v1/pods"))
        yield from self._gpus(nodes)
        yield from self._room(nodes)

    def _gpus(self, nodes: "Nodes") -> Iterator[Finding]:
        placement, service = self.settings.placement, self._service()
        tolerations = [each.model_dump() for each in placement.gpu_tolerations]
        free = nodes.free(placement.gpu_type, placement.gpu_node_selector, tolerations)
        shown = (
            ", ".join(f"{count} on {name}" for name, count in free.items()) or "no node that a run may use"
        )
        remedy = "free some, add nodes, or correct gpu_type, gpu_node_selector and gpu_tolerations"
        if placement.gpus:
            most = max(free.values(), default=0)
            level: Any = "ok" if most >= placement.gpus else "missing"
            found = f"training takes {placement.gpus} on one node; free: {shown}"
            yield Finding(level, "GPUs to train", found, "" if level == "ok" else remedy)
        if service.gpus:
            own = [each.model_dump() for each in service.tolerations]
            yield self._serving_gpus(nodes.free(service.gpu_resource, service.node_selector, own), service)

    def _serving_gpus(self, free: Mapping[str, int], service: KServeParameters) -> Finding:
        pods = sum(count // service.gpus for count in free.values())
        found = f"room for {pods} more pods of {service.gpus}; the service has {service.replicas}"
        what = "GPUs to serve"
        if pods < service.replicas:
            remedy = (
                "free some, add nodes, correct kserve.node_selector and tolerations, or rollout: recreate"
            )
            return Finding("missing", what, f"{found}, and a canary as many", remedy)
        if pods < 2 * service.replicas and service.rollout != "recreate":
            remedy = "a service that is there already is enough for its canary; else set rollout: auto"
            return Finding("note", what, f"{found}, and its canary as many", remedy)
        return Finding("ok", what, found)

    def _room(self, nodes: "Nodes") -> Iterator[Finding]:
        settings = self.settings
        train = settings.tasks.train
        for what, resource, wanted, remedy in (
            ("CPU", "cpu", train.cpu, "lower tasks.train.cpu, or add a larger node"),
            ("memory", "memory", train.memory, "lower tasks.train.memory, or add a larger node"),
            *(
                []
                if settings.scratch_class
                else [("disk", "ephemeral-storage", settings.scratch, "lower scratch, or set scratch_class")]
            ),
        ):
            largest = nodes.largest(resource)
            found = f"the largest node has {_shown(resource, largest)}, a training takes {wanted}"
            fits = largest >= float(parse_quantity(wanted))
            yield Finding("ok" if fits else "missing", what, found, "" if fits else remedy)

    def _quotas(self) -> Iterator[Finding]:
        key = f"requests.{self.settings.gpu_type}"
        service = self._service()
        own = service.gpus * service.replicas
        # The base is evaluated during the training; the canary comes after both.
        wanted = own + max(self.settings.gpus + self.settings.evaluation_gpus, own)
        for quota in (self._own("resourcequotas") or {}).get("items", []):
            name = quota["metadata"]["name"]
            hard = {**quota["spec"].get("hard", {}), **quota.get("status", {}).get("hard", {})}
            if key not in hard:
                continue
            used = quota.get("status", {}).get("used", {}).get(key, "0")
            left = float(parse_quantity(hard[key])) - float(parse_quantity(used))
            found = f"{name} leaves {left:g} of {hard[key]} {self.settings.gpu_type}"
            if left < self.settings.gpus:
                yield Finding("missing", "quota", found, "raise it, or wait for what uses it")
            elif left < wanted:
                told = f"{found}; a run and the service take {wanted} at a time"
                yield Finding("note", "quota", told, "raise it, or let them follow one another")
            else:
                yield Finding("ok", "quota", found)

    def _storage_class(self) -> Iterator[Finding]:
        name = self.settings.scratch_class
        if not name:
            return
        if self._get(f"/apis/storage.k8s.io/v1/storageclasses/{name}") is None:
            remedy = "correct scratch_class, or leave it out for the node's own disk"
            yield Finding("missing", "storage class", f"there is no {name}", remedy)
        else:
            yield Finding("ok", "storage class", name)

    def _mlflow(self) -> Iterator[Finding]:
        try:
            services = self._own("configmaps", self.settings.services) or {}
        except _ForbiddenError:
            return
        address = (services.get("data") or {}).get("MLFLOW_TRACKING_URI", "")
        if not address.startswith("http"):
            yield Finding("note", "MLflow", "none is named, so nothing is tracked", "set MLFLOW_TRACKING_URI")
            return
        try:
            status = httpx.get(f"{address.rstrip('/')}/health", timeout=_TIMEOUT_SECONDS).status_code
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            found = f"{address} does not answer here ({type(error).__name__})"
            yield Finding(
                "note", "MLflow", found, "right if it is inside the cluster; preflight asks it there"
            )
            return
        if status == 403:
            yield Finding(
                "missing", "MLflow", f"{address} answers 403", "name the host in its --allowed-hosts"
            )
        else:
            yield Finding("ok", "MLflow", f"{address} answers {status}")

    def _s3(self) -> Iterator[Finding]:
        root = self.artifact_root or str(self.settings.defaults.get("artifact_root", ""))
        if not root:
            yield Finding(
                "note", "S3", "no artifact root is known", "give --artifact-root s3://bucket/prefix"
            )
            return
        uri = f"{root.rstrip('/')}/doctor/{now():%Y%m%dT%H%M%S%f}.json"
        storage = Storage()
        try:
            storage.write_bytes(uri, b"{}", only_if_absent=True)
            if storage.read_bytes(uri) != b"{}" or uri not in storage.list(uri.rpartition("/")[0] + "/"):
                yield Finding(
                    "missing", "S3", f"{uri} is not read or listed as written", "check s3:ListBucket"
                )
            elif storage.write_bytes(uri, b"{}", only_if_absent=True):
                remedy = (
                    "let no two runs of the same inputs go at once, or use a server that knows If-None-Match"
                )
                yield Finding("note", "S3", f"{root} takes a conditional write twice", remedy)
            else:
                yield Finding("ok", "S3", f"{root} is written, read, listed, and written on a condition")
        except UserError as error:
            yield Finding(
                "missing", "S3", str(error), "with your own credentials; preflight asks with the run's"
            )

    def _service(self) -> KServeParameters:
        return KServeParameters.model_validate(self.settings.defaults.get("kserve", "{}"))


def _shown(resource: str, amount: float) -> str:
    return f"{amount:g}" if resource == "cpu" else f"{amount / 2**30:.1f}Gi"


def _request(cluster: Cluster, method: str, path: str, body: Any = None) -> dict[str, Any] | None:
    """Send one request to the API server; return the answer, or None where there is no such path.

    Raises:
        _ForbiddenError: the user may not do that.
        UserError: the API server does not answer, or does not accept the user's credentials.
    """
    try:
        found: dict[str, Any] = cluster.dynamic.request(
            method, path, body=body, serializer=as_document, _request_timeout=_TIMEOUT
        )
    except NotFoundError:
        return None
    except ForbiddenError as error:
        raise _ForbiddenError(f"you may not look: {_message(error)}") from error
    except DynamicApiError as error:
        raise UserError(f"the API server answers {error.status}: {_message(error)}") from error
    except urllib3.exceptions.HTTPError as error:
        host = cluster.api.configuration.host
        raise UserError(f"{host}: the API server does not answer ({type(error).__name__})") from error
    return found


def _message(error: Any) -> str:
    try:
        told = json.loads(error.body).get("message")
    except (TypeError, ValueError, AttributeError):
        told = None
    return " ".join(str(told or error.reason).split())[:200]

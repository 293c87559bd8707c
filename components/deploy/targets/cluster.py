"""The Kubernetes API in one namespace: plain documents, retries during outages, and errors on one line."""

import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import urllib3
from kubernetes import client, config  # type: ignore[import-untyped]
from kubernetes.dynamic import DynamicClient, Resource  # type: ignore[import-untyped]

from fovea.errors import UserError

FIELD_MANAGER = "fovea"

CREDENTIALS = Path("/var/run/secrets/fovea/kubernetes")
"""Where a Secret with the deployer's token is mounted: token, ca.crt and namespace."""

API_KEYS = Path("/var/run/secrets/fovea/api-keys")
"""Where a Secret with the server's API keys is mounted, if the server asks for one."""

_POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_RESOURCES = {
    plural: Resource("apis" if group else "api", group, version, kind, namespaced=True, name=plural)
    for plural, kind, group, version in (
        ("inferenceservices", "InferenceService", "serving.kserve.io", "v1beta1"),
        ("deployments", "Deployment", "apps", "v1"),
        ("replicasets", "ReplicaSet", "apps", "v1"),
        ("leases", "Lease", "coordination.k8s.io", "v1"),
        ("pods", "Pod", "", "v1"),
        ("services", "Service", "", "v1"),
        ("events", "Event", "", "v1"),
    )
}
_PASSING = {429, 500, 502, 503, 504}
_MISFIT = "failed to create typed patch object"
"""The answer to a server-side apply, with status 500, of fields that the schema does not know."""

_START_SECONDS = 5.0
"""An API server that has just started does not know all kinds, rights and tokens yet."""

_TIMEOUT = (5, 30)
"""Seconds to connect and to answer. The client ignores a timeout that is a single float."""

logger = logging.getLogger("fovea")

Document = dict[str, Any]


class ClusterError(UserError):
    """The cluster refuses a request, or does not answer; the message is one line."""


class ConflictError(ClusterError):
    """A field belongs to another manager, or the object was changed since it was read."""


def as_document(_: Any, answer: Any) -> Document:
    """Return the API server's answer as it is; `DynamicClient` takes this as ``serializer``."""
    document: Document = answer
    return document


@dataclass
class Cluster:
    """A namespace of a cluster.

    Args:
        api: the Kubernetes client that is connected to it.
        namespace: the only one that is read and changed.
        outage_seconds: how long to retry while the API server does not answer.
    """

    api: Any
    namespace: str
    outage_seconds: float = 180.0

    def __post_init__(self) -> None:
        # The kinds are known. Discovery would send requests without a timeout, and cache in a shared /tmp.
        self.dynamic = DynamicClient(self.api, discoverer=lambda client, cache_file: None)

    @classmethod
    def connect(cls, namespace: str = "") -> "Cluster":
        """Connect with the mounted Secret's token, the pod's own account, or the user's kubeconfig.

        Raises:
            ClusterError: there is no such configuration.
        """
        configuration = client.Configuration()
        found = namespace
        try:
            if (CREDENTIALS / "token").is_file():
                configuration = _from_secret(CREDENTIALS)
                found = found or (CREDENTIALS / "namespace").read_text().strip()
            elif os.environ.get("KUBERNETES_SERVICE_HOST") and _POD_NAMESPACE.is_file():
                config.load_incluster_config(client_configuration=configuration)
                found = found or _POD_NAMESPACE.read_text().strip()
            else:
                # Named, since the library reads KUBECONFIG only once, when it is imported.
                file = os.environ.get("KUBECONFIG")
                config.load_kube_config(file, client_configuration=configuration)
                _, context = config.list_kube_config_contexts(file)
                found = found or context["context"].get("namespace", "default")
        except (config.ConfigException, OSError) as error:
            raise ClusterError(
                f"no way to a cluster is known ({error}); run in a pod with the account fovea-deployer, or "
                "set KUBECONFIG"
            ) from error
        # This module retries; the client's own retries would hide how long an outage lasts.
        configuration.retries = False
        return cls(client.ApiClient(configuration), found)

    def get(self, plural: str, name: str) -> Document | None:
        """Return an object, or None."""
        return self._call(self.dynamic.get, "get", plural, name)

    def list(
        self, plural: str, *, label_selector: str | None = None, field_selector: str | None = None
    ) -> "list[Document]":
        """Return the objects that match the selectors."""
        selectors: dict[str, Any] = {"label_selector": label_selector, "field_selector": field_selector}
        found = self._call(self.dynamic.get, "list", plural, **selectors)
        return list((found or {}).get("items", []))

    def apply(self, manifest: Mapping[str, Any], *, dry_run: bool = False, force: bool = False) -> Document:
        """Apply an InferenceService on the server's side, as `FIELD_MANAGER`; return the resulting object.

        Fields of other managers stay as they are; a field that both set is a conflict.

        Raises:
            ConflictError: names the fields and their managers.
            ClusterError: the manifest is not valid, or this account may not apply it.
        """
        options: dict[str, Any] = {
            "field_manager": FIELD_MANAGER,
            "force_conflicts": force,
            "dry_run": "All" if dry_run else None,
            "query": {"fieldValidation": "Strict"},
        }
        send, name = self.dynamic.server_side_apply, manifest["metadata"]["name"]
        return self._call(send, "patch", "inferenceservices", name, body=manifest, **options) or {}

    def delete(self, plural: str, name: str) -> None:
        """Delete an object and, in the background, what it owns. It may be gone already."""
        self._call(self.dynamic.delete, "delete", plural, name, propagation_policy="Background")

    def create(self, plural: str, document: Mapping[str, Any]) -> Document:
        """Create an object.

        Raises:
            ConflictError: it exists.
        """
        return self._call(self.dynamic.create, "create", plural, body=document) or {}

    def replace(self, plural: str, document: Mapping[str, Any]) -> Document:
        """Write an object that was read before.

        Raises:
            ConflictError: it was changed or deleted since.
        """
        name = document["metadata"]["name"]
        result = self._call(self.dynamic.replace, "update", plural, name, body=document)
        if result is None:
            raise ConflictError(f"{plural}/{name} is gone")
        return result

    def log(self, pod: str, container: str, *, previous: bool, lines: int = 5) -> str:
        """Return a container's last lines, or '' where they cannot be read."""
        # As bytes: the client would turn a line of JSON into Python's notation.
        options = {"_preload_content": False, "_request_timeout": _TIMEOUT}
        try:
            response = client.CoreV1Api(self.api).read_namespaced_pod_log(
                pod, self.namespace, container=container, previous=previous, tail_lines=lines, **options
            )
            return str(response.data.decode(errors="replace")).strip()
        except (client.ApiException, urllib3.exceptions.HTTPError):
            return ""

    def _call(
        self,
        send: Callable[..., Document],
        verb: str,
        plural: str,
        name: str = "",
        query: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Document | None:
        """Send a request until the API server answers; None where there is no such object."""
        if name:
            options["name"] = name
        started, pause = time.monotonic(), 0.2
        while True:
            try:
                return send(
                    _RESOURCES[plural],
                    namespace=self.namespace,
                    # A new list for each attempt, since the client appends to it.
                    query_params=list((query or {}).items()),
                    serializer=as_document,
                    _request_timeout=_TIMEOUT,
                    **options,
                )
            except client.ApiException as error:
                if error.status == 404 and _is_of_object(error, name):
                    return None
                is_starting = error.status in {401, 403, 404} and time.monotonic() - started < _START_SECONDS
                if not is_starting and (error.status not in _PASSING or _MISFIT in str(error.body)):
                    raise self._explained(error, verb, plural, name) from error
                last = f"{error.status} {error.reason}"
            except urllib3.exceptions.HTTPError as error:
                last = type(error).__name__
            if time.monotonic() - started > self.outage_seconds:
                raise ClusterError(
                    f"the API server has not answered for {self.outage_seconds:.0f} s ({last})"
                )
            logger.info("deploy: the API server does not answer (%s); trying again", last)
            time.sleep(pause)
            pause = min(2 * pause, 5.0)

    def _explained(self, error: Any, verb: str, plural: str, name: str) -> ClusterError:
        try:
            status = json.loads(error.body)
        except (TypeError, ValueError):
            status = {}
        what = f"{plural}/{name}" if name else plural
        message = " ".join(str(status.get("message") or error.reason).split())[:500]
        if error.status == 404:
            return ClusterError(
                f"there is no {plural} in namespace {self.namespace!r} of this cluster; install KServe 0.20 "
                "or newer, or correct kserve.namespace"
            )
        if error.status == 403:
            return ClusterError(
                f"may not {verb} {plural} in namespace {self.namespace!r}; bind the Role "
                f"fovea-deployer there ({message})"
            )
        if error.status == 409:
            causes = (status.get("details") or {}).get("causes") or []
            contested = "; ".join(f"{each.get('field')}: {each.get('message')}" for each in causes)
            return ConflictError(
                f"{what}: others own what is to be set ({contested or message}); leave it to them, or take "
                "it from them with kubectl apply --server-side --field-manager=fovea --force-conflicts"
            )
        if error.status == 401:
            return ClusterError(
                f"the API server does not know the deployer's token ({message}); mount a new one"
            )
        return ClusterError(f"{what}: the API server answered {error.status}: {message}")


def _is_of_object(error: Any, name: str) -> bool:
    """Distinguish a missing object from a missing kind: the answer names only the former."""
    try:
        details = json.loads(error.body).get("details") or {}
    except (TypeError, ValueError):
        return False
    return bool(name) and details.get("name") == name


def _from_secret(folder: Path) -> Any:
    host = os.environ.get("KUBERNETES_SERVICE_HOST", "kubernetes.default.svc")
    port = os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    configuration = client.Configuration()
    configuration.host = f"https://{f'[{host}]' if ':' in host else host}:{port}"
    configuration.ssl_ca_cert = str(folder / "ca.crt")

    def refresh(each: Any) -> None:
        # Read for every request: Secrets are rotated while the pod runs.
        each.api_key["authorization"] = "Bearer " + (folder / "token").read_text().strip()

    refresh(configuration)
    configuration.refresh_api_key_hook = refresh
    return configuration

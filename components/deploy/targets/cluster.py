"""The Kubernetes API as the deployment uses it: few calls, documents as they are, patience with outages."""

import json
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import urllib3
from kubernetes import client, config  # type: ignore[import-untyped]

from fovea.errors import UserError

FIELD_MANAGER = "fovea"

CREDENTIALS = Path("/var/run/secrets/fovea/kubernetes")
"""Where a Secret with the deployer's token is mounted: token, ca.crt and namespace."""

API_KEYS = Path("/var/run/secrets/fovea/api-keys")
"""Where a Secret with the server's API keys is mounted, if the server asks for one."""

_POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_PLURALS = {
    "inferenceservices": "/apis/serving.kserve.io/v1beta1",
    "deployments": "/apis/apps/v1",
    "replicasets": "/apis/apps/v1",
    "leases": "/apis/coordination.k8s.io/v1",
    "pods": "/api/v1",
    "services": "/api/v1",
    "events": "/api/v1",
}
_PASSING = {429, 500, 502, 503, 504}
_MISFIT = "failed to create typed patch object"
"""What a server-side apply says, with 500, of fields that the schema does not know."""

_START_SECONDS = 5.0
"""An API server that has just started does not know all kinds, rights and tokens yet."""

_APPLY = "application/apply-patch+yaml"

logger = logging.getLogger("fovea")

Document = dict[str, Any]


class ClusterError(UserError):
    """The cluster refuses, or does not answer; the message is one line for people."""


class ConflictError(ClusterError):
    """Somebody else owns or has just changed what is to be written."""


@dataclass
class Cluster:
    """A namespace of a cluster.

    Args:
        api: the client that leads to it.
        namespace: the only one that is touched.
        outage_seconds: for so long an API server that does not answer is waited for.
    """

    api: Any
    namespace: str
    outage_seconds: float = 180.0

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
        # Retries are this module's business: the client's own would hide how long an outage lasts.
        configuration.retries = False
        return cls(client.ApiClient(configuration), found)

    def get(self, plural: str, name: str) -> Document | None:
        """Return an object, or None."""
        return self._call("GET", plural, name)

    def list(self, plural: str, **selectors: str) -> "list[Document]":
        """Return the objects that ``labelSelector`` and ``fieldSelector`` choose."""
        return list((self._call("GET", plural, query=selectors) or {}).get("items", []))

    def apply(self, manifest: Mapping[str, Any], *, dry_run: bool = False, force: bool = False) -> Document:
        """Apply an InferenceService on the server's side, as `FIELD_MANAGER`; return what results.

        Fields that others own stay as they are; a field that both want is a conflict.

        Raises:
            ConflictError: names the fields, and who owns them.
            ClusterError: it is not valid, or may not be done.
        """
        query = {
            "fieldManager": FIELD_MANAGER,
            "fieldValidation": "Strict",
            "force": str(force).lower(),
            **({"dryRun": "All"} if dry_run else {}),
        }
        name = manifest["metadata"]["name"]
        return self._call("PATCH", "inferenceservices", name, query, manifest, _APPLY) or {}

    def delete(self, plural: str, name: str) -> None:
        """Delete an object and, in the background, what it owns; it may be gone already."""
        self._call("DELETE", plural, name, {"propagationPolicy": "Background"})

    def create(self, plural: str, document: Mapping[str, Any]) -> Document:
        """Create an object.

        Raises:
            ConflictError: it is there already.
        """
        return self._call("POST", plural, body=document) or {}

    def replace(self, plural: str, document: Mapping[str, Any]) -> Document:
        """Write an object that was read before.

        Raises:
            ConflictError: it has changed since, or is gone.
        """
        name = document["metadata"]["name"]
        result = self._call("PUT", plural, name, body=document)
        if result is None:
            raise ConflictError(f"{plural}/{name} is gone")
        return result

    def log(self, pod: str, container: str, *, previous: bool, lines: int = 5) -> str:
        """Return a container's last lines, or '' where there are none to be had."""
        query = {"container": container, "tailLines": str(lines), "previous": str(previous).lower()}
        try:
            data, _, _ = self._request("GET", self._path("pods", pod) + "/log", query, None, "", "str")
        except (client.ApiException, urllib3.exceptions.HTTPError):
            return ""
        return str(data).strip()

    def _path(self, plural: str, name: str = "") -> str:
        path = f"{_PLURALS[plural]}/namespaces/{self.namespace}/{plural}"
        return f"{path}/{name}" if name else path

    def _call(
        self,
        method: str,
        plural: str,
        name: str = "",
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
    ) -> Document | None:
        """Send a request until the API server answers; None where there is no such object."""
        started, pause = time.monotonic(), 0.2
        while True:
            try:
                data, _, _ = self._request(
                    method, self._path(plural, name), query or {}, body, content_type, "object"
                )
            except client.ApiException as error:
                if error.status == 404 and _is_of_object(error, name):
                    return None
                is_starting = error.status in {401, 403, 404} and time.monotonic() - started < _START_SECONDS
                if not is_starting and (error.status not in _PASSING or _MISFIT in str(error.body)):
                    raise self._explained(error, method, plural, name) from error
                last = f"{error.status} {error.reason}"
            except urllib3.exceptions.HTTPError as error:
                last = type(error).__name__
            else:
                return dict(data or {})
            if time.monotonic() - started > self.outage_seconds:
                raise ClusterError(
                    f"the API server has not answered for {self.outage_seconds:.0f} s ({last})"
                )
            logger.info("deploy: the API server does not answer (%s); trying again", last)
            time.sleep(pause)
            pause = min(2 * pause, 5.0)

    def _request(
        self, method: str, path: str, query: Mapping[str, str], body: Any, content_type: str, kind: str
    ) -> Any:
        return self.api.call_api(
            path,
            method,
            query_params=list(query.items()),
            header_params={"Accept": "application/json, */*", "Content-Type": content_type},
            body=body,
            response_type=kind,
            auth_settings=["BearerToken"],
            _request_timeout=(5, 30),
        )

    def _explained(self, error: Any, method: str, plural: str, name: str) -> ClusterError:
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
                f"may not {_verb(method, name)} {plural} in namespace {self.namespace!r}; bind the Role "
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
    """Tell an object that is not there from a kind that is not: only the former is named."""
    try:
        details = json.loads(error.body).get("details") or {}
    except (TypeError, ValueError):
        return False
    return bool(name) and details.get("name") == name


def _verb(method: str, name: str) -> str:
    return {"GET": "get" if name else "list", "POST": "create", "PUT": "update"}.get(method, method.lower())


def _from_secret(folder: Path) -> Any:
    host = os.environ.get("KUBERNETES_SERVICE_HOST", "kubernetes.default.svc")
    port = os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    configuration = client.Configuration()
    configuration.host = f"https://{f'[{host}]' if ':' in host else host}:{port}"
    configuration.ssl_ca_cert = str(folder / "ca.crt")

    def refresh(each: Any) -> None:
        # Read anew for every request: Secrets are rotated under a running pod.
        each.api_key["authorization"] = "Bearer " + (folder / "token").read_text().strip()

    refresh(configuration)
    configuration.refresh_api_key_hook = refresh
    return configuration

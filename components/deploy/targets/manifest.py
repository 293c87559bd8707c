"""The typed specification as an InferenceService of KServe's Standard mode (serving.kserve.io/v1beta1)."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from components.deploy.kserve_parameters import KServeParameters
from fovea.records import sha256_digest

API_VERSION = "serving.kserve.io/v1beta1"
MODE_ANNOTATION = "serving.kserve.io/deploymentMode"
DIGEST_ANNOTATION = "fovea.dev/model-digest"
TEMPLATE_ANNOTATION = "fovea.dev/template"
"""Identifies the pods of one specification; an annotation of the pod template."""

_PORT = 8080
_PROBE_SECONDS = 10
_GRACE_SECONDS = 60
"""The runtime's wait before it stops the server, the time for requests in progress, and a margin."""


@dataclass(frozen=True)
class Served:
    """A model as the cluster serves it.

    Args:
        service: the InferenceService, and the name that callers ask for the model by.
        digest: of the model.
        record_uri: URI of the model's record; the server downloads the files and checks them against it.
        dtype: what the server computes in.
        evaluation_uri: URI of its evaluation's record, which has the calibration; empty for none.
    """

    service: str
    digest: str
    record_uri: str
    dtype: str
    evaluation_uri: str = ""


def predictor(served: Served, settings: KServeParameters) -> dict[str, Any]:
    """Return the predictor. Its name is a digest of the model and of the pods' specification.

    A predictor that exists is recognised by its name, and a model that is deployed again gets the same.
    """
    pods: dict[str, Any] = {
        "model": {
            # The CRD requires it in canaries; KServe gives the server's container this name in any case.
            "name": "kserve-container",
            "modelFormat": {"name": "fovea"},
            "runtime": settings.runtime,
            "args": [
                f"--model-uri={served.record_uri}",
                f"--dtype={served.dtype}",
                *([f"--evaluation={served.evaluation_uri}"] if served.evaluation_uri else []),
            ],
            "resources": _resources(settings),
            **_probes(served.service, settings),
        },
        # With Kubernetes' default of 30 s the server would be killed during requests.
        "terminationGracePeriodSeconds": _GRACE_SECONDS,
        **({"serviceAccountName": settings.service_account_name} if settings.service_account_name else {}),
        **({"nodeSelector": dict(settings.node_selector)} if settings.node_selector else {}),
        **({"tolerations": _tolerations(settings)} if settings.tolerations else {}),
    }
    template = sha256_digest({"pods": pods, "digest": served.digest}).removeprefix("sha256:")[:8]
    return {
        "name": f"m{template}",
        # KServe copies these to the pod template, and annotations of the service itself too. So neither may
        # hold anything that changes without the model.
        "annotations": {DIGEST_ANNOTATION: served.digest, TEMPLATE_ANNOTATION: template},
        "minReplicas": settings.replicas,
        "maxReplicas": max(settings.replicas, settings.max_replicas),
        **pods,
    }


def inference_service(
    service: str,
    namespace: str,
    stable: Mapping[str, Any],
    canary: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the InferenceService with a stable predictor, and an entry of ``spec.canary`` where given."""
    return {
        "apiVersion": API_VERSION,
        "kind": "InferenceService",
        "metadata": {
            "name": service,
            "namespace": namespace,
            "annotations": {MODE_ANNOTATION: "Standard"},
            "labels": {"app.kubernetes.io/managed-by": "fovea"},
        },
        "spec": {"predictor": dict(stable), **({"canary": [dict(canary)]} if canary else {})},
    }


def canary_entry(new: Mapping[str, Any], percent: int, replicas: int) -> dict[str, Any]:
    """Return ``new`` as an entry of ``spec.canary``, where replicas are fixed and nothing scales."""
    fixed = {key: value for key, value in new.items() if key != "maxReplicas"}
    # Without minReplicas, a canary at 0 % has no pod.
    return {"trafficPercent": percent, "predictor": {**fixed, "minReplicas": max(1, replicas)}}


def in_place(new: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``new`` under the name of ``old``: the old pods end before the new ones start.

    A surge would wait forever for the GPU that the old pod uses.
    """
    nameless = {key: value for key, value in new.items() if key != "name"}
    name = {"name": old["name"]} if old.get("name") else {}
    return {**name, **nameless, "deploymentStrategy": {"type": "Recreate"}}


def deployment_name(service: str, predictor_name: str | None) -> str:
    """Return the name that KServe gives to the Deployment, and the Service, of a predictor."""
    return f"{service}-{predictor_name}-predictor" if predictor_name else f"{service}-predictor"


def template_of(predictor_spec: Mapping[str, Any]) -> str:
    """Return the value of `TEMPLATE_ANNOTATION` of a predictor, or '' where Fovea did not create it."""
    return str((predictor_spec.get("annotations") or {}).get(TEMPLATE_ANNOTATION, ""))


def digest_of(predictor_spec: Mapping[str, Any]) -> str:
    """Return the digest of a predictor's model, or '' where Fovea did not create it."""
    return str((predictor_spec.get("annotations") or {}).get(DIGEST_ANNOTATION, ""))


def difference(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> str:
    """Return what changes in an InferenceService, as a unified diff of YAML; '' where nothing does."""
    return "\n".join(
        difflib.unified_diff(
            _lines(before) if before else [], _lines(after), "as it is", "as it would be", lineterm=""
        )
    )


def owned(document: Any, fields: Mapping[str, Any]) -> Any:
    """Return the part of ``document`` that ``fields`` (Kubernetes' FieldsV1) says a manager owns."""
    if not isinstance(document, dict) or not any(key.startswith("f:") for key in fields):
        return document
    return {
        key[2:]: owned(document[key[2:]], inner)
        for key, inner in fields.items()
        if key.startswith("f:") and key[2:] in document
    }


def _lines(service: Mapping[str, Any]) -> list[str]:
    metadata = service.get("metadata") or {}
    shown = {
        "metadata": {key: metadata[key] for key in ("annotations", "labels") if metadata.get(key)},
        "spec": service.get("spec"),
    }
    return yaml.safe_dump(shown).splitlines()


def _resources(settings: KServeParameters) -> dict[str, Any]:
    gpus = {settings.gpu_resource: str(settings.gpus)} if settings.gpus else {}
    return {
        "requests": {"cpu": settings.cpu, "memory": settings.memory, **gpus},
        # A limit of the CPU would only slow down the preparation of pictures.
        "limits": {"memory": settings.memory, **gpus},
    }


def _probes(service: str, settings: KServeParameters) -> dict[str, Any]:
    ready = {"httpGet": {"path": f"/v2/models/{service}/ready", "port": _PORT}}
    alive = {"httpGet": {"path": "/v2/health/live", "port": _PORT}}
    often = {"periodSeconds": _PROBE_SECONDS, "timeoutSeconds": 5}
    return {
        "startupProbe": {
            **ready,
            **often,
            "failureThreshold": max(1, round(settings.start_seconds / _PROBE_SECONDS)),
        },
        "readinessProbe": {**ready, **often, "failureThreshold": 3},
        "livenessProbe": {**alive, **often, "failureThreshold": 6},
    }


def _tolerations(settings: KServeParameters) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in each.model_dump().items() if value not in ("", None)}
        for each in settings.tolerations
    ]

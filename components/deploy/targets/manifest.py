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
"""Tells pods of one specification from those of another; stands on the pod template."""

_PORT = 8080
_PROBE_SECONDS = 10
_GRACE_SECONDS = 60
"""The runtime's wait before it tells the server to end, the time for requests under way, and a rest."""


@dataclass(frozen=True)
class Served:
    """A model as the cluster shall run it.

    Args:
        service: the InferenceService, and the name that callers ask for the model by.
        digest: of the model, as the gate's decision names it.
        record_uri: where the model's record lies; the server fetches the files and checks them against it.
        dtype: what the server computes in.
        evaluation_uri: where the record of its evaluation lies, which confidences come from; empty for none.
    """

    service: str
    digest: str
    record_uri: str
    dtype: str
    evaluation_uri: str = ""


def predictor(served: Served, asked: KServeParameters) -> dict[str, Any]:
    """Return the predictor, under a name that follows from all that its pods are made of.

    So what is there already is known by its name, and a model that comes back gets the same one.
    """
    pods: dict[str, Any] = {
        "model": {
            # The CRD asks for it in canaries; it is what KServe calls the server's container anyway.
            "name": "kserve-container",
            "modelFormat": {"name": "fovea"},
            "runtime": asked.runtime,
            "args": [
                f"--model-uri={served.record_uri}",
                f"--dtype={served.dtype}",
                *([f"--evaluation={served.evaluation_uri}"] if served.evaluation_uri else []),
            ],
            "resources": _resources(asked),
            **_probes(served.service, asked),
        },
        # Kubernetes' own 30 s would kill the server before its time is over.
        "terminationGracePeriodSeconds": _GRACE_SECONDS,
        **({"serviceAccountName": asked.service_account_name} if asked.service_account_name else {}),
        **({"nodeSelector": dict(asked.node_selector)} if asked.node_selector else {}),
        **({"tolerations": _tolerations(asked)} if asked.tolerations else {}),
    }
    template = sha256_digest({"pods": pods, "digest": served.digest}).removeprefix("sha256:")[:8]
    return {
        "name": f"m{template}",
        # KServe copies these to the pod template. Annotations of the service itself go there too, so nothing
        # that changes without the model may stand on either.
        "annotations": {DIGEST_ANNOTATION: served.digest, TEMPLATE_ANNOTATION: template},
        "minReplicas": asked.replicas,
        "maxReplicas": max(asked.replicas, asked.max_replicas),
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
    # Without minReplicas a canary at 0 % has no pod at all.
    return {"trafficPercent": percent, "predictor": {**fixed, "minReplicas": max(1, replicas)}}


def in_place(new: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``new`` under the name of ``old``, whose Deployment it replaces before it starts itself.

    A surge would wait for ever for the GPU that the old pod holds.
    """
    nameless = {key: value for key, value in new.items() if key != "name"}
    name = {"name": old["name"]} if old.get("name") else {}
    return {**name, **nameless, "deploymentStrategy": {"type": "Recreate"}}


def deployment_name(service: str, predictor_name: str | None) -> str:
    """Return what KServe calls the Deployment, and the Service, of a predictor."""
    return f"{service}-{predictor_name}-predictor" if predictor_name else f"{service}-predictor"


def template_of(predictor_spec: Mapping[str, Any]) -> str:
    """Return what marks the pods of a predictor, or '' where it was not made here."""
    return str((predictor_spec.get("annotations") or {}).get(TEMPLATE_ANNOTATION, ""))


def digest_of(predictor_spec: Mapping[str, Any]) -> str:
    """Return the digest of a predictor's model, or '' where it was not made here."""
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


def _resources(asked: KServeParameters) -> dict[str, Any]:
    gpus = {asked.gpu_resource: str(asked.gpus)} if asked.gpus else {}
    return {
        "requests": {"cpu": asked.cpu, "memory": asked.memory, **gpus},
        # A limit on the CPU would only slow the cutting of pictures down.
        "limits": {"memory": asked.memory, **gpus},
    }


def _probes(service: str, asked: KServeParameters) -> dict[str, Any]:
    ready = {"httpGet": {"path": f"/v2/models/{service}/ready", "port": _PORT}}
    alive = {"httpGet": {"path": "/v2/health/live", "port": _PORT}}
    often = {"periodSeconds": _PROBE_SECONDS, "timeoutSeconds": 5}
    return {
        "startupProbe": {
            **ready,
            **often,
            "failureThreshold": max(1, round(asked.start_seconds / _PROBE_SECONDS)),
        },
        "readinessProbe": {**ready, **often, "failureThreshold": 3},
        "livenessProbe": {**alive, **often, "failureThreshold": 6},
    }


def _tolerations(asked: KServeParameters) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in each.model_dump().items() if value not in ("", None)}
        for each in asked.tolerations
    ]

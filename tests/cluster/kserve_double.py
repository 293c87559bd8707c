"""A test double that plays KServe's controller in Standard mode, the kubelet and the scheduler.

It is none of them: it does, on a real API server, what their documentation and source say they do, as far as
a deployment can tell. Deployments, ReplicaSets and Pods are the real controllers' doing. What a model does
when it is started is told by `Behaviour`, by its digest.
"""

import json
import math
import random
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import urllib3
from kubernetes import client

DIGEST = "fovea.dev/model-digest"
MODE = "serving.kserve.io/deploymentMode"
NAME = "serving.kserve.io/inferenceservice"
KSERVE = ("serving.kserve.io", "v1beta1")


@dataclass(frozen=True)
class Behaviour:
    """What becomes of a model's pods, and how they answer.

    Args:
        start: ready, crash, unschedulable, image, out_of_memory, storage, never_ready or pending.
        digest: what it says its model is; None for the truth.
        text: what it answers instead of the evaluation's answer.
        seconds: how long an answer takes.
        status: the HTTP status of answers.
        fails_under_traffic: answer 503 once the canary has traffic.
    """

    start: str = "ready"
    digest: str | None = None
    text: str | None = None
    seconds: float = 0.0
    status: int = 200
    fails_under_traffic: bool = False


@dataclass
class KServeDouble:
    """Plays its parts in one namespace until it is stopped."""

    api: Any
    namespace: str
    answers: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    """By picture in base64: text, fields and task of the right answer."""
    behaviours: dict[str, Behaviour] = field(default_factory=dict)
    gpus: int = 100
    """So many pods find a node."""
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Who was asked, and which digest answered."""
    traffic: list[int] = field(default_factory=list)
    """The canary's shares, one after the other."""
    promotes: bool = True

    def __post_init__(self) -> None:
        self.objects = client.CustomObjectsApi(self.api)
        self.apps = client.AppsV1Api(self.api)
        self.core = client.CoreV1Api(self.api)
        self._end = threading.Event()
        self.errors: list[str] = []
        double = self

        class Handler(_Handler):
            owner = double

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def __enter__(self) -> "KServeDouble":
        self._threads = [
            threading.Thread(target=target, daemon=True) for target in (self._play, self.server.serve_forever)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self.server.shutdown()
        self.server.server_close()
        for thread in self._threads:
            thread.join()

    def address_of(self, service: Mapping[str, Any]) -> str:
        """Return where the double answers for a Service."""
        host, port = self.server.server_address[:2]
        return f"http://{host!s}:{port}/{service['metadata']['name']}"

    def _play(self) -> None:
        while not self._end.wait(0.1):
            try:
                self.play_once()
            except (client.ApiException, urllib3.exceptions.HTTPError) as error:
                # Conflicts with the real controllers, and an API server that is away: look again.
                self.errors.append(str(error)[:300])

    def play_once(self) -> None:
        """Look at the namespace once, and do what is due."""
        found = self.objects.list_namespaced_custom_object(*KSERVE, self.namespace, "inferenceservices")
        wanted = set()
        for service in found["items"]:
            wanted |= self._reconcile(service)
        for deployment in self.apps.list_namespaced_deployment(self.namespace).items:
            if deployment.metadata.name not in wanted and not deployment.metadata.deletion_timestamp:
                self._remove(deployment.metadata.name)
        self._run_pods()

    # KServe's controller

    def _reconcile(self, service: dict[str, Any]) -> set[str]:
        stable, name = service["spec"]["predictor"], service["metadata"]["name"]
        canaries = service["spec"].get("canary", [])
        total = stable.get("minReplicas", 1)
        deployments = {_name(name, stable.get("name")): (stable, total)}
        for entry in canaries:
            # The canary's own fields lie over the stable predictor's.
            merged = {**stable, **entry["predictor"]}
            least = entry["predictor"].get("minReplicas")
            replicas = math.ceil(total * entry["trafficPercent"] / 100) if least is None else least
            deployments[_name(name, merged["name"])] = (merged, replicas)
        for deployment, (predictor, replicas) in deployments.items():
            self._ensure(service, deployment, predictor, replicas)
        self._write_status(service, stable, canaries)
        return set(deployments)

    def _ensure(self, service: dict[str, Any], name: str, predictor: dict[str, Any], replicas: int) -> None:
        labels = {"app": f"isvc.{name}", NAME: service["metadata"]["name"]}
        notes = {**service["metadata"].get("annotations", {}), **predictor.get("annotations", {})}
        model = predictor["model"]
        container = {
            "name": "kserve-container",
            "image": "registry.example/fovea:1",
            "args": model.get("args", []),
            "resources": model.get("resources", {}),
        }
        surge = {"maxSurge": "25%", "maxUnavailable": "25%"}
        strategy = predictor.get("deploymentStrategy", {"type": "RollingUpdate", "rollingUpdate": surge})
        owner = {
            "apiVersion": "/".join(KSERVE),
            "kind": "InferenceService",
            "name": service["metadata"]["name"],
            "uid": service["metadata"]["uid"],
            "controller": True,
        }
        metadata = {"name": name, "labels": labels, "ownerReferences": [owner]}
        spec = {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": labels["app"]}},
            "strategy": strategy,
            "template": {
                "metadata": {"labels": labels, "annotations": notes},
                "spec": {"containers": [container], "terminationGracePeriodSeconds": 0},
            },
        }
        existing = self._find(name)
        if existing is None:
            self.apps.create_namespaced_deployment(self.namespace, {"metadata": metadata, "spec": spec})
            port = {"name": "http", "port": 80, "targetPort": 8080}
            service_spec = {"selector": {"app": labels["app"]}, "ports": [port]}
            with suppress(client.ApiException):
                self.core.create_namespaced_service(
                    self.namespace, {"metadata": metadata, "spec": service_spec}
                )
        elif _differs(existing, spec):
            body = [
                {"op": "replace", "path": f"/spec/{key}", "value": spec[key]}
                for key in ("replicas", "strategy", "template")
            ]
            self.apps.patch_namespaced_deployment(name, self.namespace, body)

    def _find(self, name: str) -> Any:
        try:
            return self.apps.read_namespaced_deployment(name, self.namespace)
        except client.ApiException as error:
            if error.status == 404:
                return None
            raise

    def _remove(self, name: str) -> None:
        with suppress(client.ApiException):
            self.apps.delete_namespaced_deployment(name, self.namespace, propagation_policy="Background")
        with suppress(client.ApiException):
            self.core.delete_namespaced_service(name, self.namespace)

    def _write_status(self, service: dict[str, Any], stable: dict[str, Any], canaries: list[Any]) -> None:
        name = service["metadata"]["name"]
        statuses = []
        for entry in canaries:
            predictor = entry["predictor"]["name"]
            ready = self._is_available(_name(name, predictor))
            # Traffic goes to canaries that are ready alone.
            share = entry["trafficPercent"]
            statuses.append({"name": predictor, "ready": ready, "trafficPercent": share})
            if not self.traffic or self.traffic[-1] != share:
                self.traffic.append(share)
        available = self._is_available(_name(name, stable.get("name")))
        kind = {"status": "True" if available else "False", "lastTransitionTime": _now()}
        status = {
            # As it is: Ready stays True while old pods are available, and the generation is the newest.
            "conditions": [{"type": "PredictorReady", **kind}, {"type": "Ready", **kind}],
            "observedGeneration": service["metadata"]["generation"],
            "deploymentMode": service["metadata"].get("annotations", {}).get(MODE, "Standard"),
            "canaryStatuses": statuses,
        }
        old = service.get("status") or {}
        if _comparable(old) != _comparable(status):
            # Of what was looked at: not onto another of the same name that was made meanwhile.
            version = {"resourceVersion": service["metadata"]["resourceVersion"]}
            self.objects.patch_namespaced_custom_object_status(
                *KSERVE, self.namespace, "inferenceservices", name, {"metadata": version, "status": status}
            )

    def _is_available(self, name: str) -> bool:
        deployment = self._find(name)
        conditions = (deployment.status.conditions if deployment else None) or []
        return any(each.type == "Available" and each.status == "True" for each in conditions)

    # The scheduler and the kubelet

    def _run_pods(self) -> None:
        pods = self.core.list_namespaced_pod(self.namespace).items
        for pod in pods:
            if pod.metadata.deletion_timestamp:
                with suppress(client.ApiException):
                    self.core.delete_namespaced_pod(pod.metadata.name, self.namespace, grace_period_seconds=0)
        placed = sum(1 for pod in pods if _condition(pod, "PodScheduled") == "True")
        for pod in pods:
            if pod.metadata.deletion_timestamp or _condition(pod, "Ready") == "True":
                continue
            behaviour = self._behaviour(pod)
            is_placed = _condition(pod, "PodScheduled") == "True"
            if not is_placed and placed >= self.gpus:
                behaviour = replace(behaviour, start="unschedulable")
            status = _pod_status(behaviour.start, pod)
            if behaviour.start != "unschedulable" and not is_placed:
                placed += 1
            if status is not None and _is_news(pod, status):
                self.core.patch_namespaced_pod_status(pod.metadata.name, self.namespace, {"status": status})
                self._tell(pod, behaviour.start)

    def _behaviour(self, pod: Any) -> Behaviour:
        notes = pod.metadata.annotations or {}
        return self.behaviours.get(notes.get(DIGEST, ""), Behaviour())

    def _tell(self, pod: Any, start: str) -> None:
        if start != "unschedulable":
            return
        reference = {
            "kind": "Pod",
            "name": pod.metadata.name,
            "uid": pod.metadata.uid,
            "namespace": self.namespace,
        }
        event = {
            "metadata": {"generateName": "double-"},
            "involvedObject": reference,
            "reason": "FailedScheduling",
            "message": "0/2 nodes are available: 2 Insufficient nvidia.com/gpu.",
            "type": "Warning",
            "lastTimestamp": _now(),
        }
        self.core.create_namespaced_event(self.namespace, event)

    # The pods' server

    def answer(self, service: str, body: dict[str, Any], is_chat: bool) -> tuple[int, dict[str, Any]]:
        """Answer as a random ready pod behind a Service would."""
        pods = [
            pod
            for pod in self.core.list_namespaced_pod(
                self.namespace, label_selector=f"app=isvc.{service}"
            ).items
            if _condition(pod, "Ready") == "True" and not pod.metadata.deletion_timestamp
        ]
        if not pods:
            return 503, {"error": "no endpoints"}
        pod = random.choice(pods)  # noqa: S311
        digest = pod.metadata.annotations[DIGEST]
        behaviour = self._behaviour(pod)
        self.asked.append((service, digest))
        time.sleep(behaviour.seconds)
        if behaviour.fails_under_traffic and self.traffic and self.traffic[-1] > 0:
            return 503, {"error": "too many"}
        if behaviour.status != 200:
            return behaviour.status, {"error": "broken"}
        said = {"model_digest": behaviour.digest or digest}
        if behaviour.text is not None:
            said |= {"text": behaviour.text, "fields": None}
        if is_chat:
            picture = body["messages"][0]["content"][0]["image_url"]["url"].partition(",")[2]
            one = {**self.answers[picture], **said}
            return 200, {"choices": [{"message": {"content": one["text"]}}], "fovea": one}
        pictures = [instance["image"]["b64"] for instance in body["instances"]]
        return 200, {"predictions": [{**self.answers[picture], **said} for picture in pictures]}


class _Handler(BaseHTTPRequestHandler):
    owner: KServeDouble

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        service = self.path.split("/")[1]
        status, answer = self.owner.answer(service, body, "chat" in self.path)
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _name(service: str, predictor: str | None) -> str:
    return f"{service}-{predictor}-predictor" if predictor else f"{service}-predictor"


def _differs(deployment: Any, spec: dict[str, Any]) -> bool:
    template, wanted = deployment.spec.template, spec["template"]
    return bool(
        template.metadata.annotations != wanted["metadata"]["annotations"]
        or (template.spec.containers[0].args or []) != wanted["spec"]["containers"][0]["args"]
        or deployment.spec.replicas != spec["replicas"]
        or deployment.spec.strategy.type != spec["strategy"]["type"]
    )


def _comparable(status: dict[str, Any]) -> Any:
    conditions = sorted((each["type"], each["status"]) for each in status.get("conditions", []))
    return conditions, status.get("observedGeneration"), status.get("canaryStatuses", [])


def _condition(pod: Any, kind: str) -> str:
    return next((each.status for each in pod.status.conditions or [] if each.type == kind), "")


def _is_news(pod: Any, status: dict[str, Any]) -> bool:
    conditions = {each.type: each.status for each in pod.status.conditions or []}
    wanted = {each["type"]: each["status"] for each in status["conditions"]}
    return bool(
        any(conditions.get(key) != value for key, value in wanted.items())
        or (not pod.status.container_statuses and status.get("containerStatuses"))
        or (not pod.status.init_container_statuses and status.get("initContainerStatuses"))
    )


def _pod_status(start: str, pod: Any) -> dict[str, Any] | None:
    """Return the status that the kubelet and the scheduler would write, by Kubernetes' own words for it."""
    if start == "pending":
        return None
    if start == "unschedulable":
        words = "0/2 nodes are available: 2 Insufficient nvidia.com/gpu."
        unplaced = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": words}
        return {"phase": "Pending", "conditions": [unplaced]}
    placed = {"type": "PodScheduled", "status": "True"}
    ready = {"type": "Ready", "status": "True" if start == "ready" else "False", "lastTransitionTime": _now()}
    image = pod.spec.containers[0].image
    container: dict[str, Any] = {
        "name": "kserve-container",
        "image": image,
        "imageID": "",
        "ready": start == "ready",
        "restartCount": 0,
        "state": {"running": {"startedAt": _now()}},
    }
    if start == "crash":
        container["restartCount"] = 3
        container["state"] = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}
        words = "error: config.json is not the file its record names"
        ended = {"exitCode": 1, "reason": "Error", "message": words}
        container["lastState"] = {"terminated": ended}
    elif start == "out_of_memory":
        container["restartCount"] = 1
        container["lastState"] = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
    elif start == "image":
        words = "Back-off pulling image: not found"
        container["state"] = {"waiting": {"reason": "ImagePullBackOff", "message": words}}
    status = {"phase": "Running", "conditions": [placed, ready], "containerStatuses": [container]}
    if start == "storage":
        container["state"] = {"waiting": {"reason": "PodInitializing"}}
        ended = {"exitCode": 1, "reason": "Error", "message": "NoSuchBucket: the bucket does not exist"}
        first = {**container, "name": "storage-initializer", "restartCount": 2, "ready": False}
        first["state"] = {"terminated": ended}
        status["initContainerStatuses"] = [first]
    return status


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

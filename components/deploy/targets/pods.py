"""Which pods serve which model, and why a pod does not serve.

The pods are found through the ReplicaSets, not through the service's Ready. In KServe's Standard mode a
service stays Ready while the old pods answer, and its status copies the Deployment's observedGeneration: a
client that patches and waits for Ready takes the old model for the new one.

The reason why a pod does not serve is taken from its conditions, containers, events and last log lines.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from components.deploy.targets.cluster import Cluster, Document
from components.deploy.targets.manifest import TEMPLATE_ANNOTATION

_BAD_IMAGE = {"ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"}
_IMAGE = _BAD_IMAGE | {"ErrImagePull", "RegistryUnavailable"}
_BAD_CONFIGURATION = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
_CRASHES = 2
"""From this number of restarts on, a container counts as crashing."""


@dataclass(frozen=True)
class Problem:
    """A reason why pods do not serve.

    Args:
        kind: unschedulable, image, out_of_memory, init_container, crash_loop, configuration, quota,
            not_ready, kserve or waiting.
        message: one line.
        final: whether waiting longer cannot help.
    """

    kind: str
    message: str
    final: bool = False


def diagnose(cluster: Cluster, deployment: Mapping[str, Any], pods: Iterable[Document]) -> Problem | None:
    """Return a problem of the pods, a final one first, or why there are no pods; None where all are ready."""
    found = [problem for pod in pods if (problem := _of_pod(cluster, pod)) is not None]
    found = found or _of_deployment(deployment)
    return max(found, key=lambda problem: problem.final, default=None)


def of_service(service: Mapping[str, Any] | None) -> Problem:
    """Return what KServe's controller says about a service that has no pods yet."""
    status = (service or {}).get("status") or {}
    states = [status, *status.get("canaryStatuses", [])]
    for model in (each.get("modelStatus") or {} for each in states):
        failure = model.get("lastFailureInfo") or {}
        if model.get("transitionStatus") == "InvalidSpec":
            words = failure.get("message") or "no reason given"
            return Problem("kserve", f"KServe refuses the service: {failure.get('reason')}: {words}", True)
    for condition in status.get("conditions", []):
        if condition.get("status") == "False" and condition.get("message"):
            reason = condition.get("reason") or condition["type"]
            return Problem("kserve", f"KServe says {reason}: {condition['message']}")
    return Problem(
        "waiting", "KServe has not made a Deployment yet; see whether its controller runs in Standard mode"
    )


def is_ready(pod: Mapping[str, Any]) -> bool:
    """Return whether a pod takes requests and is not being deleted."""
    status = pod.get("status") or {}
    return _condition(status, "Ready") == "True" and not pod["metadata"].get("deletionTimestamp")


def is_scheduled(pod: Mapping[str, Any]) -> bool:
    """Return whether a pod has a node."""
    return _condition(pod.get("status") or {}, "PodScheduled") == "True"


def _of_pod(cluster: Cluster, pod: Document) -> Problem | None:
    if is_ready(pod):
        return None
    status, name = pod.get("status") or {}, pod["metadata"]["name"]
    if status.get("phase") == "Failed":
        return Problem("evicted", f"pod {name} failed: {status.get('reason')}: {status.get('message')}")
    scheduled: Document = next(
        (each for each in status.get("conditions", []) if each["type"] == "PodScheduled"), {}
    )
    if scheduled.get("status") == "False":
        words = scheduled.get("message") or _last_event(cluster, pod, ("FailedScheduling",))
        return Problem("unschedulable", f"pod {name} finds no node: {words}")
    for container in status.get("initContainerStatuses", []):
        problem = _of_init_container(cluster, name, container)
        if problem is not None:
            return problem
    for container in status.get("containerStatuses", []):
        problem = _of_container(cluster, pod, container)
        if problem is not None:
            return problem
    words = _last_event(cluster, pod, ("Unhealthy", "FailedMount", "FailedScheduling", "Failed"))
    return Problem("not_ready", f"pod {name} is not ready" + (f": {words}" if words else ""))


def _of_init_container(cluster: Cluster, pod: str, container: Document) -> Problem | None:
    ended = _ended(container)
    if not ended or ended.get("exitCode") == 0:
        return _of_waiting(pod, container)
    who = "storage initialiser" if container["name"] == "storage-initializer" else f"init {container['name']}"
    return Problem(
        "init_container",
        f"the {who} of pod {pod} fails (exit {ended.get('exitCode')}): {_words(cluster, pod, container)}",
        _is_crashing(container),
    )


def _of_container(cluster: Cluster, pod: Document, container: Document) -> Problem | None:
    name, ended = pod["metadata"]["name"], _ended(container)
    if ended and ended.get("reason") == "OOMKilled":
        limits = [each.get("resources", {}).get("limits", {}) for each in pod["spec"]["containers"]]
        memory = next((limit["memory"] for limit in limits if "memory" in limit), "its node's memory")
        return Problem("out_of_memory", f"pod {name} was killed for want of memory ({memory})", True)
    if ended and ended.get("exitCode") != 0:
        words = _words(cluster, name, container)
        times = container.get("restartCount", 0)
        message = f"the server in pod {name} ends with {ended.get('exitCode')} ({times} restarts): {words}"
        return Problem("crash_loop", message, _is_crashing(container))
    return _of_waiting(name, container)


def _of_waiting(pod: str, container: Document) -> Problem | None:
    waiting = (container.get("state") or {}).get("waiting") or {}
    reason, words = waiting.get("reason", ""), waiting.get("message", "")
    if reason in _IMAGE:
        message = f"the image {container.get('image')} of pod {pod} cannot be pulled: {words or reason}"
        return Problem("image", message, reason in _BAD_IMAGE)
    if reason in _BAD_CONFIGURATION:
        return Problem("configuration", f"the container of pod {pod} cannot be made: {words or reason}", True)
    return None


def _of_deployment(deployment: Mapping[str, Any]) -> list[Problem]:
    conditions = (deployment.get("status") or {}).get("conditions", [])
    return [
        Problem("quota", f"no pod can be made: {each.get('message')}", True)
        for each in conditions
        if each["type"] == "ReplicaFailure" and each["status"] == "True"
    ]


def _ended(container: Document) -> Document:
    state = (container.get("state") or {}).get("terminated")
    return state or (container.get("lastState") or {}).get("terminated") or {}


def _is_crashing(container: Document) -> bool:
    waiting = (container.get("state") or {}).get("waiting") or {}
    return waiting.get("reason") == "CrashLoopBackOff" or container.get("restartCount", 0) >= _CRASHES


def _words(cluster: Cluster, pod: str, container: Document) -> str:
    is_again = not (container.get("state") or {}).get("terminated")
    return (
        cluster.log(pod, container["name"], previous=is_again)
        or _ended(container).get("message")
        or "it said nothing"
    )


def _last_event(cluster: Cluster, pod: Document, reasons: Sequence[str]) -> str:
    events = cluster.list("events", field_selector=f"involvedObject.uid={pod['metadata']['uid']}")
    told = [each for each in events if each.get("reason") in reasons]
    told.sort(key=lambda each: each.get("lastTimestamp") or each.get("eventTime") or "")
    return str(told[-1].get("message", "")) if told else ""


def _condition(status: Mapping[str, Any], kind: str) -> str:
    return next((str(each["status"]) for each in status.get("conditions", []) if each["type"] == kind), "")


@dataclass(frozen=True)
class Observation:
    """The pods of one specification within a Deployment.

    Args:
        ready: whether the wanted number of them take requests, and no other pod of the Deployment does.
        is_scheduled: whether each of them has a node.
        running: UID and restarts of those that take requests.
        problem: why they are not ready.
    """

    ready: bool
    is_scheduled: bool = False
    running: frozenset[tuple[str, int]] = frozenset()
    problem: Problem | None = None


def observe(cluster: Cluster, service: str, deployment_name: str, template: str) -> Observation:
    """Return the state of the pods with ``template``, an annotation of their pod template.

    Args:
        cluster: with the namespace.
        service: the InferenceService.
        deployment_name: the predictor's Deployment.
        template: the value of `TEMPLATE_ANNOTATION`; '' takes the Deployment's newest pods.
    """
    deployment = cluster.get("deployments", deployment_name)
    if deployment is None:
        return Observation(False, problem=of_service(cluster.get("inferenceservices", service)))
    status, spec = deployment.get("status") or {}, deployment["spec"]
    is_taken_over = status.get("observedGeneration", 0) >= deployment["metadata"]["generation"]
    if not _is_of(spec["template"], template) or not is_taken_over:
        return Observation(
            False, problem=Problem("waiting", f"KServe has not changed Deployment {deployment_name} yet")
        )
    pods = _pods(cluster, deployment, template)
    wanted = spec.get("replicas", 1)
    running = [pod for pod in pods if is_ready(pod)]
    # Other pods of the same Deployment would answer too.
    is_alone = status.get("replicas", 0) <= len(pods)
    ready = len(running) >= max(1, wanted) and is_alone
    return Observation(
        ready=ready,
        is_scheduled=bool(pods) and all(is_scheduled(pod) for pod in pods),
        running=frozenset((pod["metadata"]["uid"], _restarts(pod)) for pod in running),
        problem=None if ready else diagnose(cluster, deployment, pods),
    )


def _pods(cluster: Cluster, deployment: Document, template: str) -> list[Document]:
    labels = deployment["spec"]["selector"].get("matchLabels", {})
    selector = ",".join(f"{key}={value}" for key, value in sorted(labels.items()))
    sets = [
        each
        for each in cluster.list("replicasets", label_selector=selector)
        if _owner(each) == deployment["metadata"]["uid"] and _is_of(each["spec"]["template"], template)
    ]
    if not sets:
        return []
    newest = max(sets, key=_revision)["metadata"]["uid"]
    return [each for each in cluster.list("pods", label_selector=selector) if _owner(each) == newest]


def _is_of(pod_template: Mapping[str, Any], template: str) -> bool:
    marks = (pod_template.get("metadata") or {}).get("annotations") or {}
    return not template or marks.get(TEMPLATE_ANNOTATION) == template


def _revision(replica_set: Document) -> int:
    notes = replica_set["metadata"].get("annotations") or {}
    return int(notes.get("deployment.kubernetes.io/revision", 0))


def _owner(document: Document) -> str:
    owners = document["metadata"].get("ownerReferences") or []
    return next((str(each["uid"]) for each in owners if each.get("controller")), "")


def _restarts(pod: Document) -> int:
    return sum(each.get("restartCount", 0) for each in (pod.get("status") or {}).get("containerStatuses", []))

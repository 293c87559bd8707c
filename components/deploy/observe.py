"""Which pods serve which model: told from the ReplicaSets, not from a service's Ready.

In KServe's Standard mode a service stays Ready while the old pods answer, and its status copies the
Deployment's observedGeneration: whoever patches and waits for Ready is told of success by the old model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from components.deploy.cluster import Cluster, Document
from components.deploy.diagnose import Problem, diagnose, is_ready, is_scheduled, of_service
from components.deploy.manifest import TEMPLATE_ANNOTATION


@dataclass(frozen=True)
class Observation:
    """The pods of one specification within a Deployment.

    Args:
        ready: whether as many as are wanted take requests, and no other pod of the Deployment does.
        is_scheduled: whether each of them has a node.
        pods: those that there are; ``running`` names those that are ready with their restarts.
        problem: what keeps them from being ready.
    """

    ready: bool
    is_scheduled: bool = False
    running: frozenset[tuple[str, int]] = frozenset()
    problem: Problem | None = None


def observe(cluster: Cluster, service: str, deployment_name: str, template: str) -> Observation:
    """Look at the pods that are made of ``template``, the mark on their pod template.

    Args:
        cluster: with the namespace.
        service: the InferenceService.
        deployment_name: the predictor's Deployment.
        template: the value of `TEMPLATE_ANNOTATION`; '' takes whatever the Deployment's newest pods are of.
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
    # Others of the same Deployment would answer too.
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
        for each in cluster.list("replicasets", labelSelector=selector)
        if _owner(each) == deployment["metadata"]["uid"] and _is_of(each["spec"]["template"], template)
    ]
    if not sets:
        return []
    newest = max(sets, key=_revision)["metadata"]["uid"]
    return [each for each in cluster.list("pods", labelSelector=selector) if _owner(each) == newest]


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

"""The resources of a cluster's nodes, and what is free."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kubernetes.utils import parse_quantity  # type: ignore[import-untyped]


@dataclass(frozen=True)
class Nodes:
    """The schedulable nodes, and the requests of their pods."""

    nodes: list[dict[str, Any]]
    requested: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """The requests of the pods on each node."""

    @classmethod
    def read(cls, nodes: Mapping[str, Any] | None, pods: Mapping[str, Any] | None) -> "Nodes":
        """Take nodes and pods from the API server's lists."""
        requested: dict[str, list[dict[str, Any]]] = {}
        for pod in (pods or {}).get("items", []):
            if (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed"):
                requests = [
                    each.get("resources", {}).get("requests") or {} for each in pod["spec"]["containers"]
                ]
                requested.setdefault(pod["spec"].get("nodeName", ""), []).extend(requests)
        usable = [
            each for each in (nodes or {}).get("items", []) if not each.get("spec", {}).get("unschedulable")
        ]
        return cls(usable, requested)

    def free(self, resource: str, selector: Mapping[str, str], tolerations: list[Any]) -> dict[str, int]:
        """Return how much of a countable resource is free on the nodes that accept such a pod."""
        found = {}
        for node in self.nodes:
            name, labels = node["metadata"]["name"], node["metadata"].get("labels") or {}
            total = int((node.get("status", {}).get("allocatable") or {}).get(resource, 0))
            taints = (node.get("spec") or {}).get("taints") or []
            if (
                total
                and selector.items() <= labels.items()
                and all(_tolerated(t, tolerations) for t in taints)
            ):
                used = sum(int(each.get(resource, 0)) for each in self.requested.get(name, []))
                found[name] = total - used
        return found

    def largest(self, resource: str) -> float:
        """Return the largest amount of a resource on one node."""
        return max(
            (
                float(parse_quantity((node.get("status", {}).get("allocatable") or {}).get(resource, "0")))
                for node in self.nodes
            ),
            default=0.0,
        )


def _tolerated(taint: Mapping[str, str], tolerations: list[dict[str, Any]]) -> bool:
    return taint.get("effect") == "PreferNoSchedule" or any(
        (not each["key"] or each["key"] == taint["key"])
        and (not each["effect"] or each["effect"] == taint["effect"])
        and (each["operator"] == "Exists" or each["value"] == taint.get("value", ""))
        for each in tolerations
    )

"""What a service on KServe serves at this moment, told from the cluster."""

from dataclasses import dataclass

from components.deploy.cluster import Cluster
from components.deploy.manifest import deployment_name, digest_of, template_of
from components.deploy.observe import observe


@dataclass(frozen=True)
class Share:
    """A predictor of a service: its model's digest, its share of the traffic, and how its pods are."""

    digest: str
    percent: int
    pods: int
    problem: str


def live_shares(cluster: Cluster, service: str) -> list[Share]:
    """Return the stable predictor and the canaries of a service; none where there is no such service."""
    live = cluster.get("inferenceservices", service)
    if live is None:
        return []
    canaries = [(each["predictor"], each["trafficPercent"]) for each in live["spec"].get("canary") or []]
    rest = 100 - sum(percent for _, percent in canaries)
    shares = []
    for predictor, percent in [(live["spec"]["predictor"], rest), *canaries]:
        name = deployment_name(service, predictor.get("name"))
        seen = observe(cluster, service, name, template_of(predictor))
        problem = seen.problem.message if seen.problem else ""
        shares.append(Share(digest_of(predictor), percent, len(seen.running), problem))
    return shares

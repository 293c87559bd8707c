"""The KServe target: the rollout under a Lease, and what the pods of a service serve now."""

from dataclasses import dataclass

from components.deploy.history import present_deployment
from components.deploy.parameters import DeployParameters
from components.deploy.release import Release
from components.deploy.targets.cluster import Cluster, ClusterError
from components.deploy.targets.lease import Lease, LeaseLostError
from components.deploy.targets.manifest import Served, deployment_name, digest_of, template_of
from components.deploy.targets.pods import observe
from components.deploy.targets.questions import HeldOutQuestions
from components.deploy.targets.rollout import Rollout
from components.deploy.targets.target import RolloutOutcome
from components.deploy.verification import Verification, load_probes
from fovea.storage import Storage


@dataclass(frozen=True)
class KServeTarget:
    """A cluster with KServe: an InferenceService in one namespace.

    Args:
        storage: S3.
        run_id: the run that deploys.
    """

    storage: Storage
    run_id: str

    def deploy(self, release: Release, settings: DeployParameters) -> RolloutOutcome:
        """Roll the release out next to the old model, and promote it once it is verified."""
        service, kserve = settings.service_name, settings.kserve
        try:
            cluster = Cluster.connect(kserve.namespace)
        except ClusterError as error:
            return RolloutOutcome(Verification(False, str(error)))
        previous = present_deployment(self.storage, release.artifact_root, service)
        questions = HeldOutQuestions(
            load_probes(self.storage, release.dataset, release.evaluation, settings.deploy_probes),
            release.expectation(service, kserve.max_answer_seconds),
            kserve.max_error_rate,
        )
        served = Served(
            service=service,
            digest=release.model.digest,
            record_uri=release.record_uris["model"],
            dtype=release.evaluation.generation.dtype,
            evaluation_uri=release.calibration_uri,
        )
        decided_at = release.decided_at or release.decision.created_at
        lease = Lease(cluster, service, self.run_id, decided_at, seconds=kserve.lease_seconds)
        is_here = previous is not None and previous.namespace == cluster.namespace
        applied = previous.inference_service if previous is not None and is_here else None
        try:
            with lease.held():
                return Rollout(cluster, served, kserve, questions, lease, previous=applied).run()
        except (LeaseLostError, ClusterError) as error:
            return RolloutOutcome(Verification(False, str(error)))


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

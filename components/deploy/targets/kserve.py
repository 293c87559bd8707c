"""A deployment on KServe: the rollout, with what it needs of the records, and what a service serves now."""

import logging
from dataclasses import dataclass
from datetime import datetime

from components.deploy.candidate import Candidate
from components.deploy.parameters import Deployment, DeployParameters
from components.deploy.targets.cluster import Cluster, ClusterError
from components.deploy.targets.lease import Lease, LeaseLostError
from components.deploy.targets.manifest import Served, deployment_name, digest_of, template_of
from components.deploy.targets.pods import observe
from components.deploy.targets.questions import HeldOutQuestions
from components.deploy.targets.rollout import Rollout
from components.deploy.verification import Expectation, Outcome, Verification, load_probes
from fovea.storage import Storage

logger = logging.getLogger("fovea")


@dataclass(frozen=True)
class KServeTarget:
    """Where and when a model is rolled out.

    Args:
        cluster: with the namespace.
        run_id: the run that deploys.
        decided_at: of two deployments at once the one that was decided earlier makes way.
        previous: the last verified deployment of the service.
    """

    cluster: Cluster
    run_id: str
    decided_at: datetime
    previous: Deployment | None = None

    def deploy(
        self, candidate: Candidate, asked: DeployParameters, artifact_root: str, storage: Storage
    ) -> Outcome:
        """Roll the model out, and verify it; what is in the way is an outcome, not an exception.

        Raises:
            UserError: the held-out pictures cannot be read.
        """
        settings, generation = asked.kserve, candidate.evaluation.generation
        questions = HeldOutQuestions(
            load_probes(storage, candidate.dataset, candidate.evaluation, asked.deploy_probes),
            Expectation(
                name=asked.service_name,
                model_digest=candidate.decision.model_digest,
                task=candidate.task,
                max_new_tokens=generation.max_new_tokens,
                dtype=generation.dtype,
                max_answer_seconds=settings.max_answer_seconds,
                calibration=candidate.calibration,
            ),
            settings.max_error_rate,
        )
        served = Served(
            service=asked.service_name,
            digest=candidate.decision.model_digest,
            record_uri=candidate.record_uris(artifact_root)["model"],
            dtype=generation.dtype,
            evaluation_uri=candidate.calibration_uri(artifact_root),
        )
        lease = Lease(
            self.cluster, asked.service_name, self.run_id, self.decided_at, seconds=settings.lease_seconds
        )
        try:
            with lease.held():
                rollout = Rollout(
                    self.cluster, served, settings, questions, lease, previous=self._last_applied()
                )
                return rollout.run()
        except (LeaseLostError, ClusterError) as error:
            return Outcome(Verification(False, str(error)))

    def _last_applied(self) -> dict[str, object] | None:
        previous = self.previous
        if previous is None or previous.namespace != self.cluster.namespace:
            return None
        return previous.inference_service


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

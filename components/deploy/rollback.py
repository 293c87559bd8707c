"""Back to the last verified champion: deployed anew from its records, and verified anew."""

from datetime import UTC, datetime

from components.deploy.candidate import Candidate
from components.deploy.history import champion_before, present_deployment, withdraw
from components.deploy.parameters import Deployment, DeployParameters
from components.deploy.step import Verdict, deploy
from fovea.errors import UserError
from fovea.steps import RunContext
from fovea.storage import Storage


def roll_back(service_name: str, artifact_root: str, storage: Storage) -> tuple[Verdict, Deployment]:
    """Deploy the model that stood before the present one, without steps of traffic: it served before.

    Args:
        service_name: the service.
        artifact_root: where its documents lie.
        storage: S3.

    Returns:
        The verdict, and the document of the deployment that was gone back to, as it was then.

    Raises:
        UserError: nothing is deployed, nothing was before, or its records cannot be read any more. The
            service stays as it is.
    """
    present = present_deployment(storage, artifact_root, service_name)
    if present is None:
        raise UserError(f"no run has deployed the service {service_name!r} under {artifact_root}")
    earlier = champion_before(storage, artifact_root, present)
    asked = earlier.parameters or DeployParameters(service_name=service_name)
    settings = asked.kserve.model_copy(update={"traffic_steps": (), "dry_run": False})
    try:
        candidate = Candidate.from_index(earlier.records, storage)
    except UserError as error:
        raise UserError(
            f"the deployment of {earlier.run_id} cannot be brought back: {error}. If an earlier version of "
            f"Fovea wrote that record, start a run with the parameters of {earlier.run_id}"
        ) from error
    decided_at = datetime.now(UTC)
    verdict, _ = deploy(
        candidate,
        asked.model_copy(update={"kserve": settings}),
        RunContext(artifact_root=artifact_root, run_id=f"rollback-{decided_at:%Y%m%dT%H%M%S%fZ}"),
        storage,
        # A person's word is the youngest decision.
        decided_at,
    )
    if verdict.deployed:
        withdraw(storage, artifact_root, present)
    return verdict, earlier

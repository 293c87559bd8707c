"""A rollback: the last verified champion is deployed and verified again, from its records."""

from datetime import UTC, datetime

from components.deploy.history import champion_before, present_deployment, withdraw
from components.deploy.parameters import Deployment, DeployParameters
from components.deploy.release import Release
from components.deploy.step import Verdict, deploy
from fovea.errors import UserError
from fovea.storage import Storage


def roll_back(service_name: str, artifact_root: str, storage: Storage) -> tuple[Verdict, Deployment]:
    """Deploy the model that was deployed before the present one, without steps of traffic: it served before.

    Args:
        service_name: the service.
        artifact_root: where its documents are stored.
        storage: S3.

    Returns:
        The verdict, and the document of that earlier deployment.

    Raises:
        UserError: nothing is deployed, nothing was before, or its records cannot be read any more. The
            service stays as it is.
    """
    present = present_deployment(storage, artifact_root, service_name)
    if present is None:
        raise UserError(f"no run has deployed the service {service_name!r} under {artifact_root}")
    earlier = champion_before(storage, artifact_root, present)
    settings = earlier.parameters or DeployParameters(service_name=service_name)
    kserve = settings.kserve.model_copy(update={"traffic_steps": (), "dry_run": False})
    # The decision to roll back is younger than any that a run may be deploying.
    decided_at = datetime.now(UTC)
    try:
        release = Release.from_index(earlier.records, artifact_root, storage, decided_at)
    except UserError as error:
        raise UserError(
            f"the deployment of {earlier.run_id} cannot be brought back: {error}. If an earlier version of "
            f"Fovea wrote that record, start a run with the parameters of {earlier.run_id}"
        ) from error
    run_id = f"rollback-{decided_at:%Y%m%dT%H%M%S%fZ}"
    verdict, _ = deploy(release, settings.model_copy(update={"kserve": kserve}), run_id, storage)
    if verdict.deployed:
        withdraw(storage, artifact_root, present)
    return verdict, earlier

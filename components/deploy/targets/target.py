"""The interface of a deployment target, and what a rollout to one comes to."""

from dataclasses import dataclass
from typing import Any, Protocol

from components.deploy.parameters import DeployParameters
from components.deploy.release import Release
from components.deploy.verification import Verification


@dataclass(frozen=True)
class RolloutOutcome:
    """What a rollout came to.

    Args:
        verification: of the new model; a rollout that failed before says why here.
        kind: on KServe: first, unchanged, canary or recreate; dry_run where nothing was changed.
        namespace: on KServe: where the service is.
        manifest: on KServe: what was applied last, which a later rollout restores if it fails.
    """

    verification: Verification
    kind: str = ""
    namespace: str = ""
    manifest: dict[str, Any] | None = None


class Target(Protocol):
    """Where models are served."""

    def deploy(self, release: Release, settings: DeployParameters) -> RolloutOutcome:
        """Serve the release and verify it. What goes wrong there is an outcome, not an exception.

        Raises:
            UserError: the held-out pictures cannot be read, or S3 cannot be reached.
        """

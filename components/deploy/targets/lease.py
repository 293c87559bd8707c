"""The Lease of a service: only one deployment changes the service at a time, and a younger one goes first.

The age of a deployment is that of its decision. A younger one asks the holder to give the Lease up, and waits
until the holder has restored the previous state; an older one is refused at once. The Lease of a run that was
killed expires when it has not been renewed for its duration, by the clock of the run that waits.
"""

import logging
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

from components.deploy.targets.cluster import Cluster, ClusterError, ConflictError, Document

DECIDED_ANNOTATION = "fovea.dev/decided-at"
SUCCESSOR_ANNOTATION = "fovea.dev/successor"

_POLL_SECONDS = 0.5

logger = logging.getLogger("fovea")


class LeaseLostError(Exception):
    """Another deployment has the service (``is_taken``), or waits for it; the message is one line."""

    def __init__(self, message: str, *, is_taken: bool = False) -> None:
        super().__init__(message)
        self.is_taken = is_taken


@dataclass
class Lease:
    """The right to change a service.

    Args:
        cluster: with the namespace.
        service: the InferenceService.
        run_id: the run that deploys; part of the holder's identity in the Lease.
        decided_at: when the decision to deploy was made.
        seconds: the duration of the Lease, after which it expires unless it is renewed.
        wait_seconds: how long to wait for the holder to give it up.
    """

    cluster: Cluster
    service: str
    run_id: str
    decided_at: datetime
    seconds: float = 30.0
    wait_seconds: float = 3600.0
    _lost: LeaseLostError | None = None
    _end: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.holder = f"{self.run_id}/{uuid.uuid4().hex[:8]}"

    @property
    def name(self) -> str:
        """The name of the Lease object."""
        return f"fovea-{self.service}"

    def check(self) -> None:
        """Raise an error unless this deployment still holds the Lease.

        Raises:
            LeaseLostError: another deployment holds it, or a younger one waits for it.
        """
        if self._lost is not None:
            raise self._lost

    @contextmanager
    def held(self) -> Iterator["Lease"]:
        """Hold the Lease for the block.

        Raises:
            LeaseLostError: a younger deployment has it, or the holder does not give it up in time.
        """
        self._acquire()
        thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._end.set()
            thread.join()
            with suppress(ClusterError):
                self._release()

    def _acquire(self) -> None:
        deadline = time.monotonic() + self.wait_seconds
        seen, since = "", time.monotonic()
        while True:
            found = self.cluster.get("leases", self.name)
            spec = (found or {}).get("spec") or {}
            if found is None or not spec.get("holderIdentity"):
                if self._take(found):
                    return
                continue
            self._refuse_if_older(found)
            if spec.get("renewTime", "") != seen:
                seen, since = spec.get("renewTime", ""), time.monotonic()
            elif time.monotonic() - since > spec.get("leaseDurationSeconds", self.seconds):
                logger.info("deploy: %s holds the service but is gone; taking over", spec["holderIdentity"])
                if self._take(found):
                    return
            self._ask_to_step_back(found)
            if time.monotonic() > deadline:
                raise LeaseLostError(
                    f"run {spec['holderIdentity']} is deploying {self.service} and did not make way"
                )
            time.sleep(_POLL_SECONDS)

    def _refuse_if_older(self, found: Document) -> None:
        notes = found["metadata"].get("annotations") or {}
        holders = notes.get(DECIDED_ANNOTATION, "")
        if holders and datetime.fromisoformat(holders) > self.decided_at:
            raise LeaseLostError(
                f"run {found['spec']['holderIdentity']} is deploying a younger decision ({holders}) to "
                f"{self.service}; this one is of {self.decided_at.isoformat()}"
            )

    def _take(self, found: Document | None) -> bool:
        document = found or {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self.name},
        }
        document["metadata"]["annotations"] = {DECIDED_ANNOTATION: self.decided_at.isoformat()}
        document["spec"] = {
            "holderIdentity": self.holder,
            "leaseDurationSeconds": max(1, round(self.seconds)),
            "acquireTime": _now(),
            "renewTime": _now(),
        }
        try:
            if found is None:
                self.cluster.create("leases", document)
            else:
                self.cluster.replace("leases", document)
        except ConflictError:
            return False  # another deployment was faster
        return True

    def _ask_to_step_back(self, found: Document) -> None:
        notes = found["metadata"].setdefault("annotations", {})
        if notes.get(SUCCESSOR_ANNOTATION) == self.holder:
            return
        logger.info("deploy: waiting for %s to make way", found["spec"]["holderIdentity"])
        notes[SUCCESSOR_ANNOTATION] = self.holder
        with suppress(ConflictError):
            self.cluster.replace("leases", found)

    def _keep(self) -> None:
        """Renew the Lease until the block ends; note when another deployment has it or waits for it."""
        renewed = time.monotonic()
        while not self._end.wait(self.seconds / 3):
            try:
                found = self.cluster.get("leases", self.name) or {"metadata": {}, "spec": {}}
                holder = found["spec"].get("holderIdentity")
                if holder != self.holder:
                    message = f"run {holder or 'nobody'} has taken {self.service} over"
                    self._lost = LeaseLostError(message, is_taken=True)
                    return
                successor = (found["metadata"].get("annotations") or {}).get(SUCCESSOR_ANNOTATION)
                if successor and not self._lost:
                    self._lost = LeaseLostError(
                        f"run {successor} deploys a younger decision to {self.service}"
                    )
                found["spec"]["renewTime"] = _now()
                self.cluster.replace("leases", found)
                renewed = time.monotonic()
            except ConflictError:
                continue
            except ClusterError as error:
                if time.monotonic() - renewed > self.seconds:
                    self._lost = LeaseLostError(f"the Lease could not be renewed ({error})", is_taken=True)

    def _release(self) -> None:
        found = self.cluster.get("leases", self.name)
        if found is None or found["spec"].get("holderIdentity") != self.holder:
            return
        found["spec"] = {}
        found["metadata"].pop("annotations", None)
        with suppress(ConflictError):
            self.cluster.replace("leases", found)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")

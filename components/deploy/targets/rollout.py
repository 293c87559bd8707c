"""The rollout on KServe, as a state machine: no model gets traffic before its answers were verified.

    PLAN ─ first ──────────► FIRST ─────────────────────────────────────► ASK ─► DONE
         ├ unchanged ──────► (SCALE, and leftovers of a killed run) ───────► ASK ─► DONE
         ├ canary ─────────► CANARY (dark) ─► ASK ─► TRAFFIC, step by step ─► PROMOTE ─► ASK ─► DONE
         └ recreate ───────► RECREATE (downtime) ─► ASK ─► DONE

After any failure, the previous state is restored and verified. The Lease is checked between two states. The
cluster is polled rather than watched, since a watch can be lost.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Any, Protocol

from components.deploy.kserve_parameters import KServeParameters
from components.deploy.targets.cluster import FIELD_MANAGER, Cluster, ClusterError, Document
from components.deploy.targets.lease import Lease, LeaseLostError
from components.deploy.targets.manifest import (
    MODE_ANNOTATION,
    Served,
    canary_entry,
    deployment_name,
    difference,
    digest_of,
    in_place,
    inference_service,
    owned,
    predictor,
    template_of,
)
from components.deploy.targets.pods import Observation, Problem, observe
from components.deploy.targets.target import RolloutOutcome
from components.deploy.verification import Verification

logger = logging.getLogger("fovea")

_STANDARD = {"Standard", "RawDeployment"}


class State(StrEnum):
    """Where a rollout is."""

    PLAN = "plan"
    FIRST = "first"
    CANARY = "canary"
    RECREATE = "recreate"
    SCALE = "scale"
    ASK = "ask"
    TRAFFIC = "traffic"
    PROMOTE = "promote"
    DONE = "done"


class RefusedError(Exception):
    """The new model is not promoted; the message says why, on one line."""


class UnschedulableError(RefusedError):
    """No node has room for the new model next to the old one."""


class Questions(Protocol):
    """The requests to a server about held-out pictures."""

    def verify(self, address: str, seconds: float) -> Verification:
        """Ask about all pictures, and compare the answers with the evaluation's."""

    def watch(self, address: str, seconds: float) -> str:
        """Send requests for ``seconds``; return '' if errors and latency are within limits, else why."""

    def identify(self, address: str) -> str:
        """Return the digest of the model that answers there, or '' where none does."""


@dataclass
class Rollout:
    """The rollout of one model to an InferenceService.

    Args:
        cluster: with the namespace.
        served: the model.
        settings: how it is run and rolled out.
        questions: how it is verified.
        lease: the Lease of the service, which is held.
        previous: the manifest of the last verified deployment; None to take the state of the live service.
        address_of: the address of a Service (the Kubernetes object).
        poll_seconds: between two requests for the state of the cluster.
    """

    cluster: Cluster
    served: Served
    settings: KServeParameters
    questions: Questions
    lease: Lease
    previous: Document | None = None
    address_of: Callable[[Document], str] = field(default=lambda service: address_of(service))
    poll_seconds: float = 2.0

    def __post_init__(self) -> None:
        self.new = predictor(self.served, self.settings)
        self.kind = ""
        self._touched = False
        self._restoring = False
        self._verification = Verification(False, "was not asked")

    def run(self) -> RolloutOutcome:
        """Roll out. A refusal is an outcome, after which the previous state is restored."""
        steps: Mapping[State, Callable[[], State]] = {
            State.PLAN: self._plan,
            State.FIRST: self._first,
            State.CANARY: self._canary,
            State.RECREATE: self._recreate,
            State.SCALE: self._scale,
            State.ASK: self._ask,
            State.TRAFFIC: self._traffic,
            State.PROMOTE: self._promote,
        }
        state = State.PLAN
        try:
            while state is not State.DONE:
                self.lease.check()
                logger.info("deploy: %s: %s", self.served.service, state)
                state = steps[state]()
        except LeaseLostError as error:
            # Another deployment has taken the service over, and restores it itself if it fails.
            restored = "" if error.is_taken else self._restore()
            return RolloutOutcome(Verification(False, f"{error}{restored}"), self.kind)
        except (RefusedError, ClusterError) as error:
            return RolloutOutcome(Verification(False, f"{error}{self._restore()}"), self.kind)
        except BaseException:
            # Also when the process is terminated: no other run would complete this rollout.
            self._restore()
            raise
        return RolloutOutcome(
            self._verification, self.kind, self.cluster.namespace, self._manifest(self.stable)
        )

    # The states

    def _plan(self) -> State:
        live = self.cluster.get("inferenceservices", self.served.service)
        self.before = self._previous(live)
        self.stable: Mapping[str, Any] = self.before["spec"]["predictor"] if self.before else {}
        if live is not None:
            self._refuse_what_is_not_ours(live)
        self.kind = self._kind(live)
        if self.kind == "recreate":
            wanted = self._manifest(in_place(self.new, self.stable))
        elif self.kind == "unchanged":
            wanted = self._manifest(self.stable)
        else:
            wanted = self._manifest(self.new)
        # What the API server or an admission webhook refuses is found out before anything is changed.
        result = self.cluster.apply(wanted, dry_run=True)
        if self.kind == "canary":
            self.cluster.apply(self._with_canary(0), dry_run=True)
        changes = difference(live, result)
        logger.info(
            "deploy: %s rollout of %s\n%s", self.kind, self.served.service, changes or "nothing changes"
        )
        if self.settings.dry_run:
            words = f"nothing was changed: this would be a {self.kind} rollout"
            self._verification = Verification(False, words)
            self.kind = "dry_run"
            return State.DONE
        following = {"first": State.FIRST, "canary": State.CANARY, "recreate": State.RECREATE}
        if self.kind == "unchanged" and changes:
            following["unchanged"] = State.SCALE
        self._after_ask = State.TRAFFIC if self.kind == "canary" else State.DONE
        self._deployment = deployment_name(self.served.service, self.new["name"])
        if self.kind in ("unchanged", "recreate"):
            self._deployment = deployment_name(self.served.service, self.stable.get("name"))
        return following.get(self.kind, State.ASK)

    def _first(self) -> State:
        self._apply(self._manifest(self.new))
        self.stable = self.new
        self._until_ready(self._deployment, self.new)
        return State.ASK

    def _canary(self) -> State:
        self._apply(self._with_canary(0))
        try:
            self._until_ready(self._deployment, self.new)
        except UnschedulableError as error:
            if self.settings.rollout != "auto":
                raise RefusedError(
                    f"{error}; free a place for it, or set rollout to recreate, which replaces the old model "
                    "with a downtime"
                ) from error
            logger.info("deploy: %s; the old model is replaced in its place", error)
            self._apply(self._manifest(self.stable))
            self._until_gone(self._deployment)
            return State.RECREATE
        return State.ASK

    def _recreate(self) -> State:
        self.kind, self._after_ask = "recreate", State.DONE
        logger.info(
            "deploy: %s will not answer from now until the new model is up, which may take up to %.0f s",
            self.served.service,
            self.settings.schedule_seconds + self.settings.start_seconds,
        )
        self._deployment = deployment_name(self.served.service, self.stable.get("name"))
        new = in_place(self.new, self.stable)
        self._apply(self._manifest(new))
        self._until_ready(self._deployment, new)
        self.stable = new
        return State.ASK

    def _scale(self) -> State:
        """Change fields outside the pods' specification, and remove a canary that a killed run has left."""
        self._apply(self._manifest(self.stable))
        self._until_ready(self._deployment, self.stable)
        return State.ASK

    def _ask(self) -> State:
        """Verify the new model through its own Service, which selects no other pods."""
        self._verification = self.questions.verify(
            self._address(self._deployment), self.settings.verify_seconds
        )
        if not self._verification.passed:
            raise RefusedError(self._verification.reason)
        return self._after_ask

    def _traffic(self) -> State:
        for percent in self.settings.traffic_steps:
            self.lease.check()
            self._apply(self._with_canary(percent))
            self._until_ready(self._deployment, self.new)
            self._until(
                partial(self._has_traffic, percent),
                self.settings.traffic_seconds,
                f"KServe has not given the canary {percent} % of the traffic",
            )
            observed = self._observe_new()
            logger.info("deploy: %s: %d %% of the traffic", self.served.service, percent)
            wrong = self.questions.watch(self._address(self._deployment), self.settings.step_seconds)
            after = self._observe_new()
            if not wrong and not observed.running <= after.running:
                wrong = after.problem.message if after.problem else "a pod was restarted"
            if wrong:
                raise RefusedError(f"at {percent} % of the traffic: {wrong}")
        return State.PROMOTE

    def _promote(self) -> State:
        """Make the canary the stable predictor by its name; its pods are kept and not restarted."""
        before = self._observe_new()
        self._apply(self._manifest(self.new))
        old = deployment_name(self.served.service, self.stable.get("name"))
        self._until(
            lambda: self._is_promoted(old),
            self.settings.traffic_seconds,
            "KServe has not promoted the canary",
        )
        self._until_ready(self._deployment, self.new)
        self.stable, self._after_ask = self.new, State.DONE
        if not before.running <= self._observe_new().running:
            logger.warning("deploy: pods were restarted by the promotion, which is not meant to happen")
        return State.ASK

    # What was there before

    def _previous(self, live: Document | None) -> Document | None:
        """Return what to restore: the last verified manifest, else the live fields of `FIELD_MANAGER`."""
        if live is None:
            return None
        if self.previous is not None:
            return self.previous
        fields: Mapping[str, Any] = next(
            (each["fieldsV1"] for each in live["metadata"].get("managedFields", []) if _is_ours(each)), {}
        )
        spec = owned({"spec": live["spec"]}, {"f:spec": fields.get("f:spec", {})}).get("spec") or {}
        return self._manifest(spec.get("predictor") or live["spec"]["predictor"])

    def _refuse_what_is_not_ours(self, live: Document) -> None:
        notes = live["metadata"].get("annotations") or {}
        mode = (live.get("status") or {}).get("deploymentMode") or notes.get(MODE_ANNOTATION, "Standard")
        if mode not in _STANDARD:
            raise RefusedError(
                f"{self.served.service} runs in KServe's {mode} mode; only Standard is rolled out here: "
                "delete the service, or give another service_name"
            )
        if not digest_of(live["spec"]["predictor"]):
            raise RefusedError(
                f"InferenceService {self.served.service} was not made by fovea; give another "
                "service_name, or delete it"
            )
        names = [each["predictor"].get("name", "?") for each in live["spec"].get("canary") or []]
        if names and not any(
            _is_ours(each) and "f:canary" in each["fieldsV1"].get("f:spec", {})
            for each in live["metadata"].get("managedFields", [])
        ):
            raise RefusedError(
                f"{self.served.service} has a canary of somebody else's ({', '.join(names)}); promote it or "
                "take it out of spec.canary, and run again"
            )

    def _kind(self, live: Document | None) -> str:
        if live is None:
            return "first"
        running = live["spec"]["predictor"]
        if template_of(running) == template_of(self.new):
            # A killed run may have left a model that was never verified; it is removed if this run fails.
            self._touched = template_of(self.stable) != template_of(running)
            kept = {key: running[key] for key in ("name", "deploymentStrategy") if key in running}
            self.stable = {**{key: value for key, value in self.new.items() if key != "name"}, **kept}
            return "unchanged"
        return "recreate" if self.settings.rollout == "recreate" else "canary"

    def _restore(self) -> str:
        """Restore the previous state; return what to add to the reason."""
        if not self._touched:
            return ""
        self._restoring = True
        logger.info("deploy: %s: bringing the previous state back", self.served.service)
        try:
            if self.before is None:
                self.cluster.delete("inferenceservices", self.served.service)
                self._until(
                    lambda: self.cluster.get("inferenceservices", self.served.service) is None,
                    self.settings.restore_seconds,
                    "the service is not gone",
                )
                return "; the service was removed again"
            old = self.before["spec"]["predictor"]
            # A surge would wait for the GPU that the new model uses.
            old = in_place(old, old) if self.kind == "recreate" else old
            self.cluster.apply(self._manifest(old), force=True)
            return self._verify_restored(old)
        except (RefusedError, ClusterError) as error:
            return f"; THE PREVIOUS STATE IS NOT RESTORED: {error}"

    def _verify_restored(self, old: Mapping[str, Any]) -> str:
        name = deployment_name(self.served.service, old.get("name"))
        if self._deployment != name:
            self._until_gone(self._deployment)
        self._until_ready(name, old)
        wanted = digest_of(old)
        found = self.questions.identify(self._address(name))
        if wanted and found != wanted:
            return f"; THE PREVIOUS STATE IS NOT RESTORED: {found or 'no model'} answers instead of {wanted}"
        return "; the previous model answers as before"

    # Small steps

    def _manifest(self, stable: Mapping[str, Any], canary: Mapping[str, Any] | None = None) -> Document:
        return inference_service(self.served.service, self.cluster.namespace, stable, canary)

    def _with_canary(self, percent: int) -> Document:
        replicas = math.ceil(self.settings.replicas * percent / 100)
        return self._manifest(self.stable, canary_entry(self.new, percent, replicas))

    def _apply(self, manifest: Document) -> None:
        self.lease.check()
        self._touched = True
        self.cluster.apply(manifest)

    def _observe_new(self) -> Observation:
        return observe(self.cluster, self.served.service, self._deployment, template_of(self.new))

    def _until_ready(self, name: str, wanted: Mapping[str, Any]) -> None:
        """Wait until the pods of a specification are ready, with a limit for nodes and one for the server."""
        started = time.monotonic()
        scheduled: float | None = None
        while True:
            self._check()
            seen = observe(self.cluster, self.served.service, name, template_of(wanted))
            if seen.ready:
                return
            problem = seen.problem or Problem("waiting", "the pods are not there yet")
            if problem.final:
                raise RefusedError(problem.message)
            now = time.monotonic()
            scheduled = (scheduled or now) if seen.is_scheduled else None
            self._refuse_if_late(now - started, now - scheduled if scheduled else None, problem)
            time.sleep(self.poll_seconds)

    def _refuse_if_late(self, waited: float, starting: float | None, problem: Problem) -> None:
        if self._restoring:
            if waited > self.settings.restore_seconds:
                raise RefusedError(f"not ready after {waited:.0f} s: {problem.message}")
        elif starting is None and waited > self.settings.schedule_seconds:
            kind = UnschedulableError if problem.kind == "unschedulable" else RefusedError
            raise kind(f"no pod has a node after {waited:.0f} s: {problem.message}")
        elif starting is not None and starting > self.settings.start_seconds:
            raise RefusedError(f"not ready {starting:.0f} s after the pods had a node: {problem.message}")

    def _check(self) -> None:
        if not self._restoring:
            self.lease.check()

    def _until_gone(self, name: str) -> None:
        self._until(
            lambda: self.cluster.get("deployments", name) is None,
            self.settings.restore_seconds,
            f"Deployment {name} is not gone",
        )

    def _until(self, holds: Callable[[], bool], seconds: float, otherwise: str) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            self._check()
            if time.monotonic() > deadline:
                raise RefusedError(f"{otherwise} within {seconds:.0f} s")
            time.sleep(self.poll_seconds)

    def _has_traffic(self, percent: int) -> bool:
        live = self.cluster.get("inferenceservices", self.served.service) or {}
        return any(
            each.get("name") == self.new["name"]
            and each.get("ready")
            and each.get("trafficPercent") == percent
            for each in (live.get("status") or {}).get("canaryStatuses", [])
        )

    def _is_promoted(self, old: str) -> bool:
        live = self.cluster.get("inferenceservices", self.served.service) or {}
        names = [each.get("name") for each in (live.get("status") or {}).get("canaryStatuses", [])]
        return self.new["name"] not in names and self.cluster.get("deployments", old) is None

    def _address(self, name: str) -> str:
        service = self.cluster.get("services", name)
        if service is None:
            raise RefusedError(f"KServe has made no Service {name}")
        return self.address_of(service)


def address_of(service: Document) -> str:
    """Return the address of a Service within the cluster. A headless one has the port of its pods."""
    spec, metadata = service["spec"], service["metadata"]
    port = spec["ports"][0]
    number = port.get("targetPort", port["port"]) if spec.get("clusterIP") == "None" else port["port"]
    if not isinstance(number, int):
        number = port["port"]
    return f"http://{metadata['name']}.{metadata['namespace']}.svc.cluster.local:{number}"


def _is_ours(entry: Mapping[str, Any]) -> bool:
    return entry.get("manager") == FIELD_MANAGER and entry.get("operation") == "Apply"

"""The rollout on KServe, as a state machine: nothing is asked for traffic before it has answered rightly.

    PLAN ─ first ──────────► FIRST ─────────────────────────────────────► ASK ─► DONE
         ├ unchanged ──────► (SCALE, and leftovers of a killed run) ───────► ASK ─► DONE
         ├ canary ─────────► CANARY (dark) ─► ASK ─► TRAFFIC, step by step ─► PROMOTE ─► ASK ─► DONE
         └ recreate ───────► RECREATE (downtime) ─► ASK ─► DONE

From whatever fails, the previous state is restored and made sure of. The Lease is looked at between any two
steps. The cluster is asked again and again rather than watched: there is no watch that could be lost.
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
    """The new model does not come into service; the message says why, on one line."""


class UnschedulableError(RefusedError):
    """There is no node for it beside the old model."""


class Questions(Protocol):
    """How a server is asked about held-out pictures."""

    def verify(self, address: str, seconds: float) -> Verification:
        """Ask about all of them, and hold the answers against the evaluation's."""

    def watch(self, address: str, seconds: float) -> str:
        """Ask for so long; return '' where errors and latency stay within their limits, else what did not."""

    def identify(self, address: str) -> str:
        """Return the digest of the model that answers there, or '' where none does."""


@dataclass
class Rollout:
    """A model on its way into a service.

    Args:
        cluster: with the namespace.
        served: the model.
        asked: how it is run and rolled out.
        questions: how it is verified.
        lease: held for the service.
        previous: what was applied for the last verified deployment; None to go by what is there.
        address_of: where a Service (the Kubernetes object) is asked.
        poll_seconds: between two looks at the cluster.
    """

    cluster: Cluster
    served: Served
    asked: KServeParameters
    questions: Questions
    lease: Lease
    previous: Document | None = None
    address_of: Callable[[Document], str] = field(default=lambda service: address_of(service))
    poll_seconds: float = 2.0

    def __post_init__(self) -> None:
        self.new = predictor(self.served, self.asked)
        self.kind = ""
        self._touched = False
        self._restoring = False
        self._verification = Verification(False, "was not asked")

    def run(self) -> RolloutOutcome:
        """Roll out; a refusal is an outcome, after which the previous state is there again."""
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
            # What another deployment has taken over is not this one's to restore.
            restored = "" if error.is_taken else self._restore()
            return RolloutOutcome(Verification(False, f"{error}{restored}"), self.kind)
        except (RefusedError, ClusterError) as error:
            return RolloutOutcome(Verification(False, f"{error}{self._restore()}"), self.kind)
        except BaseException:
            # Also where the process is told to end: a half-done rollout is nobody's then.
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
        # Whatever the API server or an admission webhook refuses is known before anything is touched.
        result = self.cluster.apply(wanted, dry_run=True)
        if self.kind == "canary":
            self.cluster.apply(self._with_canary(0), dry_run=True)
        changes = difference(live, result)
        logger.info(
            "deploy: %s rollout of %s\n%s", self.kind, self.served.service, changes or "nothing changes"
        )
        if self.asked.dry_run:
            words = f"nothing was changed: this would be a {self.kind} rollout"
            self._verification = Verification(False, words)
            self.kind = "dry_run"
            return State.DONE
        following = {"first": State.FIRST, "canary": State.CANARY, "recreate": State.RECREATE}
        if self.kind == "unchanged" and changes:
            following["unchanged"] = State.SCALE
        self._after_ask = State.TRAFFIC if self.kind == "canary" else State.DONE
        self._asked_at = deployment_name(self.served.service, self.new["name"])
        if self.kind in ("unchanged", "recreate"):
            self._asked_at = deployment_name(self.served.service, self.stable.get("name"))
        return following.get(self.kind, State.ASK)

    def _first(self) -> State:
        self._apply(self._manifest(self.new))
        self.stable = self.new
        self._until_ready(self._asked_at, self.new)
        return State.ASK

    def _canary(self) -> State:
        self._apply(self._with_canary(0))
        try:
            self._until_ready(self._asked_at, self.new)
        except UnschedulableError as error:
            if self.asked.rollout != "auto":
                raise RefusedError(
                    f"{error}; free a place for it, or set rollout to recreate, which replaces the old model "
                    "with a downtime"
                ) from error
            logger.info("deploy: %s; the old model is replaced in its place", error)
            self._apply(self._manifest(self.stable))
            self._until_gone(self._asked_at)
            return State.RECREATE
        return State.ASK

    def _recreate(self) -> State:
        self.kind, self._after_ask = "recreate", State.DONE
        logger.info(
            "deploy: %s will not answer from now until the new model is up, which may take up to %.0f s",
            self.served.service,
            self.asked.schedule_seconds + self.asked.start_seconds,
        )
        self._asked_at = deployment_name(self.served.service, self.stable.get("name"))
        new = in_place(self.new, self.stable)
        self._apply(self._manifest(new))
        self._until_ready(self._asked_at, new)
        self.stable = new
        return State.ASK

    def _scale(self) -> State:
        """Change what the pods are not made of, and take out a canary that a killed run has left."""
        self._apply(self._manifest(self.stable))
        self._until_ready(self._asked_at, self.stable)
        return State.ASK

    def _ask(self) -> State:
        """Ask the new model through its own service, which leads to no other."""
        self._verification = self.questions.verify(self._address(self._asked_at), self.asked.verify_seconds)
        if not self._verification.passed:
            raise RefusedError(self._verification.reason)
        return self._after_ask

    def _traffic(self) -> State:
        for percent in self.asked.traffic_steps:
            self.lease.check()
            self._apply(self._with_canary(percent))
            self._until_ready(self._asked_at, self.new)
            self._until(
                partial(self._has_traffic, percent),
                self.asked.traffic_seconds,
                f"KServe has not given the canary {percent} % of the traffic",
            )
            observed = self._observe_new()
            logger.info("deploy: %s: %d %% of the traffic", self.served.service, percent)
            wrong = self.questions.watch(self._address(self._asked_at), self.asked.step_seconds)
            after = self._observe_new()
            if not wrong and not observed.running <= after.running:
                wrong = after.problem.message if after.problem else "a pod was restarted"
            if wrong:
                raise RefusedError(f"at {percent} % of the traffic: {wrong}")
        return State.PROMOTE

    def _promote(self) -> State:
        """Make the canary the stable predictor by its name: the same pods, which nobody restarts."""
        before = self._observe_new()
        self._apply(self._manifest(self.new))
        old = deployment_name(self.served.service, self.stable.get("name"))
        self._until(
            lambda: self._is_promoted(old), self.asked.traffic_seconds, "KServe has not promoted the canary"
        )
        self._until_ready(self._asked_at, self.new)
        self.stable, self._after_ask = self.new, State.DONE
        if not before.running <= self._observe_new().running:
            logger.warning("deploy: pods were restarted by the promotion, which is not meant to happen")
        return State.ASK

    # What was there before

    def _previous(self, live: Document | None) -> Document | None:
        """Return what to come back to: the last verified, else what this manager's fields are now."""
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
            # A run that was killed may have left a model that was never verified: it is not to stay.
            self._touched = template_of(self.stable) != template_of(running)
            kept = {key: running[key] for key in ("name", "deploymentStrategy") if key in running}
            self.stable = {**{key: value for key, value in self.new.items() if key != "name"}, **kept}
            return "unchanged"
        return "recreate" if self.asked.rollout == "recreate" else "canary"

    def _restore(self) -> str:
        """Bring the previous state back; return what to add to the reason."""
        if not self._touched:
            return ""
        self._restoring = True
        logger.info("deploy: %s: bringing the previous state back", self.served.service)
        try:
            if self.before is None:
                self.cluster.delete("inferenceservices", self.served.service)
                self._until(
                    lambda: self.cluster.get("inferenceservices", self.served.service) is None,
                    self.asked.restore_seconds,
                    "the service is not gone",
                )
                return "; the service was removed again"
            old = self.before["spec"]["predictor"]
            # A surge would wait for the GPU that the new model holds.
            old = in_place(old, old) if self.kind == "recreate" else old
            self.cluster.apply(self._manifest(old), force=True)
            return self._verify_restored(old)
        except (RefusedError, ClusterError) as error:
            return f"; THE PREVIOUS STATE IS NOT RESTORED: {error}"

    def _verify_restored(self, old: Mapping[str, Any]) -> str:
        name = deployment_name(self.served.service, old.get("name"))
        if self._asked_at != name:
            self._until_gone(self._asked_at)
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
        replicas = math.ceil(self.asked.replicas * percent / 100)
        return self._manifest(self.stable, canary_entry(self.new, percent, replicas))

    def _apply(self, manifest: Document) -> None:
        self.lease.check()
        self._touched = True
        self.cluster.apply(manifest)

    def _observe_new(self) -> Observation:
        return observe(self.cluster, self.served.service, self._asked_at, template_of(self.new))

    def _until_ready(self, name: str, wanted: Mapping[str, Any]) -> None:
        """Wait until the pods of a specification are ready: so long for nodes, so long for the server."""
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
            if waited > self.asked.restore_seconds:
                raise RefusedError(f"not ready after {waited:.0f} s: {problem.message}")
        elif starting is None and waited > self.asked.schedule_seconds:
            kind = UnschedulableError if problem.kind == "unschedulable" else RefusedError
            raise kind(f"no pod has a node after {waited:.0f} s: {problem.message}")
        elif starting is not None and starting > self.asked.start_seconds:
            raise RefusedError(f"not ready {starting:.0f} s after the pods had a node: {problem.message}")

    def _check(self) -> None:
        if not self._restoring:
            self.lease.check()

    def _until_gone(self, name: str) -> None:
        self._until(
            lambda: self.cluster.get("deployments", name) is None,
            self.asked.restore_seconds,
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
    """Return the address of a Service within the cluster; a headless one is reached at its pods' own port."""
    spec, metadata = service["spec"], service["metadata"]
    port = spec["ports"][0]
    number = port.get("targetPort", port["port"]) if spec.get("clusterIP") == "None" else port["port"]
    if not isinstance(number, int):
        number = port["port"]
    return f"http://{metadata['name']}.{metadata['namespace']}.svc.cluster.local:{number}"


def _is_ours(entry: Mapping[str, Any]) -> bool:
    return entry.get("manager") == FIELD_MANAGER and entry.get("operation") == "Apply"

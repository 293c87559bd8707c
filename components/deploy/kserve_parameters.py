"""The parameters of a service on KServe, which preflight validates before the run starts its work."""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

_LABEL = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
_QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"

Seconds = Annotated[float, Field(gt=0)]


class Toleration(BaseModel):
    """A taint of a node that pods tolerate; the fields are those of Kubernetes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str = ""
    operator: Literal["Exists", "Equal"] = "Equal"
    value: str = ""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""
    tolerationSeconds: int | None = None  # noqa: N815 - Kubernetes' name


class KServeParameters(BaseModel):
    """How an InferenceService is run and rolled out. The platform engineer sets all other fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    namespace: str = Field(default="", pattern=f"{_LABEL}|^$")
    """The service's namespace; empty for that of the deployer's token or kubeconfig."""
    runtime: str = Field(default="fovea", pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")
    """The ServingRuntime, which names the server's image."""
    service_account_name: str = Field(default="", pattern=f"{_LABEL}|^$")
    """The account of the server's pods, which needs to read the model from S3."""
    replicas: int = Field(default=1, ge=1, le=100)
    max_replicas: int = Field(default=0, ge=0, le=100)
    """KServe scales from ``replicas`` up to this number; 0 for no scaling."""
    cpu: str = Field(default="4", pattern=_QUANTITY)
    memory: str = Field(default="24Gi", pattern=_QUANTITY)
    gpus: int = Field(default=1, ge=0, le=16)
    gpu_resource: str = Field(default="nvidia.com/gpu", pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$")
    node_selector: dict[str, str] = {}
    tolerations: tuple[Toleration, ...] = ()
    rollout: Literal["canary", "recreate", "auto"] = "canary"
    """``canary``: next to the old model, without traffic until it is verified. ``recreate``: in its place,
    with a downtime. ``auto``: as a canary, or in its place where no node has room for the canary."""
    traffic_steps: tuple[Annotated[int, Field(ge=1, le=99)], ...] = (10, 50)
    """Per cent of the traffic that the verified canary gets, step by step, before it is promoted."""
    step_seconds: float = Field(default=60.0, ge=0)
    """How long errors and latency are watched at each step."""
    max_error_rate: float = Field(default=0.01, ge=0, le=1)
    max_answer_seconds: Seconds = 10.0
    """Limit of the 95th percentile of the time for one picture."""
    schedule_seconds: Seconds = 900.0
    """Limit until the pods have a node, which an autoscaler may have to add."""
    start_seconds: Seconds = 1800.0
    """Limit from then until the server answers: image, model, warm-up."""
    verify_seconds: Seconds = 600.0
    traffic_seconds: Seconds = 300.0
    """Limit for KServe to change the traffic, or to promote the canary."""
    restore_seconds: Seconds = 1800.0
    """Limit to restore the previous state after a failure."""
    lease_seconds: float = Field(default=30.0, ge=1)
    """Duration of the Lease: how long a deployment that was killed keeps others out."""
    dry_run: bool = False
    """Log what would be changed, and change nothing."""

    @model_validator(mode="before")
    @classmethod
    def _from_json(cls, value: Any) -> Any:
        """Accept JSON too, as a single setting is written on a command line."""
        if isinstance(value, str):
            try:
                return json.loads(value or "{}")
            except ValueError as error:
                raise ValueError(f"must be a JSON object, such as {{'gpus': 0}} ({error})") from None
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "KServeParameters":
        if list(self.traffic_steps) != sorted(set(self.traffic_steps)):
            raise ValueError("traffic_steps must grow, such as [10, 50]")
        if self.max_replicas and self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas ({self.max_replicas}) is less than replicas ({self.replicas})")
        return self

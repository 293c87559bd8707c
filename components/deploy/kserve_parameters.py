"""How a service is run on KServe: what the flow checks before anything is spent, and the deployment obeys."""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

_LABEL = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
_QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"

Seconds = Annotated[float, Field(gt=0)]


class Toleration(BaseModel):
    """Which taint of a node is put up with; the fields are Kubernetes' own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str = ""
    operator: Literal["Exists", "Equal"] = "Equal"
    value: str = ""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""
    tolerationSeconds: int | None = None  # noqa: N815 - Kubernetes' name


class KServeParameters(BaseModel):
    """How an InferenceService is made and rolled out. What is left out is the platform engineer's to set."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    namespace: str = Field(default="", pattern=f"{_LABEL}|^$")
    """Where the service is; empty for the deployment's own namespace."""
    runtime: str = Field(default="fovea", pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")
    """The ServingRuntime, which names the server's image."""
    service_account_name: str = Field(default="", pattern=f"{_LABEL}|^$")
    """The account of the server's pods, which may read the model from S3."""
    replicas: int = Field(default=1, ge=1, le=100)
    max_replicas: int = Field(default=0, ge=0, le=100)
    """Above ``replicas``, KServe scales up to so many; 0 keeps to ``replicas``."""
    cpu: str = Field(default="4", pattern=_QUANTITY)
    memory: str = Field(default="24Gi", pattern=_QUANTITY)
    gpus: int = Field(default=1, ge=0, le=16)
    gpu_resource: str = Field(default="nvidia.com/gpu", pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$")
    node_selector: dict[str, str] = {}
    tolerations: tuple[Toleration, ...] = ()
    rollout: Literal["canary", "recreate", "auto"] = "canary"
    """``canary``: beside the old model, dark until it is verified. ``recreate``: in its place, with a
    downtime. ``auto``: as a canary, and in the old model's place where the canary finds no node."""
    traffic_steps: tuple[Annotated[int, Field(ge=1, le=99)], ...] = (10, 50)
    """Per cent of the traffic that the verified canary gets, one after the other, before it is promoted."""
    step_seconds: float = Field(default=60.0, ge=0)
    """For so long each step is watched."""
    max_error_rate: float = Field(default=0.01, ge=0, le=1)
    max_answer_seconds: Seconds = 10.0
    """The 95th percentile of a single picture's answers may take so long."""
    schedule_seconds: Seconds = 900.0
    """For a node to be found: an autoscaler may have to bring one."""
    start_seconds: Seconds = 1800.0
    """From a node to a server that answers: image, model, warm-up."""
    verify_seconds: Seconds = 600.0
    traffic_seconds: Seconds = 300.0
    """For KServe to carry out a change of the traffic, or the promotion."""
    restore_seconds: Seconds = 1800.0
    """To get back to the previous state after a failure."""
    lease_seconds: float = Field(default=30.0, ge=1)
    """A deployment that was killed keeps others out for so long."""
    dry_run: bool = False
    """Show what would be changed, and change nothing."""

    @model_validator(mode="before")
    @classmethod
    def _from_json(cls, value: Any) -> Any:
        """Take JSON too, which is how a single setting is written on a command line."""
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

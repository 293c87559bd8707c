"""The parameters of a deployment, and the document that one leaves behind."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from components.deploy.kserve_parameters import KServeParameters
from fovea.records import ModelReference
from fovea.task import FieldValue

LONGEST_NAME = 40


class DeployParameters(BaseModel):
    """How a model is deployed."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    service_name: str = Field(default="fovea", pattern=r"^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$")
    """The service, and the name under which callers ask for the model."""
    target: Literal["local", "kserve"] = "local"
    """Where it is served: ``local``, the model server on this machine; ``kserve``, an InferenceService."""
    port: int = Field(default=0, ge=0, le=65535)
    """The port while it is verified; 0 takes a free one."""
    probes: int = Field(default=8, ge=1, le=256)
    """How many held-out pictures the server is asked about."""
    timeout_seconds: float = Field(default=600.0, gt=0)
    """For a local server's start and its answers, together; on KServe each phase has a limit of its own."""
    kserve: KServeParameters = KServeParameters()
    """How it is run and rolled out on KServe."""

    @model_validator(mode="after")
    def _names_fit(self) -> "DeployParameters":
        if self.target == "kserve" and len(self.service_name) > LONGEST_NAME:
            raise ValueError(
                f"service_name may have {LONGEST_NAME} characters on KServe, which makes names of it"
            )
        return self


class Example(BaseModel):
    """One held-out picture, what the server said about it, and what is true."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    row_id: str
    text: str
    answer: dict[str, FieldValue] | None
    truth: dict[str, FieldValue]
    latency_ms: float


class Deployment(BaseModel):
    """What a service answers with: ``deployments/{service}.json`` under the artifact root, written last."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    service: str
    target: str
    model: ModelReference
    decision_digest: str
    evaluation_digest: str
    calibration_digest: str = ""
    """Of what its confidences come from, which stands in the evaluation's record; empty where it has none."""
    dtype: str
    """The type that the model was verified in."""
    probes: int
    """How many held-out pictures were asked about, each over both protocols."""
    agreed: int
    """For how many of them the answer was the evaluation's."""
    example: Example
    predict_path: str
    chat_path: str
    verified_at: datetime
    run_id: str
    records: dict[str, str] = {}
    """The records' URIs by name: all that it takes to deploy the same again."""
    parameters: DeployParameters | None = None
    rollout: str = ""
    """On KServe: first, unchanged, canary or recreate."""
    namespace: str = ""
    inference_service: dict[str, Any] | None = None
    """What was applied: the state to come back to."""

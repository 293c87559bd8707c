"""The parameters of a deployment, and its document."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from components.deploy.kserve_parameters import KServeParameters
from fovea.parameters import FormerName, Name, Parameters
from fovea.records import ModelReference
from fovea.task import FieldValue

LONGEST_NAME = 40


class DeployParameters(Parameters):
    """Where a model is served, and how it is verified there."""

    service_name: Name = "fovea"
    """Name of the deployed service, by which callers ask for the model."""
    deploy_target: Annotated[Literal["local", "kserve"], FormerName("target")] = "local"
    """Where it is served: local, where the model server is started and asked on the task's machine; or
    kserve, an InferenceService that is rolled out next to the old model and gets traffic once verified."""
    deploy_port: Annotated[int, FormerName("port")] = Field(default=0, ge=0, le=65535)
    """The local server's port while it is verified; 0 takes a free one."""
    deploy_probes: Annotated[int, FormerName("probes")] = Field(default=8, ge=1, le=256)
    """Held-out pictures that the server is asked about."""
    deploy_timeout_seconds: Annotated[float, FormerName("timeout_seconds")] = Field(default=600.0, gt=0)
    """For a local server's start and its answers, together; on KServe each phase has its own limit."""
    kserve: KServeParameters = KServeParameters()
    """How the service is run and rolled out on KServe, as YAML or JSON: namespace, runtime, replicas, gpus,
    memory, node_selector, tolerations, rollout, traffic_steps and more."""

    @model_validator(mode="after")
    def _check_name(self) -> Self:
        if self.deploy_target == "kserve" and len(self.service_name) > LONGEST_NAME:
            raise ValueError(
                f"service_name may have {LONGEST_NAME} characters on KServe, which makes names of it"
            )
        return self


class Example(BaseModel):
    """One held-out picture, the server's answer, and the truth."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    row_id: str
    text: str
    answer: dict[str, FieldValue] | None
    truth: dict[str, FieldValue]
    latency_ms: float


class Deployment(BaseModel):
    """The document of a service's deployment: ``deployments/{service}.json`` under the artifact root."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    service: str
    target: str
    model: ModelReference
    decision_digest: str
    evaluation_digest: str
    calibration_digest: str = ""
    """Digest of the calibration in the evaluation's record; empty where there is none."""
    dtype: str
    """The type that the model was verified in."""
    probes: int
    """How many held-out pictures were asked about, each over both protocols."""
    agreed: int
    """For how many of them the answers were those of the evaluation."""
    example: Example
    predict_path: str
    chat_path: str
    verified_at: datetime
    run_id: str
    records: dict[str, str] = {}
    """The records' URIs by name, from which the same model can be deployed again."""
    parameters: DeployParameters | None = None
    rollout: str = ""
    """On KServe: first, unchanged, canary or recreate."""
    namespace: str = ""
    inference_service: dict[str, Any] | None = None
    """The manifest that was applied last, which a later rollout restores if it fails."""

    @field_validator("parameters", mode="before")
    @classmethod
    def _rename_parameters(cls, values: Any) -> Any:
        """Accept documents of versions whose parameters had other names."""
        former = DeployParameters.renamed()
        return (
            {former.get(name, name): value for name, value in values.items()}
            if isinstance(values, dict)
            else values
        )

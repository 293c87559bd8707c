"""What a training run can be told, validated before anything is loaded."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

DECODER_PROJECTIONS = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
"""The decoder's linear layers, as Phi-3 fuses them. None of these names occurs in the vision tower."""

TargetModules = Literal["decoder", "decoder+projector", "decoder+tower", "decoder+projector+tower"]
Keep = Literal["last", "best_loss", "best_answers"]

_WITHOUT_EFFECT = frozenset({"checkpoint_minutes", "resume_from"})


class TrainLoraParameters(BaseModel):
    """Parameters of LoRA training. All but those about checkpoints are part of the adapter's input key."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    num_crops: int = Field(default=4, ge=1, le=16, description="Crops a picture is cut into, at most")
    rank: int = Field(default=16, ge=1, le=256, description="Rank of the LoRA matrices")
    alpha: float = Field(
        default=32.0, gt=0, description="LoRA scaling: the update is multiplied by alpha / rank"
    )
    dropout: float = Field(default=0.05, ge=0, lt=1, description="Dropout before the LoRA matrices")
    target_modules: TargetModules = Field(
        default="decoder",
        description="What gets LoRA matrices: decoder, decoder+projector, decoder+tower or all three",
    )
    learning_rate: float = Field(default=1e-4, ge=0, le=1, description="Peak learning rate of AdamW")
    schedule: Literal["constant", "linear", "cosine"] = Field(default="cosine", description="After warm-up")
    warmup_ratio: float = Field(default=0.05, ge=0, le=0.5, description="Share of the steps spent warming up")
    weight_decay: float = Field(default=0.0, ge=0, le=1, description="AdamW's weight decay")
    epochs: float = Field(default=3.0, gt=0, le=1000, description="Passes over the training split")
    max_steps: int = Field(default=0, ge=0, description="Optimiser steps, instead of epochs; 0 for epochs")
    batch_size: int = Field(default=32, ge=1, le=4096, description="Examples an optimiser step")
    device_batch_size: int = Field(
        default=4, ge=1, le=512, description="Examples in one device's memory at once"
    )
    gradient_checkpointing: bool = Field(default=True, description="Trade a third more work for less memory")
    compile: bool = Field(default=False, description="Compile the model with torch.compile first")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="auto: bfloat16 on a GPU, else float32"
    )
    evaluation_steps: int = Field(
        default=0, ge=0, description="Steps between evaluations on the validation split; 0: each epoch"
    )
    answered_samples: int = Field(
        default=8, ge=0, le=1000, description="Validation rows that are answered at each evaluation"
    )
    early_stopping: int = Field(
        default=0, ge=0, description="End after so many evaluations without a better one; 0: never"
    )
    keep: Keep = Field(
        default="last", description="Which adapter: last, best_loss (validation) or best_answers"
    )
    checkpoint_minutes: float = Field(
        default=10.0, ge=0, description="Minutes between checkpoints in S3; 0: none but at SIGTERM"
    )
    resume_from: str = Field(
        default="",
        pattern=r"^(s3://[^/\s]+/\S+\.json)?$",
        description="Record of the checkpoint to go on from; empty: the newest of the same inputs",
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="Of initialisation, order and dropout")

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.batch_size % self.device_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} must be a multiple of "
                f"device_batch_size {self.device_batch_size}"
            )
        if self.keep == "best_answers" and not self.answered_samples:
            raise ValueError("keep=best_answers needs answered_samples above 0")
        return self

    def shaping(self) -> dict[str, Any]:
        """Return the parameters that decide what the adapter is, in JSON's types."""
        return self.model_dump(mode="json", exclude=set(_WITHOUT_EFFECT))

    @property
    def best_metric(self) -> str:
        """The figure that tells the best adapter, and when to stop early."""
        return "eval_answers_right" if self.keep == "best_answers" else "eval_loss"

"""What a training run can be told, validated before anything is loaded."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

DECODER_PROJECTIONS = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
"""The decoder's linear layers, as Phi-3 fuses them. None of these names occurs in the vision tower."""


class TrainLoraParameters(BaseModel):
    """Parameters of LoRA training; all of them shape the adapter, so all are part of its input key."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    num_crops: int = Field(default=4, ge=1, le=16, description="Crops a picture is cut into, at most")
    rank: int = Field(default=16, ge=1, le=256, description="Rank of the LoRA matrices")
    alpha: float = Field(
        default=32.0, gt=0, description="LoRA scaling: the update is multiplied by alpha / rank"
    )
    dropout: float = Field(default=0.05, ge=0, lt=1, description="Dropout before the LoRA matrices")
    learning_rate: float = Field(default=1e-4, ge=0, le=1, description="Peak learning rate of AdamW")
    schedule: Literal["constant", "linear", "cosine"] = Field(default="cosine", description="After warm-up")
    warmup_ratio: float = Field(default=0.05, ge=0, le=0.5, description="Share of the steps spent warming up")
    weight_decay: float = Field(default=0.0, ge=0, le=1, description="AdamW's weight decay")
    epochs: float = Field(default=3.0, gt=0, le=1000, description="Passes over the training split")
    batch_size: int = Field(default=32, ge=1, le=4096, description="Examples an optimiser step")
    device_batch_size: int = Field(default=4, ge=1, le=512, description="Examples in memory at once")
    gradient_checkpointing: bool = Field(default=True, description="Trade a third more work for less memory")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="auto: bfloat16 on a GPU, else float32"
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="Of initialisation, order and dropout")

    @model_validator(mode="after")
    def _batches_fit(self) -> Self:
        if self.batch_size % self.device_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} must be a multiple of "
                f"device_batch_size {self.device_batch_size}"
            )
        return self

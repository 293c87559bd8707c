"""How a model is evaluated."""

from pydantic import BaseModel, ConfigDict, Field


class EvaluateParameters(BaseModel):
    """How a model is evaluated."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    subject: str = Field(default="tuned", pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")
    """What the model is in a comparison. It names the task, and does not change the evaluation."""
    split: str = Field(default="test", pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")
    """The split of the dataset to ask about."""
    max_samples: int = Field(default=0, ge=0)
    """Rows to take; 0 for all."""
    batch_size: int = Field(default=16, ge=1, le=4096)
    """Pictures in one batch of generation. It changes nothing but rounding below float32."""
    max_new_tokens: int = Field(default=64, ge=1, le=4096)
    """Tokens an answer may have."""
    num_crops: int = Field(default=0, ge=0, le=64)
    """Crops of a picture at most; 0 for the model's own."""
    calibration_samples: int = Field(default=500, ge=0)
    """Rows of the validation split that a tuned model's confidences are calibrated on; 0 for none."""
    neighbour_samples: int = Field(default=10_000, ge=1, le=100_000)
    """Training pictures among which a base model's evaluation looks for the nearest: 4 KB of memory each."""

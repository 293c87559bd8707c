"""Parameters of evaluate."""

from typing import Annotated

from pydantic import Field

from fovea.parameters import NOT_IN_RESULT, FormerName, Parameters


class EvaluateParameters(Parameters):
    """How many rows a model is evaluated on, and how it is asked."""

    max_eval_samples: Annotated[int, FormerName("max_samples")] = Field(default=0, ge=0)
    """Rows of the test split that the models are evaluated on; 0 for all."""
    generation_batch_size: Annotated[int, NOT_IN_RESULT] = Field(default=16, ge=1, le=4096)
    """Pictures in one batch of generation. It changes nothing but rounding below float32."""
    max_new_tokens: int = Field(default=64, ge=1, le=4096)
    """Longest answer, in tokens."""
    calibration_samples: int = Field(default=500, ge=0)
    """Rows of the validation split that a tuned model's confidences are calibrated on; 0 for none."""
    neighbour_samples: int = Field(default=10_000, ge=1, le=100_000)
    """Training pictures among which a base model's evaluation looks for the nearest: 4 KB of memory each."""

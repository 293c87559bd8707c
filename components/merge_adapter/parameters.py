"""Parameters of merge_adapter."""

from pydantic import BaseModel, ConfigDict


class MergeAdapterParameters(BaseModel):
    """What a merge can be told."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    verify: bool = True
    """Compare the merged model with base and adapter. It takes the memory of the model, as it is stored."""

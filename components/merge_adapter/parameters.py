"""Parameters of merge_adapter."""

from typing import Annotated

from fovea.parameters import NOT_IN_RESULT, FormerName, Name, Parameters


class MergeAdapterParameters(Parameters):
    """How to verify and register the merged model."""

    registered_model_name: Annotated[Name, NOT_IN_RESULT, FormerName("registered_model")] = "fovea"
    """Name of the model in MLflow's registry, which gets a new version."""
    verify_merge: Annotated[bool, FormerName("verify")] = True
    """Compare the merged model with base and adapter. This needs memory for the model in its stored dtype."""

"""The KFP component of merge_adapter."""

from typing import Any

from kfp import dsl

from components.container_image import IMAGE


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def merge_adapter(
    adapter: dsl.Input[dsl.Model],
    base: dsl.Input[dsl.Model],
    model: dsl.Output[dsl.Model],
    artifact_root: str,
    run_id: str,
    parameters: dict[str, Any],
) -> None:
    """Merge a LoRA adapter into its base model, and register the result.

    Args:
        adapter: Record of the adapter.
        base: Record of the base model that the adapter was trained on.
        model: Record of the merged model.
        artifact_root: s3://bucket/prefix of payloads and records.
        run_id: The run's ID.
        parameters: Fields of MergeAdapterParameters.
    """
    from components.merge_adapter.step import merge_adapter_step

    merge_adapter_step(
        adapter_record=adapter.path,
        base_record=base.path,
        model_record=model.path,
        artifact_root=artifact_root,
        run_id=run_id,
        parameters=parameters,
    )

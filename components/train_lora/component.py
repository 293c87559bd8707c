"""The KFP component of train_lora."""

from typing import Any

from kfp import dsl

from components.container_image import IMAGE


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def train_lora(
    dataset: dsl.Input[dsl.Dataset],
    base: dsl.Input[dsl.Model],
    adapter: dsl.Output[dsl.Model],
    report: dsl.Output[dsl.HTML],
    artifact_root: str,
    run_id: str,
    parameters: dict[str, Any],
) -> None:
    """Train a LoRA adapter on the dataset's train split.

    Args:
        dataset: Record of the prepared dataset.
        base: Record of the base model.
        adapter: Record of the trained adapter.
        report: Report of the training, as a page.
        artifact_root: s3://bucket/prefix of payloads and records.
        run_id: The run's ID.
        parameters: Fields of TrainLoraParameters.
    """
    from components.train_lora.step import train_lora_step

    train_lora_step(
        dataset_record=dataset.path,
        base_record=base.path,
        adapter_record=adapter.path,
        report=report.path,
        artifact_root=artifact_root,
        run_id=run_id,
        parameters=parameters,
    )

"""The KFP contract of prepare_data."""

from typing import Any

from kfp import dsl

from components.container_image import IMAGE


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def prepare_data(
    dataset: dsl.Output[dsl.Dataset],
    report: dsl.Output[dsl.HTML],
    artifact_root: str,
    run_id: str,
    parameters: dict[str, Any],
    base: dsl.Input[dsl.Model] = None,
) -> None:
    """Turn a table and its pictures into a clean dataset, split by product.

    Args:
        dataset: Record of the dataset.
        report: The page of kept, dropped and split rows.
        artifact_root: s3://bucket/prefix of payloads and records.
        run_id: The run's ID.
        parameters: Fields of PrepareDataParameters.
        base: Record of the base model, whose tokenizer counts the sequences; without it they are not counted.
    """
    from components.prepare_data.step import prepare_data_step
    from fovea.steps import RunContext, configure_logging

    configure_logging()
    prepare_data_step(
        RunContext(artifact_root=artifact_root, run_id=run_id),
        parameters,
        dataset_record=dataset.path,
        base_record=base.path if base else None,
        report=report.path,
    )

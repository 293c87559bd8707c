"""Runs train_lora by itself: ``python -m components.train_lora --help``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from components.command import running, with_options
from components.train_lora.parameters import TrainLoraParameters


@with_options(TrainLoraParameters)
def main(
    parameters: dict[str, Any],
    dataset: Annotated[Path, typer.Option(help="File with the record of the prepared dataset.")],
    base: Annotated[Path, typer.Option(help="File with the record of the base model.")],
    artifact_root: Annotated[str, typer.Option(help="s3://bucket/prefix of payloads and records.")],
    adapter: Annotated[Path, typer.Option(help="Where the record of the adapter goes.")] = Path(
        "adapter.json"
    ),
    report: Annotated[Path | None, typer.Option(help="Where the HTML report goes.")] = None,
    run_id: Annotated[str, typer.Option(help="Which run this belongs to.")] = "manual",
    experiment: Annotated[str, typer.Option(help="MLflow experiment, where tracking is on.")] = "fovea",
) -> None:
    """Train a LoRA adapter on the dataset's train split."""
    from components.train_lora.step import train_lora_step

    with running("train_lora"):
        train_lora_step(
            dataset_record=dataset,
            base_record=base,
            adapter_record=adapter,
            report=report,
            artifact_root=artifact_root,
            run_id=run_id,
            experiment=experiment,
            parameters=parameters,
        )


if __name__ == "__main__":
    typer.run(main)

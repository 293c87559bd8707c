"""Runs train_lora by itself: ``python -m components.train_lora --help``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from components.train_lora.parameters import TrainLoraParameters

_FIELDS = TrainLoraParameters.model_fields


def _option(name: str) -> Any:
    return typer.Option(help=_FIELDS[name].description)


def main(
    dataset: Annotated[Path, typer.Option(help="File with the record of the prepared dataset.")],
    base: Annotated[Path, typer.Option(help="File with the record of the base model.")],
    artifact_root: Annotated[str, typer.Option(help="s3://bucket/prefix of payloads and records.")],
    adapter: Annotated[Path, typer.Option(help="Where the record of the adapter goes.")] = Path(
        "adapter.json"
    ),
    report: Annotated[Path | None, typer.Option(help="Where the HTML report goes.")] = None,
    run_id: Annotated[str, typer.Option(help="Which run this belongs to.")] = "manual",
    experiment: Annotated[str, typer.Option(help="MLflow experiment, where tracking is on.")] = "fovea",
    num_crops: Annotated[int, _option("num_crops")] = _FIELDS["num_crops"].default,
    rank: Annotated[int, _option("rank")] = _FIELDS["rank"].default,
    alpha: Annotated[float, _option("alpha")] = _FIELDS["alpha"].default,
    dropout: Annotated[float, _option("dropout")] = _FIELDS["dropout"].default,
    target_modules: Annotated[str, _option("target_modules")] = _FIELDS["target_modules"].default,
    learning_rate: Annotated[float, _option("learning_rate")] = _FIELDS["learning_rate"].default,
    schedule: Annotated[str, _option("schedule")] = _FIELDS["schedule"].default,
    warmup_ratio: Annotated[float, _option("warmup_ratio")] = _FIELDS["warmup_ratio"].default,
    weight_decay: Annotated[float, _option("weight_decay")] = _FIELDS["weight_decay"].default,
    epochs: Annotated[float, _option("epochs")] = _FIELDS["epochs"].default,
    max_steps: Annotated[int, _option("max_steps")] = _FIELDS["max_steps"].default,
    batch_size: Annotated[int, _option("batch_size")] = _FIELDS["batch_size"].default,
    device_batch_size: Annotated[int, _option("device_batch_size")] = _FIELDS["device_batch_size"].default,
    gradient_checkpointing: Annotated[bool, _option("gradient_checkpointing")] = _FIELDS[
        "gradient_checkpointing"
    ].default,
    compile: Annotated[bool, _option("compile")] = _FIELDS["compile"].default,  # noqa: A002
    precision: Annotated[str, _option("precision")] = _FIELDS["precision"].default,
    evaluation_steps: Annotated[int, _option("evaluation_steps")] = _FIELDS["evaluation_steps"].default,
    answered_samples: Annotated[int, _option("answered_samples")] = _FIELDS["answered_samples"].default,
    early_stopping: Annotated[int, _option("early_stopping")] = _FIELDS["early_stopping"].default,
    keep: Annotated[str, _option("keep")] = _FIELDS["keep"].default,
    checkpoint_minutes: Annotated[float, _option("checkpoint_minutes")] = _FIELDS[
        "checkpoint_minutes"
    ].default,
    resume_from: Annotated[str, _option("resume_from")] = _FIELDS["resume_from"].default,
    seed: Annotated[int, _option("seed")] = _FIELDS["seed"].default,
) -> None:
    """Train a LoRA adapter on the dataset's train split."""
    parameters = {name: value for name, value in locals().items() if name in _FIELDS}
    # Here, so that --help comes at once.
    from components.train_lora.step import train_lora_step
    from fovea.errors import UserError

    try:
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
    except UserError as error:
        typer.echo(f"train_lora: {error}", err=True)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    typer.run(main)

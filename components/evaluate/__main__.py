"""Runs evaluate by itself: ``python -m components.evaluate --help``."""

from pathlib import Path
from typing import Annotated

import typer

from fovea.errors import UserError
from fovea.records import AbsentRecord
from fovea.steps import configure_logging


def main(
    model: Annotated[Path, typer.Option(help="File with the record of the model.")],
    dataset: Annotated[Path, typer.Option(help="File with the record of the dataset.")],
    artifact_root: Annotated[str, typer.Option(help="s3://bucket/prefix of payloads and records.")],
    evaluation: Annotated[Path, typer.Option(help="Where the record goes.")] = Path("evaluation.json"),
    run_id: Annotated[str, typer.Option(help="Which run this belongs to.")] = "manual",
    subject: Annotated[str, typer.Option(help="What the model is in this comparison.")] = "tuned",
    split: Annotated[str, typer.Option(help="The split to ask about.")] = "test",
    max_samples: Annotated[int, typer.Option(help="Rows to take; 0 for all.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Pictures in one batch of generation.")] = 16,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens an answer may have.")] = 64,
    num_crops: Annotated[int, typer.Option(help="Crops of a picture at most; 0 for the model's own.")] = 0,
    calibration_samples: Annotated[
        int, typer.Option(help="Validation rows that a tuned model's confidences are calibrated on.")
    ] = 500,
    neighbour_samples: Annotated[
        int, typer.Option(help="Training pictures among which a base's nearest is looked for.")
    ] = 10_000,
) -> None:
    """Ask a model about every picture of a split, and measure what it answers."""
    from components.evaluate.step import evaluate_step, figures

    configure_logging()
    try:
        record = evaluate_step(
            model_record=model,
            dataset_record=dataset,
            evaluation_record=evaluation,
            artifact_root=artifact_root,
            run_id=run_id,
            subject=subject,
            split=split,
            max_samples=max_samples,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            num_crops=num_crops,
            calibration_samples=calibration_samples,
            neighbour_samples=neighbour_samples,
        )
    except UserError as error:
        typer.echo(f"evaluate: {error}", err=True)
        raise typer.Exit(1) from error
    if isinstance(record, AbsentRecord):
        typer.echo(f"there is no model to evaluate: {record.reason}")
        return
    for name, value in figures(record).items():
        typer.echo(f"{name:32} {value:.4g}")


if __name__ == "__main__":
    typer.run(main)

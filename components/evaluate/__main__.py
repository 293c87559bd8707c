"""Runs evaluate by itself: ``python -m components.evaluate --help``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from components.command import running, with_options
from components.evaluate.parameters import EvaluateParameters


@with_options(EvaluateParameters)
def main(
    parameters: dict[str, Any],
    model: Annotated[Path, typer.Option(help="File with the record of the model.")],
    dataset: Annotated[Path, typer.Option(help="File with the record of the dataset.")],
    artifact_root: Annotated[str, typer.Option(help="s3://bucket/prefix of payloads and records.")],
    evaluation: Annotated[Path, typer.Option(help="Where the record goes.")] = Path("evaluation.json"),
    run_id: Annotated[str, typer.Option(help="Which run this belongs to.")] = "manual",
) -> None:
    """Ask a model about every picture of a split, and measure what it answers."""
    from components.evaluate.step import evaluate_step, figures
    from fovea.records import AbsentRecord

    with running("evaluate"):
        record = evaluate_step(
            model_record=model,
            dataset_record=dataset,
            evaluation_record=evaluation,
            artifact_root=artifact_root,
            run_id=run_id,
            **parameters,
        )
    if isinstance(record, AbsentRecord):
        typer.echo(f"there is no model to evaluate: {record.reason}")
        return
    for name, value in figures(record).items():
        typer.echo(f"{name:32} {value:.4g}")


if __name__ == "__main__":
    typer.run(main)

"""Runs prepare_data by itself: ``python -m components.prepare_data --help``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from components.command import running, with_options
from components.prepare_data.parameters import PrepareParameters


@with_options(PrepareParameters)
def main(
    parameters: dict[str, Any],
    artifact_root: Annotated[str, typer.Option(help="s3://bucket/prefix of payloads and records.")],
    dataset: Annotated[Path, typer.Option(help="Where the record of the dataset goes.")] = Path(
        "dataset.json"
    ),
    run_id: Annotated[str, typer.Option(help="Which run this belongs to.")] = "manual",
    base: Annotated[
        Path | None, typer.Option(help="File with the record of the base model, to count the sequences.")
    ] = None,
    report: Annotated[Path, typer.Option(help="Where the report goes.")] = Path("report.html"),
    experiment: Annotated[str, typer.Option(help="MLflow experiment, where tracking is on.")] = "fovea",
) -> None:
    """Turn a table and its pictures into a clean dataset, split by product."""
    from components.prepare_data.step import prepare_data_step
    from fovea.steps import RunContext

    with running("prepare_data"):
        prepare_data_step(
            RunContext(artifact_root=artifact_root, run_id=run_id),
            parameters,
            dataset,
            base_record=base,
            report=report,
            experiment=experiment,
        )


if __name__ == "__main__":
    typer.run(main)

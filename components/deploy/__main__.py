"""Deploys by itself: ``python -m components.deploy --help``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from components.command import running, with_options
from components.deploy.parameters import DeployParameters


@with_options(DeployParameters)
def main(
    parameters: dict[str, Any],
    model: Annotated[Path, typer.Option(help="File with the record of the model.")],
    evaluation: Annotated[Path, typer.Option(help="File with the record of its evaluation.")],
    dataset: Annotated[Path, typer.Option(help="File with the record of the dataset.")],
    decision: Annotated[Path, typer.Option(help="File with the gate's decision.")],
    artifact_root: Annotated[str, typer.Option(help="s3://bucket/prefix of payloads and records.")],
    deployment: Annotated[Path, typer.Option(help="Where the deployment goes as a document.")] = Path(
        "deployment.json"
    ),
    run_id: Annotated[str, typer.Option(help="Which run this belongs to.")] = "manual",
) -> None:
    """Serve a model, ask it about held-out pictures, make it known; ends with 1 where it is refused."""
    from components.deploy.step import deploy_step

    with running("deploy"):
        verdict = deploy_step(
            model_record=model,
            evaluation_record=evaluation,
            dataset_record=dataset,
            decision_record=decision,
            deployment=deployment,
            artifact_root=artifact_root,
            run_id=run_id,
            **parameters,
        )
    raise typer.Exit(0 if verdict.deployed else 1)


if __name__ == "__main__":
    typer.run(main)

"""Deploys by itself: ``python -m components.deploy --help``."""

from pathlib import Path
from typing import Annotated

import typer

from components.deploy.deploy import deploy_step
from components.deploy.parameters import DeployParameters
from fovea.errors import UserError
from fovea.steps import configure_logging

_DEFAULTS = DeployParameters()


def main(
    model: Annotated[Path, typer.Option(help="File with the record of the model.")],
    evaluation: Annotated[Path, typer.Option(help="File with the record of its evaluation.")],
    dataset: Annotated[Path, typer.Option(help="File with the record of the dataset.")],
    decision: Annotated[Path, typer.Option(help="File with the gate's decision.")],
    artifact_root: Annotated[str, typer.Option(help="s3://bucket/prefix of payloads and records.")],
    deployment: Annotated[Path, typer.Option(help="Where the deployment goes as a document.")] = Path(
        "deployment.json"
    ),
    run_id: Annotated[str, typer.Option(help="Which run this belongs to.")] = "manual",
    service_name: Annotated[str, typer.Option(help="The service.")] = _DEFAULTS.service_name,
    target: Annotated[str, typer.Option(help="Where it is served: local or kserve.")] = _DEFAULTS.target,
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = _DEFAULTS.port,
    probes: Annotated[int, typer.Option(help="Held-out pictures to ask about.")] = _DEFAULTS.probes,
    timeout_seconds: Annotated[
        float, typer.Option(help="For start and answers of a local server.")
    ] = _DEFAULTS.timeout_seconds,
    kserve: Annotated[str, typer.Option(help="Fields of KServeParameters, as JSON.")] = "{}",
) -> None:
    """Serve a model, ask it about held-out pictures, make it known; ends with 1 where it is refused."""
    configure_logging()
    try:
        verdict = deploy_step(
            model_record=model,
            evaluation_record=evaluation,
            dataset_record=dataset,
            decision_record=decision,
            deployment=deployment,
            artifact_root=artifact_root,
            run_id=run_id,
            service_name=service_name,
            target=target,
            port=port,
            probes=probes,
            timeout_seconds=timeout_seconds,
            kserve=kserve,
        )
    except UserError as error:
        typer.echo(f"deploy: {error}", err=True)
        raise typer.Exit(1) from error
    raise typer.Exit(0 if verdict.deployed else 1)


if __name__ == "__main__":
    typer.run(main)

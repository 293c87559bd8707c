"""`fovea rollback`: deploy the previous champion again."""

from pathlib import Path
from typing import Annotated

import typer


def rollback(
    service: Annotated[str, typer.Option(help="The service.")],
    artifact_root: Annotated[
        str,
        typer.Option(help="Where the runs keep their artifacts; left out, this machine's.", metavar="URI"),
    ] = "",
    state: Annotated[Path, typer.Option(help="The folder of local runs.", metavar="DIR")] = Path(".fovea"),
) -> None:
    """Bring back the model that a service had before the present one. Ends with 1 if it cannot.

    It is verified as any other: its answers about held-out pictures must be those of its evaluation. On
    KServe it starts in addition to the present model, which serves until then.

    Example: fovea rollback --service fovea

    Example: fovea rollback --service catalogue --artifact-root s3://models/fovea
    """
    from cli.serve import artifacts
    from components.deploy.rollback import roll_back
    from fovea.steps import configure_logging
    from fovea.storage import Storage

    configure_logging()
    with artifacts(artifact_root, state) as root:
        verdict, earlier = roll_back(service, root, Storage())
    if not verdict.deployed:
        typer.secho(f"not rolled back: {verdict.reason}", fg=typer.colors.RED, err=True)
        raise typer.Exit(1)
    print(f"{service} answers with {earlier.model.digest}, of run {earlier.run_id}")

"""`fovea status`: which model each service has, since when, and from which run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from components.deploy.parameters import Deployment


def status(
    artifact_root: Annotated[
        str,
        typer.Option(help="Where the runs keep their artifacts; left out, this machine's.", metavar="URI"),
    ] = "",
    state: Annotated[Path, typer.Option(help="The folder of local runs.", metavar="DIR")] = Path(".fovea"),
) -> None:
    """Show the deployment of every service, and on KServe what its pods really serve.

    Example: fovea status

    Example: fovea status --artifact-root s3://models/fovea
    """
    from cli.serve import artifacts
    from components.deploy.history import present_deployments
    from fovea.storage import Storage

    with artifacts(artifact_root, state) as root:
        deployments = list(present_deployments(Storage(), root))
    if not deployments:
        print(f"no run has deployed anything under {root}")
    for each in deployments:
        place = f"KServe, namespace {each.namespace}" if each.target == "kserve" else "this machine"
        print(f"{each.service}  ({place})")
        print(f"  model     {each.model.digest}")
        print(f"  since     {each.verified_at:%Y-%m-%d %H:%M} UTC, of run {each.run_id}")
        print(f"  verified  {each.agreed} of {each.probes} held-out pictures as evaluated, in {each.dtype}")
        if each.target == "kserve":
            _show_live(each)


def _show_live(document: "Deployment") -> None:
    from components.deploy.targets.cluster import Cluster, ClusterError
    from components.deploy.targets.kserve import live_shares

    try:
        shares = live_shares(Cluster.connect(document.namespace), document.service)
    except ClusterError as error:
        print(f"  now       not known: {error}")
        return
    if not shares:
        print("  now       NOT THERE: the InferenceService is gone")
    for share in shares:
        same = "" if share.digest == document.model.digest else f", model {share.digest or 'unknown'}"
        problem = f", {share.problem}" if share.problem else ""
        print(f"  now       {share.percent} % of the traffic, {share.pods} pods ready{same}{problem}")

"""`fovea compile`: write the pipeline as YAML for Kubeflow Pipelines."""

from pathlib import Path
from typing import Annotated

import typer


def compile_command(
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("fovea-finetune.yaml"),
    cluster: Annotated[
        Path | None,
        typer.Option(
            help="The platform's settings: image, GPUs, resources, Secrets.",
            metavar="FILE",
            envvar="FOVEA_CLUSTER",
        ),
    ] = None,
    kubernetes: Annotated[
        bool, typer.Option("--kubernetes", help="Write KFP's custom resources, for GitOps.")
    ] = False,
    namespace: Annotated[str, typer.Option(help="Namespace of the custom resources.")] = "",
) -> None:
    """Compile the pipeline to a file that can be uploaded to Kubeflow Pipelines.

    Without --cluster the pipeline is the one for a single machine, whose tasks request no resources.

    Example: fovea compile --cluster cluster.yaml --out fovea-finetune.yaml

    Example: fovea compile --cluster cluster.yaml --kubernetes --namespace shop --out pipeline.yaml
    """
    from fovea.errors import UserError
    from pipelines.cluster.settings import read_cluster_settings
    from pipelines.compile import compile_for_cluster, compile_pipeline, compile_resources

    if namespace and not kubernetes:
        raise UserError("--namespace applies to custom resources; give --kubernetes")
    if cluster is None:
        if kubernetes:
            raise UserError("--kubernetes writes the pipeline of a cluster; give --cluster")
        text = compile_pipeline()
    elif kubernetes:
        text = compile_resources(read_cluster_settings(cluster), namespace=namespace)
    else:
        text = compile_for_cluster(read_cluster_settings(cluster))
    out.write_text(text)
    print(f"Wrote {out}")

"""`fovea compile`: the pipeline as the YAML that Kubeflow Pipelines takes."""

from pathlib import Path
from typing import Annotated

import typer


def compile_command(
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("fovea-finetune.yaml"),
    cluster: Annotated[
        Path | None,
        typer.Option(
            help="What the platform decides: image, GPUs, resources, Secrets.",
            metavar="FILE",
            envvar="FOVEA_CLUSTER",
        ),
    ] = None,
    kubernetes: Annotated[
        bool, typer.Option("--kubernetes", help="As KFP's custom resources, to be applied from a repository.")
    ] = False,
    namespace: Annotated[str, typer.Option(help="Of the custom resources.")] = "",
) -> None:
    """Compile the pipeline to a file that can be uploaded to Kubeflow Pipelines.

    Without --cluster it is the pipeline of a run on one machine, whose tasks ask for nothing.

    Example: fovea compile --cluster cluster.yaml --out fovea-finetune.yaml

    Example: fovea compile --cluster cluster.yaml --kubernetes --namespace shop --out pipeline.yaml
    """
    from fovea.errors import UserError
    from pipelines.cluster.settings import read_cluster_settings
    from pipelines.compile import compile_for_cluster, compile_pipeline, compile_resources

    if namespace and not kubernetes:
        raise UserError("--namespace is of the custom resources; give --kubernetes, too")
    if cluster is None:
        if kubernetes:
            raise UserError("--kubernetes is of a cluster's pipeline; give --cluster, too")
        text = compile_pipeline()
    elif kubernetes:
        text = compile_resources(read_cluster_settings(cluster), namespace=namespace)
    else:
        text = compile_for_cluster(read_cluster_settings(cluster))
    out.write_text(text)
    print(f"Wrote {out}")

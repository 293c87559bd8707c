"""`fovea compile`: the pipeline as the YAML that Kubeflow Pipelines takes."""

from pathlib import Path
from typing import Annotated

import typer


def compile_command(
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("fovea-finetune.yaml"),
) -> None:
    """Compile the pipeline to a file that can be uploaded to Kubeflow Pipelines.

    Example: fovea compile --out fovea-finetune.yaml
    """
    from pipelines.compile import compile_pipeline

    out.write_text(compile_pipeline())
    print(f"Wrote {out}")

"""Runs merge_adapter by itself: ``python -m components.merge_adapter --help``."""

from pathlib import Path
from typing import Annotated

import typer

from components.command import running


def main(
    adapter: Annotated[Path, typer.Option(help="File with the record of the adapter.")],
    base: Annotated[Path, typer.Option(help="File with the record of the base it was trained on.")],
    artifact_root: Annotated[str, typer.Option(help="s3://bucket/prefix of payloads and records.")],
    model: Annotated[Path, typer.Option(help="Where the record of the merged model goes.")] = Path(
        "model.json"
    ),
    run_id: Annotated[str, typer.Option(help="Which run this belongs to.")] = "manual",
    registered_model_name: Annotated[str, typer.Option(help="Model in MLflow's registry.")] = "fovea",
    verify: Annotated[bool, typer.Option(help="Compare the merged model with base and adapter.")] = True,
) -> None:
    """Merge a LoRA adapter into its base model, and register the result."""
    from components.merge_adapter.step import merge_adapter_step

    with running("merge_adapter"):
        merge_adapter_step(
            adapter_record=adapter,
            base_record=base,
            model_record=model,
            artifact_root=artifact_root,
            run_id=run_id,
            registered_model_name=registered_model_name,
            verify=verify,
        )


if __name__ == "__main__":
    typer.run(main)

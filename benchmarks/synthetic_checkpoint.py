"""Write a checkpoint of the published size with random weights.

    python -m benchmarks.synthetic_checkpoint FOLDER

It has the published names, shapes and dtype, 8,293,242,880 bytes of bfloat16 tensors, needs a gigabyte
of memory, and is limited by the disk's speed.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors.torch import save_file

from benchmarks.synthetic import configuration, random_block, random_weight
from fovea.errors import UserError
from fovea.phi3v import Phi3VForCausalLM, Phi3VImageProcessor

SHARD_BYTES = 1_000_000_000
_HEADROOM_BYTES = 100_000_000


def write_synthetic_checkpoint(folder: Path, size: str = "published") -> int:
    """Write the checkpoint into `folder`, shard by shard.

    Args:
        folder: created if it does not exist; must be empty.
        size: as in `configuration`.

    Returns:
        Bytes of all tensors.

    Raises:
        UserError: the folder is not empty, or the disk has too little space.
    """
    with torch.device("meta"):
        model = Phi3VForCausalLM(configuration(size)).to(torch.bfloat16)
    shapes = {name: weight.shape for name, weight in model.state_dict().items()}
    total = sum(_bytes(shape) for shape in shapes.values())
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; name a new folder")
    free = shutil.disk_usage(folder).free
    if free < total + _HEADROOM_BYTES:
        raise UserError(f"{folder}: {total:,} bytes are needed and {free:,} are free; name another disk")
    _write_shards(folder, shapes, total)
    model.config.architectures, model.config.dtype = [Phi3VForCausalLM.__name__], torch.bfloat16
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    Phi3VImageProcessor().save_pretrained(folder)
    return total


def _write_shards(folder: Path, shapes: dict[str, torch.Size], total: int) -> None:
    block = random_block(torch.bfloat16)
    shards = list(_shards(shapes))
    places: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        weights = {name: random_weight(name, shapes[name], block) for name in names}
        save_file(weights, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _shards(shapes: dict[str, torch.Size]) -> Iterator[list[str]]:
    """Yield the names in order, in groups of at most `SHARD_BYTES`."""
    names: list[str] = []
    held = 0
    for name, shape in shapes.items():
        if names and held + _bytes(shape) > SHARD_BYTES:
            yield names
            names, held = [], 0
        names.append(name)
        held += _bytes(shape)
    yield names


def _bytes(shape: torch.Size) -> int:
    return shape.numel() * torch.bfloat16.itemsize


def main(folder: Annotated[Path, typer.Argument(help="A new or empty folder.")]) -> None:
    """Write a checkpoint of Phi-3-Vision's published size (8.3 GB) with random weights."""
    try:
        total = write_synthetic_checkpoint(folder)
    except UserError as error:
        typer.echo(f"synthetic_checkpoint: {error}", err=True)
        raise typer.Exit(1) from error
    typer.echo(f"Wrote {total:,} bytes of tensors into {folder}")


if __name__ == "__main__":
    typer.run(main)

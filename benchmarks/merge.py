"""Compare our merge of an adapter into a checkpoint of the published size with PEFT's, in one run.

    python -m benchmarks.merge FOLDER [--size published] [--verify]

FOLDER needs three times the checkpoint's size, 25 GB; PEFT needs as much memory as the model. Each merge runs
in a new process. The table shows its seconds from the first import to the last byte, its peak resident
memory, and its peak private memory, which excludes pages of mapped files, because the system can drop them.
"""

import hashlib
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.measure import PrivatePeak, peak_resident_bytes
from benchmarks.serving import SYNTHETIC_CROPS, write_model

_TARGETS = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
_RANK = 16


def write_adapter(base: Path, folder: Path) -> None:
    """Write a random LoRA adapter on the decoder's linear layers, in PEFT's format."""
    from peft import LoraConfig
    from safetensors.torch import save_file

    from components.merge_adapter.shards import places

    torch.manual_seed(0)
    tensors = {}
    for path in sorted(base.glob("*.safetensors")):
        for name, place in places(path).items():
            if name.removesuffix(".weight").endswith(_TARGETS):
                layer = "base_model.model." + name.removesuffix(".weight")
                out, into = place.shape
                tensors[f"{layer}.lora_A.weight"] = 0.01 * torch.randn(_RANK, into)
                tensors[f"{layer}.lora_B.weight"] = 0.01 * torch.randn(out, _RANK)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    LoraConfig(r=_RANK, lora_alpha=2 * _RANK, target_modules=list(_TARGETS)).save_pretrained(str(folder))


def merge_ours(base: Path, adapter: Path, merged: Path) -> None:
    """Merge as the step does."""
    from components.merge_adapter.merge import merge_folders

    merge_folders(base, adapter, merged)


def merge_pefts(base: Path, adapter: Path, merged: Path) -> None:
    """Load the model, merge_and_unload, save_pretrained."""
    from peft import PeftModel

    from fovea.phi3v import Phi3VForCausalLM

    model = Phi3VForCausalLM.from_pretrained(base, dtype=torch.bfloat16, local_files_only=True)
    PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(merged)


def compare(base: Path, adapter: Path, merged: Path) -> None:
    """Compare logits as the step does after its merge."""
    from components.merge_adapter.merge import copy_files
    from components.merge_adapter.verify import verify
    from fovea.task import product_task

    copy_files(base, merged, SYNTHETIC_CROPS, product_task())
    verify(base, adapter, merged, product_task(), "BF16")


def measured(merge: Callable[[Path, Path, Path], None], base: Path, adapter: Path, merged: Path) -> str:
    """Return the seconds, and the peaks of resident and private bytes, of a merge in a separate process."""
    merged.mkdir(exist_ok=True)
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    os.sync()  # earlier writes must not delay the measured work
    started = time.perf_counter()
    process = context.Process(target=_child, args=(merge, base, adapter, merged, sender))
    process.start()
    process.join()
    seconds = time.perf_counter() - started
    if process.exitcode != 0:
        raise RuntimeError(f"{merge.__name__} ended with {process.exitcode}")
    resident, private = receiver.recv()
    return f"{seconds:>9.1f}{resident / 1e9:>12.2f} GB{private / 1e9:>11.2f} GB"


def _child(
    merge: Callable[[Path, Path, Path], None], base: Path, adapter: Path, merged: Path, sender: object
) -> None:
    with PrivatePeak() as private:
        merge(base, adapter, merged)
    sender.send((peak_resident_bytes(), private.bytes))  # type: ignore[attr-defined]


def _differing(base: Path, merged: Path) -> int:
    """Return the number of tensors of ``merged`` whose bytes differ from the base's."""
    from components.merge_adapter.shards import places

    count = 0
    for path in sorted(base.glob("*.safetensors")):
        with path.open("rb") as ours, (merged / path.name).open("rb") as theirs:
            for place in places(path).values():
                digests = []
                for file in (ours, theirs):
                    file.seek(place.begin)
                    digests.append(hashlib.sha256(file.read(place.end - place.begin)).digest())
                count += digests[0] != digests[1]
    return count


def main(
    folder: Annotated[Path, typer.Argument(help="A folder with free space; the created files are kept.")],
    size: Annotated[str, typer.Option(help="published, or middling for a trial.")] = "published",
    verify: Annotated[bool, typer.Option(help="Also compare the logits afterwards.")] = False,
) -> None:
    """Print a table of both merges."""
    base, adapter = folder / "base", folder / "adapter"
    if not (base / "config.json").exists():
        write_model(base, size)
        write_adapter(base, adapter)
    print(f"{'':24}{'seconds':>9}{'resident':>15}{'private':>14}{'changed tensors':>17}")
    for name, merge in (("tensor by tensor", merge_ours), ("PEFT, and save", merge_pefts)):
        merged = folder / merge.__name__
        figures = measured(merge, base, adapter, merged)
        changed = _differing(base, merged) if merge is merge_ours else ""
        print(f"{name:24}{figures}{changed:>17}", flush=True)
    if verify:
        figures = measured(compare, base, adapter, folder / merge_ours.__name__)
        print(f"{'comparison of logits':24}{figures}", flush=True)


if __name__ == "__main__":
    typer.run(main)

"""Write the base's safetensors files again with some tensors changed and everything else identical.

A merged tensor has the shape and dtype of the one it replaces, so a merged file has the same layout as the
original. The file is copied sequentially, and each changed tensor is replaced on the way, some rows at a
time. Tensors without an update are therefore bit-identical, everything is read and written once, and memory
is bounded by those rows and the adapter, not by a tensor or the model. Files are not mapped, because mapped
pages would stay resident.
"""

import json
import shutil
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import safe_open

from components.merge_adapter.lora import LoraAdapter
from fovea.errors import UserError

_CHUNK = 16 << 20
_BLOCK = 4 << 20
"""Number of weights of a changed tensor that are merged at a time: 16 MiB in float32."""
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True)
class Place:
    """The position of a tensor in its file: ``begin`` and ``end`` in bytes from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def places(path: Path) -> Mapping[str, Place]:
    """Return the position of each tensor of a safetensors file.

    The format: eight bytes with the header's length, the header in JSON, the tensors at the offsets it names.
    """
    with safe_open(path, framework="pt"):  # checks the header: offsets without gaps, overlaps or overruns
        pass
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {
        name: Place(
            dtype=entry["dtype"],
            shape=tuple(entry["shape"]),
            begin=8 + length + entry["data_offsets"][0],
            end=8 + length + entry["data_offsets"][1],
        )
        for name, entry in header.items()
    }


def merge_file(source: Path, target: Path, adapter: LoraAdapter) -> int:
    """Write ``source`` to ``target`` with the adapter's tensors merged; return their number."""
    changed = [(name, place) for name, place in places(source).items() if name in adapter.pairs]
    with source.open("rb") as base, target.open("wb") as out:
        for name, place in sorted(changed, key=lambda each: each[1].begin):
            _copy(base, out, place.begin - base.tell())
            _merge(base, out, name, place, adapter)
        shutil.copyfileobj(base, out, _CHUNK)
    return len(changed)


def _merge(source: BufferedReader, target: BinaryIO, name: str, place: Place, adapter: LoraAdapter) -> None:
    """Copy a changed tensor, adding its update in float32 and rounding once."""
    rows, columns = place.shape
    # One small buffer for all rows: it stays in the caches, and is not allocated page by page each time.
    stored = torch.empty(min(rows, max(1, _BLOCK // columns)), columns, dtype=DTYPES[place.dtype])
    exact = torch.empty_like(stored, dtype=torch.float32)
    for first in range(0, rows, len(stored)):
        block = stored[: rows - first]
        data = block.view(torch.uint8).numpy().data
        if source.readinto(data) != data.nbytes:
            raise _cut_off(source)
        update = exact[: len(block)].copy_(block)
        adapter.add_to(update, name, first)
        block.copy_(update)
        target.write(data)


def _copy(source: BinaryIO, target: BinaryIO, count: int) -> None:
    while count > 0:
        data = source.read(min(count, _CHUNK))
        if not data:
            raise _cut_off(source)
        target.write(data)
        count -= len(data)


def _cut_off(file: BinaryIO) -> UserError:
    return UserError(f"{file.name}: is truncated; import the base model again")

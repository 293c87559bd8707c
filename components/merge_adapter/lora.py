"""A LoRA adapter in PEFT's format, and its update of each tensor of the base model."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from fovea.errors import UserError

_PREFIX = "base_model.model."
_ENDS = {".lora_A.weight": "A", ".lora_B.weight": "B"}
# What PEFT's configuration may say at any value: what adding B @ A respects, and what changes nothing then.
# Other keys must be unset, so that a feature that a later PEFT adds is refused by its name.
_SUPPORTED = {
    "r",
    "lora_alpha",
    "lora_dropout",
    "use_rslora",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "task_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "megatron_core",
    "qalora_group_size",
}
# Keys that may have some values alone. Initialisations by another name (pissa, olora, corda, loftq, eva …)
# change the base's weights or depend on more than the adapter's files.
_SUPPORTED_VALUES: dict[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian"),
}
_UNSET: tuple[object, ...] = (None, False, "", {}, [])


@dataclass(frozen=True)
class LoraAdapter:
    """The pairs of A (rank, in) and B (out, rank), by the name of the base's tensor (out, in)."""

    pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    scaling: float

    @classmethod
    def load(cls, folder: Path) -> "LoraAdapter":
        """Read ``adapter_config.json`` and ``adapter_model.safetensors``.

        Raises:
            UserError: they cannot be read, or are not plain LoRA on linear layers.
        """
        config = _config(folder / "adapter_config.json")
        path = folder / "adapter_model.safetensors"
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: cannot be read ({error}); train the adapter again") from error
        return cls(_pairs(tensors, path), _scaling(config, folder / "adapter_config.json"))

    def check(self, shapes: Mapping[str, tuple[tuple[int, ...], str]]) -> None:
        """Check that every pair has its tensor in the base, given as name: (shape, safetensors dtype).

        Raises:
            UserError: a tensor does not fit; the message names the first one.
        """
        for name, (a, b) in sorted(self.pairs.items()):
            if name not in shapes:
                raise UserError(f"the base has no {name}, which the adapter changes; use the adapter's base")
            shape, dtype = shapes[name]
            if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or shape != (b.shape[0], a.shape[1]):
                raise UserError(
                    f"{name}: the base's shape {list(shape)} does not fit the adapter's "
                    f"B {list(b.shape)} and A {list(a.shape)}; use the adapter's base"
                )
            if dtype not in {"F32", "BF16", "F16"}:
                raise UserError(f"{name}: is stored as {dtype}; merge into the base in 16 or 32 bits")

    def add_to(self, weight: torch.Tensor, name: str, first: int) -> None:
        """Add the tensor's update to ``weight`` (some rows, in), float32, whose rows start at ``first``."""
        a, b = self.pairs[name]
        weight.addmm_(b[first : first + len(weight)].float(), a.float(), alpha=self.scaling)


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
        config["peft_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is not a PEFT configuration ({error}); train the adapter again") from error
    beyond = [
        f"{name}={json.dumps(value)[:80]}"
        for name, value in sorted(config.items())
        if name not in _SUPPORTED and value not in _SUPPORTED_VALUES.get(name, _UNSET)
    ]
    if beyond:
        raise UserError(
            f"{path}: only plain LoRA is merged, but this adapter has {', '.join(beyond)}; train it without, "
            "or convert it to plain LoRA with PEFT"
        )
    return dict(config)


def _scaling(config: Mapping[str, Any], path: Path) -> float:
    try:
        rank = config["r"]
        scaling = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise UserError(f"{path}: has no usable r and lora_alpha ({error})") from error
    return float(scaling)


def _pairs(tensors: Mapping[str, torch.Tensor], path: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    sides: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        end = next((end for end in _ENDS if key.endswith(end)), None)
        if end is None or not key.startswith(_PREFIX):
            raise UserError(f"{path}: {key} is not part of a plain LoRA adapter")
        if not torch.isfinite(tensor).all():
            raise UserError(
                f"{path}: {key} contains values that are not finite; train with a lower learning_rate"
            )
        name = key.removeprefix(_PREFIX).removesuffix(end) + ".weight"
        sides.setdefault(name, {})[_ENDS[end]] = tensor
    halves = [name for name, pair in sides.items() if len(pair) != 2]
    if halves or not sides:
        raise UserError(f"{path}: {halves[0] if halves else 'the file'} lacks lora_A or lora_B tensors")
    return {name: (pair["A"], pair["B"]) for name, pair in sides.items()}

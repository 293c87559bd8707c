"""Estimate the memory of a training before anything is loaded.

The largest parts are exact: weights, LoRA matrices with their gradients and AdamW's two moments. Activations
are counted from the tensors that the backward pass keeps, for the batch of the longest sequences.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from components.train_lora.data import Extent
from components.train_lora.lora import target_modules, torch_dtype
from components.train_lora.parameters import TrainLoraParameters
from fovea.errors import UserError
from fovea.phi3v import Phi3VConfig, Phi3VForCausalLM

GIB = 2**30

_ANSWER_TOKENS = 64
"""Approximate length of the longest answers; the head's logits are needed only there."""
_ON_TOP = {"cuda": 1.5 * GIB, "cpu": 0.6 * GIB}
"""The libraries: the device's context and kernels, or Python with its imports."""
_TOLERANCE = 1.25
"""A training is refused if the estimate exceeds the device's memory by this factor."""


@dataclass(frozen=True)
class Estimate:
    """Bytes on one device."""

    weights: int
    trained: int
    activations: int
    libraries: int

    @property
    def total(self) -> int:
        """The sum."""
        return self.weights + self.trained + self.activations + self.libraries

    def __str__(self) -> str:
        return (
            f"{self.total / GIB:.1f} GiB: weights {self.weights / GIB:.1f}, "
            f"LoRA and optimiser {self.trained / GIB:.1f}, activations {self.activations / GIB:.1f}, "
            f"libraries {self.libraries / GIB:.1f}"
        )


@dataclass(frozen=True)
class Room:
    """The memory of a device: free bytes, and the device's name."""

    free: int
    name: str


def estimate(
    config: Phi3VConfig, parameters: TrainLoraParameters, extents: Sequence[Extent], device: str
) -> Estimate:
    """Return the memory that the training takes on each device.

    Args:
        config: of the base model.
        parameters: of the training.
        extents: of the examples; the longest that can be in one batch count.
        device: ``cuda`` or ``cpu``.
    """
    with torch.device("meta"):
        model = Phi3VForCausalLM(config)
    size = torch_dtype(parameters).itemsize
    ends = tuple(f".{name}" for name in target_modules(parameters, config))
    trained = sum(
        parameters.lora_r * (module.in_features + module.out_features)
        for name, module in model.named_modules()
        if name.endswith(ends)
    )
    longest = sorted(extents, key=lambda extent: extent.tokens)[-parameters.per_device_train_batch_size :]
    return Estimate(
        weights=sum(weight.numel() for weight in model.parameters()) * size,
        # The matrix, its gradient and AdamW's two moments, in float32.
        trained=trained * 4 * 4,
        activations=_activations(config, parameters, longest, size),
        libraries=int(_ON_TOP[device]),
    )


def _activations(
    config: Phi3VConfig, parameters: TrainLoraParameters, batch: Sequence[Extent], size: int
) -> int:
    tokens = len(batch) * max(extent.tokens for extent in batch)
    layers, hidden, inner = config.num_hidden_layers, config.hidden_size, config.intermediate_size
    # One decoder layer: the inputs of its norms (also in float32), of its projections and of attention, the
    # gate with its two halves, and the LoRA branches' copies of their inputs in float32.
    layer = tokens * (size * (8 * hidden + 5 * inner) + 4 * (6 * hidden + inner))
    kept = layers * tokens * hidden * size
    decoder = kept + 2 * layer if parameters.gradient_checkpointing else (layers + 1) * layer
    answers = len(batch) * _ANSWER_TOKENS * config.vocab_size * (size + 3 * 4)
    return int(decoder + answers + _tower(config, parameters, sum(extent.crops for extent in batch), size))


def _tower(config: Phi3VConfig, parameters: TrainLoraParameters, crops: int, size: int) -> int:
    """Return the bytes of the vision tower and the crops; without LoRA in it, backward needs nothing."""
    tower = config.vision_config
    seen = crops * ((tower.image_size // tower.patch_size) ** 2 + 1)
    pixels = crops * 3 * tower.image_size**2 * (4 + size)
    layer = seen * size * (6 * tower.hidden_size + 2 * tower.intermediate_size)
    if "tower" not in parameters.lora_target_modules:
        return int(pixels + layer)
    if parameters.gradient_checkpointing:
        return int(pixels + 2 * layer + tower.num_hidden_layers * seen * size * tower.hidden_size)
    return int(pixels + tower.num_hidden_layers * 2 * layer)


def room(device: str) -> Room:
    """Return the free memory of the device."""
    if device == "cuda":
        free, _ = torch.cuda.mem_get_info()
        return Room(free, torch.cuda.get_device_name())
    return Room(_free_main_memory(), "this machine")


def _free_main_memory() -> int:
    """Return the free main memory, or the container's limit if that is less."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    information = Path("/proc/meminfo")
    if information.exists():
        line = next(line for line in information.read_text().splitlines() if line.startswith("MemAvailable"))
        free = int(line.split()[1]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and (text := limit.read_text().strip()).isdecimal():
        free = min(free, int(text) - int(used.read_text()))
    return free


def check(needed: Estimate, offered: Room, parameters: TrainLoraParameters) -> None:
    """Refuse a training that cannot fit.

    Raises:
        UserError: far more memory is needed than is free; the message says which parameters to lower.
    """
    if needed.total > _TOLERANCE * offered.free:
        raise UserError(
            f"the training would take about {needed}, but {offered.name} has {offered.free / GIB:.1f} GiB "
            "free; " + advice(parameters)
        )


def advice(parameters: TrainLoraParameters) -> str:
    """Return which parameters to lower, starting with those that affect only the speed."""
    means = []
    if parameters.per_device_train_batch_size > 1:
        means.append(
            f"lower per_device_train_batch_size (now {parameters.per_device_train_batch_size}; "
            "train_batch_size can stay the same)"
        )
    if not parameters.gradient_checkpointing:
        means.append("set gradient_checkpointing to true")
    if parameters.num_crops > 1:
        means.append(f"lower num_crops (now {parameters.num_crops})")
    if "tower" in parameters.lora_target_modules:
        means.append("remove the tower from lora_target_modules")
    return ", or ".join([*means, "use a device with more memory"])

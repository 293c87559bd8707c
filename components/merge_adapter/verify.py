"""Verify a merge: the merged model must give the same outputs as base and adapter.

Both compute in float32, but neither is stored in it: a layer's weights are converted while it computes.
On a CPU the stored weights are mapped from their files, whose pages the system can drop at any time. What
stays in memory is the largest layer in float32, the embeddings, and the activations.
"""

import gc
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from PIL import Image
from torch import nn

from components.merge_adapter.shards import DTYPES
from fovea.errors import UserError
from fovea.phi3v import Phi3VForCausalLM, Phi3VProcessor
from fovea.task import Task

TOLERANCE = {"F32": 1e-3, "F16": 1e-2, "BF16": 5e-2}
"""Largest difference of two logits, as a share of the largest logit, by the dtype of the stored weights.
Both models compute in float32: the only difference is the rounding of the merged weights."""

_POSITIONS = 16
_PICTURES = (((320, 240), 1), ((200, 420), 2), ((640, 300), 4))
"""Sizes of the synthetic pictures, and the crops of each at most: more would prove no more."""


def verify(base: Path, adapter: Path, merged: Path, task: Task, stored: str) -> float:
    """Compare the logits of ``merged`` with those of base and adapter on a few synthetic pictures.

    The models are loaded one after the other, on the GPU if there is one with enough free memory.

    Args:
        base: Folder of the base model.
        adapter: Folder of the adapter.
        merged: Folder of the merged model.
        task: The task with the question.
        stored: The weights' safetensors dtype, which determines the tolerance.

    Returns:
        The largest difference as a share of the largest logit.

    Raises:
        UserError: they differ by more than the tolerance.
    """
    device, dtype = _device(merged), DTYPES[stored]
    inputs = [each.to(device) for each in _samples(merged, task)]
    expected = _logits(PeftModel.from_pretrained(_load(base, dtype), adapter), inputs, device)
    # PEFT's wrapped model has reference cycles: without this, the base would stay in memory.
    gc.collect()
    actual = _logits(_load(merged, dtype), inputs, device)
    difference = max(
        float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-6))
        for ours, theirs in zip(actual, expected, strict=True)
    )
    if not difference <= TOLERANCE[stored]:
        raise UserError(
            f"the merged model's logits differ from those of base and adapter by {difference:.2g}, more than "
            f"{TOLERANCE[stored]:g}: the merge is wrong and was discarded; run the step again, and report it "
            "if it happens again"
        )
    return difference


def _device(folder: Path) -> str:
    if not torch.cuda.is_available():
        return "cpu"
    stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    # Half as much again for the activations, the largest layer in float32, and layers that are not linear.
    return "cuda" if torch.cuda.mem_get_info()[0] > 1.5 * stored + (2 << 30) else "cpu"


def _samples(folder: Path, task: Task) -> list[Any]:
    """Return synthetic pictures, each with the task's question and its template as the answer."""
    green, blue = Image.linear_gradient("L"), Image.radial_gradient("L")
    picture = Image.merge("RGB", (green.rotate(90), green, blue))
    processor = Phi3VProcessor.from_pretrained(folder, local_files_only=True)
    text = task.prompt() + task.template
    most = processor.image_processor.num_crops
    return [
        processor(text=text, images=[picture.resize(size)], num_crops=min(crops, most), return_tensors="pt")
        for size, crops in _PICTURES
    ]


def _load(folder: Path, dtype: torch.dtype) -> Any:
    return Phi3VForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)


def _compute_in_float32(model: Any) -> None:
    """Make a model of any dtype compute in float32; linear layers keep their dtype, the rest is small."""
    for module in model.modules():
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(_widen)
            module.register_forward_hook(partial(_restore, module.weight.data))
            own = [] if module.bias is None else [module.bias]
        for tensor in own:
            if tensor.is_floating_point():
                tensor.data = tensor.data.float()


def _restore(stored: torch.Tensor, module: nn.Linear, *_: Any) -> None:
    module.weight.data = stored


def _widen(module: nn.Linear, inputs: Any) -> None:
    module.weight.data = module.weight.data.float()


@torch.inference_mode()
def _logits(model: Any, samples: list[Any], device: str) -> list[torch.Tensor]:
    model = model.to(device).eval()
    _compute_in_float32(model)
    return [model(**each, logits_to_keep=_POSITIONS, use_cache=False).logits.cpu() for each in samples]

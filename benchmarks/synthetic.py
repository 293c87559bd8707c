"""Models with random weights, and batches for them, for measurements."""

import hashlib
import math
from typing import Any

import torch
from numpy.random import PCG64, Generator
from PIL import Image
from transformers import AutoModelForCausalLM
from transformers.initialization import no_init_weights

from fovea.phi3v import Phi3VConfig, Phi3VForCausalLM, Phi3VImageProcessor
from fovea.phi3v.modeling import IGNORED_LABEL

PROMPT_TOKENS, ANSWER_TOKENS = 32, 32
"""Approximate number of text tokens of the catalogue's question and answer."""

SHAPES = {"1:1": (672, 672), "2:3": (448, 672)}
"""Pictures by the ratio of their sides: width and height in pixels."""

# A prime, so that columns of a matrix do not repeat.
_BLOCK = 1_000_003


def configuration(size: str) -> Phi3VConfig:
    """Return the configuration of a model of a given size.

    Args:
        size: "published"; "middling", which a CPU runs in seconds: a narrower decoder with 6 and a narrower
            tower with 12 layers, whose ratio of work is about the published one, with the published
            crops and vocabulary; "tiny", for tests.
    """
    rotary = {"type": "su", "short_factor": [1.0] * 48, "long_factor": [4.0] * 48}
    common: dict[str, Any] = {"max_position_embeddings": 131072, "rope_scaling": rotary}
    if size == "published":
        return Phi3VConfig(**common)
    if size == "middling":
        return Phi3VConfig(
            hidden_size=960,
            intermediate_size=2560,
            num_hidden_layers=6,
            num_attention_heads=10,
            num_key_value_heads=10,
            vision_config={
                "hidden_size": 192,
                "intermediate_size": 768,
                "num_hidden_layers": 12,
                "num_attention_heads": 3,
                "image_size": 336,
                "patch_size": 14,
            },
            **common,
        )
    if size == "tiny":
        return Phi3VConfig(
            hidden_size=192,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            vision_config={
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 3,
                "num_attention_heads": 2,
                "image_size": 28,
                "patch_size": 7,
            },
            **common,
        )
    raise ValueError(f"{size} is not a size: published, middling or tiny")


def random_model(config: Phi3VConfig, dtype: torch.dtype, device: str) -> Phi3VForCausalLM:
    """Return a model with the weights of `random_weight`, created on its device."""
    with torch.device(device), no_init_weights():
        model: Phi3VForCausalLM = AutoModelForCausalLM.from_config(config, dtype=dtype)
    block = random_block(dtype, device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(random_weight(name, parameter.shape, block))
    return model


def random_block(dtype: torch.dtype, device: str = "cpu") -> torch.Tensor:
    """Return standard normal numbers, always the same, from which weights are made."""
    return torch.randn(_BLOCK, generator=torch.Generator().manual_seed(0)).to(device, dtype)


def random_weight(name: str, shape: torch.Size, block: torch.Tensor) -> torch.Tensor:
    """Return a weight that depends on its name: 0.02 times the block, plus 1 where a norm multiplies.

    The block is repeated from an offset that depends on the name, which is much faster than billions of
    random numbers.
    """
    count = math.prod(shape)
    start = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") % len(block)
    numbers = block.roll(-start).mul_(0.02)
    if name.endswith("weight") and ("norm" in name or "layrnorm" in name):
        numbers += 1
    return numbers.repeat(-(-count // len(block)))[:count].view(shape)


def training_batch(
    config: Phi3VConfig, *, num_crops: int, shape: str, pictures: int, device: str, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Return a batch like the processor's: each sample is text, a picture and a supervised answer.

    Args:
        config: of the model.
        num_crops: the maximum crops of a picture.
        shape: one of `SHAPES`.
        pictures: the number of samples, each with one picture.
        device: of the tensors.
        dtype: of the pixels.

    Returns:
        The arguments of `Phi3VForCausalLM.forward`, including `labels`. All samples have the same length.
    """
    random = Generator(PCG64(0))
    processor = Phi3VImageProcessor(
        num_crops=num_crops,
        crop_size=config.vision_config.image_size,
        num_img_tokens=config.tokens_per_side**2,
    )
    noise = [Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype="uint8")) for _ in range(pictures)]
    images = processor.preprocess([picture.resize(SHAPES[shape]) for picture in noise])
    image_tokens = int(images["num_img_tokens"][0])
    text = random.integers(3, 32000, (pictures, PROMPT_TOKENS + ANSWER_TOKENS))
    prompt, answer = torch.split(torch.from_numpy(text), [PROMPT_TOKENS, ANSWER_TOKENS], dim=1)
    placeholders = torch.full((pictures, image_tokens), config.image_token_id)
    ids = torch.cat([prompt, placeholders, answer], dim=1)
    labels = ids.clone()
    labels[:, :-ANSWER_TOKENS] = IGNORED_LABEL
    batch = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": labels,
        "image_sizes": images["image_sizes"],
        "pixel_values": images["pixel_values"].to(dtype),
    }
    return {name: value.to(device) for name, value in batch.items()}

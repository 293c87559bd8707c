"""How the numbers in goldens/ were made: test images, weights and configurations.

The numbers are what the published modelling code computed in float32. An image's placeholders are stored as
negative numbers, as that code has them.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.random import PCG64, Generator
from PIL import Image

from fovea.phi3v import Phi3VConfig, Phi3VForCausalLM
from tests.left_out import Missing

GOLDENS = Path(__file__).parent / "goldens"

# The published factors at every sixth of 48 frequencies: for heads of 16 channels.
SHORT_FACTORS = [
    1.05,
    1.2500000000000002,
    1.9000000000000008,
    2.000000000000001,
    2.000000000000001,
    2.000000000000001,
    2.3499999999999996,
    2.6999999999999984,
]
LONG_FACTORS = [
    1.0299999713897705,
    1.2999999523162842,
    3.68999981880188,
    15.65999984741211,
    30.009998321533203,
    56.20000457763672,
    61.96000671386719,
    63.850006103515625,
]


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    """The published checkpoint's tokenizer and configuration, where they lie beside the repository."""
    folder = Path(__file__).parents[3] / "shared" / "phi3v" / "checkpoint"
    if not folder.is_dir():
        pytest.skip(Missing.CHECKPOINT)
    return folder


@pytest.fixture(scope="session")
def read_goldens() -> Callable[[str], tuple[list[dict[str, Any]], Any]]:
    """The cases of one kind, and their arrays."""

    def read(kind: str) -> tuple[list[dict[str, Any]], Any]:
        return json.loads((GOLDENS / f"{kind}.json").read_text()), np.load(GOLDENS / f"{kind}.npz")

    return read


@pytest.fixture(scope="session")
def golden_picture() -> Callable[[int, int, int], Image.Image]:
    def picture(seed: int, width: int, height: int) -> Image.Image:
        shape = (height // 8 + 1, width // 8 + 1, 3)
        cells = Generator(PCG64(seed)).integers(0, 256, shape, dtype=np.uint8)
        return Image.fromarray(cells.repeat(8, axis=0).repeat(8, axis=1)[:height, :width])

    return picture


@pytest.fixture(scope="session")
def golden_model() -> Callable[[dict[str, int]], Phi3VForCausalLM]:
    def model(case: dict[str, int]) -> Phi3VForCausalLM:
        made = Phi3VForCausalLM(_configuration(case)).eval()
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                parameter.copy_(torch.from_numpy(_weight(name, tuple(parameter.shape))))
        return made

    return model


def _configuration(case: dict[str, int]) -> Phi3VConfig:
    return Phi3VConfig(
        num_hidden_layers=2,
        hidden_size=64,
        num_attention_heads=4,
        num_key_value_heads=case.get("kv", 4),
        intermediate_size=128,
        original_max_position_embeddings=case.get("orig_max", 4096),
        max_position_embeddings=case.get("maxpos", 131072),
        rope_scaling={"type": "su", "short_factor": SHORT_FACTORS, "long_factor": LONG_FACTORS},
        vision_config={
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 2,
            "num_attention_heads": 16,
            "image_size": 336,
            "patch_size": 14,
        },
    )


def _weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") % 2**63
    noise = Generator(PCG64(seed)).standard_normal(shape, dtype=np.float32)
    if "norm" in name or "layrnorm" in name:
        return 0.1 * noise + name.endswith("weight")
    if name == "model.embed_tokens.weight":
        return 0.5 * noise
    return (0.05 if len(shape) > 1 else 0.02) * noise

"""A small model with random weights, its processor and pictures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.random import PCG64, Generator
from PIL import Image

from fovea.phi3v import Phi3VConfig, Phi3VForCausalLM, Phi3VProcessor
from tests.tiny_model import write_tiny_model

PROMPT = "<|user|>\n<|image_1|>What is it?<|end|>\n<|assistant|>\n"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with crops of 28 pixels, 4 tokens each. Not to be written to."""
    return write_tiny_model(tmp_path_factory.mktemp("phi3v") / "tiny")


@pytest.fixture(scope="session")
def model(tiny: Path) -> Phi3VForCausalLM:
    """Not to be changed."""
    return Phi3VForCausalLM.from_pretrained(tiny).eval()


@pytest.fixture(scope="session")
def processor(tiny: Path) -> Phi3VProcessor:
    return Phi3VProcessor.from_pretrained(tiny)


@pytest.fixture(scope="session")
def picture() -> Callable[..., Image.Image]:
    def make(seed: int = 0, width: int = 60, height: int = 40) -> Image.Image:
        cells = Generator(PCG64(seed)).integers(0, 256, (5, 5, 3), dtype=np.uint8)
        return Image.fromarray(cells).resize((width, height))

    return make


@pytest.fixture(scope="session")
def rebuilt(model: Phi3VForCausalLM) -> Callable[..., Phi3VForCausalLM]:
    """The same weights under another configuration."""

    def rebuild(**changes: Any) -> Phi3VForCausalLM:
        config = Phi3VConfig(**(model.config.to_dict() | changes))
        config._attn_implementation = changes.get("attn_implementation")
        other = Phi3VForCausalLM(config).eval()
        other.load_state_dict(model.state_dict())
        return other

    return rebuild


@pytest.fixture(scope="session")
def greedy_by_recomputation() -> Callable[..., tuple[list[int], torch.Tensor]]:
    """A continuation for which the whole sequence is computed anew at each step, and its logits."""

    def generate(model: Phi3VForCausalLM, inputs: Any, steps: int) -> tuple[list[int], torch.Tensor]:
        ids, logits = inputs["input_ids"], []
        images = {name: inputs[name] for name in ("pixel_values", "image_sizes") if name in inputs}
        with torch.no_grad():
            for _ in range(steps):
                last = model(ids, **images, use_cache=False).logits[:, -1]
                logits.append(last[0])
                ids = torch.cat([ids, last.argmax(-1, keepdim=True)], dim=1)
        return ids[0, inputs["input_ids"].shape[1] :].tolist(), torch.stack(logits)

    return generate

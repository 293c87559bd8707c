"""A checkpoint of the published size: it loads in little more memory than it takes, and trains on a CPU."""

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.synthetic_checkpoint import write_synthetic_checkpoint
from fovea.phi3v import Phi3VConfig, Phi3VForCausalLM

PUBLISHED_TENSORS, PUBLISHED_BYTES = 592, 8_293_242_880
LOAD_LIMIT = 1.15
"""Peak resident memory of loading, by the bytes of the tensors."""

# Weights are mapped, and come into memory when they are read: all of them are, before the peak is taken.
LOAD = """
import json, sys
import torch
from benchmarks.measure import peak_resident_bytes
from fovea.phi3v import Phi3VForCausalLM

model = Phi3VForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
finite = all(bool(weight.amax().isfinite()) for weight in model.parameters())
print(json.dumps({"finite": finite, "peak": peak_resident_bytes(), "tensors": len(model.state_dict())}))
"""

STEP = """
import json, sys, time
import torch
from benchmarks.measure import peak_resident_bytes
from benchmarks.synthetic import training_batch
from benchmarks.workload import with_lora
from fovea.phi3v import Phi3VForCausalLM

model = Phi3VForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
batch = training_batch(
    model.config, num_crops=4, shape="1:1", pictures=1, device="cpu", dtype=torch.bfloat16
)
tuned = with_lora(model, checkpointing=True).train()
start = time.perf_counter()
loss = tuned(**batch).loss
loss.backward()
seconds = time.perf_counter() - start
trained = {name: weight.grad for name, weight in tuned.named_parameters() if weight.requires_grad}
print(json.dumps({
    "loss": loss.item(),
    "length": batch["input_ids"].shape[1],
    "seconds": seconds,
    "peak": peak_resident_bytes(),
    "gradients": {name: float(gradient.abs().max()) for name, gradient in trained.items()},
}))
"""


def run(script: str, folder: Path) -> dict:
    made = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return json.loads(made.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("published") / "checkpoint"
    assert write_synthetic_checkpoint(folder) == PUBLISHED_BYTES
    yield folder
    for file in folder.iterdir():
        file.unlink()


def test_the_published_size() -> None:
    with torch.device("meta"):
        weights = Phi3VForCausalLM(Phi3VConfig()).state_dict().values()
    assert len(weights) == PUBLISHED_TENSORS
    assert sum(weight.numel() * torch.bfloat16.itemsize for weight in weights) == PUBLISHED_BYTES


@pytest.mark.prove
@pytest.mark.timeout(1800)
def test_loads_in_little_more_than_its_size(checkpoint: Path) -> None:
    made = run(LOAD, checkpoint)
    print(f"peak {made['peak']:,} bytes, {made['peak'] / PUBLISHED_BYTES:.3f} of the tensors")
    assert made["tensors"] == PUBLISHED_TENSORS
    assert made["finite"]
    assert PUBLISHED_BYTES < made["peak"] < LOAD_LIMIT * PUBLISHED_BYTES


@pytest.mark.prove
@pytest.mark.timeout(1800)
def test_a_training_step(checkpoint: Path) -> None:
    made = run(STEP, checkpoint)
    gradients = made["gradients"]
    print(f"loss {made['loss']:.3f}, {made['seconds']:.1f} s, peak {made['peak']:,} bytes")
    assert math.isfinite(made["loss"])
    assert len(gradients) == 32 * 4 * 2
    assert all(math.isfinite(largest) for largest in gradients.values())
    # LoRA's B starts at zero: at the first step only B has a gradient.
    assert all((largest > 0) == ("lora_B" in name) for name, largest in gradients.items())

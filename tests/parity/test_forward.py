"""The model gives the numbers that the published modelling code gives."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import BatchFeature

from fovea.phi3v import Phi3VForCausalLM, Phi3VImageProcessor, Phi3VProcessor

NAMES = ["text_only", "one_image", "training_text", "two_images_gqa", "long_rope"]


class Golden:
    """A case with its model and its input."""

    def __init__(
        self, case: dict[str, Any], arrays: Any, model: Phi3VForCausalLM, inputs: BatchFeature
    ) -> None:
        self.case, self.model, self.inputs = case, model, inputs
        self.expected = {
            key: arrays[f"{case['name']}.{key}"]
            for key in ("last_logits", "logsumexp", "argmax", "greedy")
            if f"{case['name']}.{key}" in arrays
        }


@pytest.fixture(scope="module", params=NAMES)
def golden(request, read_goldens, golden_picture, golden_model):
    cases, arrays = read_goldens("forward")
    case = next(case for case in cases if case["name"] == request.param)
    ids = torch.tensor(arrays[f"{case['name']}.input_ids"]).long()
    inputs = BatchFeature({"input_ids": ids.masked_fill(ids < 0, 32044)[None]})
    if case["images"]:
        pictures = [golden_picture(**image) for image in case["images"]]
        crops = Phi3VImageProcessor()(pictures, num_crops=case["num_crops"])
        inputs |= {name: crops[name] for name in ("pixel_values", "image_sizes")}
    return Golden(case, arrays, golden_model(case["config"]), inputs)


def test_forward(golden):
    with torch.no_grad():
        logits = golden.model(**golden.inputs).logits[0]
    expected = golden.expected
    np.testing.assert_allclose(logits[-1].numpy(), expected["last_logits"], rtol=0, atol=2e-5)
    np.testing.assert_allclose(logits.logsumexp(-1).numpy(), expected["logsumexp"], rtol=0, atol=3e-4)
    np.testing.assert_array_equal(logits.argmax(-1).numpy(), expected["argmax"])


@pytest.mark.parametrize("golden", ["one_image", "long_rope"], indirect=True)
def test_cached_generation(golden):
    expected = golden.expected["greedy"].tolist()
    answer = golden.model.generate(**golden.inputs, max_new_tokens=len(expected), do_sample=False)
    assert answer[0, golden.inputs["input_ids"].shape[1] :].tolist() == expected


def test_ids(golden, checkpoint, golden_picture):
    processor = Phi3VProcessor.from_pretrained(checkpoint)
    case = golden.case
    pictures = [golden_picture(**image) for image in case["images"]] or None
    made = processor(case["prompt"], pictures, num_crops=case["num_crops"], return_tensors="pt")
    assert made["input_ids"].tolist() == golden.inputs["input_ids"].tolist()
    assert made["attention_mask"].all()
    assert set(made) == set(golden.inputs) | {"attention_mask"}


def test_every_golden_is_held(read_goldens):
    assert [case["name"] for case in read_goldens("forward")[0]] == NAMES

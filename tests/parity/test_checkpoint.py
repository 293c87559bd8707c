"""Files of the published checkpoint are read as they are."""

import json

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
)

from fovea.phi3v import Phi3VConfig, Phi3VForCausalLM, Phi3VImageProcessor, Phi3VProcessor


@pytest.fixture(scope="module")
def published(checkpoint) -> dict:
    return json.loads((checkpoint / "config.json").read_text())


def test_names_and_shapes(checkpoint):
    tensors = json.loads((checkpoint / "tensors.json").read_text())["tensors"]
    with torch.device("meta"):
        model = Phi3VForCausalLM(AutoConfig.from_pretrained(checkpoint))
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes == {name: tensor["shape"] for name, tensor in tensors.items()}


def test_config_is_read_as_it_is(checkpoint, published):
    config = AutoConfig.from_pretrained(checkpoint)
    assert isinstance(config, Phi3VConfig)
    rope = config.rope_parameters
    assert (rope["rope_type"], rope["rope_theta"]) == ("longrope", 10000.0)
    assert rope["short_factor"] == published["rope_scaling"]["short_factor"]
    assert rope["long_factor"] == published["rope_scaling"]["long_factor"]
    assert (config.vision_config.num_hidden_layers, config.vision_config.image_size) == (24, 336)
    assert config.dtype == torch.bfloat16
    assert config._attn_implementation is None


def test_config_is_written_in_its_own_form(checkpoint, published, tmp_path):
    AutoConfig.from_pretrained(checkpoint).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert "auto_map" not in written
    dropped = {"_name_or_path", "_attn_implementation", "auto_map", "torch_dtype", "transformers_version"}
    assert {name: written[name] for name in published if name not in dropped} == {
        name: value for name, value in published.items() if name not in dropped
    }
    assert set(written) - set(published) <= {"dtype", "embd_pdrop", "resid_pdrop", "pad_token_id"}
    again = AutoConfig.from_pretrained(tmp_path)
    assert again.rope_parameters == AutoConfig.from_pretrained(checkpoint).rope_parameters


def test_processor_is_read_and_written(checkpoint, tmp_path):
    processor = AutoProcessor.from_pretrained(checkpoint)
    assert isinstance(processor, Phi3VProcessor)
    assert isinstance(AutoImageProcessor.from_pretrained(checkpoint), Phi3VImageProcessor)
    assert AutoImageProcessor.from_pretrained(checkpoint, num_crops=4).num_crops == 4
    processor.save_pretrained(tmp_path)
    text = "<|user|>\nÇa coûte 1390.0 ¥?\n\n<|end|>\n<|assistant|>\n"
    ids = processor(text)["input_ids"]
    assert AutoProcessor.from_pretrained(tmp_path)(text)["input_ids"] == ids
    assert AutoTokenizer.from_pretrained(checkpoint)([text]).input_ids == ids
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    original = json.loads((checkpoint / "preprocessor_config.json").read_text())
    assert written == {name: value for name, value in original.items() if name != "auto_map"} | {
        "crop_size": 336
    }


def test_published_turns(checkpoint):
    """The built-in chat template writes plain messages as the published tokenizer's does."""
    processor = AutoProcessor.from_pretrained(checkpoint)
    messages = [
        {"role": "user", "content": "Two and two?"},
        {"role": "assistant", "content": "Four."},
        {"role": "user", "content": "Sure?"},
    ]
    for ask in (True, False):
        expected = processor.tokenizer.apply_chat_template(
            messages, add_generation_prompt=ask, tokenize=False
        )
        assert processor.apply_chat_template(messages, add_generation_prompt=ask) == expected

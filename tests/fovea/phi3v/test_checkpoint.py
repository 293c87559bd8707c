"""What is loaded and written: names, bits and files."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
)

from fovea.phi3v import Phi3VConfig, Phi3VForCausalLM, Phi3VProcessor

TOWER = "model.vision_embed_tokens.img_processor.vision_model"


def published_names(decoder_layers: int, tower_layers: int) -> set[str]:
    names = {"lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"}
    for layer in range(decoder_layers):
        for part in ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"):
            names.add(f"model.layers.{layer}.{part}.weight")
        names |= {
            f"model.layers.{layer}.{norm}.weight" for norm in ("input_layernorm", "post_attention_layernorm")
        }
    names |= {f"model.vision_embed_tokens.{separator}" for separator in ("sub_GN", "glb_GN")}
    names |= {
        f"model.vision_embed_tokens.img_projection.{n}.{kind}" for n in (0, 2) for kind in ("weight", "bias")
    }
    embeddings = ("class_embedding", "patch_embedding.weight", "position_embedding.weight")
    names |= {f"{TOWER}.embeddings.{name}" for name in embeddings}
    modules = [f"{TOWER}.pre_layrnorm", f"{TOWER}.post_layernorm"]
    for layer in range(tower_layers):
        modules += [
            f"{TOWER}.encoder.layers.{layer}.self_attn.{kind}_proj" for kind in ("q", "k", "v", "out")
        ]
        modules += [
            f"{TOWER}.encoder.layers.{layer}.{part}"
            for part in ("mlp.fc1", "mlp.fc2", "layer_norm1", "layer_norm2")
        ]
    return names | {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")}


def test_there_are_592_published_names():
    with torch.device("meta"):
        model = Phi3VForCausalLM(Phi3VConfig())
    assert len(published_names(32, 24)) == 592
    assert set(model.state_dict()) == published_names(32, 24)
    assert sum(weight.numel() for weight in model.parameters()) * 2 == 8_293_242_880


def test_names_on_disk(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == published_names(2, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]


@pytest.mark.parametrize("shard", ["50GB", "1MB"])
def test_what_is_written_back_is_bit_for_bit_what_was_read(tiny, tmp_path, shard):
    original = {
        name: torch.randn_like(tensor).bfloat16()
        for name, tensor in load_file(tiny / "model.safetensors").items()
    }
    shutil.copytree(tiny, tmp_path / "read")
    Phi3VForCausalLM.from_pretrained(tiny).save_pretrained(tmp_path / "read", state_dict=original)
    model, report = Phi3VForCausalLM.from_pretrained(
        tmp_path / "read", dtype=torch.bfloat16, output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    model.save_pretrained(tmp_path / "written", max_shard_size=shard)
    files = sorted((tmp_path / "written").glob("*.safetensors"))
    assert (len(files) > 1) == (shard == "1MB")
    written = {}
    for file in files:
        written |= load_file(file)
    assert set(written) == set(original)
    assert all(torch.equal(written[name], original[name]) for name in original)
    again = Phi3VForCausalLM.from_pretrained(tmp_path / "written", dtype=torch.bfloat16)
    assert all(torch.equal(tensor, original[name]) for name, tensor in again.state_dict().items())


def test_dtype_is_the_stored_one(tiny, tmp_path):
    Phi3VForCausalLM.from_pretrained(tiny).to(torch.bfloat16).save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.get_tensor("lm_head.weight").dtype == torch.bfloat16
    assert Phi3VForCausalLM.from_pretrained(tmp_path).dtype == torch.bfloat16


def test_auto_classes(tiny):
    assert isinstance(AutoConfig.from_pretrained(tiny), Phi3VConfig)
    assert isinstance(AutoProcessor.from_pretrained(tiny), Phi3VProcessor)
    for auto in (AutoModelForCausalLM, AutoModelForImageTextToText):
        assert isinstance(auto.from_pretrained(tiny), Phi3VForCausalLM)
    text = "<|user|>\nOne  two<|end|>\n<|assistant|>\n"
    assert (
        AutoTokenizer.from_pretrained(tiny)(text).input_ids
        == AutoProcessor.from_pretrained(tiny).tokenizer(text).input_ids
    )


def test_remote_code_is_neither_asked_for_nor_passed_on(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "read")
    for name, entries in {
        "config.json": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
        "preprocessor_config.json": {"AutoImageProcessor": "evil.Images", "AutoProcessor": "evil.Processor"},
    }.items():
        settings = json.loads((tmp_path / "read" / name).read_text()) | {"auto_map": entries}
        (tmp_path / "read" / name).write_text(json.dumps(settings))
    (tmp_path / "read" / "evil.py").write_text("raise SystemExit('ran remote code')\n")
    AutoModelForCausalLM.from_pretrained(tmp_path / "read").save_pretrained(tmp_path / "written")
    AutoProcessor.from_pretrained(tmp_path / "read").save_pretrained(tmp_path / "written")
    for file in (tmp_path / "written").glob("*.json"):
        assert "evil" not in file.read_text(), file


def test_pickled_weights_are_refused(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "pickled")
    weights = load_file(tmp_path / "pickled" / "model.safetensors")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pickled" / "pytorch_model.bin")
    for use in ({}, {"use_safetensors": False}):
        with pytest.raises(OSError, match="safetensors"):
            Phi3VForCausalLM.from_pretrained(tmp_path / "pickled", **use)


@pytest.mark.parametrize("stored", [None, 2, [32000, 7]])
def test_answers_end_whatever_the_checkpoint_says(tiny, tmp_path, stored):
    shutil.copytree(tiny, tmp_path / "read")
    (tmp_path / "read" / "generation_config.json").unlink()
    if stored is not None:
        settings = json.dumps({"eos_token_id": stored, "max_length": 99})
        (tmp_path / "read" / "generation_config.json").write_text(settings)
    generation = Phi3VForCausalLM.from_pretrained(tmp_path / "read").generation_config
    assert set(generation.eos_token_id) == {32007, 32000, 2} | ({7} if stored == [32000, 7] else set())
    assert generation.max_length == (None if stored is None else 99)


def test_a_cast_leaves_the_rotary_frequencies_alone(tiny, model):
    cast = Phi3VForCausalLM.from_pretrained(tiny).half().bfloat16().float()
    assert torch.equal(cast.model.rotary_emb.frequencies, model.model.rotary_emb.frequencies)

"""The configuration: the published form in, the published form out."""

import json

import pytest

from fovea.phi3v import Phi3VConfig

PUBLISHED_FORM = {
    "architectures": ["Phi3VForCausalLM"],
    "auto_map": {"AutoConfig": "configuration_phi3_v.Phi3VConfig"},
    "embd_layer": {"embedding_cls": "image", "hd_transform_order": "sub_glb"},
    "img_processor": {"name": "clip_vision_model", "num_img_tokens": 144},
    "hidden_size": 64,
    "num_attention_heads": 4,
    "max_position_embeddings": 131072,
    "original_max_position_embeddings": 4096,
    "model_type": "phi3_v",
    "rope_scaling": {"type": "su", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8},
    "rope_theta": 10000.0,
    "sliding_window": 131072,
    "_attn_implementation": "flash_attention_2",
}


@pytest.mark.parametrize("kind", ["su", "longrope"])
def test_published_form(tmp_path, kind):
    given = PUBLISHED_FORM | {"rope_scaling": PUBLISHED_FORM["rope_scaling"] | {"type": kind}}
    before = json.dumps(given)
    config = Phi3VConfig(**given)
    assert json.dumps(given) == before
    assert config.rope_parameters["rope_type"] == "longrope"
    assert config.tokens_per_side == 12
    assert config.num_key_value_heads == 4
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    for name in PUBLISHED_FORM.keys() - {"auto_map", "_attn_implementation"}:
        assert written[name] == PUBLISHED_FORM[name], name
    assert not {"auto_map", "_attn_implementation", "rope_parameters", "vision_config"} & set(written)
    again = Phi3VConfig.from_pretrained(tmp_path)
    assert again.rope_parameters == config.rope_parameters
    assert again.vision_config.to_dict() == config.vision_config.to_dict()


def test_another_tower(tmp_path):
    Phi3VConfig(
        vision_config={"hidden_size": 32, "num_attention_heads": 2, "image_size": 64, "patch_size": 8}
    ).save_pretrained(tmp_path)
    config = Phi3VConfig.from_pretrained(tmp_path)
    assert (config.vision_config.hidden_size, config.tokens_per_side) == (32, 4)


def test_without_scaling(tmp_path):
    Phi3VConfig(rope_theta=500.0).save_pretrained(tmp_path)
    rope = Phi3VConfig.from_pretrained(tmp_path).rope_parameters
    assert (rope["rope_type"], rope["rope_theta"]) == ("default", 500.0)


@pytest.mark.parametrize(("image_size", "patch_size"), [(40, 8), (30, 8), (336, 16)])
def test_odd_towers_are_refused(image_size, patch_size):
    with pytest.raises(ValueError, match="even number of patches"):
        Phi3VConfig(vision_config={"image_size": image_size, "patch_size": patch_size})

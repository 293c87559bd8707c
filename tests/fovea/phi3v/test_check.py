"""A checkpoint that is not whole is found before it is loaded, and what is wrong is named."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fovea.errors import UserError
from fovea.phi3v import Phi3VConfig, Phi3VForCausalLM
from fovea.phi3v.checkpoint import check_checkpoint, expected_shapes

NORM = "model.norm.weight"


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_tensors(folder: Path, changes: dict[str, torch.Tensor | None]) -> None:
    tensors: dict[str, Any] = {**load_file(folder / "model.safetensors"), **changes}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        check_checkpoint(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_published_configuration_has_592_tensors():
    assert len(expected_shapes(Phi3VConfig())) == 592


def test_whole_checkpoints(folder: Path, model: Phi3VForCausalLM, tmp_path: Path):
    assert check_checkpoint(folder).hidden_size == 64
    (folder / "model.safetensors").unlink()
    model.to(torch.float32).save_pretrained(folder, max_shard_size="1MB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    check_checkpoint(folder)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read(folder: Path, dtype: torch.dtype):
    change_tensors(folder, {NORM: torch.ones(64, dtype=dtype)})
    check_checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({NORM: None}, "lacks model.norm.weight"),
        ({"score.weight": torch.ones(1)}, "has unexpected score.weight"),
        ({NORM: torch.ones(65)}, "has with another shape model.norm.weight [65] instead of [64]"),
        ({NORM: torch.ones(64, dtype=torch.int8)}, "model.norm.weight is I8, only BF16, F16, F32 are read"),
    ],
    ids=["missing", "besides", "shape", "type"],
)
def test_other_tensors(folder: Path, changes: dict[str, torch.Tensor | None], reason: str):
    change_tensors(folder, changes)
    assert reason in refused(folder)


def test_another_configuration_than_the_weights(folder: Path):
    change_json(folder / "config.json", num_hidden_layers=3)
    assert re.search(r"lacks model\.layers\.2\.input_layernorm\.weight, .* and 3 more", refused(folder))
    change_json(folder / "config.json", rope_scaling={"type": "su", "short_factor": [1.0]})
    assert "config.json: is not a Phi-3-Vision configuration" in refused(folder)


def test_a_file_that_was_cut_off(folder: Path):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "model.safetensors: is not a complete safetensors file" in refused(folder)


@pytest.mark.parametrize("name", ["model-00009-of-00009.safetensors", "../secret.safetensors"])
def test_shards_that_are_not_there(folder: Path, tmp_path: Path, name: str):
    (folder / "model.safetensors").rename(tmp_path / "secret.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {NORM: name}}))
    assert f"lacks {name}, which {index.name} names" in refused(folder)
    index.write_text("{}")
    assert "has no weight_map" in refused(folder)


def test_two_sets_of_weights(folder: Path):
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    assert "contains both model.safetensors and model.safetensors.index.json" in refused(folder)


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("config.json", {"image_token_id": 7}, "the id of <|image|> is 32044, but the model was made for 7"),
        ("preprocessor_config.json", {"crop_size": 56}, "crop_size is 56, but the model was made for 28"),
        ("preprocessor_config.json", {"num_img_tokens": 9}, "num_img_tokens is 9"),
        (
            "preprocessor_config.json",
            {"num_img_tokens": 5},
            "(num_img_tokens must be a square",
        ),
        ("tokenizer.json", {"model": {"type": "BPE"}}, "tokenizer or image processor cannot be read"),
    ],
)
def test_parts_that_do_not_fit(folder: Path, name: str, changes: dict[str, Any], reason: str):
    change_json(folder / name, **changes)
    assert reason in refused(folder)

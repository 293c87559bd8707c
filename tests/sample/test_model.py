import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from fovea.errors import UserError
from fovea.inference import Predictor
from fovea.phi3v import Phi3VForCausalLM, Phi3VProcessor
from fovea.task import product_task
from sample import model
from sample.model import MADE_FILE, SHIPPED_FOLDER, WEIGHTS_FILE, unpack_sample_model
from sample.training import CROP_SIZE, Recipe, write_sample_model

TINY = Recipe(pictures=40, tower_steps=2, tower_batch=4, steps=3, batch=5, writing=2)


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "model"
    assert unpack_sample_model(out) is False
    return out


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was hardly trained, in the form that ships."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    stages: dict[str, list[tuple[int, int]]] = {}
    write_sample_model(
        folder, TINY, lambda what, done, total: stages.setdefault(what, []).append((done, total))
    )
    assert len(stages) >= 3
    for what, calls in stages.items():
        assert calls == sorted(calls), what
        assert calls[-1][0] == calls[-1][1], what
    return folder


def test_what_ships_is_small_and_made_by_the_recipe() -> None:
    weights = SHIPPED_FOLDER / WEIGHTS_FILE
    assert weights.stat().st_size <= 6_000_000
    assert model.read_recipe(weights) == {"recipe": Recipe().__dict__}
    with safe_open(weights, framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118


def test_training_writes_the_form_that_ships(tiny: Path) -> None:
    assert {path.name for path in tiny.iterdir()} == {path.name for path in SHIPPED_FOLDER.iterdir()}

    def shapes(folder: Path) -> dict[str, list[int]]:
        with safe_open(folder / WEIGHTS_FILE, framework="pt") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118

    assert shapes(tiny) == shapes(SHIPPED_FOLDER)
    assert (tiny / "tokenizer.json").read_bytes() == (SHIPPED_FOLDER / "tokenizer.json").read_bytes()


def test_it_is_a_phi3_vision(unpacked: Path) -> None:
    loaded, processor = Phi3VForCausalLM.from_pretrained(unpacked), Phi3VProcessor.from_pretrained(unpacked)
    assert json.loads((unpacked / "config.json").read_text())["architectures"] == ["Phi3VForCausalLM"]
    assert loaded.config.vocab_size == 32064 == loaded.get_input_embeddings().num_embeddings
    assert all(weight.isfinite().all() for weight in loaded.state_dict().values())
    tokenizer = processor.tokenizer
    assert processor.image_token_id == tokenizer.convert_tokens_to_ids("<|image|>") == 32044
    assert [tokenizer.convert_tokens_to_ids(name) for name in ("<|end|>", "<|endoftext|>")] == [32007, 32000]
    assert all(isinstance(tokenizer.decode([number]), str) for number in range(32045))
    assert processor.image_processor.crop_size == CROP_SIZE
    assert not list(unpacked.glob("*.bin"))
    assert not list(unpacked.glob("*.py"))


def test_every_id_has_the_row_it_was_trained_with(unpacked: Path) -> None:
    small, full = load_file(SHIPPED_FOLDER / WEIGHTS_FILE), load_file(unpacked / WEIGHTS_FILE)
    assert small.keys() == full.keys()
    learned = len(json.loads((SHIPPED_FOLDER / "tokenizer.json").read_text())["model"]["vocab"]) - 45
    for name, tensor in full.items():
        if name not in ("model.embed_tokens.weight", "lm_head.weight"):
            assert torch.equal(tensor, small[name]), name
            continue
        assert torch.equal(tensor[:learned], small[name][:learned])
        assert torch.equal(tensor[32000:], small[name][learned:-1])
        assert (tensor[learned:32000] == small[name][-1]).all()


def test_it_answers_about_pictures(unpacked: Path) -> None:
    predictor = Predictor.load(unpacked, product_task())
    answer = predictor.answer([Image.new("RGB", (300, 200), "red")], max_new_tokens=4)[0]
    assert 1 <= answer.completion_tokens <= 4


def test_it_is_reused(unpacked: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in unpacked.iterdir()}
    assert unpack_sample_model(unpacked) is True
    assert {path: path.stat().st_mtime_ns for path in unpacked.iterdir()} == before


def test_another_model_or_anything_else_there_stays(unpacked: Path, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not this sample model; .* --out"):
        unpack_sample_model(unpacked, tiny)
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="is not this sample model"):
        unpack_sample_model(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]
    (tmp_path / MADE_FILE).write_text("{ half")
    with pytest.raises(UserError, match="is not this sample model"):
        unpack_sample_model(tmp_path)


def test_an_interrupted_unpacking_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(model, "_repeat_unused_rows", interrupt)
    with pytest.raises(KeyboardInterrupt):
        unpack_sample_model(tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_a_damaged_shipped_model_leaves_nothing(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "shipped")
    (tmp_path / "shipped" / "tokenizer.json").write_text("{ half")
    with pytest.raises(ValueError, match="Expecting"):
        unpack_sample_model(tmp_path / "model", tmp_path / "shipped")
    assert [path.name for path in tmp_path.iterdir()] == ["shipped"]

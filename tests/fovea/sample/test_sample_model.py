import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from fovea.errors import UserError
from fovea.inference import Predictor
from fovea.phi3v import Phi3VForCausalLM, Phi3VProcessor
from fovea.sample.model import CROP_SIZE, Recipe, make_sample_model
from fovea.task import product_task

TINY = Recipe(pictures=40, tower_steps=2, tower_batch=4, steps=3, batch=5, writing=2)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was hardly trained; everything else is as in the real one."""
    out = tmp_path_factory.mktemp("models") / "model"
    stages: dict[str, list[tuple[int, int]]] = {}
    reused = make_sample_model(
        out, TINY, lambda what, done, total: stages.setdefault(what, []).append((done, total))
    )
    assert not reused
    assert len(stages) >= 3
    for what, calls in stages.items():
        assert calls == sorted(calls), what
        assert calls[-1][0] == calls[-1][1], what
    return out


def test_it_is_a_phi3_vision(made: Path) -> None:
    model, processor = Phi3VForCausalLM.from_pretrained(made), Phi3VProcessor.from_pretrained(made)
    assert json.loads((made / "config.json").read_text())["architectures"] == ["Phi3VForCausalLM"]
    assert model.config.vocab_size == 32064 == model.get_input_embeddings().num_embeddings
    assert all(weight.isfinite().all() for weight in model.state_dict().values())
    tokenizer = processor.tokenizer
    assert processor.image_token_id == tokenizer.convert_tokens_to_ids("<|image|>") == 32044
    assert [tokenizer.convert_tokens_to_ids(name) for name in ("<|end|>", "<|endoftext|>")] == [32007, 32000]
    assert all(isinstance(tokenizer.decode([number]), str) for number in range(32045))
    assert processor.image_processor.crop_size == CROP_SIZE
    assert not list(made.glob("*.bin"))
    assert not list(made.glob("*.py"))


def test_unused_ids_share_one_row(made: Path) -> None:
    """The full vocabulary is the small one's: what never occurred is as unlikely as it was in training."""
    weights = {
        name: tensor for path in made.glob("*.safetensors") for name, tensor in load_file(path).items()
    }
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(weights[name][31000], weights[name][31999])
        assert not torch.equal(weights[name][31999], weights[name][32007])


def test_it_answers_about_pictures(made: Path) -> None:
    predictor = Predictor.load(made, product_task())
    answer = predictor.answer([Image.new("RGB", (300, 200), "red")], max_new_tokens=4)[0]
    assert answer.completion_tokens <= 4


def test_it_is_reused(made: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.iterdir()}
    assert make_sample_model(made, TINY) is True
    assert {path: path.stat().st_mtime_ns for path in made.iterdir()} == before


def test_what_else_lies_there_stays(made: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds something else .* --out"):
        make_sample_model(made, Recipe(seed=7))
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="holds something else"):
        make_sample_model(tmp_path, TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]
    (tmp_path / "sample-model.json").write_text("{ half")
    with pytest.raises(UserError, match="holds something else"):
        make_sample_model(tmp_path, TINY)


def test_an_interrupted_making_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_sample_model(tmp_path / "model", TINY, interrupt)
    assert not list(tmp_path.iterdir())

"""Answers are a pure function of the model and the request."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from fovea.errors import UserError
from fovea.inference import Predictor
from fovea.task import product_task
from tests.tiny_model import write_tiny_model

ANSWER = "Product: Wool|Silk scarf,|bag, Category: SCARVES,|BAGS, Full Price: 120.0|340.0"


def picture(number: int) -> Image.Image:
    """A picture of its own shape and colours for every number."""
    random = np.random.default_rng(number)
    width, height = random.integers(20, 260, 2)
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:] = random.integers(0, 256, 3)
    pixels[height // 4 : height // 2, width // 4 : width // 2] = random.integers(0, 256, 3)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """A model that says noise, a different one about every picture."""
    return Predictor.load(write_tiny_model(tmp_path_factory.mktemp("noise")), device="cpu")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """A model that answers the task."""
    folder = write_tiny_model(tmp_path_factory.mktemp("tuned"), answer=ANSWER, task=product_task())
    return Predictor.load(folder, device="cpu")


def test_answers_are_parsed(tuned: Predictor) -> None:
    answers = tuned.answer([picture(number) for number in range(12)])
    assert all(answer.fields is not None and answer.parse_error is None for answer in answers)
    assert {answer.fields["full_price"] for answer in answers if answer.fields} == {120.0, 340.0}
    assert all(answer.finish_reason == "stop" for answer in answers)
    # The words, each a token here, and <|end|>.
    assert {answer.completion_tokens for answer in answers} == {len(ANSWER.split()) + 1}
    assert all(answer.prompt_tokens > 30 for answer in answers)


def test_what_cannot_be_parsed_says_why(noise: Predictor) -> None:
    answer = noise.answer([picture(0)], max_new_tokens=8)[0]
    assert answer.fields is None
    assert "template" in str(answer.parse_error)
    assert (answer.finish_reason, answer.completion_tokens) == ("length", 8)


@settings(max_examples=8)
@given(numbers=st.lists(st.integers(0, 30), min_size=1, max_size=9), batch_size=st.integers(1, 9))
def test_answers_do_not_depend_on_the_company(noise: Predictor, numbers: list[int], batch_size: int) -> None:
    together = noise.answer([picture(number) for number in numbers], 12, batch_size)
    alone = [noise.answer([picture(number)], 12)[0] for number in numbers]
    assert together == alone


def test_answers_of_a_batch_have_limits_of_their_own(noise: Predictor) -> None:
    samples = [noise.prepare(noise.task.prompt(), [picture(number)]) for number in range(4)]
    limits = [3, 12, 1, 7]
    together = noise.generate_batch(samples, limits)
    alone = [noise.generate_batch([sample], limit)[0] for sample, limit in zip(samples, limits, strict=True)]
    assert together == alone
    assert [answer.completion_tokens for answer in together] == limits


def test_scores_are_the_log_probabilities_of_a_plain_forward_pass(tuned: Predictor) -> None:
    samples = [tuned.prepare(tuned.task.prompt(), [picture(number)]) for number in range(5)]
    told: list[list[int]] = []
    together = tuned.generate_batch(samples, 30, lambda tokens: told.append(tokens) or [False] * 5)
    for sample, answer, answered in zip(samples, together, zip(*told, strict=True), strict=True):
        ids = torch.cat([sample.input_ids, torch.tensor(answered)])[None]
        with torch.inference_mode():
            logits = tuned.model(
                input_ids=ids, pixel_values=sample.pixel_values, image_sizes=sample.image_sizes
            ).logits[0, sample.tokens - 1 : -1]
        logprobs = logits.log_softmax(-1)[range(len(answered)), answered]
        # A word a token: of Product: Wool scarf, Category: SCARVES, Full Price: 120.0 and the end.
        places = {"product": slice(1, 3), "category": slice(4, 5), "full_price": slice(7, 9)}
        assert answer.scores == {
            name: pytest.approx(float(logprobs[place].sum()), abs=1e-5) for name, place in places.items()
        }
        assert any(score < -1e-3 for score in answer.scores.values())
        alone = tuned.generate_batch([sample], 30)[0]
        assert alone.scores == pytest.approx(answer.scores, abs=1e-5)


def test_an_answer_that_was_cut_off_has_scores_of_what_is_whole(tuned: Predictor, noise: Predictor) -> None:
    sample = tuned.prepare(tuned.task.prompt(), [picture(1)])
    cut = tuned.generate_batch([sample], len(ANSWER.split()))[0]
    assert cut.fields is not None
    assert cut.scores is not None
    assert set(cut.scores) == {"product", "category"}
    assert noise.answer([picture(0)], 8)[0].scores is None


def test_each_step_is_told_and_may_stop_an_answer(noise: Predictor) -> None:
    samples = [noise.prepare(noise.task.prompt(), [picture(number)]) for number in range(2)]
    told: list[list[int]] = []

    def on_step(tokens: list[int]) -> list[bool]:
        told.append(tokens)
        return [len(told) == 2, False]

    stopped, whole = noise.generate_batch(samples, 6, on_step)
    assert len(told) == 6
    assert (stopped.completion_tokens, stopped.finish_reason) == (2, "length")
    assert whole == noise.generate_batch(samples[1:], 6)[0]
    assert whole.text == noise.processor.tokenizer.decode([tokens[1] for tokens in told])


def test_static_shapes_change_no_answer(tuned: Predictor, noise: Predictor) -> None:
    """What `--compile` asks for; on a CPU the step is not compiled, but shapes and cache are the same."""
    for plain in (tuned, noise):
        static = Predictor(plain.model, plain.processor, plain.task, static_shapes=True)
        samples = [plain.prepare(plain.task.prompt(), [picture(number)]) for number in range(5)]
        limits = [20, 4, 20, 6, 20]
        expected = plain.generate_batch(samples, limits)
        found = static.generate_batch(samples, limits)
        assert found == expected
        for one, other in zip(found, expected, strict=True):
            assert (one.scores is None) == (other.scores is None)
            assert one.scores is None or one.scores == pytest.approx(other.scores, rel=1e-3)
        seen: list[int] = []

        def on_step(tokens: list[int], seen: list[int] = seen) -> list[bool]:
            seen.append(len(tokens))
            return [len(seen) >= 3, False, False, False, len(seen) >= 4]

        stopped = static.generate_batch(samples, limits, on_step)
        assert [stopped[row].completion_tokens for row in (0, 4)] == [3, 4]
        assert set(seen) == {5}


def test_pictures_of_like_shape_share_batches(noise: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    padded = []
    generate = noise.model.generate

    def spy(**inputs):
        padded.append(int((inputs["attention_mask"] == 0).sum()))
        return generate(**inputs)

    monkeypatch.setattr(noise.model, "generate", spy)
    shapes = [(200, 60), (100, 100), (60, 200), (100, 100), (200, 60), (60, 200)]
    done = []
    noise.answer([Image.new("RGB", size, "red") for size in shapes], 2, 2, lambda *at: done.append(at))
    assert padded == [0, 0, 0]
    assert done == [(2, 6), (4, 6), (6, 6)]


def test_free_prompts_with_several_pictures(noise: Predictor) -> None:
    pictures = [picture(1), picture(2)]
    prompt = "<|user|>\n<|image_1|><|image_2|>Which is wider?<|end|><|assistant|>\n"
    both, swapped, one = noise.generate(
        [(prompt, pictures), (prompt, pictures[::-1]), (noise.task.prompt(), pictures[:1])], 12, 3
    )
    assert both.text != swapped.text
    assert both.prompt_tokens > one.prompt_tokens
    assert one == noise.answer(pictures[:1], 12)[0]
    with pytest.raises(ValueError, match="image"):
        noise.prepare(prompt, pictures[:1])


def test_no_requests_no_answers(noise: Predictor) -> None:
    assert noise.answer([]) == []


def test_task_and_settings_come_from_the_folder(tmp_path: Path) -> None:
    task = product_task().model_copy(update={"question": "What is this?"})
    folder = write_tiny_model(tmp_path / "model", task=task)
    predictor = Predictor.load(folder, device="cpu")
    assert predictor.task == task
    assert (predictor.num_crops, predictor.dtype) == (4, "float32")
    assert Predictor.load(folder, task=product_task(), device="cpu").task == product_task()
    square = Image.new("RGB", (100, 100))
    fewer = Predictor.load(folder, device="cpu", num_crops=1)
    # Three crops fewer, of four tokens each, and an end of a line fewer for each of the two lines of a crop.
    assert (
        predictor.prepare("<|image_1|>", [square]).tokens - fewer.prepare("<|image_1|>", [square]).tokens
        == 3 * 4 + 2
    )


def test_bfloat16(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path, answer=ANSWER)
    predictor = Predictor.load(folder, device="cpu", dtype="bfloat16")
    assert predictor.answer([picture(0)])[0].fields is not None


@pytest.mark.parametrize("damage", ["nothing", "no_weights", "a_tensor_missing", "no_tokenizer"])
def test_incomplete_folders_are_refused(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "model"
    if damage != "nothing":
        write_tiny_model(folder)
    if damage == "no_weights":
        (folder / "model.safetensors").unlink()
    if damage == "a_tensor_missing":
        tensors = load_file(folder / "model.safetensors")
        del tensors["model.norm.weight"]
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    if damage == "no_tokenizer":
        (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=str(folder)) as caught:
        Predictor.load(folder, device="cpu")
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "model")
    shutil.move(folder / "model.safetensors", folder / "pytorch_model.bin")
    with pytest.raises(UserError):
        Predictor.load(folder, device="cpu")


def test_code_beside_the_weights_is_not_run(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "model")
    ran = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass Evil: pass\n")
    for name, entry in (
        ("config.json", {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}),
        ("preprocessor_config.json", {"AutoProcessor": "evil.Evil", "AutoImageProcessor": "evil.Evil"}),
    ):
        document = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**document, "auto_map": entry}))
    Predictor.load(folder, device="cpu").answer([picture(0)], 2)
    assert not ran.exists()

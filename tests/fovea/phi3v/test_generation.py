"""Generation: cached, batched, over several images and across the rotary boundary."""

import pytest
import torch

from fovea.phi3v import Phi3VForCausalLM

PROMPT = "<|user|>\n<|image_1|>What is it?<|end|>\n<|assistant|>\n"
TEXT = "<|user|>\nSay something.<|end|>\n<|assistant|>\n"
TWO = "<|user|>\n<|image_2|> or <|image_1|>?<|end|>\n<|assistant|>\n"


def cached(model, inputs, steps, **options):
    made = model.generate(
        **inputs,
        max_new_tokens=steps,
        min_new_tokens=steps,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        **options,
    )
    return made.sequences[:, inputs["input_ids"].shape[1] :].tolist(), torch.stack(made.logits, dim=1)


def test_cached_equals_recomputation(model, processor, picture, greedy_by_recomputation):
    inputs = processor(PROMPT, picture(), return_tensors="pt")
    ids, logits = cached(model, inputs, 10)
    expected_ids, expected_logits = greedy_by_recomputation(model, inputs, 10)
    assert ids == [expected_ids]
    torch.testing.assert_close(logits[0], expected_logits, rtol=0, atol=2e-5)


@pytest.mark.parametrize("text", [PROMPT, TEXT], ids=["image", "text"])
@pytest.mark.parametrize("after", [0, 1, 4])
def test_crossing_the_rotary_boundary(rebuilt, processor, picture, greedy_by_recomputation, text, after):
    inputs = processor(text, picture() if text == PROMPT else None, return_tensors="pt")
    length = inputs["input_ids"].shape[1]
    short = rebuilt(original_max_position_embeddings=4096, max_position_embeddings=8192)
    crossing = rebuilt(
        original_max_position_embeddings=length + after, max_position_embeddings=2 * (length + after)
    )
    ids, logits = cached(crossing, inputs, 8)
    expected_ids, expected_logits = greedy_by_recomputation(crossing, inputs, 8)
    assert ids == [expected_ids]
    torch.testing.assert_close(logits[0], expected_logits, rtol=0, atol=2e-5)
    # It is a crossing: with short factors alone the last steps come out otherwise.
    assert not torch.allclose(logits[0, -1], cached(short, inputs, 8)[1][0, -1], atol=1e-3)


@pytest.mark.parametrize("boundary", [4096, 55])
def test_a_batch_equals_its_members(rebuilt, processor, picture, boundary):
    """Also where its members cross the boundary at different steps."""
    model = rebuilt(original_max_position_embeddings=boundary)
    texts = [PROMPT, TEXT, TWO, PROMPT]
    images = [[picture(1)], [], [picture(2), picture(3, 30, 90)], [picture(4, 40, 40)]]
    batch = processor(texts, images, padding=True, padding_side="left", return_tensors="pt")
    ids, logits = cached(model, batch, 12)
    lengths = batch["attention_mask"].sum(-1).tolist()
    if boundary < 4096:
        assert min(lengths) < boundary < max(lengths)
        assert any(length < boundary < length + 12 for length in lengths)
    for row, (text, pictures) in enumerate(zip(texts, images, strict=True)):
        alone = processor(text, pictures or None, return_tensors="pt")
        own_ids, own_logits = cached(model, alone, 12)
        assert ids[row] == own_ids[0]
        torch.testing.assert_close(logits[row], own_logits[0], rtol=0, atol=5e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("boundary", [4096, 60])
def test_padding_changes_nothing(rebuilt, processor, picture, side, boundary):
    """Not even where the padded length needs the long factors and the sequence does not."""
    model = rebuilt(original_max_position_embeddings=boundary)
    alone = processor(PROMPT, picture(), return_tensors="pt")
    padded = processor(
        PROMPT, picture(), padding="max_length", max_length=90, padding_side=side, return_tensors="pt"
    )
    with torch.no_grad():
        expected = model(**alone).logits[0]
        logits = model(**padded).logits[0][padded["attention_mask"][0].bool()]
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-5)


def test_marks_out_of_order_show_their_own_images(model, processor, picture):
    first, second = picture(5), picture(6, 30, 90)
    there = processor("<|image_2|>a<|image_1|>b", [first, second], return_tensors="pt")
    back = processor("<|image_1|>a<|image_2|>b", [second, first], return_tensors="pt")
    assert there["input_ids"].tolist() == back["input_ids"].tolist()
    assert torch.equal(there["pixel_values"], back["pixel_values"])
    assert torch.equal(there["image_sizes"], back["image_sizes"])


def test_beams_take_their_images_along(model, processor, picture):
    texts, images = [TWO, TEXT, PROMPT], [[picture(1), picture(2, 30, 90)], [], [picture(3)]]
    batch = processor(texts, images, padding=True, padding_side="left", return_tensors="pt")
    options = {"num_beams": 3, "num_return_sequences": 2, "do_sample": False, "max_new_tokens": 5}
    made = model.generate(**batch, **options)[:, batch["input_ids"].shape[1] :]
    for row, (text, pictures) in enumerate(zip(texts, images, strict=True)):
        alone = processor(text, pictures or None, return_tensors="pt")
        own = model.generate(**alone, **options)[:, alone["input_ids"].shape[1] :]
        assert made[2 * row : 2 * row + 2].tolist() == own.tolist()


def test_an_answer_ends_where_it_was_trained_to(model, processor, picture):
    assert model.generation_config.eos_token_id == [32007, 32000, 2]
    inputs = processor(TEXT, return_tensors="pt")
    for end in (32007, 32000):

        def say_end(ids, scores, end=end):
            return torch.full_like(scores, -1e9).index_fill_(1, torch.tensor([end]), 0.0)

        made = model.generate(**inputs, max_new_tokens=5, do_sample=False, logits_processor=[say_end])
        assert made[0, inputs["input_ids"].shape[1] :].tolist() == [end]


def test_input_ids_are_never_written_to(model, processor, picture):
    inputs = processor(PROMPT, picture(), return_tensors="pt")
    before = inputs["input_ids"].clone()
    with torch.no_grad():
        model(**inputs)
    cached(model, inputs, 3)
    assert torch.equal(inputs["input_ids"], before)


def test_eager_attention_agrees(model, rebuilt, processor, picture):
    eager = rebuilt(attn_implementation="eager")
    tower = eager.model.vision_embed_tokens.img_processor["vision_model"]
    assert (eager.config._attn_implementation, tower.config._attn_implementation) == ("eager", "eager")
    texts, images = [PROMPT, TEXT], [[picture()], []]
    batch = processor(texts, images, padding=True, padding_side="left", return_tensors="pt")
    assert cached(eager, batch, 6)[0] == cached(model, batch, 6)[0]


@pytest.mark.parametrize("keep", [1, 3, torch.tensor([0, 5])], ids=["last", "three", "positions"])
def test_logits_to_keep(model, processor, picture, keep):
    inputs = processor(PROMPT, picture(), return_tensors="pt")
    with torch.no_grad():
        every, kept = model(**inputs).logits, model(**inputs, logits_to_keep=keep).logits
    expected = every[:, -keep:] if isinstance(keep, int) else every[:, keep]
    torch.testing.assert_close(kept, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(tiny, processor, picture, dtype):
    model = Phi3VForCausalLM.from_pretrained(tiny, dtype=dtype)
    inputs = processor(PROMPT, picture(), return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits
    assert logits.dtype == dtype
    assert logits.isfinite().all()
    assert model.model.rotary_emb.frequencies.dtype == torch.float32


def test_output_hidden_states(rebuilt, processor, picture):
    model = rebuilt()
    inputs = processor(PROMPT, picture(), return_tensors="pt")
    with torch.no_grad():
        made = model(**inputs, output_hidden_states=True)
    assert len(made.hidden_states) == model.config.num_hidden_layers + 1


def test_crops_and_placeholders_must_agree(model, processor, picture):
    inputs = processor(PROMPT, picture(), return_tensors="pt")
    with pytest.raises(ValueError, match="image placeholders"):
        model(**inputs | {"input_ids": inputs["input_ids"][:, :-25]})
    with pytest.raises(ValueError, match="crops"):
        model(**inputs | {"pixel_values": inputs["pixel_values"][:-1]})
    with pytest.raises(ValueError, match="image_sizes"):
        model(inputs["input_ids"], pixel_values=inputs["pixel_values"])

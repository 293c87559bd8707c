"""Text and images together: order, padding, chat templates and what is refused."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from fovea.phi3v import Phi3VProcessor

IMAGE = 32044
PROMPT = "<|user|>\n<|image_1|>What is it?<|end|>\n<|assistant|>\n"


def test_each_chunk_has_its_own_beginning(processor, picture):
    made = processor("Look: <|image_1|>here<|image_2|>", [picture(1, 30, 10), picture(2, 28, 28)])
    one, two = (
        [IMAGE] * processor.image_processor.num_image_tokens(*size) for size in made["image_sizes"].tolist()
    )
    look, here, nothing = (processor.tokenizer(chunk).input_ids for chunk in ("Look: ", "here", ""))
    assert nothing == [1]
    assert made["input_ids"] == [look + one + here + two + nothing]
    assert made["attention_mask"] == [[1] * len(made["input_ids"][0])]
    bare = processor("a<|image_1|>b", picture(), add_special_tokens=False)["input_ids"][0]
    assert 1 not in bare


def test_text_alone(processor):
    made = processor("Hello", return_tensors="pt")
    assert set(made) == {"input_ids", "attention_mask"}
    assert made["input_ids"].tolist() == [processor.tokenizer("Hello").input_ids]


def test_ways_to_give_images(processor, picture):
    one, two = picture(1), picture(2, 30, 90)
    expected = processor([PROMPT, PROMPT], [[one], [two]], padding=True, return_tensors="pt")
    flat = processor([PROMPT, PROMPT], [one, two], padding=True, return_tensors="pt")
    arrays = processor([PROMPT, PROMPT], [np.array(one), [np.array(two)]], padding=True, return_tensors="pt")
    for made in (flat, arrays):
        assert all(torch.equal(made[name], expected[name]) for name in expected)
    single = processor(PROMPT, one, return_tensors="pt")
    listed = processor(PROMPT, [one], return_tensors="pt")
    nested = processor([PROMPT], [[one]], return_tensors="pt")
    for made in (listed, nested):
        assert all(torch.equal(made[name], single[name]) for name in single)
    mixed = processor(["no image", PROMPT, "none"], [None, [one], []], padding=True, return_tensors="pt")
    assert torch.equal(mixed["pixel_values"], single["pixel_values"])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(processor, picture, side):
    texts = [PROMPT, "short"]
    ids = [processor(PROMPT, picture())["input_ids"][0], processor("short")["input_ids"][0]]
    made = processor(texts, [[picture()], []], padding=True, padding_side=side, return_tensors="pt")
    length = max(map(len, ids))
    assert made["input_ids"].shape == made["attention_mask"].shape == (2, length)
    for row, own in enumerate(ids):
        assert made["input_ids"][row][made["attention_mask"][row].bool()].tolist() == own
    missing = made["attention_mask"][1] == 0
    assert (made["input_ids"][1][missing] == processor.tokenizer.pad_token_id).all()
    assert bool(missing[0]) == (side == "left")
    longer = processor(texts, [[picture()], []], padding="max_length", max_length=200, return_tensors="np")
    assert longer["input_ids"].shape == (2, 200)
    rounded = processor(texts, [[picture()], []], padding=True, pad_to_multiple_of=64, return_tensors="pt")
    assert rounded["input_ids"].shape[1] % 64 == 0


def test_nothing_is_cut(processor, picture):
    with pytest.raises(ValueError, match="nothing is cut"):
        processor(PROMPT, picture(), padding="max_length", max_length=20)
    with pytest.raises(TypeError, match="truncation"):
        processor(PROMPT, picture(), truncation=True)


def test_num_crops_for_one_call(processor, picture):
    few, many = (processor(PROMPT, picture(0, 50, 50), num_crops=n, return_tensors="pt") for n in (1, 9))
    assert (len(few["pixel_values"]), len(many["pixel_values"])) == (2, 10)
    assert int((few["input_ids"] == IMAGE).sum()) == 2 * 4 + 1 + 2 * 2


BLANK = Image.new("RGB", (5, 5))


@pytest.mark.parametrize(
    ("text", "images", "reason"),
    [
        ("<|image_1|>", [BLANK, BLANK], "the text has 1 image markers, but there are 2 images"),
        ("<|image_1|>", [], "the text has 1 image markers, but there are 0 images"),
        ("no mark", [BLANK], "the text has 0 image markers, but there are 1 images"),
        ("<|image_2|>", [BLANK], "without gaps, but the text has <|image_2|>"),
        ("<|image_1|><|image_3|>", [BLANK, BLANK], "without gaps"),
        ("<|image_0|>", [BLANK], "without gaps"),
        ("<|image_1|><|image_1|>", [BLANK], "occurs twice"),
        ("<|image_1|>", [Image.new("RGB", (5, 0))], "image 1: the image has no pixels"),
        ("<|image_1|><|image_2|>", [BLANK, "bag.jpg"], "image 2: not an image but str"),
        ("<|image_1|> and <|image|>", [BLANK], "contains <|image|>"),
    ],
)
def test_errors_say_which_sample_and_why(processor, text, images, reason):
    with pytest.raises(ValueError, match="^sample 2: .*" + re.escape(reason)):
        processor(["fine <|image_1|>", text], [[BLANK], images], padding=True)


def test_errors_of_a_whole_call(processor):
    with pytest.raises(ValueError, match="2 texts and 1 lists of images"):
        processor(["a", "b"], [[BLANK]])
    with pytest.raises(ValueError, match="2 texts have 1 image markers, but there are 2 images"):
        processor(["<|image_1|>", "b"], [BLANK, BLANK])
    with pytest.raises(ValueError, match="text is required"):
        processor(images=[BLANK])
    foreign = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE()))
    with pytest.raises(ValueError, match=r"has no <\|image\|>"):
        Phi3VProcessor(processor.image_processor, foreign)


def test_chat_template(processor, picture):
    messages = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "image", "image": picture(1)},
                {"type": "image", "image": picture(2, 30, 90)},
                {"type": "text", "text": "Which costs more?"},
            ],
        },
        {"role": "assistant", "content": "The second."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "And this?"}, {"type": "image", "image": picture(3)}],
        },
    ]
    text = (
        "<|system|>\nBe brief.<|end|>\n<|user|>\n<|image_1|>\n<|image_2|>\nWhich costs more?<|end|>\n"
        "<|assistant|>\nThe second.<|end|>\n<|user|>\nAnd this?<|image_3|>\n<|end|>\n<|assistant|>\n"
    )
    assert processor.apply_chat_template(messages, add_generation_prompt=True) == text
    made = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    expected = processor(text, [picture(1), picture(2, 30, 90), picture(3)], return_tensors="pt")
    assert all(torch.equal(made[name], expected[name]) for name in expected)


def test_saving(processor, tmp_path):
    written = processor.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "chat_template.jinja",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert written == [str(tmp_path / "preprocessor_config.json")]
    stored = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert (stored["processor_class"], stored["num_crops"]) == ("Phi3VProcessor", 4)
    loaded = Phi3VProcessor.from_pretrained(tmp_path)
    assert loaded.image_processor.to_dict() == processor.image_processor.to_dict()
    assert loaded.chat_template == processor.chat_template
    assert Phi3VProcessor.from_pretrained(tmp_path, num_crops=9).image_processor.num_crops == 9
    assert loaded(PROMPT, BLANK)["input_ids"] == processor(PROMPT, BLANK)["input_ids"]


def test_decoding(processor):
    ids = processor("Product: Bag<|end|>")["input_ids"]
    assert processor.batch_decode(ids, skip_special_tokens=True) == ["Product: Bag"]
    assert processor.decode(ids[0], skip_special_tokens=True) == "Product: Bag"

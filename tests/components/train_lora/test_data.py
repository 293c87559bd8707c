"""Which tokens are supervised."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from components.train_lora.data import IGNORED, AnswerCollator
from fovea.errors import UserError
from fovea.phi3v import Phi3VProcessor
from fovea.task import Task, product_task
from tests.tiny_model import write_tiny_model

ROWS: list[dict[str, Any]] = [
    {"product": "Bag", "category": "BAGS", "full_price": 5.0},
    {"product": "Long Striped Cotton Scarf – Été", "category": "SCARVES", "full_price": 1390.0},
    {"product": "Belt <b>", "category": "BELTS", "full_price": 0.01},
]


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Phi3VProcessor:
    return Phi3VProcessor.from_pretrained(write_tiny_model(tmp_path_factory.mktemp("model")))


def rows() -> list[dict[str, Any]]:
    sizes = [(56, 56), (120, 40), (30, 90)]
    return [
        {"row_id": f"r{number}", "image": Image.new("RGB", size, "red"), **values}
        for number, (values, size) in enumerate(zip(ROWS, sizes, strict=True))
    ]


@pytest.fixture(scope="module")
def batch(processor: Phi3VProcessor) -> dict[str, torch.Tensor]:
    return AnswerCollator(processor, product_task(), num_crops=4)(rows())


def test_what_is_supervised_is_the_answer_and_its_end(
    processor: Phi3VProcessor, batch: dict[str, torch.Tensor]
) -> None:
    for row, ids, labels in zip(ROWS, batch["input_ids"], batch["labels"], strict=True):
        supervised = labels != IGNORED
        assert processor.tokenizer.decode(ids[supervised]) == product_task().answer(row) + "<|end|>"
        assert torch.equal(labels[supervised], ids[supervised])


def test_prompt_picture_and_padding_are_masked(
    processor: Phi3VProcessor, batch: dict[str, torch.Tensor]
) -> None:
    lengths = batch["attention_mask"].sum(dim=1)
    assert len(set(lengths.tolist())) == len(ROWS)
    for ids, labels, length in zip(batch["input_ids"], batch["labels"], lengths, strict=True):
        supervised = (labels != IGNORED).nonzero().flatten()
        # One stretch, up to the last token that is not padding.
        assert supervised.tolist() == list(range(int(supervised[0]), int(length)))
        assert (labels[ids == processor.image_token_id] == IGNORED).all()
        assert (ids == processor.image_token_id).any()
        masked = ids[: supervised[0]]
        text = processor.tokenizer.decode(masked[masked != processor.image_token_id])
        assert "What is shown in this image?<|end|>" in text
        assert text.rstrip().endswith("<|assistant|>")


def test_masks_do_not_hang_on_the_padding_token(processor: Phi3VProcessor) -> None:
    """Padding with the token that ends an answer must not unmask or mask anything."""
    expected = AnswerCollator(processor, product_task(), 1)(rows())
    before = processor.tokenizer.pad_token
    try:
        processor.tokenizer.pad_token = "<|end|>"  # noqa: S105
        batch = AnswerCollator(processor, product_task(), 1)(rows())
    finally:
        processor.tokenizer.pad_token = before
    assert torch.equal(batch["labels"], expected["labels"])


def test_the_number_of_crops_is_the_parameters(
    processor: Phi3VProcessor, batch: dict[str, torch.Tensor]
) -> None:
    one = AnswerCollator(processor, product_task(), num_crops=1)(rows())
    assert one["input_ids"].shape[1] < batch["input_ids"].shape[1]
    assert len(one["pixel_values"]) < len(batch["pixel_values"])


def test_a_tokenizer_that_joins_prompt_and_answer_is_refused(
    processor: Phi3VProcessor, tmp_path: Path
) -> None:
    class Open(Task):
        def prompt(self) -> str:
            return "<|user|>\n<|image_1|>What?<|end|>Say r"

        def training_text(self, values: Any) -> str:
            return super().prompt() + self.answer(values) + "<|end|>"

    task = Open(**product_task().model_dump())
    with pytest.raises(UserError, match="row r0: the tokenizer joins prompt and answer"):
        AnswerCollator(processor, task, 1)(rows()[:1])

"""Lengths are counted as the processor makes them, without decoding a picture."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from components.prepare_data.tokens import Tokenizer, crop_grid
from fovea.phi3v import Phi3VProcessor
from fovea.phi3v.image_processing import fit
from fovea.task import product_task
from tests.tiny_model import write_tiny_model


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 16), st.sampled_from([7, 28]))
def test_the_grid_is_that_of_the_image_processor(width: int, height: int, num_crops: int, side: int) -> None:
    laid_out = fit(Image.new("L", (width, height)).convert("RGB"), side, num_crops)
    columns, rows = crop_grid(width, height, side, num_crops)
    assert (columns * side, rows * side) == laid_out.size


@pytest.mark.parametrize(("num_crops", "square"), [(1, 313), (4, 757), (16, 2509)])
def test_a_square_takes_what_the_published_model_gives_it(num_crops: int, square: int) -> None:
    columns, rows = crop_grid(1000, 1000, 336, num_crops)
    assert (columns * rows + 1) * 144 + 1 + (rows + 1) * 12 == square


def test_lengths_are_those_of_the_processor(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "model", num_crops=4)
    processor, task = Phi3VProcessor.from_pretrained(folder), product_task()
    sizes = [(80, 60), (60, 80), (300, 20), (31, 31)]
    texts = [
        task.training_text({"product": "É" + "x" * number, "category": "BAGS", "full_price": 1390.0})
        for number in range(len(sizes))
    ]
    for num_crops in (1, 4):
        wanted = [
            len(processor(text=text, images=[Image.new("RGB", size)], num_crops=num_crops)["input_ids"][0])
            for text, size in zip(texts, sizes, strict=True)
        ]
        assert Tokenizer(folder, num_crops).count(texts, sizes) == wanted

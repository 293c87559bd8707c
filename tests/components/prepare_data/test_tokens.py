"""Lengths are counted as the processor makes them, without decoding a picture."""

from pathlib import Path

from PIL import Image

from components.prepare_data.tokens import Tokenizer
from fovea.phi3v import Phi3VProcessor
from fovea.task import product_task
from tests.tiny_model import write_tiny_model


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

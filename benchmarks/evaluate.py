"""Compare answers in batches, as in evaluation and serving, with `model.generate` called row by row.

    python -m benchmarks.evaluate FOLDER

FOLDER contains a model, such as that of the last local run. Both variants answer the same pictures with
the same weights in one process, alternating, including decoding and cropping; in float32 their answers must
be equal. A model with random weights (`benchmarks.synthetic_checkpoint`) never ends an answer: each then has
``--max-new-tokens`` tokens.
"""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.workload import Device, Type, device_name
from fovea.inference import Predictor
from fovea.phi3v.modeling import END_OF_ANSWER_IDS

BATCHES = [1, 4, 16, 64]
_ROW_BY_ROW = "model.generate, row by row"


@dataclass(frozen=True)
class Rate:
    """One row: a way of answering. The rate is in pictures per second."""

    way: str
    seconds: float
    pictures_per_second: float
    ratio: float
    """Relative to the rate of row by row."""


def pictures(count: int, side: int) -> list[Image.Image]:
    """Return different pictures, square and 2:3 in both orientations, with ``side`` pixels at most."""
    made = []
    for number in range(count):
        width, height = [(side, side), (side, side * 2 // 3), (side * 2 // 3, side)][number % 3]
        noise = Image.effect_noise((width // 8, height // 8), 60 + number % 40).resize((width, height))
        made.append(Image.merge("RGB", [noise, noise.rotate(180), noise]))
    return made


@torch.inference_mode()
def row_by_row(predictor: Predictor, images: list[Image.Image], max_new_tokens: int) -> list[str]:
    """Answer one picture after the other, with the key-value cache, as a script would."""
    model, processor = predictor.model, predictor.processor
    texts = []
    for image in images:
        inputs = processor(text=[predictor.task.prompt()], images=[[image]], return_tensors="pt")
        inputs = inputs.to(model.device, model.dtype)
        output = model.generate(
            **{name: inputs[name] for name in ("input_ids", "attention_mask", "pixel_values", "image_sizes")},
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=END_OF_ANSWER_IDS,
            pad_token_id=processor.tokenizer.pad_token_id,
        )
        text: str = processor.tokenizer.decode(
            output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        texts.append(text)
    return texts


def measure(
    predictor: Predictor, images: list[Image.Image], batches: list[int], max_new_tokens: int, repetitions: int
) -> list[Rate]:
    """Answer all pictures in every way, alternating, after a warm-up.

    Raises:
        ValueError: in float32, the answers in batches differ from those row by row.
    """

    def batched(size: int) -> Callable[[], list[str]]:
        return lambda: [
            answer.text for answer in predictor.answer(images, max_new_tokens=max_new_tokens, batch_size=size)
        ]

    ways: dict[str, Callable[[], list[str]]] = {
        _ROW_BY_ROW: lambda: row_by_row(predictor, images, max_new_tokens),
        **{f"in batches of {size}": batched(size) for size in batches},
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    said: dict[str, list[str]] = {}
    for turn in track(range(repetitions + 1), "answering", console=Console(stderr=True), transient=True):
        for way, answer in ways.items():
            started = time.perf_counter()
            said[way] = answer()
            if turn:
                seconds[way].append(time.perf_counter() - started)
    if predictor.dtype == "float32" and any(texts != said[_ROW_BY_ROW] for texts in said.values()):
        raise ValueError("in float32 the answers in batches must equal those row by row, but they differ")
    usual = statistics.median(seconds[_ROW_BY_ROW])
    medians = {way: statistics.median(each) for way, each in seconds.items()}
    return [Rate(way, taken, len(images) / taken, usual / taken) for way, taken in medians.items()]


def main(
    folder: Annotated[Path, typer.Argument(help="Folder with a model.")],
    device: Annotated[Device, typer.Option(help="Where the model runs.")] = Device.CPU,
    dtype: Annotated[Type, typer.Option(help="Dtype of weights and pixels.")] = Type.FLOAT32,
    count: Annotated[int, typer.Option("--pictures", help="Number of pictures.")] = 128,
    side: Annotated[int, typer.Option(help="Longer side of a picture, in pixels.")] = 448,
    batch: Annotated[list[int] | None, typer.Option(help="Pictures per batch; can be repeated.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Maximum tokens of an answer.")] = 64,
    repetitions: Annotated[int, typer.Option(help="Repetitions, whose median is reported.")] = 3,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the results.")] = None,
) -> None:
    """Compare answering in batches with answering row by row."""
    predictor = Predictor.load(folder, device=device.value, dtype=dtype.value)
    rates = measure(predictor, pictures(count, side), batch or BATCHES, max_new_tokens, repetitions)
    table = Table(title=f"{count} pictures, {dtype.value}, {device_name(device.value)}", title_justify="left")
    table.add_column("")
    for heading in ("seconds", "pictures per second", "ratio"):
        table.add_column(heading, justify="right")
    for rate in rates:
        table.add_row(
            rate.way, f"{rate.seconds:.2f}", f"{rate.pictures_per_second:.1f}", f"{rate.ratio:.1f}x"
        )
    Console().print(table)
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(rate) for rate in rates], indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)

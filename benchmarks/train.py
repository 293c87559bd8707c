"""Measure complete training steps of `train_lora`: data, forward, backward, optimiser.

    python -m benchmarks.train                    all variants, including plain ones, on the CPU
    python -m benchmarks.train --device cuda --size published --dtype bfloat16    as in `make benchmark-gpu`

Each variant runs in a separate process, so that its memory and its time to the first step are separate. The
pictures have the size of photographs, are stored in Parquet, and are decoded and cropped as in real training.
The weights are random, which does not affect the time. There are as many pictures as the steps after the
first one need, so that every variant sees the same number of each shape, although possibly the longest first.

On a CPU, compare `--threads 1` and processor seconds if other work slows down the machine.
Memory is measured twice there. *Held* memory is the peak size of tensors, comparable to a GPU's memory: it is
measured in a process that returns freed memory to the system immediately. *Resident* memory is that of the
process whose time is measured; its C library keeps much of the freed memory, and cannot reuse all of it.
"""

import ctypes
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from numpy.random import PCG64, Generator
from PIL import Image
from rich.console import Console
from rich.table import Table
from transformers import Trainer, TrainerCallback

from benchmarks.flops import peak_flops, training_step_flops
from benchmarks.measure import peak_resident_bytes
from benchmarks.plain_twin import PlainPhi3VForCausalLM
from benchmarks.synthetic import configuration, random_model
from benchmarks.workload import Device, Size, Type, device_name
from components.train_lora.data import ROW_IDS, AnswerCollator, EpochOrder, measure
from components.train_lora.job import arguments
from components.train_lora.lora import with_lora
from components.train_lora.parameters import TrainLoraParameters
from components.train_lora.trainer import LoraTrainer
from fovea.errors import UserError
from fovea.phi3v import Phi3VImageProcessor, Phi3VProcessor
from fovea.task import product_task
from sample.tokenizer import make_tokenizer

GIB = 2**30
_M_MMAP_THRESHOLD = -3
"""For glibc's mallopt: blocks from this size on are returned to the system when they are freed."""
SIDES = ((1000, 1000), (700, 1000), (1000, 600), (500, 1000))
"""Typical pictures of catalogues: square, portrait and landscape."""

MICROSOFT = "Microsoft, 8 x A100-80, 16 crops: LoRA 12.1 pictures/s in all with flash attention, 5.6 without"
"""From the cookbook that Microsoft published with the model."""


@dataclass(frozen=True)
class Way:
    """A variant of the training; disabled features are replaced by the usual implementation."""

    name: str
    plain_model: bool = False
    """The twin: every crop slot, every layer, eager attention, float32 logits everywhere."""
    plain_trainer: bool = False
    """transformers' Trainer alone: random order, and padding to the longest possible example."""
    attention: str = "sdpa"
    grouped: bool = True
    checkpointing: bool = True
    compiled: bool = False


WAYS = (
    Way(
        "plain: Trainer on the twin",
        plain_model=True,
        plain_trainer=True,
        attention="eager",
        checkpointing=False,
    ),
    Way("plain, checkpointing", plain_model=True, plain_trainer=True, attention="eager"),
    Way("ours"),
    Way("ours, on the twin", plain_model=True, attention="eager"),
    Way("ours, eager attention", attention="eager"),
    Way("ours, no length groups", grouped=False),
    Way("ours, no checkpointing", checkpointing=False),
    Way("ours, compiled", compiled=True),
)


@dataclass(frozen=True)
class Row:
    """The result of one variant at one number of crops. None: out of memory."""

    way: str
    num_crops: int
    tokens: float | None = None
    """Per step, without padding."""
    seconds: float | None = None
    processor_seconds: float | None = None
    """Of all threads."""
    first_step: float | None = None
    waiting: float | None = None
    added_bytes: int | None = None
    """Peak size of tensors, besides the model."""
    resident_bytes: int | None = None
    """On a CPU: peak resident memory, minus that before the first step."""
    pictures_per_second: float | None = None
    utilisation: float | None = None


@dataclass(frozen=True)
class Setting:
    """The common settings of all rows."""

    device: str
    size: str
    dtype: str
    pictures: int
    steps: int
    threads: int = 0
    """PyTorch's threads; 0 for its default."""
    gives_back: bool = False
    """Return freed memory to the system immediately, which takes time."""


class PlainCollator:
    """A simple collator: the same supervision masks, but padding to a fixed length."""

    def __init__(self, collator: AnswerCollator, length: int, pad: int) -> None:
        self._collator = collator
        self._length = length
        self._pad = pad

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Create a batch with `length` tokens per example."""
        batch = self._collator(rows)
        missing = self._length - batch["input_ids"].shape[1]
        for name, value in (("input_ids", self._pad), ("attention_mask", 0), ("labels", -100)):
            batch[name] = torch.nn.functional.pad(batch[name], (0, missing), value=value)
        batch.pop(ROW_IDS)
        return batch


class Timing(TrainerCallback):  # type: ignore[misc]
    """Seconds of each step of a Trainer, from its end to the next one's."""

    def __init__(self, device: str) -> None:
        self._device = device
        self.ends: list[float] = []
        self.processor_ends: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Record the time."""
        if self._device == Device.CUDA:
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
        self.processor_ends.append(time.process_time())


def measure_way(setting: Setting, way: Way, num_crops: int, folder: Path) -> Row:
    """Train some steps with one variant in this process, which must be new."""
    if setting.threads:
        torch.set_num_threads(setting.threads)
    if setting.gives_back:
        ctypes.CDLL("libc.so.6").mallopt(_M_MMAP_THRESHOLD, 2**20)
    parameters = TrainLoraParameters(
        num_crops=num_crops,
        train_batch_size=setting.pictures,
        per_device_train_batch_size=min(setting.pictures, 4),
        gradient_checkpointing=way.checkpointing,
        torch_compile=way.compiled,
        max_steps=setting.steps,
        precision="float32" if setting.dtype == Type.FLOAT32 else "bfloat16",
    )
    config = configuration(setting.size)
    torch_dtype = torch.float32 if setting.dtype == Type.FLOAT32 else torch.bfloat16
    model: Any = random_model(config, torch_dtype, setting.device)
    if way.plain_model:
        model = PlainPhi3VForCausalLM.sharing(model, num_crops)
    else:
        model.set_attn_implementation(way.attention)
    adapted = with_lora(model, parameters)
    processor = Phi3VProcessor.from_pretrained(folder)
    rows = Dataset.from_parquet(str(folder / "rows.parquet"), cache_dir=str(folder / "arrow"))
    extents = measure(rows, processor, product_task(), num_crops)
    (_clear_peak if setting.device == Device.CPU else torch.cuda.reset_peak_memory_stats)()
    before = _held(setting.device)
    timing, started = Timing(setting.device), time.perf_counter()
    collator = AnswerCollator(processor, product_task(), num_crops)
    common: dict[str, Any] = {
        "model": adapted,
        "args": replace_evaluation(arguments(folder / "trainer", parameters, len(rows), 1)),
        "train_dataset": rows,
        "callbacks": [timing],
    }
    if way.plain_trainer:
        longest = max(extent.tokens for extent in extents)
        pad = processor.tokenizer.pad_token_id
        trainer: Trainer = Trainer(data_collator=PlainCollator(collator, longest, pad), **common)
    else:
        lengths = [extent.tokens for extent in extents]
        order = EpochOrder(lengths, parameters.train_batch_size, parameters.seed, way.grouped)
        trainer = LoraTrainer(data_collator=collator, order=order, **common)
    trainer.train()
    return _row(setting, way, num_crops, trainer, timing, started, _held(setting.device) - before, extents)


def replace_evaluation(args: Any) -> Any:
    """Return the Trainer's arguments without evaluations."""
    args.eval_strategy = "no"
    return args


def _row(
    setting: Setting,
    way: Way,
    num_crops: int,
    trainer: Trainer,
    timing: Timing,
    started: float,
    added: int,
    extents: Sequence[Any],
) -> Row:
    # The first step allocates and warms up.
    steps = len(timing.ends) - 1
    each = (timing.ends[-1] - timing.ends[0]) / steps
    history = [entry for entry in trainer.state.log_history if "waiting_seconds" in entry][1:]
    tokens = statistics.fmean(extent.tokens for extent in extents)
    flops = training_step_flops(
        configuration(setting.size),
        samples=setting.pictures,
        length=round(tokens),
        supervised=setting.pictures * 32,
        crops=round(setting.pictures * statistics.fmean(extent.crops for extent in extents)),
        rank=TrainLoraParameters().lora_r,
    )
    peak = peak_flops(device_name(setting.device)) if setting.dtype == Type.BFLOAT16 else None
    return Row(
        way=way.name,
        num_crops=num_crops,
        tokens=tokens * setting.pictures,
        seconds=each,
        processor_seconds=(timing.processor_ends[-1] - timing.processor_ends[0]) / steps,
        first_step=timing.ends[0] - started,
        waiting=sum(e["waiting_seconds"] for e in history) / sum(e["seconds"] for e in history)
        if history
        else None,
        added_bytes=added,
        pictures_per_second=setting.pictures / each,
        utilisation=peak and flops / each / peak,
    )


def _clear_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _held(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == Device.CUDA else peak_resident_bytes()


def write_rows(folder: Path, count: int, size: str) -> None:
    """Write a table of pictures and a tokenizer for them."""
    random = Generator(PCG64(0))
    features = {"row_id": Value("string"), "image": ImageFeature()}
    features |= {"product": Value("string"), "category": Value("string"), "full_price": Value("float64")}
    rows: list[dict[str, Any]] = [
        {
            "row_id": str(number),
            # Smoothed noise: its JPEG is as large as that of a photograph.
            "image": Image.fromarray(random.integers(0, 256, (60, 60, 3), dtype="uint8")).resize(
                SIDES[number % len(SIDES)]
            ),
            "product": f"Striped cotton scarf number {number}",
            "category": "SCARVES",
            "full_price": 100.0 + number,
        }
        for number in range(count)
    ]
    Dataset.from_list(rows, Features(features)).to_parquet(folder / "rows.parquet")
    config = configuration(size)
    images = Phi3VImageProcessor(
        crop_size=config.vision_config.image_size, num_img_tokens=config.tokens_per_side**2
    )
    texts = [product_task().training_text(row) for row in rows]
    Phi3VProcessor(images, make_tokenizer(texts)).save_pretrained(folder)


def compare(setting: Setting, crops: Sequence[int], ways: Sequence[Way]) -> list[Row]:
    """Measure each variant at each number of crops, each in a separate process."""
    with tempfile.TemporaryDirectory(prefix="fovea-benchmark-") as name:
        folder = Path(name)
        write_rows(folder, setting.pictures * (setting.steps - 1), setting.size)
        return [_apart(setting, way, number, folder) for number in crops for way in ways]


def _apart(setting: Setting, way: Way, num_crops: int, folder: Path) -> Row:
    row = _in_a_process(setting, way, num_crops, folder)
    if setting.device == Device.CUDA or row.seconds is None:
        return row
    held = _in_a_process(replace(setting, steps=2, gives_back=True), way, num_crops, folder)
    return replace(row, added_bytes=held.added_bytes, resident_bytes=row.added_bytes)


def _in_a_process(setting: Setting, way: Way, num_crops: int, folder: Path) -> Row:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        try:
            return executor.submit(measure_way, setting, way, num_crops, folder).result()
        except (BrokenProcessPool, torch.OutOfMemoryError):
            return Row(way.name, num_crops)


def table(setting: Setting, rows: Sequence[Row]) -> Table:
    """Return the rows as a table, with ratios to the plain variant at the same number of crops."""
    made = Table(
        title=f"LoRA training steps of {setting.pictures} pictures, {setting.size} model, {setting.dtype}\n"
        f"{device_name(setting.device)}; torch {torch.__version__}"
    )
    made.caption = f"{MICROSOFT}. Used: share of the peak, padding not counted; 45 % is usual."
    for heading in ("", "num_crops", "tokens", "s per step", "times the plain", "processor s", "times"):
        made.add_column(heading, justify="right")
    for heading in (
        "pictures/s",
        "tokens/s",
        "GiB added",
        "of the plain",
        "GiB resident",
        "first step, s",
        "waiting",
        "used",
    ):
        made.add_column(heading, justify="right")
    for row in rows:
        plain = next((each for each in rows if each.num_crops == row.num_crops), row)
        if row.seconds is None or row.tokens is None or row.added_bytes is None:
            made.add_row(row.way, str(row.num_crops), *["out of memory"])
            continue
        faster = _times(plain.seconds, row.seconds)
        less = f"{row.added_bytes / plain.added_bytes:.0%}" if plain.added_bytes else "–"
        made.add_row(
            row.way,
            str(row.num_crops),
            f"{row.tokens:,.0f}",
            f"{row.seconds:.3g}",
            faster,
            f"{row.processor_seconds:.3g}",
            _times(plain.processor_seconds, row.processor_seconds),
            f"{row.pictures_per_second:.3g}",
            f"{row.tokens / row.seconds:,.0f}",
            f"{row.added_bytes / GIB:.2f}",
            less,
            "–" if row.resident_bytes is None else f"{row.resident_bytes / GIB:.2f}",
            f"{row.first_step:.1f}",
            "–" if row.waiting is None else f"{row.waiting:.1%}",
            "–" if row.utilisation is None else f"{row.utilisation:.1%}",
        )
    return made


def _times(plain: float | None, ours: float | None) -> str:
    return f"{plain / ours:.2f}x" if plain and ours else "–"


def main(
    device: Annotated[Device, typer.Option(help="Where the model runs.")] = Device.CPU,
    size: Annotated[Size, typer.Option(help="Which model runs.")] = Size.MIDDLING,
    dtype: Annotated[Type, typer.Option(help="Dtype of weights and pixels.")] = Type.FLOAT32,
    crops: Annotated[list[int] | None, typer.Option(help="num_crops; can be repeated.", min=1)] = None,
    ways: Annotated[list[str] | None, typer.Option("--way", help="Only these variants.")] = None,
    pictures: Annotated[int, typer.Option(help="Pictures per step.", min=1)] = 4,
    steps: Annotated[int, typer.Option(help="Steps; the first does not count.", min=2)] = 4,
    threads: Annotated[int, typer.Option(help="PyTorch's threads; 0 for its default.", min=0)] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the results.")] = None,
) -> None:
    """Measure training steps, with a plain variant and with each feature disabled."""
    if device == Device.CUDA and not torch.cuda.is_available():
        typer.echo("benchmark: there is no CUDA device: use a machine with a GPU, or --device cpu", err=True)
        raise typer.Exit(1)
    setting = Setting(device, size, dtype, pictures, steps, threads)
    # Compilation for a CPU takes minutes without a benefit.
    usual = [way.name for way in WAYS if device == Device.CUDA or not way.compiled]
    chosen = [way for way in WAYS if way.name in (ways or usual)]
    try:
        rows = compare(setting, crops or [1, 4, 16], chosen)
    except UserError as error:
        typer.echo(f"benchmark: {error}", err=True)
        raise typer.Exit(1) from error
    Console(width=None if sys.stdout.isatty() else 180).print(table(setting, rows))
    if json_file is not None:
        made = {"setting": asdict(setting), "rows": [asdict(row) for row in rows]}
        json_file.write_text(json.dumps(made, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)

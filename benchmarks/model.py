"""Measure speed and memory of the model.

    python -m benchmarks.model compare       time and memory of the model and its plain twin, as ratios
    python -m benchmarks.model throughput    training: pictures and tokens per second, FLOP/s utilisation

Both run a medium-sized model in float32 on the CPU or, as in `make benchmark-gpu`, the published size in
bfloat16 on a GPU. The weights are random, which does not affect the time.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.flops import peak_flops, training_step_flops
from benchmarks.measure import median_seconds
from benchmarks.plain_twin import PlainPhi3VForCausalLM
from benchmarks.synthetic import ANSWER_TOKENS, SHAPES, configuration
from benchmarks.workload import (
    TRAINING,
    Device,
    Setting,
    Size,
    Type,
    Work,
    added_on_cpu,
    added_on_gpu,
    describe,
    device_name,
    run,
    with_lora,
)
from fovea.errors import UserError

CROPS = [1, 4, 16]
GIB = 2**30


@dataclass(frozen=True)
class Comparison:
    """One row: ours and the plain twin. Memory is in addition to the weights; None: out of memory."""

    work: str
    num_crops: int
    shape: str
    tokens: int
    crops: int
    our_seconds: float | None = None
    twin_seconds: float | None = None
    our_bytes: int | None = None
    twin_bytes: int | None = None


@dataclass(frozen=True)
class Throughput:
    """One row: training steps. None: out of memory, or the device's peak is unknown."""

    num_crops: int
    gradient_checkpointing: bool
    tokens: int
    flops: float
    added_bytes: int | None = None
    seconds: float | None = None
    pictures_per_second: float | None = None
    tokens_per_second: float | None = None
    flops_per_second: float | None = None
    utilisation: float | None = None


def compare(setting: Setting, works: Sequence[Work], crops: list[int], repetitions: int) -> list[Comparison]:
    """Measure the model and its twin: same weights, same batches, alternating."""
    cases = [
        Comparison(work, number, shape, *_extent(setting.batch(number, shape)))
        for work in works
        for number in crops
        for shape in SHAPES
    ]
    # On a CPU each runs in a separate process, while the memory of this one is still free.
    rows = [_with_memory(setting, case) for case in cases] if setting.device == Device.CPU else cases
    ours = setting.model()
    twin = PlainPhi3VForCausalLM.sharing(ours)
    adapted = [with_lora(model, checkpointing=True) for model in (ours, twin)]
    measured = []
    for row in rows:
        twin.num_crops = row.num_crops
        batch = setting.batch(row.num_crops, row.shape)
        runs = [partial(run, model, batch, row.work) for model in adapted]
        if setting.device == Device.CUDA:
            row = replace(row, our_bytes=added_on_gpu(runs[0]), twin_bytes=added_on_gpu(runs[1]))
        measured.append(_with_seconds(setting, row, runs, repetitions))
    return measured


def _with_seconds(
    setting: Setting, row: Comparison, runs: Sequence[Callable[[], None]], repetitions: int
) -> Comparison:
    _say(f"time: {row.work}, {row.num_crops} crops, {row.shape}")
    if row.our_bytes is None or row.twin_bytes is None:
        return row
    ours, its = median_seconds(runs, setting.device, repetitions)
    return replace(row, our_seconds=ours, twin_seconds=its)


def _with_memory(setting: Setting, case: Comparison) -> Comparison:
    _say(f"memory: {case.work}, {case.num_crops} crops, {case.shape}")
    measure = partial(added_on_cpu, setting, case.work, case.num_crops, case.shape, checkpointing=True)
    return replace(case, our_bytes=measure(plain=False), twin_bytes=measure(plain=True))


def throughput(setting: Setting, crops: list[int], repetitions: int) -> list[Throughput]:
    """Measure LoRA training steps on square pictures, with and without gradient checkpointing."""
    return [
        row for checkpointing in (True, False) for row in _steps(setting, checkpointing, crops, repetitions)
    ]


def _steps(setting: Setting, checkpointing: bool, crops: list[int], repetitions: int) -> list[Throughput]:
    rows = []
    for number in crops:
        batch = setting.batch(number, "1:1")
        row = Throughput(number, checkpointing, batch["input_ids"].numel(), _flops(setting, batch))
        if setting.device == Device.CPU:
            added = added_on_cpu(
                setting, Work.TRAINING, number, "1:1", checkpointing=checkpointing, plain=False
            )
            row = replace(row, added_bytes=added)
        rows.append(row)
    adapted = with_lora(setting.model(), checkpointing)
    return [_with_speed(setting, row, adapted, repetitions) for row in rows]


def _with_speed(setting: Setting, row: Throughput, adapted: Any, repetitions: int) -> Throughput:
    checkpointing = "with" if row.gradient_checkpointing else "without"
    _say(f"training: {row.num_crops} crops, {checkpointing} gradient checkpointing")
    work = partial(run, adapted, setting.batch(row.num_crops, "1:1"), Work.TRAINING)
    if setting.device == Device.CUDA:
        row = replace(row, added_bytes=added_on_gpu(work))
    if row.added_bytes is None:
        return row
    (seconds,) = median_seconds([work], setting.device, repetitions)
    speed = row.flops / seconds
    peak = peak_flops(device_name(setting.device)) if setting.dtype == Type.BFLOAT16 else None
    return replace(
        row,
        seconds=seconds,
        pictures_per_second=setting.pictures / seconds,
        tokens_per_second=row.tokens / seconds,
        flops_per_second=speed,
        utilisation=peak and speed / peak,
    )


def _say(what: str) -> None:
    """Report progress on standard error, apart from the table."""
    typer.echo(f"benchmark: {what}", err=True)


def _flops(setting: Setting, batch: dict[str, torch.Tensor]) -> float:
    samples, length = batch["input_ids"].shape
    return training_step_flops(
        configuration(setting.size),
        samples=samples,
        length=length,
        supervised=samples * ANSWER_TOKENS,
        crops=len(batch["pixel_values"]),
        rank=TRAINING.lora_r,
    )


def _extent(batch: dict[str, torch.Tensor]) -> tuple[int, int]:
    """Return tokens and crops, including global views, of a batch."""
    return batch["input_ids"].numel(), len(batch["pixel_values"])


def comparison_table(setting: Setting, rows: list[Comparison]) -> Table:
    """Return the rows as a table."""
    table = Table(title=f"The model and its plain twin\n{describe(setting)}")
    for heading in ("", "num_crops", "picture", "crops", "tokens"):
        table.add_column(heading, justify="right")
    for heading in ("s", "twin's s", "faster", "GiB added", "twin's GiB", "less"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row.work,
            str(row.num_crops),
            row.shape,
            str(row.crops),
            str(row.tokens),
            _cell(row.our_seconds, "{:.3g}"),
            _cell(row.twin_seconds, "{:.3g}"),
            _ratio(row.twin_seconds, row.our_seconds),
            _cell(row.our_bytes, "{:.2f}", GIB),
            _cell(row.twin_bytes, "{:.2f}", GIB),
            _ratio(row.twin_bytes, row.our_bytes),
        )
    return table


def throughput_table(setting: Setting, rows: list[Throughput]) -> Table:
    """Return the rows as a table."""
    table = Table(title=f"LoRA training steps, without the optimiser\n{describe(setting)}")
    peak = peak_flops(device_name(setting.device)) if setting.dtype == Type.BFLOAT16 else None
    known = f"{peak / 1e12:.0f} TFLOP/s, the device's peak" if peak else "an unknown peak"
    table.caption = f"Utilisation: model TFLOP/s of {known}."
    for heading in ("num_crops", "checkpointing", "tokens", "s", "pictures/s", "tokens/s", "TFLOP/s"):
        table.add_column(heading, justify="right")
    for heading in ("utilisation", "GiB added"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            str(row.num_crops),
            "on" if row.gradient_checkpointing else "off",
            str(row.tokens),
            _cell(row.seconds, "{:.3g}"),
            _cell(row.pictures_per_second, "{:.3g}"),
            _cell(row.tokens_per_second, "{:,.0f}"),
            _cell(row.flops_per_second, "{:.3g}", 1e12),
            "–" if row.utilisation is None else f"{row.utilisation:.1%}",
            _cell(row.added_bytes, "{:.2f}", GIB),
        )
    return table


def _cell(value: float | None, form: str, unit: float = 1.0) -> str:
    return "out of memory" if value is None else form.format(value / unit)


def _ratio(its: float | None, ours: float | None) -> str:
    return "–" if its is None or ours is None else f"{its / ours:.2f}x"


app = typer.Typer(add_completion=False, help=__doc__, pretty_exceptions_enable=False)

DeviceOption = Annotated[Device, typer.Option(help="Where the model runs.")]
SizeOption = Annotated[Size, typer.Option(help="Which model runs.")]
TypeOption = Annotated[Type, typer.Option(help="Dtype of weights and pixels.")]
CropsOption = Annotated[list[int], typer.Option(help="num_crops; can be repeated.", min=1)]
PicturesOption = Annotated[int, typer.Option(help="Pictures per step.", min=1)]
RepetitionsOption = Annotated[int, typer.Option(help="Repetitions, whose median is reported.", min=1)]
WorkOption = Annotated[list[Work], typer.Option(help="What to measure; can be repeated.")]
JsonOption = Annotated[Path | None, typer.Option("--json", help="File for the results.")]


@app.command("compare")
def compare_command(
    device: DeviceOption = Device.CPU,
    size: SizeOption = Size.MIDDLING,
    dtype: TypeOption = Type.FLOAT32,
    work: WorkOption = list(Work),  # noqa: B006
    crops: CropsOption = CROPS,
    pictures: PicturesOption = 1,
    repetitions: RepetitionsOption = 3,
    json_file: JsonOption = None,
) -> None:
    """Compare the model with a plain twin that works like the published code."""
    setting = _setting(device, size, dtype, pictures)
    rows = compare(setting, work, crops, repetitions)
    _show(comparison_table(setting, rows), setting, rows, json_file)


@app.command("throughput")
def throughput_command(
    device: DeviceOption = Device.CPU,
    size: SizeOption = Size.MIDDLING,
    dtype: TypeOption = Type.FLOAT32,
    crops: CropsOption = CROPS,
    pictures: PicturesOption = 1,
    repetitions: RepetitionsOption = 3,
    json_file: JsonOption = None,
) -> None:
    """Measure LoRA training steps: pictures and tokens per second, and model FLOP/s utilisation."""
    setting = _setting(device, size, dtype, pictures)
    rows = throughput(setting, crops, repetitions)
    _show(throughput_table(setting, rows), setting, rows, json_file)


def _setting(device: Device, size: Size, dtype: Type, pictures: int) -> Setting:
    if device == Device.CUDA and not torch.cuda.is_available():
        raise UserError("there is no CUDA device: use a machine with a GPU, or --device cpu")
    return Setting(device, size, dtype, pictures)


def _show(
    table: Table, setting: Setting, rows: list[Comparison] | list[Throughput], json_file: Path | None
) -> None:
    # In a file or a log, do not wrap at a terminal's usual width.
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    if json_file is not None:
        made = {"setting": asdict(setting), "about": describe(setting), "rows": [asdict(row) for row in rows]}
        json_file.write_text(json.dumps(made, indent=2) + "\n")


def main() -> None:
    """Run the command; print errors that the user can fix as one line."""
    try:
        app()
    except UserError as error:
        typer.echo(f"benchmark: {error}", err=True)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()

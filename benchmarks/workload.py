"""What the benchmarks of the model run: which model, on what, doing what, and what memory that takes."""

import multiprocessing
import platform
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from benchmarks.measure import added_bytes
from benchmarks.plain_twin import PlainPhi3VForCausalLM
from benchmarks.synthetic import configuration, random_model, training_batch
from components.train_lora.parameters import DECODER_PROJECTIONS, TrainLoraParameters
from fovea.phi3v import Phi3VForCausalLM

TRAINING = TrainLoraParameters()


class Device(StrEnum):
    """Where the model runs."""

    CPU = "cpu"
    CUDA = "cuda"


class Size(StrEnum):
    """Which model runs: see `benchmarks.synthetic.configuration`."""

    PUBLISHED = "published"
    MIDDLING = "middling"
    TINY = "tiny"


class Type(StrEnum):
    """Type of weights and pixels."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Work(StrEnum):
    """What is measured: the loss without gradients, or a LoRA training step without the optimiser."""

    FORWARD = "forward"
    TRAINING = "forward+backward"


@dataclass(frozen=True)
class Setting:
    """What all rows of a table have in common."""

    device: str
    size: str
    dtype: str
    pictures: int

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type that `dtype` names."""
        return torch.float32 if self.dtype == Type.FLOAT32 else torch.bfloat16

    def model(self) -> Phi3VForCausalLM:
        """The model, with weights that are always the same."""
        return random_model(configuration(self.size), self.torch_dtype, self.device)

    def batch(self, num_crops: int, shape: str) -> dict[str, torch.Tensor]:
        """A batch of pictures of one shape."""
        return training_batch(
            configuration(self.size),
            num_crops=num_crops,
            shape=shape,
            pictures=self.pictures,
            device=self.device,
            dtype=self.torch_dtype,
        )


def with_lora(model: Phi3VForCausalLM, checkpointing: bool) -> Any:
    """The model as `train_lora` trains it, with its defaults: adapters on the decoder's projections."""
    lora = LoraConfig(
        r=TRAINING.lora_r,
        lora_alpha=TRAINING.lora_alpha,  # type: ignore[arg-type]  # any number will do
        lora_dropout=TRAINING.lora_dropout,
        target_modules=list(DECODER_PROJECTIONS),
        task_type="CAUSAL_LM",
    )
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    with warnings.catch_warnings():
        # PEFT asks transformers for checkpointing by its earlier name.
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(model, lora)


def run(model: Any, batch: dict[str, torch.Tensor], work: str) -> None:
    """Do the work once."""
    if work == Work.FORWARD:
        with torch.no_grad():
            model.eval()(**batch)
        return
    model.train()(**batch).loss.backward()
    model.zero_grad()


def device_name(device: str) -> str:
    """The GPU's or the processor's name."""
    if device == Device.CUDA:
        return torch.cuda.get_device_name()
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads"


def describe(setting: Setting) -> str:
    """Model, device and versions: what a table's numbers hold for."""
    config = configuration(setting.size)
    tower = config.vision_config
    with torch.device("meta"):
        parameters = sum(weight.numel() for weight in Phi3VForCausalLM(config).parameters())
    return (
        f"{setting.size} model, {parameters / 1e6:,.0f} million parameters: decoder of "
        f"{config.num_hidden_layers} layers, width {config.hidden_size}; tower of {tower.num_hidden_layers} "
        f"layers, width {tower.hidden_size}, crops of {tower.image_size} pixels; {setting.dtype}; "
        f"{setting.pictures} picture(s) a step\n{device_name(setting.device)}; torch {torch.__version__}"
    )


def added_on_cpu(
    setting: Setting, work: str, num_crops: int, shape: str, *, checkpointing: bool, plain: bool
) -> int | None:
    """Bytes of main memory that the work adds to the model, in a process of its own; None: too many.

    Args:
        setting: the model and its batch.
        work: one of `Work`.
        num_crops: of the batch.
        shape: of the batch's pictures.
        checkpointing: recompute activations in the backward pass.
        plain: the plain twin instead of the model.
    """
    # Its children are fresh: forked from a process that has imported everything and done nothing.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(1, context) as executor:
        measured = executor.submit(_added_here, setting, work, num_crops, shape, checkpointing, plain)
        try:
            return measured.result()
        except BrokenProcessPool:  # killed, as the kernel does when memory runs out
            return None


def _added_here(
    setting: Setting, work: str, num_crops: int, shape: str, checkpointing: bool, plain: bool
) -> int:
    model = setting.model()
    chosen = PlainPhi3VForCausalLM.sharing(model, num_crops) if plain else model
    adapted = with_lora(chosen, checkpointing)
    batch = setting.batch(num_crops, shape)
    return added_bytes(partial(run, adapted, batch, work), setting.device)


def added_on_gpu(work: Callable[[], None]) -> int | None:
    """Bytes of the GPU's memory that the work adds to what is there; None: too many."""
    try:
        # What a first run allocates for good, such as the libraries' own memory, is not the work's.
        work()
        return added_bytes(work, Device.CUDA)
    except torch.OutOfMemoryError:
        pass
    torch.cuda.empty_cache()
    return None

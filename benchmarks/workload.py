"""The workloads of the model benchmarks: model, device, work, and memory measurement."""

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
    """The device of the model."""

    CPU = "cpu"
    CUDA = "cuda"


class Size(StrEnum):
    """The size of the model: see `benchmarks.synthetic.configuration`."""

    PUBLISHED = "published"
    MIDDLING = "middling"
    TINY = "tiny"


class Type(StrEnum):
    """The dtype of weights and pixels."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Work(StrEnum):
    """The measured work: the loss without gradients, or a LoRA training step without the optimiser."""

    FORWARD = "forward"
    TRAINING = "forward+backward"


@dataclass(frozen=True)
class Setting:
    """The common settings of all rows of a table."""

    device: str
    size: str
    dtype: str
    pictures: int

    @property
    def torch_dtype(self) -> torch.dtype:
        """The torch dtype for `dtype`."""
        return torch.float32 if self.dtype == Type.FLOAT32 else torch.bfloat16

    def model(self) -> Phi3VForCausalLM:
        """Return the model, always with the same weights."""
        return random_model(configuration(self.size), self.torch_dtype, self.device)

    def batch(self, num_crops: int, shape: str) -> dict[str, torch.Tensor]:
        """Return a batch of pictures of one shape."""
        return training_batch(
            configuration(self.size),
            num_crops=num_crops,
            shape=shape,
            pictures=self.pictures,
            device=self.device,
            dtype=self.torch_dtype,
        )


def with_lora(model: Phi3VForCausalLM, checkpointing: bool) -> Any:
    """Return the model as `train_lora` trains it by default: adapters on the decoder's projections."""
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
        # PEFT passes the setting for checkpointing under its old name.
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
    """Return the name of the GPU or the processor."""
    if device == Device.CUDA:
        return torch.cuda.get_device_name()
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads"


def describe(setting: Setting) -> str:
    """Describe the model, the device and the versions, for the title of a table."""
    config = configuration(setting.size)
    tower = config.vision_config
    with torch.device("meta"):
        parameters = sum(weight.numel() for weight in Phi3VForCausalLM(config).parameters())
    return (
        f"{setting.size} model, {parameters / 1e6:,.0f} million parameters: decoder of "
        f"{config.num_hidden_layers} layers, width {config.hidden_size}; tower of {tower.num_hidden_layers} "
        f"layers, width {tower.hidden_size}, crops of {tower.image_size} pixels; {setting.dtype}; "
        f"{setting.pictures} picture(s) per step\n{device_name(setting.device)}; torch {torch.__version__}"
    )


def added_on_cpu(
    setting: Setting, work: str, num_crops: int, shape: str, *, checkpointing: bool, plain: bool
) -> int | None:
    """Return the main memory of the work without the model, in a separate process; None: out of memory.

    Args:
        setting: the model and its batch.
        work: one of `Work`.
        num_crops: of the batch.
        shape: of the batch's pictures.
        checkpointing: recompute activations in the backward pass.
        plain: the plain twin instead of the model.
    """
    # Its children are clean: forked from a process that has only imported modules.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(1, context) as executor:
        measured = executor.submit(_added_here, setting, work, num_crops, shape, checkpointing, plain)
        try:
            return measured.result()
        except BrokenProcessPool:  # killed, for example by the kernel when memory runs out
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
    """Return the additional GPU memory of the work; None: out of memory."""
    try:
        # Permanent allocations of a first run, such as the libraries' own memory, do not count.
        work()
        return added_bytes(work, Device.CUDA)
    except torch.OutOfMemoryError:
        pass
    torch.cuda.empty_cache()
    return None

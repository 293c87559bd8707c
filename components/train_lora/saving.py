"""When a checkpoint is saved, and which adapter is kept."""

import json
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fovea.steps import Interrupted

logger = logging.getLogger("fovea.train_lora")

_BEST_WEIGHTS, _BEST = "best.safetensors", "best.json"


class Stop:
    """Whether the process was told to end. The first SIGTERM is noted, the second one ends it at once."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Take the signal."""
        if self.asked:
            raise Interrupted("was told to end (SIGTERM) twice")
        self.asked = True
        logger.info("train_lora: told to end: a checkpoint is saved after this step")

    @contextmanager
    def on_sigterm(self) -> Iterator[None]:
        """Take SIGTERM while the block runs."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)


class BestAdapter(TrainerCallback):  # type: ignore[misc]
    """Remembers the adapter with the best figure; it travels in the checkpoints.

    The Trainer's own way needs the best one's checkpoint folder to be there, which after a resume it is not.
    """

    def __init__(self, metric: str) -> None:
        self._metric = metric
        self._sign = 1.0 if metric == "eval_loss" else -1.0
        self.value = math.inf
        self.step = 0
        self.metrics: dict[str, float] = {}
        self._weights: dict[str, torch.Tensor] = {}

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float] | None = None,
        model: Any = None,
        **_: Any,
    ) -> None:
        """Remember the adapter where it is better than any before."""
        metrics = metrics or {}
        value = self._sign * metrics[self._metric]
        if value < self.value:
            self.value, self.step = value, state.global_step
            self.metrics = {name: float(number) for name, number in metrics.items()}
            state_dict = get_peft_model_state_dict(model)
            self._weights = {name: tensor.detach().cpu().clone() for name, tensor in state_dict.items()}

    def put_back(self, model: Any) -> None:
        """Set the model to the best adapter."""
        if self._weights:
            set_peft_model_state_dict(model, self._weights)

    def save(self, folder: Path) -> None:
        """Write what is remembered into a checkpoint's folder."""
        if self._weights:
            save_file(self._weights, folder / _BEST_WEIGHTS)
            state = {"value": self.value, "step": self.step, "metrics": self.metrics}
            (folder / _BEST).write_text(json.dumps(state))

    def load(self, folder: Path) -> None:
        """Take up what a checkpoint's folder holds."""
        if (folder / _BEST).exists():
            state = json.loads((folder / _BEST).read_text())
            self.value, self.step, self.metrics = state["value"], state["step"], state["metrics"]
            self._weights = load_file(folder / _BEST_WEIGHTS)


class Saving(TrainerCallback):  # type: ignore[misc]
    """Has the Trainer save a checkpoint every so many minutes and at SIGTERM, and uploads it.

    Args:
        minutes: between checkpoints; 0 for none but at SIGTERM.
        stop: whether the process was told to end.
        best: goes along, where the best adapter is kept.
        upload: takes the folder, the step and the last step; called on the first process alone.
        clock: seconds from any start.
    """

    def __init__(
        self,
        minutes: float,
        stop: Stop,
        best: BestAdapter | None,
        upload: Callable[[Path, int, int], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._minutes = minutes
        self._stop = stop
        self._best = best
        self._upload = upload
        self._clock = clock
        self._last = clock()
        self.interrupted = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Set the clock."""
        self._last = self._clock()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Decide whether to save and whether to end, for all processes alike."""
        if state.global_step >= state.max_steps:
            # What is left takes seconds, and its result is the adapter itself.
            return
        due = self._minutes > 0 and self._clock() - self._last >= 60 * self._minutes
        stop, due = _agreed(args, self._stop.asked, due)
        if stop or due:
            control.should_save = True
        if stop:
            self.interrupted = True
            control.should_training_stop = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Upload what the Trainer wrote, unless the training ended early: then nothing goes on from it."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if args.world_size > 1:
            torch.distributed.barrier()
        if state.is_world_process_zero and (self.interrupted or not control.should_training_stop):
            if self._best is not None:
                self._best.save(folder)
            started = self._clock()
            self._upload(folder, state.global_step, state.max_steps)
            logger.info(
                "train_lora: checkpoint of step %d saved in %.1f s",
                state.global_step,
                self._clock() - started,
            )
        self._last = self._clock()


def _agreed(args: TrainingArguments, stop: bool, due: bool) -> tuple[bool, bool]:
    """Return what holds for any process, so that all of them save and end at the same step."""
    if args.world_size == 1:
        return stop, due
    flags = torch.tensor([stop, due], dtype=torch.int32, device=args.device)
    torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
    return bool(flags[0]), bool(flags[1])

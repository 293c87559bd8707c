"""The training's callbacks: when to save a checkpoint, which adapter to keep, and what to log.

They also stop the training if the loss diverges.
"""

import json
import logging
import math
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

import fovea.tracking as tracking
from components.train_lora.trainer import LoraTrainer
from fovea.errors import UserError
from fovea.progress import Progress
from fovea.steps import Interrupted

logger = logging.getLogger("fovea.train_lora")

_BEST_WEIGHTS, _BEST = "best.safetensors", "best.json"
_TRACKED_EVERY = 10
_ESTIMATED_AFTER = (3, 20)
"""Steps after which the remaining time is logged: a rough estimate early, a better one later."""
_FIRST, _ASTRAY = 10, 3
_SHOWN_ROWS = 16


class Stop:
    """Whether the process should stop. The first SIGTERM is recorded, the second one stops it immediately."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle the signal."""
        if self.asked:
            raise Interrupted("received SIGTERM twice")
        self.asked = True
        logger.info("train_lora: SIGTERM: saving a checkpoint after this step")

    @contextmanager
    def on_sigterm(self) -> Iterator[None]:
        """Handle SIGTERM while the block runs."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)


class BestAdapter(TrainerCallback):  # type: ignore[misc]
    """Keeps the adapter with the best metric; it is saved in the checkpoints.

    The Trainer's own mechanism needs the checkpoint folder of the best one, which is missing after a resume.
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
        """Keep the adapter if it is better than all before."""
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
        """Write the best adapter into a checkpoint's folder."""
        if self._weights:
            save_file(self._weights, folder / _BEST_WEIGHTS)
            state = {"value": self.value, "step": self.step, "metrics": self.metrics}
            (folder / _BEST).write_text(json.dumps(state))

    def load(self, folder: Path) -> None:
        """Read the best adapter from a checkpoint's folder."""
        if (folder / _BEST).exists():
            state = json.loads((folder / _BEST).read_text())
            self.value, self.step, self.metrics = state["value"], state["step"], state["metrics"]
            self._weights = load_file(folder / _BEST_WEIGHTS)


class Saving(TrainerCallback):  # type: ignore[misc]
    """Has the Trainer save a checkpoint at intervals and at SIGTERM, and uploads it.

    Args:
        minutes: between checkpoints; 0 for only at SIGTERM.
        stop: whether the process should stop.
        best: saved with the checkpoint, if the best adapter is kept.
        upload: takes the folder, the step and the last step; called only in the first process.
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
        """Start the clock."""
        self._last = self._clock()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Decide whether to save and whether to stop, for all processes together."""
        if state.global_step >= state.max_steps:
            # The rest takes seconds, and its result is the adapter.
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
        """Upload what the Trainer wrote, unless the training stopped early: nothing will resume then."""
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
    """Return the flags combined over all processes, so that all of them save and stop at the same step."""
    if args.world_size == 1:
        return stop, due
    flags = torch.tensor([stop, due], dtype=torch.int32, device=args.device)
    torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
    return bool(flags[0]), bool(flags[1])


class Watch(TrainerCallback):  # type: ignore[misc]
    """Logs the metrics of the training; one per process, of which only the first has a run and progress.

    Args:
        run: receives the metrics.
        progress: receives the lines of progress; None in all but the first process.
        vocabulary: size of the model's vocabulary; its logarithm is the loss of a uniform guess.
    """

    def __init__(self, run: tracking.Run, progress: Progress | None, vocabulary: int) -> None:
        self._run = run
        self._progress = progress
        self._uniform = math.log(vocabulary)
        self._astray = 0
        self._first_step = 0
        self.trainer: LoraTrainer | None = None
        """Set when the Trainer exists."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Record the step at which a resumed training starts."""
        self._first_step = state.global_step

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Process the metrics of a step or of an evaluation."""
        logs = logs or {}
        if "loss" in logs:
            self._check(state, logs)
            self._on_step(state, logs)
        elif "eval_loss" in logs:
            self._on_evaluation(state, logs)

    def _on_step(self, state: TrainerState, logs: Mapping[str, float]) -> None:
        if self._progress is not None:
            self._progress(state.global_step, state.max_steps, f"loss {logs['loss']:.3f}")
        done = state.global_step - self._first_step
        if done in _ESTIMATED_AFTER and self._progress is not None:
            self._estimate(state)
        if state.global_step % _TRACKED_EVERY == 0 or state.global_step == state.max_steps:
            window = [entry for entry in state.log_history[-2 * _TRACKED_EVERY :] if "loss" in entry]
            self._run.log_metrics(summary(window[-_TRACKED_EVERY:]), state.global_step)

    def _on_evaluation(self, state: TrainerState, logs: Mapping[str, float]) -> None:
        figures = {name.removeprefix("eval_"): value for name, value in logs.items() if name in _EVALUATED}
        self._run.log_metrics(figures, state.global_step, prefix="validation/")
        if not math.isfinite(logs["eval_loss"]):
            raise UserError(
                f"validation loss is {logs['eval_loss']} at step {state.global_step}; "
                "check that the base model's weights are finite"
            )
        if self._progress is not None:
            told = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
            logger.info("train_lora: step %d: validation %s", state.global_step, told)

    def _estimate(self, state: TrainerState) -> None:
        """Log the estimated remaining time. The first step, which warms up, does not count."""
        steps = [entry for entry in state.log_history if "loss" in entry][self._first_step :]
        # Not the median: lengths differ, and the longest are first.
        each = statistics.fmean(entry["seconds"] for entry in steps[1:] or steps)
        seconds = each * (state.max_steps - state.global_step)
        end = datetime.now(UTC) + timedelta(seconds=seconds)
        logger.info(
            "train_lora: about %s left for %d steps, until %s UTC, without evaluations",
            f"{seconds / 3600:.1f} h" if seconds > 3600 else f"{seconds / 60:.0f} min",
            state.max_steps - state.global_step,
            end.strftime("%Y-%m-%d %H:%M"),
        )
        self._run.set_tags({"estimated_end": end.isoformat(timespec="minutes")})

    def _check(self, state: TrainerState, logs: Mapping[str, float]) -> None:
        for name in ("loss", "grad_norm"):
            if not math.isfinite(logs.get(name, 0.0)):
                raise UserError(
                    f"{name} is {logs[name]} at step {state.global_step}, {self._batches()}; "
                    "lower learning_rate, or check that the base model's weights are finite"
                )
        losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
        limit = max(2 * self._uniform, 3 * statistics.fmean(losses[:_FIRST]))
        self._astray = self._astray + 1 if logs["loss"] > limit and len(losses) > _FIRST else 0
        if self._astray >= _ASTRAY:
            raise UserError(
                f"the loss has exploded: {logs['loss']:.1f} at step {state.global_step}, up from "
                f"{losses[0]:.1f}, {self._batches()}; lower learning_rate, or raise warmup_ratio"
            )

    def _batches(self) -> str:
        if self.trainer is None:
            return "in an unknown batch"
        batches = self.trainer.rows_of_step()
        # If only some are not finite, those are the cause.
        wrong = [rows for rows, loss in batches if not math.isfinite(loss)] or [rows for rows, _ in batches]
        names = [name for rows in wrong for name in rows]
        return (
            f"in the batch of rows {', '.join(names[:_SHOWN_ROWS])}{' …' if len(names) > _SHOWN_ROWS else ''}"
        )


_EVALUATED = ("eval_loss", "eval_answers_right", "eval_answers_all_right")


def summary(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the metrics of several steps together."""
    seconds = sum(entry["seconds"] for entry in steps)
    figures = {
        "loss": statistics.fmean(entry["loss"] for entry in steps),
        "learning_rate": steps[-1]["learning_rate"],
        "pictures_per_second": sum(entry["pictures"] for entry in steps) / seconds,
        "tokens_per_second": sum(entry["tokens"] for entry in steps) / seconds,
        "waiting_share": sum(entry["waiting_seconds"] for entry in steps) / seconds,
    }
    if "grad_norm" in steps[-1]:
        figures["grad_norm"] = statistics.fmean(entry["grad_norm"] for entry in steps)
    if torch.cuda.is_available():
        figures["gpu_peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return figures

"""transformers' Trainer, with an order that survives a resume and metrics of each step."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import PrinterCallback, Trainer
from transformers.trainer_utils import EvalLoopOutput

from components.train_lora.answers import Answered, AnswerSamples, figures
from components.train_lora.data import ROW_IDS


class LoraTrainer(Trainer):  # type: ignore[misc]
    """Trains on batches of `AnswerCollator`.

    ``state.log_history`` has an entry for each step: ``loss``, ``grad_norm``, ``learning_rate``, ``seconds``,
    ``waiting_seconds`` (for data), ``tokens`` and ``pictures``. It is part of a checkpoint, and therefore
    complete after a resume.
    """

    def __init__(
        self,
        *args: Any,
        order: Sampler[int],
        samples: AnswerSamples | None = None,
        on_answers: Callable[[int, list[Answered]], None] | None = None,
        **kwargs: Any,
    ) -> None:
        """Create a `Trainer` with additional arguments.

        Args:
            *args: as `Trainer`.
            order: the training examples' order.
            samples: validation rows to answer at each evaluation.
            on_answers: called with the step and the answers, only in the first process.
            **kwargs: as `Trainer`.
        """
        super().__init__(*args, **kwargs)
        self.remove_callback(PrinterCallback)
        self.order = order
        self._samples = samples
        self._on_answers = on_answers
        self.micro_batches: list[tuple[list[str], torch.Tensor]] = []
        """For the current step on this process: each batch's row IDs and its share of the loss."""
        self._started = self._waited = 0.0
        self._tokens = self._pictures = 0

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return self.order

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """Fetch all batches of a step, as `Trainer` does, and count the time as waiting."""
        self._started = time.perf_counter()
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._waited = time.perf_counter() - self._started
        self.micro_batches = []
        self._pictures = sum(len(batch["input_ids"]) for batch in batches)
        self._tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
        return batches, items

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Compute the loss, as `Trainer` does, without the row IDs, which the model does not accept."""
        row_ids = inputs.pop(ROW_IDS)
        result = super().compute_loss(model, inputs, *args, **kwargs)
        if model.training:
            self.micro_batches.append((row_ids, result.detach()))
        return result

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log after every step, as `Trainer` does, and add the step's speed."""
        if "loss" in logs:
            seconds = time.perf_counter() - self._started
            processes = self.args.world_size
            logs |= {
                "seconds": seconds,
                "waiting_seconds": self._waited,
                # Batches have similar lengths, so this process represents all.
                "tokens": float(self._tokens * processes),
                "pictures": float(self._pictures * processes),
            }
        super().log(logs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate, as `Trainer` does, and answer the sample rows in the first process."""
        output = super().evaluation_loop(*args, **kwargs)
        if self._samples is not None:
            output.metrics.update(self._answer())
        return output

    def _answer(self) -> dict[str, float]:
        told: list[Any] = [None]
        if self.is_world_process_zero():
            model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
            answered = self._samples.ask(model.get_base_model())  # type: ignore[union-attr]
            told = [figures(answered)]
            if self._on_answers is not None:
                self._on_answers(self.state.global_step, answered)
        if self.args.world_size > 1:
            torch.distributed.broadcast_object_list(told, device=self.args.device)
        metrics: dict[str, float] = told[0]
        return metrics

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write only the adapter; `Trainer` would also pickle its arguments."""
        if self.args.should_save:
            model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
            model.save_pretrained(output_dir or self.args.output_dir)

    def rows_of_step(self) -> Sequence[tuple[list[str], float]]:
        """Return row IDs and share of the loss of the current step's batches, on all processes."""
        mine = [(row_ids, float(loss)) for row_ids, loss in self.micro_batches]
        if self.args.world_size == 1:
            return mine
        gathered: list[Any] = [None] * self.args.world_size
        torch.distributed.all_gather_object(gathered, mine)
        return [each for part in gathered for each in part]

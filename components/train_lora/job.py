"""The work of one process of a training: its inputs, the training, and its outputs."""

import json
import logging
import math
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict
from transformers import (
    EarlyStoppingCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging as transformers_logging

import fovea.tracking as tracking
from components.train_lora.answers import Answered, AnswerSamples
from components.train_lora.callbacks import BestAdapter, Saving, Stop, Watch
from components.train_lora.checkpoints import Checkpoints
from components.train_lora.data import IGNORED, AnswerCollator, EpochOrder, load_split
from components.train_lora.lora import load_with_lora, save_adapter
from components.train_lora.memory import advice
from components.train_lora.parameters import TrainLoraParameters
from components.train_lora.report import ANSWERS, HISTORY, TRAINED
from components.train_lora.trainer import LoraTrainer
from fovea.errors import UserError
from fovea.memory import reuse_freed_memory
from fovea.pages import picture_url
from fovea.phi3v import Phi3VConfig, Phi3VProcessor
from fovea.progress import Progress
from fovea.records import Digest, MlflowReference, StepInputs
from fovea.steps import Interrupted
from fovea.storage import Storage
from fovea.task import Task

logger = logging.getLogger("fovea.train_lora")

_SHOWN_ANSWERS = 24
_PICTURE_SIDE = 200
_MOST_WORKERS = 8


class Job(BaseModel):
    """The inputs of a process. They are passed as JSON if there are several processes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    parameters: TrainLoraParameters
    processes: int
    dataset: Path
    weights: Path
    checkpoint: Path | None
    """The folder of the checkpoint to resume from."""
    output: Path
    """Output of the first process: ``adapter/``, ``trained.json``, ``history.json`` and ``answers.json``."""
    task: Task
    base_digest: Digest
    inputs: StepInputs
    artifact_root: str
    run_id: str
    mlflow: MlflowReference | None
    train_rows: tuple[int, ...]
    """Indices of the rows to train on."""
    train_lengths: tuple[int, ...]
    """Their tokens."""
    validation_rows: tuple[int, ...]


class Trained(BaseModel):
    """The result of a training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int
    epochs: float
    train_loss: float
    validation_loss: float
    kept_step: int


def run_job(job: Job, run: tracking.Run) -> Trained:
    """Train as one of the job's processes; ``run`` receives its metrics.

    Raises:
        UserError: the loss is not finite or has exploded, or memory ran out.
        Interrupted: SIGTERM was received; a checkpoint was saved if the current step could be finished.
    """
    transformers_logging.set_verbosity_error()
    if not torch.cuda.is_available():
        reuse_freed_memory(keep=1 << 30)
    is_first = int(os.environ.get("RANK", "0")) == 0
    stop = Stop()
    with stop.on_sigterm(), run.system_metrics():
        trained = _Training(job, stop, run, is_first).train()
    if trained is None:
        raise Interrupted("received SIGTERM; run again to resume from its checkpoint")
    return trained


class _Training:
    """The model, the data and the Trainer of one process."""

    def __init__(self, job: Job, stop: Stop, run: tracking.Run, is_first: bool) -> None:
        self._job = job
        self._run = run
        self._is_first = is_first
        parameters = job.parameters
        set_seed(parameters.seed)
        self._best = BestAdapter(parameters.best_metric) if parameters.keep != "last" else None
        self._saving = Saving(parameters.checkpoint_minutes, stop, self._best, self._upload)
        self._watch = Watch(
            run,
            Progress(logger, "train_lora: steps") if is_first else None,
            vocabulary=Phi3VConfig.from_pretrained(job.weights).vocab_size,
        )
        self.trainer = self._make_trainer()
        self._watch.trainer = self.trainer

    def _make_trainer(self) -> LoraTrainer:
        job, parameters = self._job, self._job.parameters
        processor = Phi3VProcessor.from_pretrained(job.weights)
        processor.image_processor.num_crops = parameters.num_crops
        collator = AnswerCollator(processor, job.task, parameters.num_crops)
        train = load_split(job.dataset, "train").select(job.train_rows)
        validation = load_split(job.dataset, "validation").select(job.validation_rows)
        if self._is_first:
            show_what_is_trained_on(processor, collator([train[0]]))
        self._order = EpochOrder(job.train_lengths, parameters.train_batch_size, parameters.seed)
        count = parameters.answered_samples
        return LoraTrainer(
            model=load_with_lora(job.weights, parameters),
            args=arguments(job.output / "trainer", parameters, len(train), job.processes),
            data_collator=collator,
            train_dataset=train,
            eval_dataset=validation,
            callbacks=self._callbacks(),
            order=self._order,
            samples=AnswerSamples(validation, count, processor, job.task) if count else None,
            on_answers=self._on_answers,
        )

    def _callbacks(self) -> list[TrainerCallback]:
        found: list[TrainerCallback] = [self._watch, *([self._best] if self._best else [])]
        if self._job.parameters.early_stopping_patience:
            found.append(EarlyStopping(self._job.parameters.early_stopping_patience))
        return [*found, self._saving, _SetEpoch(self._order_of_epoch)]

    def _order_of_epoch(self, epoch: int) -> None:
        self._order.set_epoch(epoch)

    def train(self) -> Trained | None:
        """Train to the end; return None if the process was stopped before."""
        job = self._job
        if job.checkpoint is not None and self._best is not None:
            self._best.load(job.checkpoint)
        with self._explaining_memory():
            self.trainer.train(resume_from_checkpoint=str(job.checkpoint) if job.checkpoint else None)
        if self._saving.interrupted:
            return None
        evaluated = self._evaluated()
        kept_step = self.trainer.state.global_step
        if self._best is not None:
            self._best.put_back(self.trainer.model)
            kept_step, evaluated = self._best.step, self._best.metrics["eval_loss"]
        return self._leave(evaluated, kept_step)

    def _evaluated(self) -> float:
        """Return the validation loss after the last step, where the Trainer always evaluates."""
        last = next(entry for entry in reversed(self.trainer.state.log_history) if "eval_loss" in entry)
        return float(last["eval_loss"])

    def _leave(self, validation_loss: float, kept_step: int) -> Trained:
        state, output = self.trainer.state, self._job.output
        losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
        trained = Trained(
            steps=state.global_step,
            epochs=float(state.epoch or 0),
            train_loss=statistics.fmean(losses),
            validation_loss=validation_loss,
            kept_step=kept_step,
        )
        if self._is_first:
            save_adapter(self.trainer.model, output / "adapter", self._job.base_digest)
            (output / HISTORY).write_text(json.dumps(state.log_history))
            (output / TRAINED).write_text(trained.model_dump_json())
        return trained

    def _upload(self, folder: Path, step: int, max_steps: int) -> None:
        job = self._job
        Checkpoints(Storage(), job.artifact_root, job.inputs).save(
            folder,
            step=step,
            max_steps=max_steps,
            processes=job.processes,
            run_id=job.run_id,
            mlflow=job.mlflow,
        )

    def _on_answers(self, step: int, answered: Sequence[Answered]) -> None:
        shown = [
            {
                "row_id": each.row_id,
                "picture": picture_url(each.picture, _PICTURE_SIDE),
                "truth": each.truth,
                "answer": each.answer,
                "right": each.right,
            }
            for each in answered[:_SHOWN_ANSWERS]
        ]
        (self._job.output / ANSWERS).write_text(json.dumps({"step": step, "rows": shown}))
        self._run.log_table(
            {
                "step": [step] * len(shown),
                "row_id": [each.row_id for each in answered[:_SHOWN_ANSWERS]],
                "picture": [small(each.picture, _PICTURE_SIDE) for each in answered[:_SHOWN_ANSWERS]],
                "truth": [each.truth for each in answered[:_SHOWN_ANSWERS]],
                "answer": [each.answer for each in answered[:_SHOWN_ANSWERS]],
                "right": [each.right for each in answered[:_SHOWN_ANSWERS]],
            },
            "answers.json",
        )

    @contextmanager
    def _explaining_memory(self) -> Iterator[None]:
        try:
            yield
        except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
            if not isinstance(error, torch.OutOfMemoryError | MemoryError) and not _is_main_memory(error):
                raise
            parameters, longest = self._job.parameters, max(self._job.train_lengths)
            raise UserError(
                f"memory ran out after step {self.trainer.state.global_step}, with "
                f"{parameters.per_device_train_batch_size} examples of up to {longest} tokens per batch; "
                + advice(parameters)
            ) from error


def _is_main_memory(error: RuntimeError) -> bool:
    return "DefaultCPUAllocator" in str(error) or "not enough memory" in str(error)


class EarlyStopping(EarlyStoppingCallback):  # type: ignore[misc]
    """transformers' callback, without its warning about loading the best adapter, which ``keep`` decides."""

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing."""


class _SetEpoch(TrainerCallback):  # type: ignore[misc]
    """Sets the epoch of the order: the Trainer does not reach it through a sharded, skipping loader."""

    def __init__(self, set_epoch: Callable[[int], None]) -> None:
        self._set_epoch = set_epoch

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Pass on the epoch; after a resume within one, its fraction is cut off."""
        self._set_epoch(int(state.epoch or 0))


def steps_an_epoch(rows: int, parameters: TrainLoraParameters, processes: int) -> int:
    """Return the optimiser steps of one epoch, as the Trainer counts them."""
    batches = math.ceil(rows / (parameters.per_device_train_batch_size * processes))
    return math.ceil(batches / accumulation(parameters, processes))


def accumulation(parameters: TrainLoraParameters, processes: int) -> int:
    """Return the number of batches per step and process.

    Raises:
        UserError: the batch cannot be divided among the devices.
    """
    at_once = parameters.per_device_train_batch_size * processes
    if parameters.train_batch_size % at_once:
        raise UserError(
            f"train_batch_size {parameters.train_batch_size} must be a multiple of "
            f"per_device_train_batch_size {parameters.per_device_train_batch_size} "
            f"on {processes} devices, {at_once}; change one of them"
        )
    return parameters.train_batch_size // at_once


def arguments(folder: Path, parameters: TrainLoraParameters, rows: int, processes: int) -> TrainingArguments:
    """Return the Trainer's arguments."""
    cuda = torch.cuda.is_available()
    epoch = steps_an_epoch(rows, parameters, processes)
    steps = parameters.max_steps or math.ceil(epoch * parameters.num_train_epochs)
    # With a GPU, separate processes decode pictures; on a CPU these would compete with the training for its
    # cores. They are spawned, because forking a process that has threads can hang.
    workers = max(1, min(_MOST_WORKERS, (len(os.sched_getaffinity(0)) - 1) // processes)) if cuda else 0
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=parameters.per_device_train_batch_size,
        per_device_eval_batch_size=parameters.per_device_train_batch_size,
        gradient_accumulation_steps=accumulation(parameters, processes),
        num_train_epochs=parameters.num_train_epochs,
        max_steps=parameters.max_steps or -1,
        learning_rate=parameters.learning_rate,
        lr_scheduler_type=parameters.lr_scheduler_type,
        warmup_steps=round(steps * parameters.warmup_ratio),
        weight_decay=parameters.weight_decay,
        seed=parameters.seed,
        bf16=parameters.precision != "float32" and cuda,
        use_cpu=not cuda,
        torch_compile=parameters.torch_compile,
        # Every step, so that no loss is lost between two entries when a training resumes from a checkpoint.
        logging_strategy="steps",
        logging_steps=1,
        # Otherwise the Trainer replaces a loss that is not finite by the mean of the finite ones.
        logging_nan_inf_filter=False,
        # Not by epochs: those are evaluated after the last step's checkpoint, which would lack the result.
        eval_strategy="steps",
        eval_steps=parameters.eval_steps or epoch,
        metric_for_best_model=parameters.best_metric,
        greater_is_better=parameters.best_metric != "eval_loss",
        # `Saving` decides when.
        save_strategy="no",
        save_total_limit=1,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        prediction_loss_only=True,
        label_names=["labels"],
        ddp_find_unused_parameters=False,
        ddp_backend=None if cuda or processes == 1 else "gloo",
        dataloader_num_workers=workers,
        dataloader_prefetch_factor=4 if cuda else None,
        dataloader_persistent_workers=cuda,
        dataloader_multiprocessing_context="spawn" if cuda else None,
        dataloader_pin_memory=cuda,
    )


def show_what_is_trained_on(processor: Phi3VProcessor, batch: Mapping[str, Any]) -> None:
    """Log the first example as the model sees it, to check that the right text is trained."""
    ids, labels = batch["input_ids"][0], batch["labels"][0]
    supervised = labels != IGNORED
    pictures = int((ids == processor.image_token_id).sum())
    masked = processor.tokenizer.decode(ids[~supervised & (ids != processor.image_token_id)])
    logger.info("train_lora: masked     %r and %d picture tokens", masked, pictures)
    logger.info("train_lora: trained on %r", processor.tokenizer.decode(ids[supervised]))


def small(picture: Image.Image, side: int) -> Image.Image:
    """Return a copy of at most ``side`` pixels."""
    copy = picture.convert("RGB")
    copy.thumbnail((side, side))
    return copy

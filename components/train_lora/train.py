"""LoRA training with transformers' Trainer and PEFT."""

import json
import logging
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

import fovea.tracking as tracking
from components.train_lora.data import IGNORED, AnswerCollator, load_split
from components.train_lora.parameters import DECODER_PROJECTIONS, TrainLoraParameters
from fovea.errors import UserError
from fovea.phi3v import Phi3VForCausalLM, Phi3VProcessor
from fovea.progress import Progress
from fovea.records import AdapterRecord, DatasetRecord, ModelRecord, ModelReference, read_record, write_record
from fovea.steps import Attempt, RunContext, configure_logging, parse_parameters, reporting_failure, run_step
from fovea.storage import Storage, index_uri

logger = logging.getLogger("fovea.train_lora")

STEP = "train_lora"
VERSION = 1


def train_lora_step(
    *,
    dataset_record: str | Path,
    base_record: str | Path,
    adapter_record: str | Path,
    artifact_root: str,
    run_id: str,
    experiment: str,
    parameters: Mapping[str, Any],
) -> AdapterRecord:
    """Train an adapter for the base model on the dataset's train split, and write its record.

    Args:
        dataset_record: File with the DatasetRecord.
        base_record: File with the base's ModelRecord.
        adapter_record: Where the AdapterRecord goes.
        artifact_root: s3://bucket/prefix of payloads and records.
        run_id: The run's ID.
        experiment: MLflow experiment, where tracking is on.
        parameters: TrainLoraParameters by name.

    Raises:
        UserError: an input cannot be read, a parameter is wrong, or the loss is not finite.
    """
    configure_logging()
    context, storage = RunContext(artifact_root=artifact_root, run_id=run_id), Storage()
    with reporting_failure(STEP, context, storage):
        checked: TrainLoraParameters = parse_parameters(TrainLoraParameters, parameters)
        dataset = read_record(dataset_record, DatasetRecord)
        base = read_record(base_record, ModelRecord)
        record = run_step(
            AdapterRecord,
            step=STEP,
            version=VERSION,
            context=context,
            parameters=checked.model_dump(),
            parents={"dataset": dataset.digest, "base": base.digest},
            work=lambda attempt: _tracked(attempt, dataset, base, experiment, checked),
            storage=storage,
        )
        write_record(record, adapter_record)
    return record


def _tracked(
    attempt: Attempt,
    dataset: DatasetRecord,
    base: ModelRecord,
    experiment: str,
    parameters: TrainLoraParameters,
) -> Mapping[str, Any]:
    run = tracking.Run.open(
        experiment, name=attempt.context.run_id, tags={"dataset": dataset.digest, "base": base.digest}
    )
    run.log_params(parameters.model_dump())
    try:
        made = _train(attempt, dataset, base, run, parameters)
    except BaseException:
        run.finish(failed=True)
        raise
    run.finish()
    return made


def _train(
    attempt: Attempt,
    dataset: DatasetRecord,
    base: ModelRecord,
    run: tracking.Run,
    parameters: TrainLoraParameters,
) -> Mapping[str, Any]:
    data = attempt.storage.download(dataset, progress=attempt.progress("fetching the dataset"))
    weights = attempt.storage.download(base, progress=attempt.progress("fetching the base model"))
    set_seed(parameters.seed)
    processor = Phi3VProcessor.from_pretrained(weights)
    collator = AnswerCollator(processor, dataset.task, parameters.num_crops)
    train, validation = load_split(data, "train"), load_split(data, "validation")
    _show_what_is_trained_on(processor, collator([train[0]]))
    # The Trainer makes its folder even where it saves nothing.
    with tempfile.TemporaryDirectory(prefix="fovea-trainer-") as folder:
        trainer = Trainer(
            model=_load_with_lora(weights, parameters),
            args=_arguments(Path(folder), parameters, len(train)),
            data_collator=collator,
            train_dataset=train,
            eval_dataset=validation,
            callbacks=[_Reporter(run, attempt.progress("steps"))],
        )
        trainer.remove_callback(PrinterCallback)
        outcome = trainer.train()
        validation_loss = trainer.evaluate()["eval_loss"]
    _save_adapter(trainer.model, attempt.payload, base)
    logger.info("train_lora: %d steps, validation loss %.4f", trainer.state.global_step, validation_loss)
    return {
        "base": ModelReference(
            digest=base.digest, record_uri=index_uri(attempt.context.artifact_root, base.step, base.input_key)
        ),
        "dataset_digest": dataset.digest,
        "task": dataset.task,
        "num_crops": parameters.num_crops,
        "steps": trainer.state.global_step,
        "epochs": float(trainer.state.epoch or 0),
        "train_loss": outcome.training_loss,
        "validation_loss": validation_loss,
        "mlflow": run.reference,
    }


def _load_with_lora(weights: Path, parameters: TrainLoraParameters) -> Any:
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}.get(
        parameters.precision, torch.bfloat16 if torch.cuda.is_available() else torch.float32
    )
    model = Phi3VForCausalLM.from_pretrained(weights, dtype=dtype)
    model.config.use_cache = False
    if parameters.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    lora = LoraConfig(
        r=parameters.rank,
        lora_alpha=parameters.alpha,  # type: ignore[arg-type]  # any number will do
        lora_dropout=parameters.dropout,
        target_modules=list(DECODER_PROJECTIONS),
        task_type="CAUSAL_LM",
    )
    wrapped = get_peft_model(model, lora)
    trained, total = wrapped.get_nb_trainable_parameters()
    logger.info("train_lora: %s of %s parameters are trained", f"{trained:,}", f"{total:,}")
    return wrapped


def _save_adapter(model: Any, folder: Path, base: ModelRecord) -> None:
    """Write PEFT's two files, so that the same training gives the same bytes wherever it ran."""
    model.save_pretrained(folder)
    # PEFT names the base by its path on this machine, in a model card too, and writes sets in any order.
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = base.digest
    config["target_modules"] = sorted(config["target_modules"])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _arguments(folder: Path, parameters: TrainLoraParameters, rows: int) -> TrainingArguments:
    steps = math.ceil(rows / parameters.batch_size * parameters.epochs)
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=parameters.device_batch_size,
        per_device_eval_batch_size=parameters.device_batch_size,
        gradient_accumulation_steps=parameters.batch_size // parameters.device_batch_size,
        num_train_epochs=parameters.epochs,
        learning_rate=parameters.learning_rate,
        lr_scheduler_type=parameters.schedule,
        warmup_steps=round(steps * parameters.warmup_ratio),
        weight_decay=parameters.weight_decay,
        seed=parameters.seed,
        bf16=parameters.precision != "float32" and torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
        logging_steps=10,
        # Otherwise the Trainer shows the mean of the finite losses in the place of one that is not.
        logging_nan_inf_filter=False,
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        prediction_loss_only=True,
        label_names=["labels"],
        # Beside a GPU, pictures are decoded in processes of their own; on a CPU these would take the
        # training's cores. They are spawned: a fork of a process that has threads can hang.
        dataloader_num_workers=2 if torch.cuda.is_available() else 0,
        dataloader_persistent_workers=torch.cuda.is_available(),
        dataloader_multiprocessing_context="spawn" if torch.cuda.is_available() else None,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def _show_what_is_trained_on(processor: Phi3VProcessor, batch: Mapping[str, torch.Tensor]) -> None:
    """Log the first example as the model will see it: one look tells whether the right thing is trained."""
    ids, labels = batch["input_ids"][0], batch["labels"][0]
    supervised = labels != IGNORED
    pictures = int((ids == processor.image_token_id).sum())
    masked = processor.tokenizer.decode(ids[~supervised & (ids != processor.image_token_id)])
    logger.info("train_lora: masked     %r and %d picture tokens", masked, pictures)
    logger.info("train_lora: trained on %r", processor.tokenizer.decode(ids[supervised]))


class _Reporter(TrainerCallback):  # type: ignore[misc]
    """Passes the Trainer's figures on to MLflow and the log, and stops at a loss that is not finite."""

    def __init__(self, run: tracking.Run, progress: Progress) -> None:
        self._run = run
        self._progress = progress
        self._loss = math.nan

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._progress(state.global_step, state.max_steps, f"loss {self._loss:.3f}")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **_: Any,
    ) -> None:
        logs = logs or {}
        self._run.log_metrics(
            {key: value for key, value in logs.items() if isinstance(value, int | float)}, state.global_step
        )
        self._loss = logs.get("loss", self._loss)
        for name in ("loss", "train_loss", "eval_loss"):
            if not math.isfinite(logs.get(name, 0.0)):
                raise UserError(
                    f"{name} is {logs[name]} at step {state.global_step}; lower learning_rate, "
                    "or see that the base model's weights are finite"
                )

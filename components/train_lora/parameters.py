"""Parameters of train_lora."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fovea.parameters import NOT_IN_RESULT, Experiment, FormerName, NumCrops, Seed

DECODER_PROJECTIONS = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
"""The decoder's linear layers, as fused in Phi-3. None of these names occurs in the vision tower."""

TargetModules = Literal["decoder", "decoder+projector", "decoder+tower", "decoder+projector+tower"]


class TrainLoraParameters(NumCrops, Seed, Experiment):
    """How the adapter is trained. Names are those of PEFT and of transformers' TrainingArguments."""

    lora_r: Annotated[int, FormerName("rank")] = Field(default=16, ge=1, le=256)
    """Rank of the LoRA matrices."""
    lora_alpha: Annotated[float, FormerName("alpha")] = Field(default=32.0, gt=0)
    """LoRA scaling: the update is multiplied by lora_alpha / lora_r."""
    lora_dropout: Annotated[float, FormerName("dropout")] = Field(default=0.05, ge=0, lt=1)
    """Dropout before the LoRA matrices."""
    lora_target_modules: Annotated[TargetModules, FormerName("target_modules")] = "decoder"
    """Modules with LoRA matrices: decoder, decoder+projector, decoder+tower or decoder+projector+tower."""
    learning_rate: float = Field(default=1e-4, ge=0, le=1)
    """Peak learning rate of AdamW."""
    lr_scheduler_type: Annotated[Literal["constant", "linear", "cosine"], FormerName("schedule")] = "cosine"
    """Learning rate schedule after the warm-up."""
    warmup_ratio: float = Field(default=0.05, ge=0, le=0.5)
    """Share of the steps spent warming up."""
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    """AdamW's weight decay."""
    num_train_epochs: Annotated[float, FormerName("epochs")] = Field(default=3.0, gt=0, le=1000)
    """Passes over the training split."""
    max_steps: int = Field(default=0, ge=0)
    """Optimiser steps, instead of num_train_epochs; 0 for num_train_epochs."""
    train_batch_size: Annotated[int, FormerName("batch_size")] = Field(default=32, ge=1, le=4096)
    """Examples per optimiser step, on all devices; a multiple of per_device_train_batch_size."""
    per_device_train_batch_size: Annotated[int, FormerName("device_batch_size")] = Field(
        default=4, ge=1, le=512
    )
    """Examples per forward pass of a device."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass to save memory; a third more work."""
    torch_compile: Annotated[bool, FormerName("compile")] = False
    """Compile the model with torch.compile before the training."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Dtype of the frozen weights: auto is bfloat16 on a GPU, otherwise float32."""
    eval_steps: Annotated[int, FormerName("evaluation_steps")] = Field(default=0, ge=0)
    """Training steps between evaluations on the validation split; 0 for one evaluation per epoch."""
    answered_samples: int = Field(default=8, ge=0, le=1000)
    """Validation rows that are answered at each evaluation."""
    early_stopping_patience: Annotated[int, FormerName("early_stopping")] = Field(default=0, ge=0)
    """Evaluations without improvement after which the training stops; 0 for never."""
    keep: Literal["last", "best_loss", "best_answers"] = "last"
    """The adapter to keep: last, best_loss (on the validation split) or best_answers."""
    checkpoint_minutes: Annotated[float, NOT_IN_RESULT] = Field(default=10.0, ge=0)
    """Minutes between checkpoints in S3; 0 for only at SIGTERM."""
    resume_from_checkpoint: Annotated[str, NOT_IN_RESULT, FormerName("resume_from")] = Field(
        default="", pattern=r"^(s3://[^/\s]+/\S+\.json)?$"
    )
    """Record of the checkpoint to resume from; empty for the newest with the same inputs."""

    @model_validator(mode="after")
    def _check_batch_sizes(self) -> Self:
        if self.train_batch_size % self.per_device_train_batch_size:
            raise ValueError(
                f"train_batch_size {self.train_batch_size} must be a multiple of "
                f"per_device_train_batch_size {self.per_device_train_batch_size}"
            )
        return self

    @model_validator(mode="after")
    def _check_keep(self) -> Self:
        if self.keep == "best_answers" and not self.answered_samples:
            raise ValueError("keep=best_answers needs answered_samples above 0")
        return self

    @property
    def best_metric(self) -> str:
        """The metric that selects the best adapter and decides on early stopping."""
        return "eval_answers_right" if self.keep == "best_answers" else "eval_loss"

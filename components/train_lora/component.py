"""The KFP contract of train_lora."""

from kfp import dsl

from components.container_image import IMAGE


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def train_lora(
    dataset: dsl.Input[dsl.Dataset],
    base: dsl.Input[dsl.Model],
    adapter: dsl.Output[dsl.Model],
    report: dsl.Output[dsl.HTML],
    artifact_root: str,
    run_id: str,
    experiment: str = "fovea",
    num_crops: int = 4,
    rank: int = 16,
    alpha: float = 32.0,
    dropout: float = 0.05,
    target_modules: str = "decoder",
    learning_rate: float = 1e-4,
    schedule: str = "cosine",
    warmup_ratio: float = 0.05,
    weight_decay: float = 0.0,
    epochs: float = 3.0,
    max_steps: int = 0,
    batch_size: int = 32,
    device_batch_size: int = 4,
    gradient_checkpointing: bool = True,
    compile: bool = False,  # noqa: A002
    precision: str = "auto",
    evaluation_steps: int = 0,
    answered_samples: int = 8,
    early_stopping: int = 0,
    keep: str = "last",
    checkpoint_minutes: float = 10.0,
    resume_from: str = "",
    seed: int = 0,
) -> None:
    """Train a LoRA adapter on the dataset's train split.

    Args:
        dataset: Record of the prepared dataset.
        base: Record of the base model.
        adapter: Record of the trained adapter.
        report: How the training went, as a page.
        artifact_root: s3://bucket/prefix that payloads and records lie under.
        run_id: The run's ID.
        experiment: MLflow experiment.
        num_crops: Crops a picture is cut into at most (1 to 16); the first lever on cost.
        rank: Rank of the LoRA matrices.
        alpha: LoRA scaling; the update is multiplied by alpha / rank.
        dropout: Dropout before the LoRA matrices.
        target_modules: What gets LoRA matrices: decoder, decoder+projector, decoder+tower or
            decoder+projector+tower.
        learning_rate: Peak learning rate of AdamW.
        schedule: constant, linear or cosine.
        warmup_ratio: Share of the steps spent warming up.
        weight_decay: AdamW's weight decay.
        epochs: Passes over the training split.
        max_steps: Optimiser steps, instead of epochs; 0 for epochs.
        batch_size: Examples an optimiser step; a multiple of device_batch_size.
        device_batch_size: Examples in the device's memory at once.
        gradient_checkpointing: Trade a third more work for less memory.
        compile: Compile the model with torch.compile first.
        precision: auto (bfloat16 on a GPU, else float32), float32 or bfloat16.
        evaluation_steps: Steps between evaluations on the validation split; 0 for one an epoch.
        answered_samples: Validation rows that are answered at each evaluation.
        early_stopping: End after so many evaluations without a better one; 0 for never.
        keep: Which adapter: last, best_loss (on the validation split) or best_answers.
        checkpoint_minutes: Minutes between checkpoints in S3; 0 for none but at SIGTERM.
        resume_from: Record of the checkpoint to go on from; empty for the newest of the same inputs.
        seed: Of initialisation, order and dropout.
    """
    from components.train_lora.step import train_lora_step

    train_lora_step(
        dataset_record=dataset.path,
        base_record=base.path,
        adapter_record=adapter.path,
        report=report.path,
        artifact_root=artifact_root,
        run_id=run_id,
        experiment=experiment,
        parameters={
            "num_crops": num_crops,
            "rank": rank,
            "alpha": alpha,
            "dropout": dropout,
            "target_modules": target_modules,
            "learning_rate": learning_rate,
            "schedule": schedule,
            "warmup_ratio": warmup_ratio,
            "weight_decay": weight_decay,
            "epochs": epochs,
            "max_steps": max_steps,
            "batch_size": batch_size,
            "device_batch_size": device_batch_size,
            "gradient_checkpointing": gradient_checkpointing,
            "compile": compile,
            "precision": precision,
            "evaluation_steps": evaluation_steps,
            "answered_samples": answered_samples,
            "early_stopping": early_stopping,
            "keep": keep,
            "checkpoint_minutes": checkpoint_minutes,
            "resume_from": resume_from,
            "seed": seed,
        },
    )

"""The KFP contract of evaluate."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def evaluate(
    model: dsl.Input[dsl.Model],
    dataset: dsl.Input[dsl.Dataset],
    evaluation: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    artifact_root: str,
    run_id: str,
    subject: str = "tuned",
    split: str = "test",
    max_samples: int = 0,
    batch_size: int = 16,
    max_new_tokens: int = 64,
    num_crops: int = 0,
) -> None:
    """Ask a model about every picture of a split by free generation, and measure what it answers.

    Args:
        model: Record of the model.
        dataset: Record of the dataset, whose task is asked.
        evaluation: Record of the evaluation.
        metrics: Its figures, for the KFP UI.
        artifact_root: s3://bucket/prefix that payloads and records lie under.
        run_id: The run's ID.
        subject: What the model is in this comparison, such as base or tuned.
        split: The split to ask about.
        max_samples: Rows to take; 0 for all.
        batch_size: Pictures in one batch of generation.
        max_new_tokens: Tokens an answer may have.
        num_crops: Crops a picture is cut into at most; 0 for what the model's record says.
    """
    from components.evaluate.evaluate import evaluate_step, figures

    record = evaluate_step(
        model_record=model.path,
        dataset_record=dataset.path,
        evaluation_record=evaluation.path,
        artifact_root=artifact_root,
        run_id=run_id,
        subject=subject,
        split=split,
        max_samples=max_samples,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        num_crops=num_crops,
    )
    for name, value in figures(record).items():
        metrics.log_metric(name, value)

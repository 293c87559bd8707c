"""The KFP contracts of evaluate."""

from typing import Any

from kfp import dsl

from components.container_image import IMAGE


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def find_champion(
    champion: dsl.Output[dsl.Model],
    registered_model_name: str,
    artifact_root: str,
    run_id: str,
) -> None:
    """Find the model that is deployed now.

    Args:
        champion: Its record, or why there is none.
        registered_model_name: Name of the model in MLflow's registry.
        artifact_root: s3://bucket/prefix of payloads and records.
        run_id: The run's ID.
    """
    from components.evaluate.champion import find_champion_step
    from fovea.steps import configure_logging

    configure_logging()
    find_champion_step(
        champion_record=champion.path,
        registered_model_name=registered_model_name,
        artifact_root=artifact_root,
        run_id=run_id,
    )


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def evaluate(
    model: dsl.Input[dsl.Model],
    dataset: dsl.Input[dsl.Dataset],
    evaluation: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    confusion: dsl.Output[dsl.ClassificationMetrics],
    artifact_root: str,
    run_id: str,
    parameters: dict[str, Any],
    subject: str = "challenger",
    split: str = "test",
    num_crops: int = 0,
) -> None:
    """Ask a model about every picture of a split by free generation, and measure what it answers.

    Args:
        model: Record of the model, or of its absence.
        dataset: Record of the dataset, whose task is asked.
        evaluation: Record of the evaluation; of the model's absence where there is none.
        metrics: Its figures, for the KFP UI.
        confusion: Which values of the first category were answered with which, for the KFP UI.
        artifact_root: s3://bucket/prefix of payloads and records.
        run_id: The run's ID.
        parameters: Fields of EvaluateParameters.
        subject: What the model is in this comparison: base, champion or challenger.
        split: The split to ask about.
        num_crops: Crops a picture is cut into at most; 0 for what the model's record says.
    """
    from components.evaluate.step import evaluate_step, figures
    from fovea.records import EvaluationRecord
    from fovea.steps import configure_logging

    configure_logging()
    record = evaluate_step(
        model_record=model.path,
        dataset_record=dataset.path,
        evaluation_record=evaluation.path,
        artifact_root=artifact_root,
        run_id=run_id,
        parameters=parameters,
        subject=subject,
        split=split,
        num_crops=num_crops,
    )
    if isinstance(record, EvaluationRecord):
        for name, value in figures(record).items():
            metrics.log_metric(name, value)
        for found in list(record.confusions.values())[:1]:
            confusion.log_confusion_matrix(list(found.categories), [list(row) for row in found.rows])


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def report_evaluation(
    base: dsl.Input[dsl.Artifact],
    champion: dsl.Input[dsl.Artifact],
    challenger: dsl.Input[dsl.Artifact],
    decision: dsl.Input[dsl.Artifact],
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Input[dsl.Model],
    report: dsl.Output[dsl.HTML],
    artifact_root: str,
    run_id: str,
) -> None:
    """Show a model's evaluation next to the baselines, its base and the champion, and the gate's verdict.

    Args:
        base: Record of the base's evaluation.
        champion: Record of the champion's evaluation, or why there is none.
        challenger: Record of the challenger's evaluation.
        decision: The gate's decision.
        dataset: Record of the dataset.
        model: Record of the model.
        report: The page, for the KFP UI.
        artifact_root: s3://bucket/prefix of payloads and records.
        run_id: The run's ID.
    """
    from components.evaluate.report.publish import report_evaluation_step
    from fovea.steps import configure_logging

    configure_logging()
    report_evaluation_step(
        records={
            "base": base.path,
            "champion": champion.path,
            "challenger": challenger.path,
            "decision": decision.path,
            "dataset": dataset.path,
            "model": model.path,
        },
        report=report.path,
        artifact_root=artifact_root,
        run_id=run_id,
    )

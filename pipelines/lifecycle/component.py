"""The KFP components of the tasks around a run: preflight, require and report_outcome."""

from typing import NamedTuple

from kfp import dsl

from components.container_image import IMAGE


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def preflight(
    base: dsl.Output[dsl.Model],
    run_id: str,
    artifact_root: str,
    base_model: str,
    source: str,
    experiment: str,
    registered_model_name: str,
    service_name: str,
    deploy_target: str,
    max_rows: int,
    num_crops: int,
    lora_r: int,
    learning_rate: float,
    num_train_epochs: float,
    settings: str,
) -> NamedTuple(  # type: ignore[valid-type]
    "Checked",
    [
        ("prepare_data", dict),
        ("train_lora", dict),
        ("merge_adapter", dict),
        ("evaluate", dict),
        ("gate", dict),
        ("deploy", dict),
        ("on_refusal", str),
    ],
):
    """Check the run's settings, S3, MLflow and the base model before anything costs money.

    Args:
        base: Record of the base model.
        run_id: The run's ID.
        artifact_root: s3://bucket/prefix of payloads and records.
        base_model: Setting of the same name, as are the next ones.
        source: Setting.
        experiment: Setting.
        registered_model_name: Setting.
        service_name: Setting.
        deploy_target: Setting.
        max_rows: Setting.
        num_crops: Setting.
        lora_r: Setting.
        learning_rate: Setting.
        num_train_epochs: Setting.
        settings: All other settings, as YAML.

    Returns:
        prepare_data: Parameters of prepare_data.
        train_lora: Parameters of train_lora.
        merge_adapter: Parameters of merge_adapter.
        evaluate: Parameters of evaluate.
        gate: Parameters of the gate.
        deploy: Parameters of deploy.
        on_refusal: Whether a refusal of the gate fails the run.
    """
    arguments = {name: value for name, value in locals().items() if name not in ("base", "run_id")}
    from fovea.steps import configure_logging
    from pipelines.lifecycle.preflight import preflight_step

    configure_logging()
    return preflight_step(arguments, run_id=run_id, base_record=base.path)


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def require(passed: bool, reason: str, artifact_root: str, run_id: str, on_refusal: str = "fail") -> None:
    """Fail the run if a step refused, or finish it without a deployment.

    Args:
        passed: Whether the run continues.
        reason: Why it does not; the run's error.
        artifact_root: s3://bucket/prefix of payloads and records.
        run_id: The run's ID.
        on_refusal: fail, or end: the run then succeeds without a deployment, and its outcome says so.
    """
    from fovea.steps import configure_logging
    from pipelines.lifecycle.outcome import require_step

    configure_logging()
    require_step(
        passed=passed, reason=reason, artifact_root=artifact_root, run_id=run_id, on_refusal=on_refusal
    )


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def report_outcome(status: dsl.PipelineTaskFinalStatus, artifact_root: str, run_id: str) -> None:
    """Report how the run finished and why.

    Args:
        status: KFP's status of the run's tasks.
        artifact_root: s3://bucket/prefix of payloads and records.
        run_id: The run's ID.
    """
    from fovea.steps import configure_logging
    from pipelines.lifecycle.outcome import report_outcome_step

    configure_logging()
    report_outcome_step(state=status.state, artifact_root=artifact_root, run_id=run_id)

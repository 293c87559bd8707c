"""The KFP contracts of what frames a run: preflight, require and report_outcome."""

from kfp import dsl

from components.container_image import IMAGE


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def preflight(  # noqa: D417
    base: dsl.Output[dsl.Model],
    run_id: str,
    artifact_root: str,
    base_model: str,
    source: str,
    experiment: str,
    registered_model: str,
    fetch_profile: str,
    image_column: str,
    title_column: str,
    category_column: str,
    price_column: str,
    product_column: str,
    currency_column: str,
    currencies: str,
    rate_column: str,
    target_currency: str,
    decimal_mark: str,
    longest_side: int,
    max_rows: int,
    min_rows: int,
    validation_fraction: float,
    test_fraction: float,
    seed: int,
    split_name: str,
    recheck_hours: int,
    num_crops: int,
    rank: int,
    alpha: float,
    dropout: float,
    target_modules: str,
    learning_rate: float,
    schedule: str,
    warmup_ratio: float,
    weight_decay: float,
    epochs: float,
    max_steps: int,
    batch_size: int,
    device_batch_size: int,
    gradient_checkpointing: bool,
    compile: bool,  # noqa: A002
    precision: str,
    evaluation_steps: int,
    answered_samples: int,
    early_stopping: int,
    keep: str,
    checkpoint_minutes: float,
    resume_from: str,
    max_samples: int,
    generation_batch_size: int,
    max_new_tokens: int,
    calibration_samples: int,
    min_samples: int,
    min_parse_rate: float,
    min_category_accuracy: float,
    max_price_median_ape: float,
    min_picture_reliance: float,
    champion_margin: float,
    gate_rules: str,
    on_refusal: str,
    service_name: str,
    deploy_target: str,
    kserve: str,
) -> None:
    """Check the run's parameters, S3, MLflow and the base model before anything costs money.

    Args:
        base: Record of the base model.
        run_id: The run's ID.

    The other arguments are the run's parameters, all of them.
    """
    values = {name: value for name, value in locals().items() if name not in ("base", "run_id")}
    from fovea.steps import configure_logging
    from pipelines.lifecycle.preflight import preflight_step

    configure_logging()
    preflight_step(values, run_id=run_id, base_record=base.path)


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def require(passed: bool, reason: str, artifact_root: str, run_id: str, on_refusal: str = "fail") -> None:
    """Fail the run where a step refused to go on, or let it end there.

    Args:
        passed: Whether the run goes on.
        reason: Why it does not; the run's error.
        artifact_root: s3://bucket/prefix that payloads and records lie under.
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
    """Say how the run ended and why.

    Args:
        status: What KFP says of the run's tasks.
        artifact_root: s3://bucket/prefix that payloads and records lie under.
        run_id: The run's ID.
    """
    from fovea.steps import configure_logging
    from pipelines.lifecycle.outcome import report_outcome_step

    configure_logging()
    report_outcome_step(state=status.state, artifact_root=artifact_root, run_id=run_id)

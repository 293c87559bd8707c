"""The KFP contract of the deployment."""

from typing import Any, NamedTuple

from kfp import dsl

from components.container_image import IMAGE


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def deploy(
    model: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
    dataset: dsl.Input[dsl.Dataset],
    decision: dsl.Input[dsl.Artifact],
    deployment: dsl.Output[dsl.Artifact],
    artifact_root: str,
    run_id: str,
    parameters: dict[str, Any],
) -> NamedTuple("Verdict", [("deployed", bool), ("reason", str)]):  # type: ignore[valid-type]
    """Serve a model that passed the gate, ask it about held-out pictures, and make it known if all is well.

    Args:
        model: Record of the model.
        evaluation: Record of its evaluation, whose answers the served ones must equal.
        dataset: Record of the dataset it was evaluated on.
        decision: Record of the gate's decision on it.
        deployment: The deployment as a document, or the verdict where there is none.
        artifact_root: s3://bucket/prefix of payloads and records.
        run_id: The run's ID.
        parameters: Fields of DeployParameters.

    Returns:
        deployed: Whether the service now serves this model.
        reason: Why, on one line.
    """
    from components.deploy.step import deploy_step
    from fovea.steps import configure_logging

    configure_logging()
    return deploy_step(
        model_record=model.path,
        evaluation_record=evaluation.path,
        dataset_record=dataset.path,
        decision_record=decision.path,
        deployment=deployment.path,
        artifact_root=artifact_root,
        run_id=run_id,
        parameters=parameters,
    )

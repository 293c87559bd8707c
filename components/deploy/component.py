"""The KFP contract of the deployment."""

from typing import NamedTuple

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
    service_name: str = "fovea",
    target: str = "local",
    port: int = 0,
    probes: int = 8,
    timeout_seconds: float = 600.0,
    kserve: str = "{}",
) -> NamedTuple("Verdict", [("deployed", bool), ("reason", str)]):  # type: ignore[valid-type]
    """Serve a model that passed the gate, ask it about held-out pictures, and make it known if all is well.

    Args:
        model: Record of the model.
        evaluation: Record of its evaluation, whose answers the served ones must equal.
        dataset: Record of the dataset it was evaluated on.
        decision: Record of the gate's decision on it.
        deployment: The deployment as a document, or the verdict where there is none.
        artifact_root: s3://bucket/prefix that payloads and records lie under.
        run_id: The run's ID.
        service_name: The service, and the name callers ask for the model by.
        target: Where it is served: local, the model server on this machine; kserve, an InferenceService.
        port: The port while it is verified; 0 takes a free one.
        probes: How many held-out pictures the server is asked about.
        timeout_seconds: For a local server's start and its answers, together.
        kserve: How it is run and rolled out on KServe: fields of KServeParameters, as JSON.

    Returns:
        deployed: Whether the service now stands for this model.
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
        service_name=service_name,
        target=target,
        port=port,
        probes=probes,
        timeout_seconds=timeout_seconds,
        kserve=kserve,
    )

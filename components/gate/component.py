"""The KFP contract of the gate."""

from typing import Any, NamedTuple

from kfp import dsl

from components.container_image import IMAGE


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def gate(
    base: dsl.Input[dsl.Artifact],
    challenger: dsl.Input[dsl.Artifact],
    champion: dsl.Input[dsl.Artifact],
    model: dsl.Input[dsl.Model],
    decision: dsl.Output[dsl.Artifact],
    report: dsl.Output[dsl.Markdown],
    artifact_root: str,
    run_id: str,
    parameters: dict[str, Any],
) -> NamedTuple("Verdict", [("passed", bool), ("reason", str)]):  # type: ignore[valid-type]
    """Decide whether a challenger may be deployed. What is missing or not comparable refuses.

    Args:
        base: Record of the base model's evaluation.
        challenger: Record of the challenger's evaluation, on the same split.
        champion: Record of the champion's evaluation, or why there is none.
        model: Record of the challenger.
        decision: Record of the decision: every rule with its value, limit and verdict.
        report: The decision as a table.
        artifact_root: s3://bucket/prefix of payloads and records.
        run_id: The run's ID.
        parameters: Fields of GateParameters.

    Returns:
        passed: Whether the model may be deployed.
        reason: Why, on one line.
    """
    from components.gate.step import gate_step

    return gate_step(
        base_record=base.path,
        challenger_record=challenger.path,
        champion_record=champion.path,
        model_record=model.path,
        decision_record=decision.path,
        report=report.path,
        artifact_root=artifact_root,
        run_id=run_id,
        parameters=parameters,
    )

"""The KFP contract of the gate."""

from typing import NamedTuple

from kfp import dsl

from components.container_image import IMAGE


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def gate(
    base: dsl.Input[dsl.Artifact],
    tuned: dsl.Input[dsl.Artifact],
    champion: dsl.Input[dsl.Artifact],
    model: dsl.Input[dsl.Model],
    decision: dsl.Output[dsl.Artifact],
    report: dsl.Output[dsl.Markdown],
    artifact_root: str,
    run_id: str,
    min_samples: int = 200,
    min_parse_rate: float = 0.98,
    min_category_accuracy: float = 0.90,
    max_price_median_ape: float = 0.15,
    min_picture_reliance: float = 0.30,
    champion_margin: float = 0.03,
    gate_rules: str = "",
) -> NamedTuple("Verdict", [("passed", bool), ("reason", str)]):  # type: ignore[valid-type]
    """Decide whether a tuned model may be deployed. What is missing or not comparable refuses.

    Args:
        base: Record of the base model's evaluation.
        tuned: Record of the tuned model's evaluation, on the same split.
        champion: Record of the champion's evaluation, or why there is none.
        model: Record of the tuned model.
        decision: Record of the decision: every rule with its value, limit and verdict.
        report: The decision as a table.
        artifact_root: s3://bucket/prefix that payloads and records lie under.
        run_id: The run's ID.
        min_samples: Rows of the split that the figures must rest on.
        min_parse_rate: Share of answers that can be read.
        min_category_accuracy: Share of right categories.
        max_price_median_ape: Median of |predicted - true| / true.
        min_picture_reliance: Fall in category accuracy when the model is shown other products' pictures.
        champion_margin: By how much the model may at worst be behind the champion, as a fraction.
        gate_rules: Further rules as YAML, or its s3:// URI.

    Returns:
        passed: Whether the model may be deployed.
        reason: Why, on one line.
    """
    from components.gate.step import gate_step

    return gate_step(
        base_record=base.path,
        tuned_record=tuned.path,
        champion_record=champion.path,
        model_record=model.path,
        decision_record=decision.path,
        report=report.path,
        artifact_root=artifact_root,
        run_id=run_id,
        min_samples=min_samples,
        min_parse_rate=min_parse_rate,
        min_category_accuracy=min_category_accuracy,
        max_price_median_ape=max_price_median_ape,
        min_picture_reliance=min_picture_reliance,
        champion_margin=champion_margin,
        gate_rules=gate_rules,
    )

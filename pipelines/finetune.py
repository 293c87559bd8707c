"""The pipeline's graph: from a table with pictures to a deployed model, or to the reason why not.

A few settings are parameters of the pipeline, all others one text (`pipelines.form`). ``preflight`` checks
them together and returns each component's own. What the platform decides (addresses, credentials, which hosts
may be fetched) is not a parameter.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kfp import dsl

from components.deploy.component import deploy
from components.evaluate.component import evaluate, find_champion, report_evaluation
from components.gate.component import gate
from components.merge_adapter.component import merge_adapter
from components.prepare_data.component import prepare_data
from components.train_lora.component import train_lora
from pipelines.form import FLAT, SETTINGS, describe_parameter, docstring, form_parameters
from pipelines.lifecycle.component import preflight, report_outcome, require

SUMMARY = "Fine-tune Phi-3-Vision on a table with pictures, check the result, and deploy it if it is good."


def make_pipeline(
    build: Callable[[Mapping[str, Any]], None],
    parameters: Sequence[inspect.Parameter],
    descriptions: Mapping[str, str],
    description: str = SUMMARY,
) -> Any:
    """Return a KFP pipeline whose parameters are given as data.

    Args:
        build: Makes the tasks; takes the parameters by name.
        parameters: The pipeline's parameters.
        descriptions: The description of each parameter.
        description: What the pipeline does, for the UI.
    """

    def graph(*values: Any) -> None:
        build(dict(zip([each.name for each in parameters], values, strict=True)))

    graph.__signature__ = inspect.Signature(list(parameters))  # type: ignore[attr-defined]
    graph.__doc__ = docstring(SUMMARY, descriptions)
    return dsl.pipeline(name="fovea-finetune", description=description)(graph)


def _task(component: Any, artifact_root: Any, **inputs: Any) -> Any:
    """Make a task of a component, in this run and below ``artifact_root``."""
    task = component(artifact_root=artifact_root, run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER, **inputs)
    # The steps' own index in S3 is the only cache: two would disagree.
    return task.set_caching_options(False)


def build_graph(form: Mapping[str, Any]) -> None:
    """Make the tasks of a run from the pipeline's parameters."""
    root = form["artifact_root"]
    with dsl.ExitHandler(_task(report_outcome, root), name="finetune"):
        given = {name: form[name] for name in (*FLAT, SETTINGS) if name != "artifact_root"}
        checked = _task(preflight, root, **given).outputs
        base = checked["base"]
        dataset = _task(prepare_data, root, base=base, parameters=checked["prepare_data"]).outputs["dataset"]
        trained = _task(train_lora, root, dataset=dataset, base=base, parameters=checked["train_lora"])
        adapter = trained.outputs["adapter"]
        merged = _task(merge_adapter, root, adapter=adapter, base=base, parameters=checked["merge_adapter"])
        model = merged.outputs["model"]
        # At the end of the training: another run may have deployed a model meanwhile.
        found = _task(find_champion, root, registered_model_name=form["registered_model_name"]).after(merged)
        models = {"base": base, "champion": found.outputs["champion"], "challenger": model}
        evaluations = {
            subject: _task(
                evaluate,
                root,
                model=each,
                dataset=dataset,
                subject=subject,
                num_crops=form["num_crops"],
                parameters=checked["evaluate"],
            )
            .set_display_name(f"evaluate-{subject}")
            .outputs["evaluation"]
            for subject, each in models.items()
        }
        judged = _task(gate, root, model=model, parameters=checked["gate"], **evaluations).outputs
        reported = _task(
            report_evaluation, root, decision=judged["decision"], dataset=dataset, model=model, **evaluations
        )
        # Both branches: kfp.local silently skips a lone If on a named output. And both after the
        # report: a run that is refused ends there.
        with dsl.If(judged["passed"] == True, name="passed"):  # noqa: E712
            deployed = _task(
                deploy,
                root,
                model=model,
                evaluation=evaluations["challenger"],
                dataset=dataset,
                decision=judged["decision"],
                parameters=checked["deploy"],
            ).after(reported)
            verdict = deployed.outputs
            _task(require, root, passed=verdict["deployed"], reason=verdict["reason"], on_refusal="fail")
        with dsl.Else(name="refused"):
            _task(
                require, root, passed=False, reason=judged["reason"], on_refusal=checked["on_refusal"]
            ).after(reported)


_FORM = form_parameters()

finetune = make_pipeline(build_graph, _FORM, {each.name: describe_parameter(each.name) for each in _FORM})
"""The pipeline of a run on one machine, whose tasks request no resources."""

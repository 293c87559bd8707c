"""The compiled pipeline: it is current, and it keeps to the rules that a wrong graph breaks silently."""

import inspect
import math
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from components.container_image import IMAGE
from components.deploy.parameters import DeployParameters
from components.evaluate.parameters import EvaluateParameters
from components.gate.parameters import Limits
from components.prepare_data.parameters import PrepareParameters
from components.train_lora.parameters import TrainLoraParameters
from pipelines.compile import PIPELINE_FILE, compile_pipeline
from pipelines.finetune import finetune
from pipelines.lifecycle.component import preflight
from pipelines.settings import FinetuneParameters


@pytest.fixture(scope="module")
def spec() -> dict[str, Any]:
    return yaml.safe_load(PIPELINE_FILE.read_text())


def tasks(spec: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (graph, name, task) for every task of every graph in the pipeline."""
    graphs = {"root": spec["root"], **spec["components"]}
    for graph, component in graphs.items():
        for name, task in component.get("dag", {}).get("tasks", {}).items():
            yield graph, name, task


def leaves(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        name: task
        for _, name, task in tasks(spec)
        if "executorLabel" in spec["components"][task["componentRef"]["name"]]
    }


def test_the_file_under_version_control_is_what_the_graph_compiles_to() -> None:
    assert PIPELINE_FILE.read_text() == compile_pipeline(), "run `make compile`"


def test_the_graph_has_every_step(spec: dict[str, Any]) -> None:
    assert set(leaves(spec)) == {
        "preflight",
        "prepare-data",
        "train-lora",
        "merge-adapter",
        "evaluate",
        "evaluate-2",
        "evaluate-3",
        "find-champion",
        "report-evaluation",
        "gate",
        "deploy",
        "require",
        "require-2",
        "report-outcome",
    }


def test_no_task_is_cached_by_kfp(spec: dict[str, Any]) -> None:
    assert [name for name, task in leaves(spec).items() if task["cachingOptions"].get("enableCache")] == []


def test_every_task_runs_in_the_projects_image_and_installs_nothing(spec: dict[str, Any]) -> None:
    for executor in spec["deploymentSpec"]["executors"].values():
        assert executor["container"]["image"] == IMAGE
        assert "pip install" not in " ".join(executor["container"]["command"])


def test_every_condition_has_its_opposite_beside_it(spec: dict[str, Any]) -> None:
    graphs: dict[str, list[str]] = {}
    for graph, _, task in tasks(spec):
        condition = task.get("triggerPolicy", {}).get("condition")
        if condition:
            graphs.setdefault(graph, []).append(condition)
    assert len(graphs) == 1
    for first, *others in graphs.values():
        assert others == [f"!({first})"]


def test_conditions_look_at_truth_values_only(spec: dict[str, Any]) -> None:
    for graph, name, task in tasks(spec):
        if task.get("triggerPolicy", {}).get("condition"):
            component = spec["components"][task["componentRef"]["name"]]
            kinds = {
                parameter: kind["parameterType"]
                for parameter, kind in component["inputDefinitions"]["parameters"].items()
                if f"'{parameter}'" in task["triggerPolicy"]["condition"]
            }
            assert set(kinds.values()) == {"BOOLEAN"}, (graph, name)


def test_nothing_costs_anything_before_preflight(spec: dict[str, Any]) -> None:
    graph = spec["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    assert "dependentTasks" not in graph["preflight"]
    for name, task in graph.items():
        if name != "preflight":
            assert _ancestors(graph, name) >= {"preflight"}, (name, task)


def _ancestors(graph: dict[str, Any], name: str) -> set[str]:
    direct = set(graph[name].get("dependentTasks", []))
    return direct.union(*(_ancestors(graph, each) for each in direct))


def test_the_outcome_is_reported_whatever_happens(spec: dict[str, Any]) -> None:
    task = spec["root"]["dag"]["tasks"]["report-outcome"]
    assert task["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"
    assert task["dependentTasks"] == ["exit-handler-1"]


def test_all_models_are_evaluated_alike(spec: dict[str, Any]) -> None:
    names = ("evaluate", "evaluate-2", "evaluate-3")
    base, *others = (leaves(spec)[name]["inputs"]["parameters"] for name in names)
    for other in others:
        assert {name for name in base if base[name] != other[name]} == {"subject"}
    assert base["batch_size"]["componentInputParameter"].endswith("--generation_batch_size")
    assert base["num_crops"]["componentInputParameter"].endswith("--num_crops")


def test_every_pipeline_parameter_reaches_a_step(spec: dict[str, Any]) -> None:
    used = {
        source["componentInputParameter"].removeprefix("pipelinechannel--")
        for name, task in leaves(spec).items()
        if name != "preflight"
        for source in task.get("inputs", {}).get("parameters", {}).values()
        if "componentInputParameter" in source
    }
    parameters = set(spec["root"]["inputDefinitions"]["parameters"])
    assert parameters - used == {"base_model"}, "base_model goes through preflight"


def test_settings_and_pipeline_have_the_same_parameters_and_defaults(spec: dict[str, Any]) -> None:
    pipeline = spec["root"]["inputDefinitions"]["parameters"]
    fields = FinetuneParameters.model_fields
    assert set(fields) == set(pipeline)
    for name, field in fields.items():
        if field.is_required():
            assert "defaultValue" not in pipeline[name], name
        else:
            assert pipeline[name]["defaultValue"] == field.default, name


def test_preflight_is_given_every_parameter() -> None:
    assert set(preflight.component_spec.inputs) - {"run_id"} == set(FinetuneParameters.model_fields)


def test_every_parameter_is_described(spec: dict[str, Any]) -> None:
    for name, parameter in spec["root"]["inputDefinitions"]["parameters"].items():
        assert len(parameter.get("description", "")) > 10, name


def test_the_graph_is_one_function_of_its_parameters() -> None:
    assert set(inspect.signature(finetune.pipeline_func).parameters) == set(FinetuneParameters.model_fields)


@pytest.mark.parametrize(
    ("room", "renamed"),
    [
        (PrepareParameters, {}),
        (TrainLoraParameters, {}),
        (EvaluateParameters, {"batch_size": "generation_batch_size"}),
        (Limits, {}),
        (DeployParameters, {"target": "deploy_target"}),
    ],
)
def test_what_settings_allow_every_step_takes(room: type[BaseModel], renamed: dict[str, str]) -> None:
    settings = FinetuneParameters.model_json_schema()["properties"]
    for name, taken in room.model_json_schema()["properties"].items():
        allowed = settings.get(renamed.get(name, name))
        if allowed is None or "$ref" in taken:  # JSON of a model that both read
            continue
        assert allowed["type"] == taken["type"], name
        assert _low(allowed) >= _low(taken), name
        assert _high(allowed) <= _high(taken), name
        assert set(allowed.get("enum", [allowed.get("const")])) <= set(
            taken.get("enum", [taken.get("const")])
        ), name


def _low(schema: dict[str, Any]) -> float:
    return max(schema.get("minimum", -math.inf), schema.get("exclusiveMinimum", -math.inf))


def _high(schema: dict[str, Any]) -> float:
    return min(schema.get("maximum", math.inf), schema.get("exclusiveMaximum", math.inf))

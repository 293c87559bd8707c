"""The compiled pipeline: it is current, and it keeps to the rules that a wrong graph breaks silently."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from components.container_image import IMAGE
from fovea.errors import UserError
from pipelines.compile import PIPELINE_FILE, compile_pipeline
from pipelines.form import FLAT, SETTINGS, from_arguments, to_arguments
from pipelines.lifecycle.component import preflight
from pipelines.lifecycle.preflight import Checked
from pipelines.settings import COMPONENTS, RunSettings, validate_settings

PLACES = {
    "artifact_root": "s3://bucket/prefix",
    "base_model": "s3://bucket/index/import_model/1.json",
    "source": "https://example.org/products.csv",
}


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
    assert base["parameters"]["taskOutputParameter"]["outputParameterKey"] == "evaluate"
    assert base["num_crops"]["componentInputParameter"].endswith("--num_crops")


def test_every_component_gets_the_parameters_that_preflight_checked(spec: dict[str, Any]) -> None:
    for component in COMPONENTS:
        source = leaves(spec)[component.replace("_", "-")]["inputs"]["parameters"]["parameters"]
        given = source.get("taskOutputParameter", {}).get("outputParameterKey")
        assert (given or source["componentInputParameter"].rpartition("-")[2]) == component


def test_preflight_takes_the_pipelines_parameters_and_returns_every_components() -> None:
    assert set(preflight.component_spec.inputs) - {"run_id"} == {*FLAT, SETTINGS}
    outputs = set(preflight.component_spec.outputs)
    assert outputs == {*COMPONENTS, "base", "on_refusal"} == {*Checked._fields, "base"}


def test_the_form_has_the_settings_defaults(spec: dict[str, Any]) -> None:
    pipeline = spec["root"]["inputDefinitions"]["parameters"]
    assert set(pipeline) == {*FLAT, SETTINGS}
    assert len(pipeline) <= 13, "the form is for what most runs set"
    for name in FLAT:
        field = RunSettings.model_fields[name]
        assert pipeline[name].get("defaultValue") == (None if field.is_required() else field.default), name
        assert pipeline[name]["description"] == " ".join((field.description or "").split())


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "lora_r": st.integers(1, 256),
            "learning_rate": st.floats(0, 1),
            "seed": st.integers(0, 2**32 - 1),
            "keep": st.sampled_from(["last", "best_loss", "best_answers"]),
            "gradient_checkpointing": st.booleans(),
            "gate_rules": st.sampled_from(["", "rules: [{name: a, metric: parse_rate, at_least: 0.5}]"]),
            "kserve": st.fixed_dictionaries({"gpus": st.integers(0, 16)}),
        },
    )
)
def test_settings_survive_the_form_and_the_components_parameters(values: dict[str, Any]) -> None:
    run = validate_settings({**PLACES, **values})
    assert from_arguments(to_arguments(run)) == run
    for name, model in COMPONENTS.items():
        # KFP hands every number over as a float.
        as_kfp = json.loads(json.dumps(run.parameters(name)), parse_int=float)
        assert model.model_validate(as_kfp) == run.of(model)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("num_crops: 4", "settings: num_crops is a separate parameter; set it there"),
        ("- a", "settings: must hold lines of 'name: value'"),
        ("a: [", "settings: is not YAML"),
        ("seeed: 1", "seeed = 1: extra inputs are not permitted"),
        ("rank: 1", "rank is now called lora_r"),
        ("title_column: '{{$.x}}'", "title_column must not contain {{$"),
    ],
)
def test_a_wrong_text_of_settings_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError) as refused:
        from_arguments({**PLACES, SETTINGS: text})
    assert message in str(refused.value)

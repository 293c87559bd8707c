from pathlib import Path
from typing import Any

import pytest
import yaml

from fovea.errors import UserError
from fovea.records import FileEntry, ModelRecord, StepInputs, now, read_record
from fovea.steps import Attempt, Failure, RunContext, run_step
from fovea.storage import Storage, index_uri
from fovea.task import Task, product_task
from pipelines.form import FLAT
from pipelines.lifecycle.preflight import preflight_step

RULES = "rules: [{name: mine, metric: accuracy, at_least: 0.9}]"


@pytest.fixture
def base(s3: str) -> ModelRecord:
    """A base model's record and its one file, in S3."""
    storage = Storage()
    storage.write_bytes(f"{s3}/import_model/abc/config.json", b"{}")
    record = ModelRecord(
        step="import_model",
        step_version=1,
        input_key="0" * 64,
        uri=f"{s3}/import_model/abc/",
        files=(FileEntry(path="config.json", size=2, sha256="1" * 64),),
        parameters={},
        parents={},
        created_at=now(),
        run_id="import",
        architecture="Phi3VForCausalLM",
        num_crops=4,
    )
    storage.commit(s3, record)
    return record


def values(s3: str, **others: object) -> dict[str, object]:
    """The pipeline's arguments: its own parameters, and the text with all others."""
    given = {
        "artifact_root": s3,
        "base_model": index_uri(s3, "import_model", "0" * 64),
        "source": "https://example.org/products.csv",
        **others,
    }
    flat = {name: given.pop(name) for name in FLAT if name in given}
    return {**flat, "settings": yaml.safe_dump(given) if given else ""}


def failure(s3: str) -> Failure:
    return Failure.model_validate_json(Storage().read_bytes(f"{s3}/runs/r1/failure.json"))


def test_hands_over_the_bases_record(s3: str, base: ModelRecord, tmp_path: Path) -> None:
    preflight_step(values(s3), run_id="r1", base_record=tmp_path / "base")
    assert read_record(tmp_path / "base", ModelRecord) == base
    assert list(Storage().list(f"{s3}/runs/r1/")) == [f"{s3}/runs/r1/started.json"]


def test_a_second_attempt_passes_too(s3: str, base: ModelRecord, tmp_path: Path) -> None:
    for _ in range(2):
        preflight_step(values(s3), run_id="r1", base_record=tmp_path / "base")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_crops": 99}, "num_crops"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        (
            {"train_batch_size": 10, "per_device_train_batch_size": 4},
            "multiple of per_device_train_batch_size",
        ),
        ({"fetch_profile": "elsewhere"}, "'elsewhere' is not configured"),
        ({"base_model": "s3://nowhere/index/x.json"}, "no such bucket"),
        ({"gate_rules": RULES}, "unknown metric 'accuracy'; there are product.exact"),
        ({"gate_rules": "s3://nowhere/rules.yaml"}, "no such bucket"),
        ({"on_refusal": "ignore"}, "'fail' or 'end'"),
    ],
)
def test_stops_at_what_is_wrong(
    wrong: dict[str, object], message: str, s3: str, base: ModelRecord, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        preflight_step(values(s3, **wrong), run_id="r1", base_record=tmp_path / "base")
    assert failure(s3).task == "preflight"
    assert not (tmp_path / "base").exists()


def test_rules_in_s3_are_read_before_anything_costs_money(s3: str, base: ModelRecord, tmp_path: Path) -> None:
    Storage().write_bytes(f"{s3}/rules.yaml", RULES.encode())
    with pytest.raises(UserError, match="unknown metric 'accuracy'"):
        preflight_step(values(s3, gate_rules=f"{s3}/rules.yaml"), run_id="r1", base_record=tmp_path / "base")


def test_a_base_model_without_its_weights_is_refused(s3: str, base: ModelRecord, tmp_path: Path) -> None:
    Storage()._client.delete_object(Bucket=s3.removeprefix("s3://"), Key="import_model/abc/config.json")
    with pytest.raises(UserError, match=r"config\.json missing"):
        preflight_step(values(s3), run_id="r1", base_record=tmp_path / "base")


def test_an_artifact_root_that_is_not_there_is_refused(s3: str, base: ModelRecord, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such bucket"):
        preflight_step(values(s3, artifact_root="s3://nowhere"), run_id="r1", base_record=tmp_path / "base")


def deploy(root: str, task: Task | None, monkeypatch: pytest.MonkeyPatch) -> ModelRecord:
    """Leave a model in S3 that MLflow names as the champion of the registered model fovea."""

    def work(attempt: Attempt) -> dict[str, Any]:
        (attempt.payload / "model.safetensors").write_text("weights")
        return {"architecture": "Phi3VForCausalLM", "num_crops": 4, "task": task}

    model = run_step(
        ModelRecord,
        StepInputs(step="merge_adapter", version=1, parameters={}, parents={}),
        RunContext(artifact_root=root, run_id="earlier"),
        work,
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example")
    champions = {("fovea", "champion"): model.uri}
    monkeypatch.setattr("fovea.tracking.version_source", lambda *asked: champions.get(asked))
    return model


def test_a_champion_of_another_task_ends_the_run_before_anything_is_prepared(
    s3: str, base: ModelRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy(s3, product_task(), monkeypatch)
    with pytest.raises(UserError) as caught:
        preflight_step(values(s3, currencies="state"), run_id="r1", base_record=tmp_path / "base")
    assert str(caught.value) == (
        "the champion of registered_model_name fovea answers another task than this run's: "
        "template 'Product: "
        "{product}, Category: {category}, Full Price: {full_price}' there, 'Product: {product}, Category: "
        "{category}, Full Price: {full_price} {currency}' here; field currency: none there, currency here. "
        "Give this run another registered_model_name and another service_name"
    )
    assert (failure(s3).task, failure(s3).kind) == ("preflight", "user")
    assert not (tmp_path / "base").exists()
    # What the message says to do does help.
    others = {"currencies": "state", "registered_model_name": "stated"}
    preflight_step(values(s3, **others), run_id="r1", base_record=tmp_path / "base")


@pytest.mark.parametrize("task", [product_task(), product_task("name", "kind", "amount"), None])
def test_a_champion_of_the_runs_task_or_of_none_is_no_obstacle(
    task: Task | None, s3: str, base: ModelRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy(s3, task, monkeypatch)
    preflight_step(values(s3), run_id="r1", base_record=tmp_path / "base")
    assert read_record(tmp_path / "base", ModelRecord) == base


def test_a_champion_whose_record_is_gone_is_told_before_the_training(
    s3: str, base: ModelRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = deploy(s3, product_task(), monkeypatch)
    Storage().delete([index_uri(s3, model.step, model.input_key)])
    with pytest.raises(UserError, match=r"champion of fovea cannot be compared with: .* remove the alias"):
        preflight_step(values(s3), run_id="r1", base_record=tmp_path / "base")


def test_without_mlflow_no_champion_is_looked_for(
    s3: str, base: ModelRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy(s3, product_task(), monkeypatch)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    preflight_step(values(s3, currencies="state"), run_id="r1", base_record=tmp_path / "base")


def test_an_mlflow_that_does_not_answer_is_refused(
    s3: str, base: ModelRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match="MLflow at"):
        preflight_step(values(s3), run_id="r1", base_record=tmp_path / "base")

from pathlib import Path
from typing import Any

import pytest

from components.evaluate.champion import find_champion_step
from fovea.errors import UserError
from fovea.records import AbsentRecord, ModelRecord, Record, StepInputs, read_optional_record
from fovea.steps import Attempt, RunContext, run_step


def model(root: str, parameters: dict[str, Any]) -> ModelRecord:
    def work(attempt: Attempt) -> dict[str, Any]:
        (attempt.payload / "model.safetensors").write_text(str(parameters))
        return {"architecture": "Phi3VForCausalLM", "num_crops": 4}

    return run_step(
        ModelRecord,
        StepInputs(step="merge_adapter", version=1, parameters=parameters, parents={}),
        RunContext(artifact_root=root, run_id="run-0"),
        work,
    )


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Sources of champions, by the name of the model."""
    sources: dict[str, str] = {}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example")
    monkeypatch.setattr("fovea.tracking.version_source", lambda name, alias: sources.get(name))
    return sources


def find(root: str, folder: Path) -> ModelRecord | AbsentRecord:
    path = folder / "champion.json"
    found = find_champion_step(
        champion_record=path, registered_model_name="shoes", artifact_root=root, run_id="run-1"
    )
    assert read_optional_record(path, ModelRecord) == found
    return found


def test_the_champion_is_found_by_where_its_weights_are(
    s3: str, tmp_path: Path, registry: dict[str, str]
) -> None:
    assert find(s3, tmp_path) == AbsentRecord(reason="no version of shoes has been deployed")
    models: list[Record] = [model(s3, {"rank": rank}) for rank in (4, 8)]
    registry["shoes"] = models[1].uri
    assert find(s3, tmp_path) == models[1]


def test_a_champion_that_cannot_be_had_is_not_passed_over(
    s3: str, tmp_path: Path, registry: dict[str, str]
) -> None:
    registry["shoes"] = model(s3, {}).uri.replace("merge_adapter", "merge")
    with pytest.raises(UserError, match=r"champion of shoes cannot be compared with: .* remove the alias"):
        find(s3, tmp_path)


def test_without_a_registry_there_is_no_champion(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    absent = find(s3, tmp_path)
    assert isinstance(absent, AbsentRecord)
    assert "MLflow is not configured" in absent.reason

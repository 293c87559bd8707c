"""Input keys of the default parameters: while they stay, earlier results are found again."""

import hashlib
import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from components.evaluate.component import evaluate
from components.gate.component import gate
from components.merge_adapter.component import merge_adapter
from components.prepare_data.component import prepare_data
from components.train_lora.component import train_lora
from fovea.models import import_model
from fovea.records import (
    AbsentRecord,
    AdapterRecord,
    DatasetRecord,
    EvaluationRecord,
    FileEntry,
    ModelRecord,
    ModelReference,
    Record,
    Split,
    write_record,
)
from fovea.steps import RunContext
from fovea.storage import Storage
from fovea.task import product_task
from pipelines.settings import validate_settings
from tests.some_records import made_by, some_evaluation

KEYS = {
    "import_model": "5179e3e99fb4a85f98237234dfcec9fe115bc09064b5b158abe1ce86ed9f9b68",
    "prepare_data": "e53b9bb8f85244fc6187af8df2691ca6374f8c75aa60c52bd4a96d3bc51d8c0c",
    "train_lora": "767bbce568cb99060c6d24c4846e0c5458376e03ce2db73e79b4f1157ab4a576",
    "merge_adapter": "da2e3aaf6ee8602f8aec6e6e4bb9de90f7d629fd0c8d937658e3c51bf6c032bf",
    "evaluate": "acbc6119c5ab16eb211055441dacd49eefb37d4656a310f2453e2413f421adef",
    "evaluate of a base": "494ab67c2751c4b7f32f593af6f6f9c1417d29a081830e6339d9d7f03f9848f0",
    "gate": "12e613abb1ebe217493abf609eb41c060716dff7a4a172d134af39d8c3d72cc7",
}
"""Input keys of the steps, with the pipeline's defaults and the parents below."""

PLACES = {"base_model": "s3://models/base.json"}
TABLE = "imageurl,title,category3_code,full_price,product_code,currency_code\na.jpg,Boot,shoes,10.00,1,EUR\n"


class FoundKey(BaseException):
    """Ends a step where it looks for an earlier result. No Exception: no step may take it for a failure."""


def digest_of(name: str) -> str:
    return "sha256:" + hashlib.sha256(name.encode()).hexdigest()


def made(step: str, name: str) -> dict[str, Any]:
    return {**made_by(step), "run_id": name}


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record's digest is that of its ``run_id``, and a step ends with its input key."""

    def find(self: Storage, artifact_root: str, step: str, input_key: str) -> None:
        raise FoundKey(step, input_key)

    monkeypatch.setattr(Storage, "find", find)
    monkeypatch.setattr(Record, "digest", property(lambda record: digest_of(record.run_id)))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


@pytest.fixture
def records(keys: None, tmp_path: Path) -> dict[str, str]:
    """Files with one record of each kind, by name."""
    task = product_task()
    base = ModelReference(digest=digest_of("base"), record_uri="s3://models/base.json")
    tokenizer = tuple(
        FileEntry(path=name, size=2, sha256=digest_of(name)[7:])
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json")
    )
    splits = {name: Split(rows=8, products=8) for name in ("train", "validation", "test")}
    some: dict[str, Record | AbsentRecord] = {
        "base": ModelRecord(
            **{**made("import_model", "base"), "uri": "s3://models/base/", "files": tokenizer},
            architecture="Phi3VForCausalLM",
            num_crops=16,
        ),
        "dataset": DatasetRecord(
            **made("prepare_data", "dataset"),
            task=task,
            splits=splits,
            dropped={},
            currency="EUR",
            categories={"shoes": 24},
            longest_side=1344,
        ),
        "adapter": AdapterRecord(
            **made("train_lora", "adapter"),
            base=base,
            dataset_digest=digest_of("dataset"),
            task=task,
            num_crops=4,
            steps=3,
            epochs=1.0,
            train_loss=1.0,
            validation_loss=1.0,
        ),
        "model": ModelRecord(
            **made("merge_adapter", "model"),
            architecture="Phi3VForCausalLM",
            num_crops=4,
            task=task,
            base=base,
            adapter_digest=digest_of("adapter"),
        ),
        "of_base": evaluation("base"),
        "of_model": evaluation("model"),
        "no_champion": AbsentRecord(reason="none yet"),
    }
    for name, record in some.items():
        write_record(record, tmp_path / name)
    return {name: str(tmp_path / name) for name in some}


def evaluation(model: str) -> EvaluationRecord:
    return some_evaluation(
        run_id=f"of_{model}",
        model_digest=digest_of(model),
        dataset_digest=digest_of("dataset"),
        task_digest=product_task().digest,
    )


def key_of(component: Any, root: str, artifacts: dict[str, str], folder: Path, **own: Any) -> tuple[str, str]:
    """The step and input key of a component that gets the default settings, and ``own`` above them."""
    name = component.python_func.__name__
    settings = validate_settings({**PLACES, "artifact_root": root, "source": own.pop("source", "table.csv")})
    outputs = {each: folder / "out" / each for each in component.component_spec.outputs or {}}
    files = {each: SimpleNamespace(path=str(path)) for each, path in {**outputs, **artifacts}.items()}
    given = {"artifact_root": root, "run_id": "run", "parameters": settings.parameters(name), **own}
    wanted = inspect.signature(component.python_func).parameters
    arguments = {each: value for each, value in {**given, **files}.items() if each in wanted}
    with pytest.raises(FoundKey) as found:
        component.python_func(**arguments)
    step, key = found.value.args
    return step, key


def test_import_model(s3: str, keys: None, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(FoundKey) as found:
        import_model(tmp_path, RunContext(artifact_root=s3, run_id="run"), Storage())
    assert found.value.args == ("import_model", KEYS["import_model"])


def test_prepare_data(s3: str, records: dict[str, str], tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text(TABLE)
    found = key_of(prepare_data, s3, {"base": records["base"]}, tmp_path, source=str(table))
    assert found == ("prepare_data", KEYS["prepare_data"])


def test_train_lora(s3: str, records: dict[str, str], tmp_path: Path) -> None:
    artifacts = {name: records[name] for name in ("dataset", "base")}
    assert key_of(train_lora, s3, artifacts, tmp_path) == ("train_lora", KEYS["train_lora"])


def test_merge_adapter(s3: str, records: dict[str, str], tmp_path: Path) -> None:
    artifacts = {name: records[name] for name in ("adapter", "base")}
    assert key_of(merge_adapter, s3, artifacts, tmp_path) == ("merge_adapter", KEYS["merge_adapter"])


@pytest.mark.parametrize(("model", "key"), [("base", "evaluate of a base"), ("model", "evaluate")])
def test_evaluate(s3: str, records: dict[str, str], tmp_path: Path, model: str, key: str) -> None:
    artifacts = {"model": records[model], "dataset": records["dataset"]}
    found = key_of(evaluate, s3, artifacts, tmp_path, num_crops=4)
    assert found == ("evaluate", KEYS[key])


def test_gate(s3: str, records: dict[str, str], tmp_path: Path) -> None:
    artifacts = {
        "base": records["of_base"],
        "challenger": records["of_model"],
        "champion": records["no_champion"],
        "model": records["model"],
    }
    assert key_of(gate, s3, artifacts, tmp_path) == ("gate", KEYS["gate"])

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fovea.errors import UserError
from fovea.records import (
    AdapterRecord,
    DatasetRecord,
    Decision,
    EvaluationRecord,
    FileEntry,
    GenerationParameters,
    Metrics,
    MlflowReference,
    ModelRecord,
    ModelReference,
    Record,
    RuleResult,
    Split,
    StepInputs,
    now,
    read_record,
    sha256_digest,
    write_record,
)
from fovea.task import product_task
from tests.some_records import some_metrics

DIGEST = f"sha256:{'a' * 64}"
BASE = ModelReference(digest=DIGEST, record_uri="s3://fovea/index/base.json")
METRICS = some_metrics(samples=2, groups=2, intervals={"parse_rate": {"low": 0.5, "high": 1.0}})


def made(**changes: Any) -> dict[str, Any]:
    return {
        "step": "a_step",
        "step_version": 1,
        "input_key": "0" * 64,
        "uri": "s3://fovea/a_step/0/",
        "files": [FileEntry(path="sub/file.bin", size=3, sha256="b" * 64)],
        "parameters": {"rank": 16, "schedule": "cosine"},
        "parents": {"dataset": DIGEST},
        "created_at": now(),
        "run_id": "run-1",
    } | changes


def model(**changes: Any) -> ModelRecord:
    return ModelRecord(**made(**({"architecture": "Phi3VForCausalLM", "num_crops": 4} | changes)))


RECORDS: list[Record] = [
    model(),
    model(task=product_task(), base=BASE, adapter_digest=DIGEST),
    DatasetRecord(
        **made(),
        task=product_task(),
        splits={"train": Split(rows=10, products=9)},
        dropped={"title_empty": 1},
        currency=None,
        categories={"BAGS": 10},
        longest_side=512,
    ),
    AdapterRecord(
        **made(),
        base=BASE,
        dataset_digest=DIGEST,
        task=product_task(),
        num_crops=4,
        steps=10,
        epochs=1.0,
        train_loss=0.5,
        validation_loss=None,
        mlflow=MlflowReference(experiment_id="1", run_id="r"),
    ),
    EvaluationRecord(
        **made(),
        model_digest=DIGEST,
        dataset_digest=DIGEST,
        task_digest=DIGEST,
        split="test",
        generation=GenerationParameters(max_new_tokens=64, num_crops=1, dtype="float32"),
        metrics=METRICS,
        shuffled=None,
        slices={"category": {"BAGS": METRICS}},
        baselines={"majority_category": METRICS},
    ),
    Decision(
        **made(uri="", files=[]),
        model_digest=DIGEST,
        passed=False,
        reason="no",
        rules=(
            RuleResult(
                name="rule",
                description="a rule",
                value=None,
                comparison=">=",
                limit=0.9,
                passed=False,
                reason="nothing to compare",
            ),
        ),
    ),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.kind)
def test_a_record_comes_back_as_it_was(record: Record, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "record.json"
    write_record(record, path)
    again = read_record(path, Record)
    assert again == record
    assert type(again) is type(record)
    assert again.digest == record.digest


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.kind)
def test_another_kind_is_refused(record: Record, tmp_path: Path) -> None:
    write_record(record, tmp_path / "record.json")
    other = Decision if isinstance(record, ModelRecord) else ModelRecord
    with pytest.raises(UserError, match=rf"of kind '{record.kind}', {other.__name__} was expected"):
        read_record(tmp_path / "record.json", other)


@pytest.mark.parametrize(
    "changes",
    [
        {"created_at": now() + timedelta(days=1)},
        {"run_id": "run-2"},
        {"uri": "s3://elsewhere/"},
        {"input_key": "1" * 64},
        {"parameters": {}},
        {"parents": {}},
        {"mlflow": MlflowReference(experiment_id="1", run_id="r", model_version="3")},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_the_digest_is_of_what_a_record_holds(changes: dict[str, Any]) -> None:
    assert model(**changes).digest == model().digest


@pytest.mark.parametrize(
    "changes",
    [
        {"files": []},
        {"files": [FileEntry(path="sub/file.bin", size=3, sha256="c" * 64)]},
        {"files": [FileEntry(path="sub/other.bin", size=3, sha256="b" * 64)]},
        {"num_crops": 16},
        {"task": product_task()},
        {"step_version": 2},
    ],
    ids=str,
)
def test_the_digest_changes_with_what_a_record_holds(changes: dict[str, Any]) -> None:
    assert model(**changes).digest != model().digest


@pytest.mark.parametrize(
    "path", ["", ".", "..", "/etc/passwd", "../x", "a/../../x", "a//b", "a/./b", "a/", "a\\..\\b"]
)
def test_a_file_may_not_leave_its_payload(path: str) -> None:
    with pytest.raises(ValidationError, match="inside its payload"):
        FileEntry(path=path, size=0, sha256="0" * 64)


@given(st.text())
def test_no_path_of_a_file_leads_out(path: str) -> None:
    try:
        entry = FileEntry(path=path, size=0, sha256="0" * 64)
    except ValidationError:
        return
    folder = Path("/payload")
    assert "\0" in path or (folder / entry.path).resolve().is_relative_to(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_figures_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(ValidationError, match="finite"):
        Metrics(**{**METRICS.model_dump(), "figures": {"parse_rate": value}})
    with pytest.raises(ValueError, match="JSON compliant"):
        sha256_digest({"loss": value})
    with pytest.raises(ValueError, match="JSON compliant"):
        assert StepInputs(step="step", version=1, parameters={"loss": value}, parents={}).key


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"kind": "poem"}, "does not match"),
        ({"files": [{"path": "../x", "size": 1, "sha256": "0" * 64}]}, "files.0.path"),
        ({"surprise": 1}, "surprise"),
        ({"schema_version": 2}, "schema_version"),
        ({"input_key": "short"}, "input_key"),
    ],
)
def test_what_is_no_record_is_one_error(tmp_path: Path, change: dict[str, Any], where: str) -> None:
    path = tmp_path / "model.json"
    path.write_text(json.dumps(json.loads(model().to_json()) | change))
    with pytest.raises(UserError, match=where) as caught:
        read_record(path, ModelRecord)
    assert str(caught.value).startswith(f"{path}: not a record")
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read_are_one_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.json: cannot be read"):
        read_record(tmp_path / "none.json", ModelRecord)
    with pytest.raises(UserError, match="cannot be read"):
        read_record(tmp_path, ModelRecord)
    (tmp_path / "half.json").write_text('{"kind": "mod')
    with pytest.raises(UserError, match=r"half\.json: not a record"):
        read_record(tmp_path / "half.json", ModelRecord)
    (tmp_path / "weights.bin").write_bytes(b"\xff\xfe\x00binary")
    with pytest.raises(UserError, match=r"weights\.bin: "):
        read_record(tmp_path / "weights.bin", ModelRecord)


def test_the_input_key_is_of_all_that_determines_a_result() -> None:
    first = StepInputs(step="step", version=1, parameters={"a": 1, "b": 2}, parents={"dataset": DIGEST})
    same = StepInputs(step="step", version=1, parameters={"b": 2, "a": 1}, parents={"dataset": DIGEST})
    assert first.key == same.key
    changes: list[dict[str, Any]] = [
        {"step": "other"},
        {"version": 2},
        {"parameters": {"a": 1, "b": 3}},
        {"parents": {"base": DIGEST}},
        {"parents": {}},
    ]
    others = [StepInputs(**first.model_dump() | change).key for change in changes]
    assert len({first.key, *others}) == 6

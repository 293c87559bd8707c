from pathlib import Path
from typing import Any

import pytest

from components.evaluate import publish, report
from components.evaluate.publish import report_evaluation_step
from fovea.records import (
    AbsentRecord,
    DatasetRecord,
    EvaluationRecord,
    GenerationParameters,
    MlflowReference,
    ModelRecord,
    now,
    write_record,
)
from fovea.storage import Storage
from fovea.task import product_task
from tests.some_metrics import some_metrics

DIGEST = f"sha256:{'a' * 64}"
MADE: dict[str, Any] = {
    "step": "a_step",
    "step_version": 1,
    "input_key": "0" * 64,
    "uri": "",
    "files": (),
    "parameters": {},
    "parents": {},
    "created_at": now(),
    "run_id": "run-0",
}
EVALUATION = EvaluationRecord(
    **MADE,
    model_digest=DIGEST,
    dataset_digest=DIGEST,
    task_digest=DIGEST,
    split="test",
    generation=GenerationParameters(max_new_tokens=64, num_crops=4, dtype="float32"),
    metrics=some_metrics(),
    shuffled=None,
)
DATASET = DatasetRecord(
    **MADE, task=product_task(), splits={}, dropped={}, currency=None, categories={}, longest_side=56
)
MODEL = ModelRecord(
    **MADE,
    architecture="Phi3VForCausalLM",
    num_crops=4,
    mlflow=MlflowReference(experiment_id="1", run_id="r"),
)


@pytest.fixture
def records(tmp_path: Path) -> dict[str, Path]:
    written = {
        "base": EVALUATION,
        "champion": AbsentRecord(reason="nothing is deployed yet"),
        "tuned": EVALUATION,
        "dataset": DATASET,
        "model": MODEL,
    }
    paths = {name: tmp_path / f"{name}.json" for name in [*written, "decision"]}
    for name, record in written.items():
        write_record(record, paths[name])
    return paths


def publish_report(records: dict[str, Path], folder: Path, root: str) -> str:
    path = report_evaluation_step(
        records=records, report=folder / "out" / "report", artifact_root=root, run_id="run-1"
    )
    text = path.read_text()
    assert Storage().read_bytes(f"{root}/runs/run-1/evaluation.html") == text.encode()
    return text


def test_the_report_goes_where_people_look_for_it(
    s3: str, tmp_path: Path, records: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    logged: list[Path] = []

    def write_report(path: Path, **arguments: Any) -> Path:
        given.update(arguments)
        path.write_text("<!doctype html><p>Well done</p>")
        return path

    class Run:
        def log_file(self, path: Path) -> None:
            logged.append(path)

    monkeypatch.setattr(report, "write_report", write_report)
    monkeypatch.setattr(publish.tracking, "is_on", lambda: True)
    monkeypatch.setattr(publish.tracking.Run, "of", lambda reference: Run())
    assert "Well done" in publish_report(records, tmp_path, s3)
    assert (given["decision"], given["champion"]) == (None, None)
    assert given["tuned"] == EVALUATION
    assert [path.name for path in logged] == ["evaluation.html"]
    write_record(EVALUATION, records["champion"])
    publish_report(records, tmp_path, s3)
    assert given["champion"] == EVALUATION


@pytest.mark.parametrize("error", [None, ZeroDivisionError("<b>a bug</b>")])
def test_a_report_that_cannot_be_made_says_why_and_stops_nothing(
    s3: str,
    tmp_path: Path,
    records: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception | None,
) -> None:
    def write_report(path: Path, **_: Any) -> Path:
        raise error or AssertionError("not reached")

    monkeypatch.setattr(report, "write_report", write_report)
    if error is None:
        records["tuned"].write_text("<script>alert(1)</script>")
    text = publish_report(records, tmp_path, s3)
    assert "There is no report" in text
    assert ("&lt;b&gt;a bug" if error else "not a record") in text
    assert "<script>" not in text

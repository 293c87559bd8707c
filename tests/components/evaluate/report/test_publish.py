from pathlib import Path
from typing import Any

import pytest

from components.evaluate.report import page, publish
from components.evaluate.report.publish import report_evaluation_step
from fovea.records import (
    AbsentRecord,
    DatasetRecord,
    MlflowReference,
    ModelRecord,
    write_record,
)
from fovea.storage import Storage
from fovea.task import product_task
from tests.some_records import made_by, some_evaluation

EVALUATION = some_evaluation()
DATASET = DatasetRecord(
    **made_by("prepare_data"),
    task=product_task(),
    splits={},
    dropped={},
    currency=None,
    categories={},
    longest_side=56,
)
MODEL = ModelRecord(
    **made_by("merge_adapter"),
    architecture="Phi3VForCausalLM",
    num_crops=4,
    mlflow=MlflowReference(experiment_id="1", run_id="r"),
)


@pytest.fixture
def records(tmp_path: Path) -> dict[str, Path]:
    written = {
        "base": EVALUATION,
        "champion": AbsentRecord(reason="nothing is deployed yet"),
        "challenger": EVALUATION,
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

    monkeypatch.setattr(page, "write_report", write_report)
    monkeypatch.setattr(publish.tracking, "is_on", lambda: True)
    monkeypatch.setattr(publish.tracking.Run, "of", lambda reference: Run())
    assert "Well done" in publish_report(records, tmp_path, s3)
    assert (given["decision"], given["champion"]) == (None, None)
    assert given["challenger"] == EVALUATION
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

    monkeypatch.setattr(page, "write_report", write_report)
    if error is None:
        records["challenger"].write_text("<script>alert(1)</script>")
    text = publish_report(records, tmp_path, s3)
    assert "There is no report" in text
    assert ("&lt;b&gt;a bug" if error else "not a record") in text
    assert "<script>" not in text

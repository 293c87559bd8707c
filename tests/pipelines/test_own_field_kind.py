"""A field kind that is defined here, in one class, goes through the whole project."""

import base64
import csv
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pytest
from PIL import Image

from components.evaluate.report.page import write_report
from components.evaluate.step import evaluate_step
from components.gate.step import gate_step
from components.merge_adapter.step import merge_adapter_step
from components.prepare_data.step import prepare_data_step
from components.train_lora.step import train_lora_step
from fovea.errors import UnusableError
from fovea.models import import_model
from fovea.predictions import fetch_predictions
from fovea.records import (
    AbsentRecord,
    DatasetRecord,
    Decision,
    EvaluationRecord,
    ModelRecord,
    read_record,
    write_record,
)
from fovea.steps import RunContext
from fovea.storage import Storage
from fovea.task import BaseField, FieldValue, TableRow, Task
from fovea.task.fields import FIELD_TYPES, Requirement, Scalar
from fovea.task.metrics import Metric, mean
from tests.serving.in_process import application, load
from tests.tiny_model import write_tiny_model


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> Iterator[Task]:
    """A task with a field of stars, of which there are one to five."""
    known = dict(FIELD_TYPES)

    class StarsField(BaseField):
        """One to five stars: ``4 of 5`` in the table, ``****`` in an answer."""

        type: Literal["stars"] = "stars"

        arrow_type: ClassVar[Literal["string", "float64"]] = "float64"
        json_type: ClassVar[Literal["string", "number"]] = "number"
        metrics: ClassVar[tuple[Metric, ...]] = (
            Metric("right", "right", mean("right")),
            Metric("stars_off", "mean error", mean("off"), lower_is_better=True),
        )
        right_metric: ClassVar[str] = "right"
        requirements: ClassVar[tuple[Requirement, ...]] = (Requirement("right", 0.9),)

        def read(self, row: TableRow) -> FieldValue:
            found = re.fullmatch("([1-5]) of 5", str(row.cells[self.column]))
            if found is None:
                raise UnusableError("unreadable")
            return float(found[1])

        def format(self, value: FieldValue) -> str:
            return "*" * int(value)

        def parse(self, text: str) -> FieldValue:
            if not re.fullmatch(r"\*{1,5}", text):
                raise ValueError(f"not stars: {text[:20]!r}")
            return float(len(text))

        def outcome(self, truth: FieldValue, answer: FieldValue | None) -> Mapping[str, Scalar]:
            off = 5.0 if answer is None else abs(float(answer) - float(truth))
            return {"right": off == 0, "off": off}

    yield Task(
        name="ratings",
        version=1,
        question="How many stars?",
        template="Stars: {stars}",
        fields={"stars": StarsField(column="rating")},
    )
    FIELD_TYPES.clear()
    FIELD_TYPES.update(known)


def write_table(folder: Path) -> Path:
    """Write 40 rated pictures, two of which have no readable rating."""
    folder.mkdir()
    rows = []
    for number in range(40):
        blocks = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(blocks.repeat(14, 0).repeat(14, 1)).save(folder / f"{number}.png")
        rating = "good" if number in (3, 7) else f"{1 + number % 2} of 5"
        rows.append((f"p{number}", rating, f"{number}.png"))
    path = folder / "ratings.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("sku", "rating", "photo"), *rows])
    return path


@pytest.fixture
def folder(task: Task, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the records of a dataset, a base that always answers one star, an adapter and a model."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    base = write_tiny_model(tmp_path / "base", num_crops=1, answer="Stars: *")
    context = RunContext(artifact_root=s3, run_id="run")
    write_record(import_model(base, context, Storage()), tmp_path / "base.json")
    prepare_data_step(
        context,
        {
            "source": str(write_table(tmp_path / "table")),
            "image_column": "photo",
            "product_column": "sku",
            "currency_column": "",
            "num_crops": 1,
            "longest_side": 56,
            "test_fraction": 0.3,
            "validation_fraction": 0.2,
            "min_rows": 1,
        },
        dataset_record=tmp_path / "dataset.json",
        base_record=tmp_path / "base.json",
        report=tmp_path / "dataset.html",
        task=task,
    )
    common = {"base_record": tmp_path / "base.json", "artifact_root": s3, "run_id": "run"}
    quick = {
        "num_crops": 1,
        "max_steps": 1,
        "learning_rate": 0,
        "answered_samples": 2,
        "precision": "float32",
    }
    train_lora_step(
        dataset_record=tmp_path / "dataset.json",
        adapter_record=tmp_path / "adapter.json",
        parameters=quick,
        **common,  # type: ignore[arg-type]
    )
    merge_adapter_step(
        adapter_record=tmp_path / "adapter.json",
        model_record=tmp_path / "model.json",
        parameters={},
        **common,  # type: ignore[arg-type]
    )
    return tmp_path


def evaluate(folder: Path, root: str, model: str, subject: str) -> EvaluationRecord:
    record = evaluate_step(
        model_record=folder / f"{model}.json",
        dataset_record=folder / "dataset.json",
        evaluation_record=folder / f"{subject}-evaluation.json",
        artifact_root=root,
        run_id="run",
        parameters={"max_new_tokens": 12},
        subject=subject,
        num_crops=1,
    )
    assert isinstance(record, EvaluationRecord)
    return record


def test_an_own_field_kind_is_prepared_trained_evaluated_judged_and_served(
    task: Task, s3: str, folder: Path
) -> None:
    dataset = read_record(folder / "dataset.json", DatasetRecord)
    assert dataset.task == task
    assert dataset.dropped == {"rating_unreadable": 2}
    assert "stars" in (folder / "dataset.html").read_text()

    base, challenger = (
        evaluate(folder, s3, model, subject) for model, subject in (("base", "base"), ("model", "challenger"))
    )
    predictions = fetch_predictions(Storage(), challenger, task)
    share = sum(each.row.truth["stars"] == 1.0 for each in predictions) / len(predictions)
    assert 0 < share < 1
    assert challenger.metrics.figures == {
        "stars.right": pytest.approx(share),
        "stars.stars_off": pytest.approx(1 - share),
        "parse_rate": 1.0,
    }
    assert set(base.baselines) == {"majority_category", "nearest_neighbour"}

    write_record(AbsentRecord(reason="none yet"), folder / "champion.json")
    verdict = gate_step(
        base_record=folder / "base-evaluation.json",
        challenger_record=folder / "challenger-evaluation.json",
        champion_record=folder / "champion.json",
        model_record=folder / "model.json",
        decision_record=folder / "decision.json",
        report=folder / "gate.md",
        artifact_root=s3,
        run_id="run",
        parameters={"min_samples": 1},
    )
    assert not verdict.passed
    rules = {rule.name: rule for rule in read_record(folder / "decision.json", Decision).rules}
    assert (rules["stars_right"].limit, rules["stars_right"].passed) == (0.9, False)
    assert rules["parse_rate"].passed
    assert rules["figures_agree"].passed
    assert not rules["beats_nearest_neighbour_on_stars"].passed

    page = write_report(
        folder / "report.html",
        decision=read_record(folder / "decision.json", Decision),
        base=base,
        champion=None,
        challenger=challenger,
        dataset=dataset,
        storage=Storage(),
    ).read_text()
    assert "Stars mean error" in page
    serve(folder)


def serve(folder: Path) -> None:
    """Serve the merged model, and ask it over KServe's protocol and with a schema over OpenAI's."""
    record = read_record(folder / "model.json", ModelRecord)
    picture = base64.b64encode((folder / "table" / "1.png").read_bytes()).decode()
    schema = {"type": "object", "properties": {"stars": {"type": "number"}}}
    content = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}}]
    with application(load(Storage().download(record))) as client:
        answer = client.post("/v1/models/fovea:predict", json={"instances": [{"image": {"b64": picture}}]})
        assert answer.status_code == 200, answer.text
        (prediction,) = answer.json()["predictions"]
        assert (prediction["text"], prediction["fields"]) == ("Stars: *", {"stars": 1.0})
        chat = {
            "model": "fovea",
            "messages": [{"role": "user", "content": content}],
            "response_format": {"type": "json_schema", "json_schema": {"name": "stars", "schema": schema}},
        }
        answer = client.post("/openai/v1/chat/completions", json=chat)
        assert answer.status_code == 200, answer.text
        assert json.loads(answer.json()["choices"][0]["message"]["content"]) == {"stars": 1.0}

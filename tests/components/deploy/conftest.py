"""What comes before a deployment: a model, a dataset, an evaluation and a decision, in a real S3."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from components.deploy.step import deploy_step
from fovea.evaluation.calibration import Calibration, FieldCalibration
from fovea.images import PictureLimits, decode_picture, encode_jpeg
from fovea.inference import Predictor
from fovea.predictions import Prediction, Row, write_predictions
from fovea.records import (
    DatasetRecord,
    Decision,
    EvaluationRecord,
    GenerationParameters,
    ModelRecord,
    Record,
    Split,
    StepInputs,
    write_record,
)
from fovea.steps import RunContext, run_step
from fovea.task import Answer, FieldValue, product_task
from tests.own_bucket import own_bucket
from tests.some_records import some_metrics
from tests.tiny_model import write_tiny_model

ANSWER = "Product: Wool|Silk scarf,|bag, Category: SCARVES,|BAGS, Full Price: 120.0|340.0"
TRUTH: dict[str, FieldValue] = {"product": "Wool scarf", "category": "SCARVES", "full_price": 125.0}
ROWS = 5
CALIBRATION = Calibration(
    fields={
        "product": FieldCalibration(rows=0, right=0, reason="0 answers to fit on"),
        "category": FieldCalibration(slope=1.0, intercept=0.5, rows=100, right=60),
        "full_price": FieldCalibration(slope=0.5, intercept=0.0, rows=100, right=60),
    }
)


def picture(number: int) -> Image.Image:
    """A picture of its own shape and colours for every number."""
    random = np.random.default_rng(number)
    width, height = random.integers(20, 260, 2)
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:] = random.integers(0, 256, 3)
    pixels[height // 4 : height // 2, width // 4 : width // 2] = random.integers(0, 256, 3)
    return Image.fromarray(pixels)


@dataclass(frozen=True)
class World:
    """The records, in S3 and as files, and the way to deploy them."""

    root: str
    folder: Path
    model: ModelRecord
    dataset: DatasetRecord
    evaluation: EvaluationRecord
    decision: Decision

    def deploy(self, *, run_id: str = "run-1", **changed: Any) -> Any:
        """Deploy; records and parameters may be ``changed``."""
        records = {
            name: changed.pop(name, getattr(self, name))
            for name in ("model", "evaluation", "dataset", "decision")
        }
        for name, record in records.items():
            write_record(record, self.folder / name)
        return deploy_step(
            **{f"{name}_record": self.folder / name for name in records},
            deployment=self.folder / "out" / "deployment",
            artifact_root=self.root,
            run_id=run_id,
            parameters={"deploy_timeout_seconds": 120.0, **changed},
        )


def prediction(number: int, text: str) -> Prediction:
    """What an evaluation keeps of an answer that the model was sure of."""
    task = product_task()
    fields, error = task.parse(text)
    truth: dict[str, FieldValue] = {"product": "Scarf", "category": "SCARVES", "full_price": 1.0}
    return Prediction(
        Row(f"row-{number}", f"p{number}", f"p{number}", truth),
        Answer(text, fields, error, 1, 1, "stop", scores=dict.fromkeys(fields, 0.0) if fields else None),
    )


def evaluate(
    context: RunContext, model: Record, dataset: DatasetRecord, answers: list[str]
) -> EvaluationRecord:
    """Commit an evaluation whose answers are ``answers``."""
    metrics = some_metrics(samples=ROWS, groups=ROWS)

    def work(attempt: Any) -> dict[str, Any]:
        write_predictions(attempt.payload, dataset.task, [prediction(*each) for each in enumerate(answers)])
        return {
            "model_digest": model.digest,
            "dataset_digest": dataset.digest,
            "task_digest": dataset.task.digest,
            "split": "test",
            "generation": GenerationParameters(max_new_tokens=32, num_crops=4, dtype="float32"),
            "metrics": metrics,
            "shuffled": None,
            "calibration": CALIBRATION,
        }

    parents = {"model": model.digest, "answers": str(answers)}
    return run_step(
        EvaluationRecord,
        StepInputs(step="evaluate", version=1, parameters={}, parents=parents),
        context,
        work,
    )


def decide(context: RunContext, model: Record, evaluation: Record, passed: bool = True) -> Decision:
    """Commit a decision."""
    parents = {"model": model.digest, "challenger": evaluation.digest}
    return run_step(
        Decision,
        StepInputs(step="gate", version=1, parameters={"passed": passed}, parents=parents),
        context,
        work=lambda _: {
            "model_digest": model.digest,
            "passed": passed,
            "reason": "every rule holds" if passed else "parse_rate is 0.1",
            "rules": (),
        },
    )


def _write_dataset(attempt: Any) -> dict[str, Any]:
    for shard, numbers in enumerate((range(3), range(3, ROWS))):
        rows = [
            {
                "row_id": f"row-{number}",
                "product_id": f"product-{number}",
                "product_group": f"product-{number}",
                "image": {"bytes": encode_jpeg(picture(number)), "path": None},
                **TRUTH,
                "currency": "USD",
            }
            for number in numbers
        ]
        pq.write_table(pa.Table.from_pylist(rows), attempt.payload / f"test-{shard:05}.parquet")
    return {
        "task": product_task(),
        "splits": {"test": Split(rows=ROWS, products=ROWS)},
        "dropped": {},
        "currency": "USD",
        "categories": {"SCARVES": ROWS},
        "longest_side": 260,
    }


@pytest.fixture(scope="session")
def tuned_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that answers the task, by what it sees."""
    return write_tiny_model(tmp_path_factory.mktemp("challenger"), answer=ANSWER, task=product_task())


@pytest.fixture(scope="session")
def answers(tuned_folder: Path) -> list[Answer]:
    """What the model says about the rows' pictures."""
    limits = PictureLimits(min_side=1)
    pictures = [decode_picture(encode_jpeg(picture(number)), limits) for number in range(ROWS)]
    return Predictor.load(tuned_folder, device="cpu").answer(pictures, max_new_tokens=32)


def make_world(root: str, folder: Path, tuned_folder: Path, answers: list[Answer]) -> World:
    """Commit under ``root`` all that a deployment needs."""
    context = RunContext(artifact_root=root, run_id="run-0")
    model = run_step(
        ModelRecord,
        StepInputs(step="merge_adapter", version=1, parameters={}, parents={}),
        context,
        work=lambda attempt: (
            shutil.copytree(tuned_folder, attempt.payload, dirs_exist_ok=True)
            and {"architecture": "Phi3VForCausalLM", "num_crops": 4, "task": product_task()}
        ),
    )
    inputs = StepInputs(step="prepare_data", version=1, parameters={}, parents={})
    dataset = run_step(DatasetRecord, inputs, context, _write_dataset)
    evaluation = evaluate(context, model, dataset, [answer.text for answer in answers])
    decision = decide(context, model, evaluation)
    return World(root, folder, model, dataset, evaluation, decision)


@pytest.fixture
def world(s3: str, tmp_path: Path, tuned_folder: Path, answers: list[Answer]) -> World:
    """All that a deployment needs."""
    return make_world(s3, tmp_path, tuned_folder, answers)


@pytest.fixture(scope="session")
def shared_world(
    s3_server: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
    tuned_folder: Path,
    answers: list[Answer],
) -> World:
    """Made once; tests take it as `settled`."""
    folder = tmp_path_factory.mktemp("settled")
    with own_bucket(s3_server, folder / "cache") as root:
        return make_world(root, folder, tuned_folder, answers)


@pytest.fixture
def settled(s3: str, shared_world: World, tmp_path: Path) -> World:
    """The same for every test: nothing is deployed in it, and nothing of it is changed."""
    return replace(shared_world, folder=tmp_path)

import inspect
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from components.evaluate import evaluate as step
from components.evaluate.component import evaluate
from components.evaluate.evaluate import EvaluateParameters, evaluate_step, figures
from components.evaluate.rows import Split
from fovea.errors import UserError
from fovea.inference import Predictor
from fovea.records import DatasetRecord, EvaluationRecord, ModelRecord, Record, now, read_record, write_record
from fovea.records import Split as SplitSize
from fovea.storage import Storage
from fovea.task import Task, product_task
from tests.tiny_model import write_tiny_model

ANSWER = "Product: Red Bag, Category: BAGS, Full Price: 100.0"
TRUTHS = [("Red Bag", "BAGS", 100.0), ("Boot", "SHOES", 125.0), ("Belt", "BELTS", 50.0)]
MADE: dict[str, Any] = {
    "step_version": 1,
    "input_key": "0" * 64,
    "parameters": {},
    "parents": {},
    "created_at": now(),
    "run_id": "run-0",
}
PICTURE = Features(
    {
        "row_id": Value("string"),
        "product_id": Value("string"),
        "image": ImageFeature(),
        "product": Value("string"),
        "category": Value("string"),
        "full_price": Value("float64"),
        "currency": Value("string"),
    }
)


def picture(seed: int) -> bytes:
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 4 + seed % 5, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(blocks.repeat(14, 0).repeat(14, 1)).save(buffer, "PNG")
    return buffer.getvalue()


def write_dataset(folder: Path, rows: int = 9) -> Path:
    """A test split of ``rows`` rows in two files: products of three rows, each with a truth of its own."""
    folder.mkdir(parents=True)
    records = []
    for number in range(rows):
        product, category, price = TRUTHS[number // 3 % 3]
        records.append(
            {
                "row_id": f"row-{number}",
                "product_id": f"product-{number // 3}",
                "image": {"bytes": picture(number), "path": None},
                "product": product,
                "category": category,
                "full_price": price,
                "currency": "USD",
            }
        )
    for number, part in enumerate(filter(None, (records[:5], records[5:]))):
        Dataset.from_list(part, features=PICTURE).to_parquet(folder / f"test-{number:05}.parquet")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model that says noise, one that always says the same right sentence, and a dataset."""
    root = tmp_path_factory.mktemp("evaluate")
    return {
        "noise": write_tiny_model(root / "noise"),
        "constant": write_tiny_model(root / "constant", answer=ANSWER),
        "dataset": write_dataset(root / "dataset"),
    }


class Inputs:
    """Records in files, and a call of the step."""

    def __init__(self, root: str, folders: dict[str, Path], folder: Path) -> None:
        self.root, self.folder, self.storage = root, folder, Storage()
        uri = f"{root}/dataset/"
        self.dataset = DatasetRecord(
            step="prepare_data",
            uri=uri,
            files=self.storage.upload_folder(folders["dataset"], uri),
            task=product_task(),
            splits={"test": SplitSize(rows=9, products=3)},
            dropped={},
            currency="USD",
            categories={"BAGS": 3, "SHOES": 3, "BELTS": 3},
            longest_side=1344,
            **MADE,
        )
        write_record(self.dataset, folder / "dataset.json")
        self.folders = folders

    def use(self, name: str, task: Task | None = None) -> ModelRecord:
        uri = f"{self.root}/{name}/"
        record = ModelRecord(
            step="import_model",
            uri=uri,
            files=self.storage.upload_folder(self.folders[name], uri),
            architecture="Phi3VForCausalLM",
            num_crops=4,
            task=task,
            **MADE,
        )
        write_record(record, self.folder / "model.json")
        return record

    def evaluate(self, run_id: str = "run-1", **parameters: Any) -> EvaluationRecord:
        record = evaluate_step(
            model_record=self.folder / "model.json",
            dataset_record=self.folder / "dataset.json",
            evaluation_record=self.folder / "evaluation.json",
            artifact_root=self.root,
            run_id=run_id,
            **{"max_new_tokens": 20, "batch_size": 2, **parameters},
        )
        assert read_record(self.folder / "evaluation.json", EvaluationRecord) == record
        return record

    def predictions(self, record: EvaluationRecord) -> list[dict[str, Any]]:
        folder = self.storage.download(record)
        rows: list[dict[str, Any]] = parquet.read_table(folder / "predictions-00000.parquet").to_pylist()
        return rows


@pytest.fixture
def inputs(s3: str, folders: dict[str, Path], tmp_path: Path) -> Inputs:
    return Inputs(s3, folders, tmp_path)


def test_a_model_that_does_not_look_is_found_out(inputs: Inputs) -> None:
    model = inputs.use("constant")
    record = inputs.evaluate(subject="tuned")
    assert (record.model_digest, record.dataset_digest) == (model.digest, inputs.dataset.digest)
    assert record.task_digest == product_task().digest
    assert record.generation.model_dump() == {"max_new_tokens": 20, "num_crops": 4, "dtype": "float32"}
    assert record.metrics.figures == {
        "samples": 9,
        "products": 3,
        "parse_rate": 1.0,
        "title_exact": pytest.approx(1 / 3),
        "title_f1": pytest.approx(1 / 3),
        "category_accuracy": pytest.approx(1 / 3),
        "category_macro_f1": pytest.approx(0.5 / 3),
        "price_median_ape": pytest.approx(0.2),
        "price_mean_ape": pytest.approx(0.4),
        "price_within_10_percent": pytest.approx(1 / 3),
        "price_mean_absolute_error": pytest.approx(25.0),
    }
    assert record.metrics.intervals["category_accuracy"].model_dump() == {"low": 0.0, "high": 1.0}
    assert record.slices["category"]["BAGS"].category_accuracy == 1.0
    assert record.slices["price_band"]["100.00 to 125.00"].samples == 6
    assert record.parsed == record.metrics
    # Whatever it is shown, it is as right as before.
    assert record.shuffled == record.metrics
    assert record.chance_category_accuracy == pytest.approx(1 / 3)
    rows = inputs.predictions(record)
    assert [row["row_id"] for row in rows] == [f"row-{number}" for number in range(9)]
    assert rows[3] | {"shuffled_row_id": None} == {
        "row_id": "row-3",
        "product_id": "product-1",
        "text": ANSWER,
        "parse_error": None,
        "true_product": "Boot",
        "predicted_product": "Red Bag",
        "true_category": "SHOES",
        "predicted_category": "BAGS",
        "true_full_price": 125.0,
        "predicted_full_price": 100.0,
        "prompt_tokens": rows[3]["prompt_tokens"],
        "completion_tokens": 9,
        "finish_reason": "stop",
        "shuffled_row_id": None,
    }
    assert figures(record)["shuffled_parse_rate"] == 1.0


def test_answers_to_shuffled_pictures_are_what_generation_gives(inputs: Inputs) -> None:
    inputs.use("noise")
    record = inputs.evaluate()
    assert record.metrics.parse_rate == 0.0
    assert record.metrics.price_median_ape == 1.0
    rows = inputs.predictions(record)
    texts = {row["row_id"]: row["text"] for row in rows}
    assert len(set(texts.values())) > 3  # it does look
    split = Split(inputs.folders["dataset"], "test", product_task())
    pictures = [picture for batch in split.pictures(100) for picture in batch]
    numbers = [int(row["shuffled_row_id"].removeprefix("row-")) for row in rows]
    predictor = Predictor.load(inputs.folders["noise"], task=product_task())
    real = predictor.answer([pictures[number] for number in numbers], max_new_tokens=20, batch_size=4)
    assert [answer.text for answer in real] == [texts[row["shuffled_row_id"]] for row in rows]
    for row in rows:
        assert row["parse_error"]
        assert row["predicted_category"] is None
        assert row["product_id"] != f"product-{int(row['shuffled_row_id'].removeprefix('row-')) // 3}"


def test_an_evaluation_is_reused_by_another_run_and_not_by_other_parameters(
    inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs.use("constant")
    first = inputs.evaluate("run-1", subject="base")
    assert inputs.evaluate("run-2", subject="base") == first
    report = inputs.storage.read_bytes(f"{inputs.root}/runs/run-2/evaluate_base.json")
    assert b'"reused":true' in report
    keys = {first.input_key}
    monkeypatch.setattr(
        step,
        "_evaluate",
        lambda *_: first.model_dump(
            include=EvaluationRecord.model_fields.keys() - Record.model_fields.keys()
        ),
    )
    for change in ({"max_samples": 5}, {"max_new_tokens": 21}, {"num_crops": 1}):
        keys.add(inputs.evaluate(subject="base", **change).input_key)
    monkeypatch.setattr(step.torch.cuda, "is_available", lambda: True)
    keys.add(inputs.evaluate(subject="base").input_key)
    assert len(keys) == 5


def test_crops_are_the_models_unless_told(inputs: Inputs) -> None:
    inputs.use("constant")
    whole = inputs.evaluate()
    assert whole.generation.num_crops == 4
    fewer = inputs.evaluate(num_crops=1)
    assert fewer.generation.num_crops == 1
    assert max(row["prompt_tokens"] for row in inputs.predictions(fewer)) < min(
        row["prompt_tokens"] for row in inputs.predictions(whole)
    )


def test_samples_are_taken_alike_for_every_model(inputs: Inputs) -> None:
    inputs.use("constant")
    one = inputs.evaluate(max_samples=4)
    inputs.use("noise")
    other = inputs.evaluate(max_samples=4)
    assert one.metrics.samples == 4
    taken = [row["row_id"] for row in inputs.predictions(one)]
    assert taken == [row["row_id"] for row in inputs.predictions(other)]
    assert taken == sorted(taken)


def test_what_cannot_be_evaluated_is_refused(inputs: Inputs) -> None:
    other = product_task().model_copy(update={"version": 2})
    inputs.use("constant", task=Task.model_validate(other.model_dump()))
    with pytest.raises(UserError, match="was tuned for task product-catalogue 2"):
        inputs.evaluate()
    inputs.use("constant")
    with pytest.raises(UserError, match="no 'validation' split"):
        inputs.evaluate(split="validation")
    for wrong in ({"batch_size": 0}, {"subject": "../x"}, {"split": "*"}, {"temperature": 1.0}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            inputs.evaluate(**wrong)


def test_pictures_are_read_in_batches(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "dataset")
    split = Split(folder, "test", product_task())
    assert [len(batch) for batch in split.pictures(3)] == [3, 2, 3, 1]
    some = Split(folder, "test", product_task(), max_samples=4)
    sizes = [image.size for batch in some.pictures(3) for image in batch]
    numbers = [int(row.row_id.removeprefix("row-")) for row in some.rows]
    assert sizes == [Image.open(io.BytesIO(picture(number))).size for number in numbers]


def test_a_damaged_split_is_refused(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "dataset")
    with pytest.raises(UserError, match="no validation split"):
        Split(folder, "validation", product_task())
    records = parquet.read_table(folder / "test-00000.parquet")
    records = records.set_column(2, "image", [[{"bytes": b"<html>", "path": None}] * len(records)])
    parquet.write_table(records, folder / "test-00000.parquet")
    with pytest.raises(UserError, match="row row-0: its picture cannot be decoded"):
        list(Split(folder, "test", product_task()).pictures(10))
    (folder / "test-00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="cannot be read"):
        Split(folder, "test", product_task())


def test_a_split_of_one_product_has_no_pictures_to_shuffle(
    inputs: Inputs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_dataset(tmp_path / "one", rows=3)
    uri = f"{inputs.root}/one/"
    document = inputs.dataset.model_dump() | {"uri": uri, "files": inputs.storage.upload_folder(folder, uri)}
    write_record(DatasetRecord(**document), inputs.folder / "dataset.json")
    inputs.use("constant")
    assert inputs.evaluate().shuffled is None
    assert "one product" in caplog.text


@pytest.fixture
def tracked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    logged: list[Any] = []

    class Run:
        def log_metrics(self, values: dict[str, float], prefix: str) -> None:
            logged.append((prefix, values))

    monkeypatch.setattr(step.tracking.Run, "of", lambda reference: Run())
    return logged


def test_figures_go_to_the_models_run(inputs: Inputs, tracked: list[Any]) -> None:
    inputs.use("constant")
    record = inputs.evaluate()
    assert [prefix for prefix, _ in tracked] == ["test/", "test/shuffled/"]
    assert tracked[0][1] == record.metrics.figures


def test_the_components_defaults_are_the_steps() -> None:
    parameters = inspect.signature(evaluate.python_func).parameters
    for name, field in EvaluateParameters.model_fields.items():
        assert parameters[name].default == field.default

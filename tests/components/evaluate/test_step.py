import io
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from components.evaluate import evaluation, step
from components.evaluate.checkpoints import Parts
from components.evaluate.split import Split
from components.evaluate.step import evaluate_step, figures
from fovea.errors import UserError
from fovea.evaluation.calibration import Calibration, FieldCalibration
from fovea.evaluation.intervals import measure
from fovea.evaluation.outcomes import Outcomes, read_baselines
from fovea.inference import Predictor
from fovea.predictions import read_predictions
from fovea.records import (
    AbsentRecord,
    DatasetRecord,
    EvaluationRecord,
    FileEntry,
    ModelRecord,
    ModelReference,
    Record,
    now,
    read_optional_record,
    read_record,
    write_record,
)
from fovea.records import Split as SplitSize
from fovea.storage import Storage
from fovea.task import Task, product_task
from tests.own_bucket import own_bucket
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
        "product_group": Value("string"),
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
    """A test split of ``rows`` rows in two files, four rows to train on, and three for validation.

    Product groups have three rows, each group a truth of its own.
    """
    folder.mkdir(parents=True)
    test = rows_of(0, rows)
    parts = {"test-00000": test[:5], "test-00001": test[5:]}
    # The pictures of rows 0, 3, 6 and 7.
    parts |= {"train-00000": [rows_of(number, number + 1)[0] for number in (7, 6, 3, 0)]}
    parts |= {"validation-00000": rows_of(20, 23)}
    for name, part in parts.items():
        if part:
            Dataset.from_list(part, features=PICTURE).to_parquet(folder / f"{name}.parquet")
    return folder


def rows_of(start: int, stop: int) -> list[dict[str, Any]]:
    records = []
    for number in range(start, stop):
        product, category, price = TRUTHS[number // 3 % 3]
        records.append(
            {
                "row_id": f"row-{number}",
                "product_id": f"product-{number}",
                "product_group": f"group-{number // 3}",
                "image": {"bytes": picture(number), "path": None},
                "product": product,
                "category": category,
                "full_price": price,
                "currency": "USD",
            }
        )
    return records


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model that says noise, one that always says the same right sentence, and a dataset."""
    root = tmp_path_factory.mktemp("evaluate")
    return {
        "noise": write_tiny_model(root / "noise"),
        "constant": write_tiny_model(root / "constant", answer=ANSWER),
        "dataset": write_dataset(root / "dataset"),
    }


Uploaded = dict[str, tuple[str, tuple[FileEntry, ...]]]


@pytest.fixture(scope="module")
def uploaded(s3_server: dict[str, str], folders: dict[str, Path], cache: Path) -> Uploaded:
    """Where the folders lie in S3, and their files."""
    with own_bucket(s3_server, cache) as bucket:
        storage = Storage()
        return {
            name: (f"{bucket}/{name}/", storage.upload_folder(folder, f"{bucket}/{name}/"))
            for name, folder in folders.items()
        }


PER_TASK = {"subject", "split", "num_crops"}
"""Inputs of a task rather than parameters of the run."""


class Inputs:
    """Records in files, and a call of the step."""

    def __init__(self, root: str, uploaded: Uploaded, folder: Path) -> None:
        self.root, self.uploaded, self.folder, self.storage = root, uploaded, folder, Storage()
        uri, files = uploaded["dataset"]
        self.dataset = DatasetRecord(
            step="prepare_data",
            uri=uri,
            files=files,
            task=product_task(),
            splits={
                "test": SplitSize(rows=9, products=3),
                "train": SplitSize(rows=4, products=3),
                "validation": SplitSize(rows=3, products=2),
            },
            dropped={},
            currency="USD",
            categories={"BAGS": 3, "SHOES": 3, "BELTS": 3},
            longest_side=1344,
            **MADE,
        )
        write_record(self.dataset, folder / "dataset.json")

    def use(self, name: str, task: Task | None = None, *, tuned: bool = False) -> ModelRecord:
        base = ModelReference(digest=f"sha256:{'b' * 64}", record_uri="s3://fovea/base.json")
        uri, files = self.uploaded[name]
        record = ModelRecord(
            step="import_model",
            uri=uri,
            files=files,
            architecture="Phi3VForCausalLM",
            num_crops=4,
            task=task,
            base=base if tuned else None,
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
            **{
                name: parameters.pop(name) for name in ("subject", "split", "num_crops") if name in parameters
            },
            parameters={"max_new_tokens": 20, "generation_batch_size": 2, **parameters},
        )
        assert isinstance(record, EvaluationRecord)
        assert read_record(self.folder / "evaluation.json", EvaluationRecord) == record
        return record

    def predictions(self, record: EvaluationRecord) -> list[dict[str, Any]]:
        folder = self.storage.download(record)
        rows: list[dict[str, Any]] = parquet.read_table(folder / "predictions-00000.parquet").to_pylist()
        return rows

    def kept(self) -> list[str]:
        """Return the names of the parts that unfinished evaluations have left."""
        return [uri.rpartition("/")[2] for uri in self.storage.list(f"{self.root}/checkpoints/")]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def inputs(
    s3: str, uploaded: Uploaded, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Inputs:
    monkeypatch.setenv("FOVEA_CACHE", str(cache))
    return Inputs(s3, uploaded, tmp_path)


def test_a_model_that_does_not_look_is_found_out(inputs: Inputs) -> None:
    model = inputs.use("constant")
    record = inputs.evaluate(subject="challenger")
    assert (record.model_digest, record.dataset_digest) == (model.digest, inputs.dataset.digest)
    assert record.task_digest == product_task().digest
    assert record.generation.model_dump() == {"max_new_tokens": 20, "num_crops": 4, "dtype": "float32"}
    assert (record.metrics.samples, record.metrics.groups) == (9, 3)
    assert record.metrics.figures == {
        "parse_rate": 1.0,
        "product.exact": pytest.approx(1 / 3),
        "product.f1": pytest.approx(1 / 3),
        "category.accuracy": pytest.approx(1 / 3),
        "category.macro_f1": pytest.approx(0.5 / 3),
        "full_price.median_ape": pytest.approx(0.2),
        "full_price.mean_ape": pytest.approx(0.4),
        "full_price.within_10_percent": pytest.approx(1 / 3),
        "full_price.mean_absolute_error": pytest.approx(25.0),
    }
    assert record.metrics.intervals["category.accuracy"].model_dump() == {"low": 0.0, "high": 1.0}
    assert record.slices["category"]["BAGS"].figures["category.accuracy"] == 1.0
    assert record.slices["full_price"]["100.00 to 125.00"].samples == 6
    assert record.parsed == record.metrics
    # Whatever it is shown, it is as right as before.
    assert record.shuffled == record.metrics
    (confusion,) = record.confusions.values()
    assert confusion.categories == ("BAGS", "BELTS", "SHOES")
    assert confusion.rows == ((3, 0, 0), (3, 0, 0), (3, 0, 0))
    rows = inputs.predictions(record)
    assert [row["row_id"] for row in rows] == [f"row-{number}" for number in range(9)]
    assert rows[3] | {"shuffled_row_id": None} == {
        "row_id": "row-3",
        "product_id": "product-3",
        "product_group": "group-1",
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
        **{f"confidence_{name}": None for name in product_task().fields},
        **{f"score_{name}": rows[3][f"score_{name}"] for name in product_task().fields},
    }
    assert all(rows[3][f"score_{name}"] <= 0 for name in product_task().fields)
    assert figures(record)["shuffled_parse_rate"] == 1.0
    assert figures(record)["category.accuracy_high"] == 1.0
    folder = inputs.storage.download(record)
    again = read_predictions([folder / "predictions-00000.parquet"], product_task())
    assert measure(Outcomes.of_predictions(product_task(), again)) == record.metrics


def test_baselines_come_with_the_evaluation_of_a_base(inputs: Inputs) -> None:
    inputs.use("constant")
    record = inputs.evaluate()
    assert [*record.baselines] == ["majority_category", "category_median_price", "nearest_neighbour"]
    constant = record.baselines["majority_category"]
    # BAGS, Red Bag; of the prices 50, 50, 100 and 125 the median is 75.
    assert (constant.figures["category.accuracy"], constant.figures["product.exact"]) == (
        pytest.approx(1 / 3),
        pytest.approx(1 / 3),
    )
    assert constant.figures["full_price.median_ape"] == pytest.approx(0.4)
    folder = inputs.storage.download(record)
    found = read_baselines(folder / "baselines.parquet", product_task())["nearest_neighbour"]
    right = dict(zip(found.row_ids.tolist(), found.fields["product"]["exact"].tolist(), strict=True))
    # These rows' very pictures were among those to train on.
    assert all(right[f"row-{number}"] for number in (0, 3, 6, 7))
    assert measure(found) == record.baselines["nearest_neighbour"]
    median_price = read_baselines(folder / "baselines.parquet", product_task())["category_median_price"]
    assert median_price.fields["category"]["answer"].tolist() == (found.fields["category"]["answer"].tolist())
    inputs.use("constant", tuned=True)
    assert inputs.evaluate().baselines == {}


def test_confidences_are_calibrated_on_the_validation_split(
    inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    field = FieldCalibration(slope=1.0, intercept=0.5, rows=3, right=1)

    def fit(*given: Any) -> Calibration:
        seen.append(given)
        return Calibration(fields=dict.fromkeys(product_task().fields, field))

    monkeypatch.setattr(evaluation, "fit_calibration", fit)
    inputs.use("constant", tuned=True)
    record = inputs.evaluate()
    (task, truths, answers, scores) = seen[0]
    assert task == product_task()
    assert [truth["product"] for truth in truths] == ["Red Bag", "Boot", "Boot"]
    assert [answer["product"] for answer in answers] == ["Red Bag"] * 3
    assert all(score.keys() == product_task().fields.keys() for score in scores)
    assert record.calibration is not None
    row = inputs.predictions(record)[0]
    assert row["confidence_category"] == field.confidence(row["score_category"])
    assert inputs.evaluate(calibration_samples=2).input_key != record.input_key
    assert len(seen[1][1]) == 2
    assert inputs.evaluate(calibration_samples=0).calibration is None
    assert len(seen) == 2


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
        evaluation.Evaluation,
        "run",
        lambda _: first.model_dump(include=EvaluationRecord.model_fields.keys() - Record.model_fields.keys()),
    )
    # Whoever asks and however many at once, it is the same evaluation.
    for same in ({"subject": "champion"}, {"generation_batch_size": 3}, {"calibration_samples": 7}):
        assert inputs.evaluate(**same) == first
    for change in (
        {"max_eval_samples": 5},
        {"max_new_tokens": 21},
        {"num_crops": 1},
        {"neighbour_samples": 2},
    ):
        keys.add(inputs.evaluate(subject="base", **change).input_key)
    monkeypatch.setattr(step, "has_gpu", lambda: True)
    keys.add(inputs.evaluate(subject="base").input_key)
    assert len(keys) == 6


def test_where_there_is_no_model_there_is_no_evaluation(inputs: Inputs) -> None:
    write_record(AbsentRecord(reason="nothing is deployed yet"), inputs.folder / "model.json")
    absent = evaluate_step(
        model_record=inputs.folder / "model.json",
        dataset_record=inputs.folder / "dataset.json",
        evaluation_record=inputs.folder / "evaluation.json",
        artifact_root=inputs.root,
        run_id="run-1",
        parameters={},
        subject="champion",
    )
    assert absent == read_optional_record(inputs.folder / "evaluation.json", EvaluationRecord)
    assert absent == AbsentRecord(reason="nothing is deployed yet")


KILLED = """
import os, signal, sys
from components.evaluate import checkpoints
from components.evaluate.step import evaluate_step

save, saved = checkpoints.Parts.save, []

def save_and_die(self, *given):
    save(self, *given)
    saved.append(given)
    if len(saved) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

checkpoints.Parts.save = save_and_die
folder, root = sys.argv[1:]
evaluate_step(
    model_record=f"{folder}/model.json", dataset_record=f"{folder}/dataset.json",
    evaluation_record=f"{folder}/evaluation.json", artifact_root=root, run_id="run-1",
    parameters={"max_new_tokens": 12, "generation_batch_size": 1},
)
"""


def test_an_evaluation_that_was_killed_goes_on_where_it_was(
    inputs: Inputs, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs.use("noise", tuned=True)
    command = [sys.executable, "-c", KILLED, str(inputs.folder), inputs.root]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    assert len(inputs.kept()) == 4
    asked: list[int] = []
    answer = Predictor.answer

    def count(self: Predictor, images: Any, **given: Any) -> Any:
        asked.append(len(images))
        return answer(self, images, **given)

    monkeypatch.setattr(Predictor, "answer", count)
    record = inputs.evaluate(generation_batch_size=1, max_new_tokens=12)
    # Of the nine rows and of three for the calibration, five were answered before.
    assert sum(asked) == 9 + 3 - 5
    assert inputs.kept() == []
    assert (record.metrics.parse_rate, record.metrics.figures["full_price.median_ape"]) == (0.0, 1.0)

    rows = inputs.predictions(record)
    split = Split(folders["dataset"], "test", product_task())
    pictures = [picture for batch in split.pictures(100) for picture in batch]
    predictor = Predictor.load(folders["noise"], task=product_task())
    texts = [each.text for each in answer(predictor, pictures, max_new_tokens=12, batch_size=4)]
    assert [row["text"] for row in rows] == texts
    assert len(set(texts)) > 3  # it does look
    for row in rows:
        # What is said of a shuffled picture is taken from where it was asked about.
        assert row["parse_error"]
        assert row["predicted_category"] is None
        assert row["product_group"] != f"group-{int(row['shuffled_row_id'].removeprefix('row-')) // 3}"


def test_a_part_is_trusted_only_if_it_is_what_its_record_says(
    inputs: Inputs, caplog: pytest.LogCaptureFixture
) -> None:
    names = [f"row-{number}" for number in range(9)]
    key = "a" * 64
    parts = Parts(inputs.storage, inputs.root, key)
    for start in (0, 4, 7):
        parts.save(pa.table({"row_id": names[start : start + 3 + (start == 0)]}), "test", start)
    assert [len(table) for table in parts.load("test", names)] == [4, 3, 2]
    # Other rows than those that were answered, and another evaluation's.
    assert parts.load("test", names[::-1]) == []
    assert parts.load("validation", names) == []
    prefix = f"{inputs.root}/checkpoints/evaluate/"
    for uri in list(inputs.storage.list(f"{prefix}{key}/")):
        inputs.storage.write_bytes(uri.replace(key, "b" * 64), inputs.storage.read_bytes(uri))
    assert Parts(inputs.storage, inputs.root, "b" * 64).load("test", names) == []
    broken = [uri for uri in inputs.storage.list(f"{prefix}{key}/test-00000004") if uri.endswith("parquet")]
    inputs.storage.write_bytes(broken[0], b"PAR1")
    assert [len(table) for table in parts.load("test", names)] == [4]
    assert "not those that its record names" in caplog.text
    # Another attempt's answers to the same rows do as well, and how many they are is their own matter.
    parts.save(pa.table({"row_id": names[4:5]}), "test", 4)
    assert [len(table) for table in parts.load("test", names)] == [4, 1]


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
    one = inputs.evaluate(max_eval_samples=4)
    inputs.use("noise")
    other = inputs.evaluate(max_eval_samples=4)
    assert one.metrics.samples == 4
    taken = [row["row_id"] for row in inputs.predictions(one)]
    assert taken == [row["row_id"] for row in inputs.predictions(other)]
    assert taken == sorted(taken)


def test_what_cannot_be_evaluated_is_refused(inputs: Inputs) -> None:
    other = product_task().model_copy(update={"version": 2})
    inputs.use("constant", task=Task.model_validate(other.model_dump()))
    with pytest.raises(
        UserError,
        match=r"challenger model answers another task .*: version 2 there, 1 here; ",
    ):
        inputs.evaluate()
    inputs.use("constant")
    with pytest.raises(UserError, match="no 'holdout' split"):
        inputs.evaluate(split="holdout")
    for wrong in ({"generation_batch_size": 0}, {"subject": "../x"}, {"split": "*"}, {"temperature": 1.0}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            inputs.evaluate(**wrong)


def test_a_model_of_the_same_task_on_other_columns_is_evaluated(inputs: Inputs) -> None:
    inputs.use("constant", task=product_task("name", "kind", "amount"))
    record = inputs.evaluate(subject="champion")
    assert record.task_digest == inputs.dataset.task.digest
    assert record.metrics.figures["category.accuracy"] == pytest.approx(1 / 3)


def test_pictures_are_read_in_batches(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "dataset")
    split = Split(folder, "test", product_task())
    assert [len(batch) for batch in split.pictures(3)] == [3, 2, 3, 1]
    assert [len(batch) for batch in split.pictures(3, first=4)] == [1, 3, 1]
    assert [len(batch) for batch in split.pictures(3, first=9)] == []
    some = Split(folder, "test", product_task(), max_samples=4)
    sizes = [image.size for batch in some.pictures(3) for image in batch]
    numbers = [int(row.row_id.removeprefix("row-")) for row in some.rows]
    assert [image.size for batch in some.pictures(2, first=1) for image in batch] == sizes[1:]
    assert sizes == [Image.open(io.BytesIO(picture(number))).size for number in numbers]


def test_a_damaged_split_is_refused(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "dataset")
    with pytest.raises(UserError, match="no holdout split"):
        Split(folder, "holdout", product_task())
    records = parquet.read_table(folder / "test-00000.parquet")
    records = records.set_column(
        records.column_names.index("image"), "image", [[{"bytes": b"<html>", "path": None}] * len(records)]
    )
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

        def log_table(self, columns: dict[str, list[Any]], name: str) -> None:
            logged.append((name, columns))

    monkeypatch.setattr(evaluation.tracking.Run, "of", lambda reference: Run())
    return logged


def test_figures_go_to_the_models_run(inputs: Inputs, tracked: list[Any]) -> None:
    inputs.use("constant")
    record = inputs.evaluate()
    assert [prefix for prefix, _ in tracked] == ["test/", "test/shuffled/", "confusion-category.json"]
    confusion = {"truth": ["BAGS", "BELTS", "SHOES"], "answer": ["BAGS"] * 3, "rows": [3] * 3}
    assert tracked[2][1] == confusion
    assert tracked[0][1].items() > record.metrics.figures.items()
    # What a champion reaches on later data is not what its own run reached.
    inputs.evaluate(subject="champion", max_eval_samples=5)
    assert len(tracked) == 3

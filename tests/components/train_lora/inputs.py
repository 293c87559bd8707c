"""A base model and a dataset in S3 to train on."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from safetensors.torch import load_file

from components.train_lora.step import train_lora_step
from fovea.records import AdapterRecord, DatasetRecord, ModelRecord, Split, now, write_record
from fovea.storage import Storage
from fovea.task import product_task

MADE: dict[str, Any] = {
    "step_version": 1,
    "input_key": "0" * 64,
    "parameters": {},
    "parents": {},
    "created_at": now(),
    "run_id": "run-0",
}
FEATURES = Features(
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
QUICK = {
    "experiment": "tests",
    "num_crops": 1,
    "lora_r": 4,
    "lora_dropout": 0.0,
    "learning_rate": 0.01,
    "num_train_epochs": 6.0,
    "train_batch_size": 4,
    "per_device_train_batch_size": 2,
    "gradient_checkpointing": False,
    "precision": "float32",
    "answered_samples": 1,
}


def row(row_id: str, colour: str, product: str, category: str) -> dict[str, Any]:
    """A row whose picture is of one colour."""
    return {
        "row_id": row_id,
        "product_id": row_id,
        "product_group": row_id,
        "image": Image.new("RGB", (40, 40), colour),
        "product": product,
        "category": category,
        "full_price": 100.0,
        "currency": "USD",
    }


def red_and_blue(split: str, count: int) -> list[dict[str, Any]]:
    kinds = (("blue", "Blue Boot", "SHOES"), ("red", "Red Bag", "BAGS"))
    return [row(f"{split}{number}", *kinds[number % 2]) for number in range(count)]


def write_dataset(folder: Path, splits: Mapping[str, int | list[dict[str, Any]]]) -> Path:
    """Write splits of these rows, or of so many that are red or blue."""
    folder.mkdir()
    for split, given in splits.items():
        rows = red_and_blue(split, given) if isinstance(given, int) else given
        Dataset.from_list(rows, FEATURES).to_parquet(folder / f"{split}-00000.parquet")
    return folder


class Inputs:
    """A base and a dataset in S3, and their records as files."""

    def __init__(
        self,
        root: str,
        folder: Path,
        model: Path,
        splits: Mapping[str, int | list[dict[str, Any]]],
    ) -> None:
        self.root, self.folder = root, folder
        storage = Storage()
        counts = {name: rows if isinstance(rows, int) else len(rows) for name, rows in splits.items()}
        base = ModelRecord(
            step="import_model",
            uri=f"{root}/base/",
            files=storage.upload_folder(model, f"{root}/base/"),
            architecture="Phi3VForCausalLM",
            num_crops=4,
            **MADE,
        )
        dataset = DatasetRecord(
            step="prepare_data",
            uri=f"{root}/data/",
            files=storage.upload_folder(write_dataset(folder / "data", splits), f"{root}/data/"),
            task=product_task(),
            splits={name: Split(rows=count, products=count) for name, count in counts.items()},
            dropped={},
            currency="USD",
            categories={"BAGS": 1, "SHOES": 1},
            longest_side=40,
            **MADE,
        )
        self.base, self.dataset = base, dataset
        write_record(base, folder / "base.json")
        write_record(dataset, folder / "dataset.json")

    def train(self, run_id: str = "run-1", root: str | None = None, **parameters: Any) -> AdapterRecord:
        return train_lora_step(
            dataset_record=self.folder / "dataset.json",
            base_record=self.folder / "base.json",
            adapter_record=self.folder / "adapter.json",
            artifact_root=root or self.root,
            run_id=run_id,
            parameters=QUICK | parameters,
        )

    def report(self, name: str, run_id: str = "run-1", root: str | None = None) -> Any:
        return json.loads(Storage().read_bytes(f"{root or self.root}/runs/{run_id}/{name}.json"))


def weights(record: AdapterRecord) -> dict[str, Any]:
    return dict(load_file(Storage().download(record) / "adapter_model.safetensors"))

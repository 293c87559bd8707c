"""Shards in S3, read as training elsewhere may read them: streamed with `datasets`, over a presigned URL."""

import io
from pathlib import Path

import boto3
import datasets
import pyarrow
import pyarrow.parquet
import pytest
from botocore.config import Config
from PIL import Image

from components.prepare_data.shards import schema
from fovea.storage import Storage, split_uri
from fovea.task import product_task


def write_shard(path: Path, numbers: range) -> None:
    rows = []
    for number in numbers:
        jpeg = io.BytesIO()
        Image.new("RGB", (40, 30), (number, 0, 0)).save(jpeg, "JPEG")
        rows.append(
            {
                "row_id": f"{number:03}",
                "product_id": f"P{number}",
                "product_group": f"P{number}",
                "image": {"bytes": jpeg.getvalue(), "path": f"{number:03}.jpg"},
                "title": f"Lamp {number}",
                "category3_code": "LAMPS",
                "full_price": 1.5,
                "currency": "EUR",
            }
        )
    table = pyarrow.Table.from_pylist(rows, schema(product_task()))
    pyarrow.parquet.write_table(table, path, row_group_size=10)


@pytest.fixture
def urls(s3: str, tmp_path: Path) -> list[str]:
    folder = tmp_path / "shards"
    folder.mkdir()
    write_shard(folder / "train-00000.parquet", range(40))
    write_shard(folder / "train-00001.parquet", range(40, 70))
    storage = Storage()
    storage.upload_folder(folder, f"{s3}/dataset/")
    client = boto3.Session().client("s3", config=Config(signature_version="s3v4"))
    return [
        client.generate_presigned_url("get_object", dict(zip(("Bucket", "Key"), split_uri(uri), strict=True)))
        for uri in storage.list(f"{s3}/dataset/")
    ]


def test_the_columns_are_what_datasets_would_write() -> None:
    columns = schema(product_task())
    features = datasets.Features.from_arrow_schema(columns)
    assert isinstance(features["image"], datasets.Image)
    assert features.arrow_schema == columns
    assert features.arrow_schema.metadata == columns.metadata


def test_shards_stream_and_shuffle_reproducibly(
    urls: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It waits five seconds at the end of each stream, for threads of other file systems than this.
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
    split = datasets.load_dataset(
        "parquet", data_files=urls, split="train", streaming=True, cache_dir=str(tmp_path / "cache")
    )
    plain = list(split)
    assert [row["row_id"] for row in plain] == [f"{number:03}" for number in range(70)]
    assert plain[50]["image"].size == (40, 30)
    assert abs(plain[50]["image"].getpixel((5, 5))[0] - 50) < 4
    assert plain[50]["full_price"] == 1.5

    def order(seed: int, epoch: int = 0) -> list[str]:
        shuffled = split.shuffle(seed=seed, buffer_size=20)
        shuffled.set_epoch(epoch)
        return [row["row_id"] for row in shuffled]

    first, later = order(1), order(1, epoch=1)
    assert (order(1), order(1, epoch=1)) == (first, later)
    assert len({tuple(first), tuple(later), tuple(order(2))}) == 3
    assert sorted(first) == [row["row_id"] for row in plain]

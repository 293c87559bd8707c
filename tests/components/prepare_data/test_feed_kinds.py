"""Real feeds and their faults, by kind: what each is read as, or the error that says what to do."""

from pathlib import Path

import pytest

from components.prepare_data.sources.source import open_source
from components.prepare_data.sources.tables import SourceRow
from fovea.fetch.profiles import FetchProfile
from fovea.storage import Storage

HEADER = "product_code,title,category3_code,full_price,imageurl"
COLUMNS = HEADER.split(",")
LAMP = f"{HEADER}\nP0,Lamp,LAMPS,1.50,0.jpg\n"


def read(source: str, columns: list[str] = COLUMNS) -> list[SourceRow]:
    with open_source(source, FetchProfile(), Storage()) as found:
        return list(found.rows(columns, "imageurl"))


HIDDEN = (
    ".ipynb_checkpoints/products-checkpoint.csv",
    "._products.csv",
    ".~lock.products.csv#.csv",
    "~$products.csv",
    "_delta_log/0.jsonl",
    "deep/_temporary/part-0.csv",
)


@pytest.mark.parametrize("place", ["disk", "s3"])
def test_folders_and_patterns_leave_out_hidden_names(place: str, tmp_path: Path, s3: str) -> None:
    base = tmp_path / "_today"
    for name in ("products.csv", "deep/products.csv", *HIDDEN):
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text(LAMP)
    folder = str(base)
    if place == "s3":
        folder = f"{s3}/_today"
        Storage().upload_folder(base, f"{folder}/")
    for source in (folder, f"{folder}/", f"{folder}/**/*"):
        assert [row.values["imageurl"] for row in read(source)] == ["deep/0.jpg", "0.jpg"]
    for name in HIDDEN:
        assert len(read(f"{folder}/{name}")) == 1

"""Real feeds and their faults, by kind: what each is read as, or the error that says what to do."""

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import yaml

from components.prepare_data.sources.source import open_source
from components.prepare_data.sources.tables import SourceRow
from fovea.errors import UserError
from fovea.fetch.profiles import FetchProfile
from fovea.storage import Storage
from fovea.yaml_text import read_yaml
from pipelines.settings import read_settings

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


def test_a_column_that_is_there_twice_is_named(tmp_path: Path) -> None:
    (tmp_path / "twice.csv").write_text(f"{HEADER},title\nP0,Right,LAMPS,1.50,0.jpg,For search engines\n")
    columns = [pyarrow.array(["1"])] * 6
    pyarrow.parquet.write_table(pyarrow.table(columns, names=[*COLUMNS, "title"]), tmp_path / "twice.parquet")
    for name in ("twice.csv", "twice.parquet"):
        with pytest.raises(UserError, match=r"more than one column title.*rename or remove"):
            read(str(tmp_path / name))
        # What is not read may be there as often as it wants.
        assert len(read(str(tmp_path / name), ["product_code", "imageurl"])) == 1


def test_a_row_of_json_with_a_name_twice_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "table.jsonl"
    path.write_text('{"title": "a", "imageurl": "1"}\n{"title": "b", "title": "c", "imageurl": "2"}\n')
    first, second = read(str(path), ["title", "imageurl"])
    assert first.values == {"title": "a", "imageurl": "1"}
    assert second.malformed == '{"title": "b", "title": "c", "imageurl": "2"}'


def test_a_name_that_is_twice_in_yaml_is_named(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("seed: 1\nsource: a.csv\nseed: 2\n")
    with pytest.raises(UserError, match=r"settings\.yaml.*seed is given twice.*line 3"):
        read_settings(path)
    with pytest.raises(yaml.YAMLError, match="b is given twice"):
        read_yaml("a: {b: 1, b: 2}")
    assert read_yaml("a: &a {b: 1}\nc: {<<: *a, b: 2}") == {"a": {"b": 1}, "c": {"b": 2}}

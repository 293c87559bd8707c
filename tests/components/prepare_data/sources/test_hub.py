"""Datasets of a hub, through a server that answers as one does."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest

from components.prepare_data.sources.hub import open_dataset
from fovea.errors import UserError
from sample.catalogue import write_catalogue
from tests.components.prepare_data.hub_server import COMMIT, serve_dataset

# Libraries read HF_ENDPOINT when they are imported, so this runs in a separate process.
_PROGRAM = """
import json, sys
from components.prepare_data.sources.hub import open_dataset, read_file
from components.prepare_data.parameters import PrepareDataParameters
from components.prepare_data.cleaning import read_rows
from components.prepare_data.workspace import Workspace
from fovea.errors import UserError
from fovea.fetch.client import FetchError
from pathlib import Path

said = {}
for name, uri in json.loads(sys.argv[1]).items():
    folder = Path(sys.argv[2], name)
    folder.mkdir()
    try:
        found = open_dataset(uri)
        with Workspace(folder) as workspace:
            column = "image" if name == "pictures" else "imageurl"
            parameters = PrepareDataParameters(source=uri, image_column=column)
            read_rows(found, workspace, parameters.task(), parameters)
            addresses = list(workspace.pictures.needed())
            originals = sum(workspace.pictures.original(each) is not None for each in addresses)
            said[name] = [found.digest, workspace.overview.totals().kept, originals, addresses[0]]
    except UserError as error:
        said[name] = str(error)
try:
    said["file"] = len(read_file("hf://datasets/shop/products@" + sys.argv[3] + "/README.md", 10**6))
    read_file("hf://datasets/shop/products@" + sys.argv[3] + "/none.jpg", 10**6)
except FetchError as error:
    said["absent"] = error.reason
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What a process that reads a hub's datasets says of each."""
    root = tmp_path_factory.mktemp("hub")
    write_catalogue(root / "catalogue", rows=40, seed=1, workers=1)
    rows = list(csv.DictReader((root / "catalogue" / "products.csv").open()))
    folder = root / "dataset"
    # The schema of the catalogue with the pictures' addresses, and with the pictures themselves.
    (folder / "addresses").mkdir(parents=True)
    datasets.Dataset.from_list(rows).to_parquet(folder / "addresses" / "train.parquet")
    pictures = [
        {"bytes": path.read_bytes() if path.is_file() else b"", "path": path.name}
        for row in rows
        for path in [root / "catalogue" / "images" / row["imageurl"].rpartition("/")[2]]
    ]
    features = {name: datasets.Value("string") for name in rows[0]} | {"image": datasets.Image()}
    table = datasets.Dataset.from_list(
        [{**row, "image": picture} for row, picture in zip(rows, pictures, strict=True)],
        features=datasets.Features(features),
    )
    (folder / "pictures").mkdir()
    table.to_parquet(folder / "pictures" / "train.parquet")
    configurations = "".join(
        f"- config_name: {name}\n  data_files: {name}/train.*\n" for name in ("addresses", "pictures")
    )
    (folder / "README.md").write_text(f"---\nconfigs:\n{configurations}---\n")
    uris = {
        "addresses": "hf://shop/products/addresses",
        "pictures": f"hf://shop/products@{COMMIT}/pictures:train",
        "no_split": "hf://shop/products/addresses:test",
        "no_configuration": "hf://shop/products/none",
        "no_revision": "hf://shop/products@none",
        "no_dataset": "hf://shop/none",
    }
    (root / "work").mkdir()
    with serve_dataset(folder, "shop/products") as (_, endpoint):
        environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(root / "home")}
        environment |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, json.dumps(uris), str(root / "work"), COMMIT],
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
        )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def test_rows_with_addresses(said: dict[str, list[object]]) -> None:
    digest, rows, originals, first = said["addresses"]
    assert (rows, originals) == (39, 0), "one row has no price"
    assert str(first).startswith("http://catalogue.invalid/images/")
    assert digest != said["pictures"][0]


def test_rows_with_the_pictures_themselves(said: dict[str, list[object]]) -> None:
    _, rows, originals, first = said["pictures"]
    assert (rows, originals) == (39, 39)
    assert first == "row:0"


def test_a_file_of_the_repository(said: dict[str, object]) -> None:
    assert isinstance(said["file"], int)
    assert said["absent"] == "not_found"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_split", "Bad split: test"),
        ("no_configuration", "'none' not found"),
        ("no_revision", "no such revision"),
        ("no_dataset", "no such dataset"),
    ],
)
def test_what_the_hub_does_not_have_is_one_clear_error(
    name: str, message: str, said: dict[str, object]
) -> None:
    assert message in str(said[name])
    assert "\n" not in str(said[name])


def test_what_is_no_dataset_of_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="write hf://owner/name"):
        open_dataset("hf://name")
    (tmp_path / "shop" / "products").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="the working directory has a folder shop/products"):
        open_dataset("hf://shop/products")

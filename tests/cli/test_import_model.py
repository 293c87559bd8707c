"""`fovea import-model`, from a folder and from a hub (a stand-in on this machine), as a person types it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli import main
from fovea.phi3v import Phi3VForCausalLM
from fovea.records import ModelRecord
from fovea.storage import Storage
from tests.hub_server import serve_hub
from tests.tiny_model import write_tiny_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    written = write_tiny_model(tmp_path_factory.mktemp("import") / "model")
    (written / "modeling_phi3_v.py").write_text("raise SystemExit")
    return written


def import_model(*arguments: object, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-P", "-m", "cli.main", "import-model", *map(str, arguments)]
    own = {**os.environ, **environment}
    return subprocess.run(command, env=own, capture_output=True, text=True, timeout=120)


def test_from_a_hub(s3: str, folder: Path, tmp_path: Path) -> None:
    with serve_hub(folder, "owner/model", COMMIT) as hub:
        name = f"owner/model@{COMMIT}"
        environment = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hub")}
        ended = import_model(name, "--to", f"{s3}/models/", **environment)
    assert ended.returncode == 0, ended.stderr
    uri = ended.stdout.partition("base_model: ")[2].strip()
    assert uri.startswith(f"{s3}/models/index/import_model/")
    record = ModelRecord.from_json(Storage().read_bytes(uri))
    assert record.digest in ended.stdout
    assert record.parameters == {"source": name}
    assert "modeling_phi3_v.py" not in {file.path for file in record.files} | set(hub.downloads)
    Phi3VForCausalLM.from_pretrained(Storage().download(record))


def test_from_a_folder(s3: str, folder: Path) -> None:
    ended = CliRunner().invoke(main.app, ["import-model", str(folder), "--to", s3])
    assert ended.exit_code == 0, ended.output
    assert all("uploading" in line for line in ended.stderr.splitlines())
    assert "Phi3VForCausalLM, 6 files" in ended.stdout


@pytest.mark.parametrize(
    ("source", "to", "reason"),
    [
        ("owner/model@main", "s3://bucket", "for a hub, add the commit"),
        (".", "bucket/prefix", "is not an S3 URI"),
    ],
)
def test_what_is_wrong_is_one_line(source: str, to: str, reason: str) -> None:
    ended = import_model(source, "--to", to)
    assert ended.returncode == 1
    assert reason in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1

import json
import shutil
from pathlib import Path

import pytest

from fovea.errors import UserError
from fovea.models import import_model
from fovea.phi3v import Phi3VForCausalLM, Phi3VProcessor
from fovea.records import ModelRecord
from fovea.steps import RunContext
from fovea.storage import Storage
from tests.tiny_model import write_tiny_model


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as it is published: with code of its own."""
    folder = write_tiny_model(tmp_path_factory.mktemp("published"))
    for name in ("config.json", "preprocessor_config.json"):
        document = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**document, "auto_map": {"AutoModel": "modeling_phi3_v.X"}}))
    (folder / "modeling_phi3_v.py").write_text("raise SystemExit")
    (folder / "optimizer.pt").write_bytes(b"pickle")
    (folder / "LICENSE").write_text("A licence")
    return folder


@pytest.fixture
def damaged(published: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(published, tmp_path / "damaged"))


def imported(folder: Path, root: str, run_id: str = "run-1") -> ModelRecord:
    return import_model(folder, RunContext(artifact_root=root, run_id=run_id), Storage())


def test_a_model_comes_into_s3_without_its_code_and_is_reused(s3: str, published: Path) -> None:
    record = imported(published, s3)
    folder = Storage().download(record)
    names = {path.name for path in folder.iterdir()}
    assert names == {path.name for path in published.iterdir()} - {"modeling_phi3_v.py", "optimizer.pt"}
    for name in ("config.json", "preprocessor_config.json"):
        document = json.loads((published / name).read_text())
        assert document.pop("auto_map")
        assert json.loads((folder / name).read_text()) == document
    assert (folder / "model.safetensors").read_bytes() == (published / "model.safetensors").read_bytes()
    assert (record.architecture, record.num_crops, record.base) == ("Phi3VForCausalLM", 4, None)
    Phi3VForCausalLM.from_pretrained(folder)
    Phi3VProcessor.from_pretrained(folder)

    again = imported(published, s3, run_id="run-2")
    assert again == record
    assert len(list(Storage().list(f"{s3}/index/"))) == 1


def test_another_content_is_another_model(s3: str, damaged: Path) -> None:
    first = imported(damaged, s3)
    document = json.loads((damaged / "preprocessor_config.json").read_text())
    (damaged / "preprocessor_config.json").write_text(json.dumps({**document, "num_crops": 16}))
    second = imported(damaged, s3)
    assert second.num_crops == 16
    assert second.digest != first.digest
    assert second.uri != first.uri
    assert Storage().download(first) != Storage().download(second)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "tokenizer.json"])
def test_a_folder_that_lacks_a_file_is_refused(s3: str, damaged: Path, name: str) -> None:
    (damaged / name).unlink()
    with pytest.raises(UserError, match=f"not a Phi-3-Vision folder, {name} missing"):
        imported(damaged, s3)
    assert not list(Storage().list(s3 + "/"))


def test_other_models_are_refused(s3: str, damaged: Path, tmp_path: Path) -> None:
    config = json.loads((damaged / "config.json").read_text())
    (damaged / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(UserError, match="only Phi3VForCausalLM"):
        imported(damaged, s3)
    (damaged / "config.json").write_text("{ not JSON")
    with pytest.raises(UserError, match=r"config\.json: .*JSON"):
        imported(damaged, s3)
    (damaged / "model.safetensors").rename(damaged / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickled weights are not supported"):
        imported(damaged, s3)
    with pytest.raises(UserError, match="no such folder; for a hub, add the commit"):
        imported(tmp_path / "nowhere", s3)
    assert not list(Storage().list(s3 + "/"))


def test_a_model_whose_tensors_are_others_is_not_uploaded(s3: str, damaged: Path) -> None:
    config = json.loads((damaged / "config.json").read_text())
    (damaged / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(UserError, match=r"lacks model\.layers\.2"):
        imported(damaged, s3)
    assert not list(Storage().list(s3 + "/"))

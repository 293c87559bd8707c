"""Training through S3 with a tiny model."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fovea.errors import UserError
from fovea.records import AdapterRecord
from fovea.storage import Storage
from tests.components.train_lora.inputs import Inputs, weights
from tests.tiny_model import write_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def untracked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def inputs(s3: str, tmp_path: Path, model: Path, untracked: None) -> Inputs:
    return Inputs(s3, tmp_path, model, {"train": 12, "validation": 4})


def test_training_teaches_and_its_adapter_is_reused(inputs: Inputs) -> None:
    # Evaluated at the end alone.
    once = {"eval_steps": 18}
    record = inputs.train(**once)
    assert AdapterRecord.from_json((inputs.folder / "adapter.json").read_text()) == record
    assert record.steps == 18
    assert record.epochs == 6.0
    assert record.validation_loss is not None
    untrained = inputs.train("run-2", learning_rate=0.0, **once)
    assert untrained.digest != record.digest
    assert untrained.validation_loss is not None
    assert record.validation_loss < 0.7 * untrained.validation_loss

    # A learning rate of 0: the update is B @ A, and B stays zero.
    matrices = weights(untrained)
    assert all(not tensor.any() for name, tensor in matrices.items() if "lora_B" in name)
    assert any(tensor.any() for name, tensor in matrices.items() if "lora_A" in name)

    # The adapter holds LoRA matrices of the decoder's projections and nothing else.
    trained = weights(record)
    assert {name.rsplit(".", 2)[1] for name in trained} == {"lora_A", "lora_B"}
    assert len(trained) == 2 * 2 * 4
    assert not any("vision" in name for name in trained)
    assert all(tensor.any() for tensor in trained.values())
    assert {entry.path for entry in record.files} == {"adapter_config.json", "adapter_model.safetensors"}

    again = inputs.train("run-3", **once)
    assert again == record
    assert inputs.report("train_lora", "run-3")["reused"] is True
    assert record.base.digest == inputs.base.digest
    assert record.dataset_digest == inputs.dataset.digest


def test_the_same_seed_gives_the_same_bytes_wherever_it_runs(
    inputs: Inputs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    one = inputs.train(num_train_epochs=1.0)
    # Nothing is left behind, and the log shows what is trained on.
    assert not list(temporary.glob("fovea-*"))
    log = capfd.readouterr().out
    assert "trained on 'Product: Blue Boot, Category: SHOES, Full Price: 100.0<|end|>'" in log
    assert "What is shown in this image?" in log
    monkeypatch.setenv("FOVEA_CACHE", str(tmp_path / "another-cache"))
    other = inputs.train("run-2", root=f"{inputs.root}/elsewhere", num_train_epochs=1.0)
    assert other.uri != one.uri
    assert other.files == one.files
    config = json.loads((Storage().download(other) / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == inputs.base.digest
    assert config["target_modules"] == sorted(config["target_modules"])


def test_a_missing_split_is_one_clear_error(s3: str, tmp_path: Path, model: Path, untracked: None) -> None:
    inputs = Inputs(s3, tmp_path, model, {"train": 4})
    with pytest.raises(UserError, match="has no validation split"):
        inputs.train()
    assert inputs.report("failure")["kind"] == "user"


@pytest.mark.parametrize("epochs", [0.3, 3.5], ids=["before the first log", "at a log"])
def test_a_loss_that_is_not_finite_ends_the_training(
    s3: str, tmp_path: Path, model: Path, untracked: None, epochs: float
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in model.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    state = load_file(model / "model.safetensors")
    state["model.norm.weight"] = torch.full_like(state["model.norm.weight"], torch.nan)
    save_file(state, broken / "model.safetensors", {"format": "pt"})
    inputs = Inputs(s3, tmp_path, broken, {"train": 12, "validation": 1})
    with pytest.raises(UserError, match="loss is nan at step"):
        inputs.train(num_train_epochs=epochs)
    assert not list(Storage().list(f"{s3}/index/"))


def test_wrong_parameters_are_named_before_anything_is_read(inputs: Inputs) -> None:
    (inputs.folder / "dataset.json").unlink()
    with pytest.raises(UserError, match=r"lora_r = 0: .* greater than or equal to 1; .*batch_sise = 4: "):
        inputs.train(lora_r=0, batch_sise=4)
    assert "wrong parameters" in inputs.report("failure")["error"]
    with pytest.raises(
        UserError, match="train_batch_size 4 must be a multiple of per_device_train_batch_size 3"
    ):
        inputs.train(per_device_train_batch_size=3)


def test_help_does_not_wait_for_torch() -> None:
    found = subprocess.run(
        [sys.executable, "-c", "import sys, components.__main__; print('torch' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == "False"

"""The synthetic checkpoint, in a small size."""

import shutil

import pytest
import torch
from typer import Typer
from typer.testing import CliRunner

import benchmarks.synthetic_checkpoint as synthetic_checkpoint
from benchmarks.synthetic import configuration, random_model, training_batch
from benchmarks.synthetic_checkpoint import main, write_synthetic_checkpoint
from fovea.errors import UserError
from fovea.phi3v import Phi3VForCausalLM


def test_loads_whole_from_several_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic_checkpoint, "SHARD_BYTES", 5_000_000)
    total = write_synthetic_checkpoint(tmp_path / "made", "tiny")
    shards = list((tmp_path / "made").glob("*.safetensors"))
    assert len(shards) > 2
    model, info = Phi3VForCausalLM.from_pretrained(
        tmp_path / "made", dtype=torch.bfloat16, output_loading_info=True
    )
    assert not any(info.values())
    assert total == sum(2 * weight.numel() for weight in model.state_dict().values())
    expected = random_model(configuration("tiny"), torch.bfloat16, "cpu").state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in model.state_dict().items())
    batch = training_batch(
        model.config, num_crops=4, shape="1:1", pictures=1, device="cpu", dtype=torch.bfloat16
    )
    with torch.no_grad():
        assert model(**batch).loss.isfinite()


def test_a_full_disk_is_refused_early(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(UserError, match="bytes are needed and 1 are free"):
        write_synthetic_checkpoint(tmp_path / "made")
    assert not list((tmp_path / "made").iterdir())


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "mine").touch()
    app = Typer()
    app.command()(main)
    made = CliRunner().invoke(app, [str(tmp_path)])
    assert made.exit_code == 1
    assert "is not empty; name a new folder" in made.output

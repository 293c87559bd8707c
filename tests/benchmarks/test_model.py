"""The command's tables, from measurements of a tiny model on the CPU."""

import json
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from benchmarks import workload
from benchmarks.flops import crop_flops, peak_flops, training_step_flops
from benchmarks.model import app
from benchmarks.synthetic import ANSWER_TOKENS, configuration
from benchmarks.workload import Setting, Work, run, with_lora

TINY = ["--size", "tiny", "--repetitions", "1"]


def rows_of(command, tmp_path, *options):
    file = tmp_path / "numbers.json"
    made = CliRunner().invoke(app, [command, *TINY, *options, "--json", str(file)], catch_exceptions=False)
    assert made.exit_code == 0, made.output
    return made.output, json.loads(file.read_text())


@pytest.mark.prove
def test_comparison(tmp_path):
    shown, numbers = rows_of("compare", tmp_path, "--crops", "16", "--work", "forward+backward")
    rows = numbers["rows"]
    assert [(row["work"], row["shape"]) for row in rows] == [
        ("forward+backward", "1:1"),
        ("forward+backward", "2:3"),
    ]
    # Of a square, all 16 crops are used; a picture of 2:3 leaves room.
    assert [row["crops"] for row in rows] == [17, 13]
    for row in rows:
        assert row["our_seconds"] > 0
        assert row["twin_seconds"] > 0
        assert 0 < row["our_bytes"] < row["twin_bytes"]
    assert "tiny model" in shown
    assert "twin's GiB" in shown


@pytest.mark.prove
def test_throughput(tmp_path):
    shown, numbers = rows_of("throughput", tmp_path, "--crops", "4", "--pictures", "2")
    on, off = numbers["rows"]
    assert (on["gradient_checkpointing"], off["gradient_checkpointing"]) == (True, False)
    for row in (on, off):
        assert row["pictures_per_second"] == pytest.approx(2 / row["seconds"])
        assert row["tokens_per_second"] == pytest.approx(row["tokens"] / row["seconds"])
        assert row["utilisation"] is None
        assert row["added_bytes"] > 0
    assert "an unknown peak" in shown


def test_too_little_memory_is_a_cell(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.model.added_on_cpu", lambda *args, **kwargs: None)
    shown, numbers = rows_of("throughput", tmp_path, "--crops", "1")
    assert numbers["rows"][0]["seconds"] is None
    assert "out of" in shown


@pytest.mark.prove
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_says_so_in_one_line():
    made = subprocess.run(
        [sys.executable, "-m", "benchmarks.model", "throughput", "--device", "cuda"],
        capture_output=True,
        text=True,
    )
    assert made.returncode == 1
    assert made.stderr == ("benchmark: there is no CUDA device: use a machine with a GPU, or --device cpu\n")


def test_flops_agree_with_what_is_run():
    """PyTorch counts all of what is run: causal attention whole, and the first layer's input gradient."""
    setting = Setting("cpu", "tiny", "float32", pictures=2)
    config, batch = configuration("tiny"), setting.batch(4, "1:1")
    samples, length = batch["input_ids"].shape
    model = with_lora(setting.model(), checkpointing=False)
    for layer in model.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    with FlopCounterMode(display=False) as counter:
        run(model, batch, Work.TRAINING)
    expected = training_step_flops(
        config,
        samples=samples,
        length=length,
        supervised=samples * ANSWER_TOKENS,
        crops=len(batch["pixel_values"]),
        rank=workload.TRAINING.lora_r,
    )
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.05)


def test_flops_of_the_published_size():
    config = configuration("published")
    # 303 million parameters of the tower see 577 places, the projector's 22 million 144.
    assert crop_flops(config) == pytest.approx(0.39e12, rel=0.05)
    step = training_step_flops(config, samples=1, length=2573, supervised=32, crops=17, rank=16)
    # 3.6 billion frozen parameters, there and back.
    assert step == pytest.approx(4 * 3.62e9 * 2573 + 17 * 0.39e12, rel=0.1)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA GeForce RTX 3060", None),
    ],
)
def test_peaks(name, peak):
    assert peak_flops(name) == peak

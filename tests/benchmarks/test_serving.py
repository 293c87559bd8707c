"""The benchmark of the server runs on both servers, and says what it measured."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks.serving import write_model
from fovea.inference import Predictor
from fovea.task import product_task
from tests.tiny_model import write_tiny_model

REPOSITORY = Path(__file__).resolve().parents[2]


def compare(*options: str, numbers: Path) -> dict[str, Any]:
    """Run the command for moments; return the numbers that it wrote."""
    command = [sys.executable, "-m", "benchmarks.serving", "compare", "--side", "64", "--json", str(numbers)]
    result = subprocess.run([*command, *options], cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "The bound: the library alone answers" in result.stdout
    found: dict[str, Any] = json.loads(numbers.read_text())
    assert found["bound"] > 0
    assert all(row["failed"] == 0 for row in found["rows"])
    return found


@pytest.mark.prove
def test_both_servers_are_measured(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model", answer="Product: bag", task=product_task())
    options = ["--seconds", "0.5", "--clients", "1", "--clients", "8"]
    found = compare(str(model), *options, numbers=tmp_path / "numbers.json")
    assert [row["server"] for row in found["rows"]] == ["plain", "ours"] * 5


@pytest.mark.prove
def test_a_model_of_a_size_is_made(tmp_path: Path) -> None:
    """As `make benchmark-gpu` does it with the published size and a GPU."""
    options = ["--size", "tiny", "--dtype", "bfloat16", "--seconds", "0.5", "--clients", "2"]
    found = compare(*options, numbers=tmp_path / "numbers.json")
    assert found["about"].startswith("tiny model with random weights, num_crops 4; ")
    assert [row["server"] for row in found["rows"]] == ["plain", "ours"] * 4


def test_a_made_model_answers(tmp_path: Path) -> None:
    write_model(tmp_path / "model", "tiny")
    predictor = Predictor.load(tmp_path / "model")
    pictures = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    answers = predictor.answer(pictures, max_new_tokens=8)
    assert [answer.completion_tokens for answer in answers] == [8, 8]

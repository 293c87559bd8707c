"""The benchmark of the server runs on both servers, and says what it measured."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fovea.task import product_task
from tests.tiny_model import write_tiny_model

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.prove
def test_both_servers_are_measured(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model", answer="Product: bag", task=product_task())
    command = [sys.executable, "-m", "benchmarks.serving", "compare", str(model), "--seconds", "0.5"]
    options = ["--clients", "1", "--clients", "8", "--side", "64", "--json", str(tmp_path / "numbers.json")]
    result = subprocess.run([*command, *options], cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "The bound: the library alone answers" in result.stdout
    found = json.loads((tmp_path / "numbers.json").read_text())
    assert found["bound"] > 0
    assert [row["server"] for row in found["rows"]] == ["plain", "ours"] * 5
    assert all(row["failed"] == 0 for row in found["rows"])

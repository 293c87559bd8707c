"""Answers in batches are those of the model's own `generate`, row by row: the benchmark compares them."""

from pathlib import Path

import pytest

from benchmarks.evaluate import measure, pictures
from fovea.inference import Predictor
from tests.tiny_model import write_tiny_model


def test_in_float32_batches_say_what_generate_says_row_by_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor.load(write_tiny_model(tmp_path / "noise"))
    rates = measure(predictor, pictures(5, 96), batches=[4], max_new_tokens=8, repetitions=1)
    assert [rate.way for rate in rates] == ["model.generate, row by row", "in batches of 4"]
    assert rates[0].ratio == 1.0
    assert all(rate.pictures_per_second == pytest.approx(5 / rate.seconds) for rate in rates)
    monkeypatch.setattr("benchmarks.evaluate.row_by_row", lambda *_: ["something else"])
    with pytest.raises(ValueError, match="must equal those row by row"):
        measure(predictor, pictures(1, 56), batches=[1], max_new_tokens=2, repetitions=1)

"""The commands' tables, from a few pictures."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from benchmarks import prepare_data
from benchmarks.photographs import SIZES, write_photographs


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_data, "_DIFFERENT", 4)
    for name in (
        "AWS_ENDPOINT_URL_S3",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_DEFAULT_REGION",
        "AWS_EC2_METADATA_DISABLED",
    ):
        # The commands set them for good; here they are put back.
        monkeypatch.setenv(name, "none")


def rows_of(folder: Path, *arguments: str) -> tuple[str, list[dict[str, Any]]]:
    path = folder / "numbers.json"
    shown = CliRunner().invoke(prepare_data.app, [*arguments, "--json", str(path)], catch_exceptions=False)
    assert shown.exit_code == 0
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"]
    return shown.output, rows


@pytest.mark.prove
def test_speed(tmp_path: Path) -> None:
    shown, (row,) = rows_of(tmp_path, "speed", "--pictures", "16", "--latency", "20", "--no-img2dataset")
    assert row["latency_ms"] == 20
    assert row["img2dataset"] is None
    for name in ("bound", "unkept", "first", "again", "sequential"):
        assert min(row[name]["pictures_per_second"], row[name]["own_ms"]) > 0
    for figure in ("pictures_per_second", "own_ms"):
        share = row["first"][figure] / row["bound"][figure]
        assert f"{share if figure == 'pictures_per_second' else 1 / share:.0%}" in shown


@pytest.mark.prove
def test_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    shown, rows = rows_of(tmp_path, "reading", "--pictures", "100")
    assert [row["what"] for row in rows] == ["as JPEG", "decoded"]
    assert all(row["pictures_per_second"] > 0 for row in rows)
    assert "decoded" in shown


def test_photographs_are_the_same_every_time_and_as_large_as_a_shops(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_photographs(tmp_path / name, 4)
    ones, twos = ([path.read_bytes() for path in sorted((tmp_path / n).iterdir())] for n in ("one", "two"))
    assert ones == twos
    assert [Image.open(io.BytesIO(data)).size for data in ones] == list(SIZES)
    assert 50_000 < len(ones[0]) < len(ones[3]) < 1_000_000

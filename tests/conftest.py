"""Fixtures that tests of every layer share."""

import os
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from pipelines.embedded_s3 import serve_s3

# Before torch is imported, here and in what is started: workers of pytest that wait for each other's threads
# take twice the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A real S3 server for the session; the environment that leads to it."""
    with serve_s3(tmp_path_factory.mktemp("s3") / "buckets") as server:
        yield server.environment()


@pytest.fixture
def s3(s3_server: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A bucket of the test's own on a real S3 server that the environment leads to."""
    for name, value in s3_server.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FOVEA_CACHE", str(tmp_path / "cache"))
    bucket = f"test-{abs(hash(tmp_path)):x}"
    boto3.Session().client("s3").create_bucket(Bucket=bucket)
    return f"s3://{bucket}"

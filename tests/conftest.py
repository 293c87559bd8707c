"""Fixtures that tests of every layer share."""

import inspect
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from pipelines.local.s3 import serve_s3
from tests.own_bucket import own_bucket

pytest_plugins = ["tests.left_out"]

# Before torch is imported, here and in what is started: workers of pytest that wait for each other's threads
# take twice the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# kfp asks for the stack at each setting of a task. With lines of source, each frame costs a look at every
# module that is loaded: ten seconds for a compilation, where torch and transformers are.
inspect.stack.__defaults__ = (0,)

# The same examples everywhere, so that a change fails by its own doing; `make prove` draws new ones.
settings.register_profile("settled", derandomize=True, deadline=None)
settings.register_profile("drawn-anew", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "settled"))


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A real S3 server for the session; the environment that leads to it."""
    with serve_s3(tmp_path_factory.mktemp("s3") / "buckets") as server:
        yield server.environment()


@pytest.fixture
def s3(s3_server: dict[str, str], tmp_path: Path) -> Iterator[str]:
    """A bucket of the test's own on a real S3 server that the environment leads to."""
    with own_bucket(s3_server, tmp_path / "cache") as bucket:
        yield bucket

"""A bucket under a name of its own."""

import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from fovea.storage import s3_client


@contextmanager
def own_bucket(server: Mapping[str, str], cache: Path) -> Iterator[str]:
    """The URI of a new bucket on a server, with the environment that leads to it and a cache in `cache`.

    Its name is never fixed: pytest's workers take over each other's tests, so that one worker may set up a
    module's fixtures more than once, on the same server.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.items():
            patch.setenv(name, value)
        patch.setenv("FOVEA_CACHE", str(cache))
        bucket = f"test-{uuid.uuid4()}"
        s3_client().create_bucket(Bucket=bucket)
        yield f"s3://{bucket}"

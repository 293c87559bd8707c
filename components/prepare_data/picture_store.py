"""Originals of pictures in S3, shared by all runs: what was fetched once is not fetched again."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from fovea.storage import Storage


class PictureStore:
    """What is known of the store, and what is added to it; made by `open_store`."""


@contextmanager
def open_store(
    storage: Storage,
    artifact_root: str,
    fetch_profile: str,
    folder: Path,
    recheck_after: timedelta = timedelta(hours=24),
) -> Iterator[PictureStore]:
    """Open the picture store of an artifact root for the time of the block; what is new is there after it.

    Each fetch profile has a store of its own, so that none leads to what only another may reach.

    Args:
        storage: S3.
        artifact_root: ``s3://bucket/prefix``; the store lies under ``pictures/``.
        fetch_profile: the profile's name.
        folder: local and temporary, for the index.
        recheck_after: what was fetched or checked less long ago is taken as it is.
    """
    yield PictureStore()

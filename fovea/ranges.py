"""Downloads in ranges, many at once, each of which goes on where its connection was cut."""

import os
import random
import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from urllib3.exceptions import HTTPError

RANGE_BYTES = 32 << 20
"""Long enough that a request's own cost does not tell, short enough to keep many connections busy."""

_CHUNK = 1 << 20
_CUTS = 8
"""So many times in a row a connection may be cut without a byte having come."""


class CutError(Exception):
    """A connection was cut again and again."""


def download_ranges(
    client: Any, pool: ThreadPoolExecutor, bucket: str, key: str, size: int, path: Path
) -> None:
    """Write an object of ``size`` bytes to ``path``.

    Whether it is the right one is for a digest to tell: one that is shorter, or is replaced meanwhile, makes
    a file all the same.

    Args:
        client: boto3's for S3.
        pool: runs the ranges; this must not be called in one of its threads.
        bucket: where it lies.
        key: its key.
        size: in bytes.
        path: a file that is made anew.

    Raises:
        CutError: the server or the network gives nothing.
        ClientError: S3 refuses.
    """
    if size > RANGE_BYTES:
        # rclone digests a file at its first request, and at each of several that come at once.
        with suppress(BotoCoreError, ClientError, HTTPError):  # the ranges say what is wrong
            client.head_object(Bucket=bucket, Key=key)
    with path.open("wb") as file:
        file.truncate(size)
        tasks = [
            pool.submit(_fetch, client, bucket, key, file.fileno(), start, min(start + RANGE_BYTES, size))
            for start in range(0, size, RANGE_BYTES)
        ]
        # The file stays open until no thread writes to it any more.
        wait(tasks)
        for task in tasks:
            task.result()


def _fetch(client: Any, bucket: str, key: str, file: int, start: int, end: int) -> None:
    cuts = 0
    while start < end:
        came = start
        try:
            answer = client.get_object(Bucket=bucket, Key=key, Range=f"bytes={start}-{end - 1}")
            for chunk in answer["Body"].iter_chunks(_CHUNK):
                os.pwrite(file, chunk[: end - start], start)
                start = min(start + len(chunk), end)
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") in {"InvalidRange", "416"}:
                return  # The object is shorter than it should be.
            raise
        except (BotoCoreError, HTTPError) as error:
            cuts = 1 if start > came else cuts + 1
            if cuts > _CUTS:
                raise CutError(f"the connection is cut again and again ({error})") from error
            _pause(cuts)
        else:
            if start == came:
                return  # The object is shorter than it should be.


def _pause(cuts: int) -> None:
    # Apart from one another, so that many ranges do not come back at once.
    time.sleep(random.uniform(0, min(5.0, 0.05 * 2**cuts)))  # noqa: S311 - no secret hangs on it

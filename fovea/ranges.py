"""Parallel downloads in ranges, which resume after a lost connection."""

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
"""Long enough to make a request's overhead negligible, short enough to keep many connections busy."""

_CHUNK = 1 << 20
_CUTS = 8
"""The number of consecutive lost connections without a received byte after which a range fails."""


class CutError(Exception):
    """Connections were lost repeatedly."""


def download_ranges(
    client: Any, pool: ThreadPoolExecutor, bucket: str, key: str, size: int, path: Path
) -> None:
    """Write an object of ``size`` bytes to ``path``.

    The caller must check the digest: an object that is shorter, or is replaced during the download, also
    produces a file.

    Args:
        client: boto3's client for S3.
        pool: runs the ranges; do not call this function in one of its threads.
        bucket: the bucket.
        key: the key.
        size: in bytes.
        path: a file to create.

    Raises:
        CutError: the server or the network does not respond.
        ClientError: S3 refuses.
    """
    if size > RANGE_BYTES:
        # rclone hashes a file at its first request, and at each of several concurrent first requests.
        with suppress(BotoCoreError, ClientError, HTTPError):  # the ranges report errors
            client.head_object(Bucket=bucket, Key=key)
    with path.open("wb") as file:
        file.truncate(size)
        tasks = [
            pool.submit(_fetch, client, bucket, key, file.fileno(), start, min(start + RANGE_BYTES, size))
            for start in range(0, size, RANGE_BYTES)
        ]
        # The file must stay open until all threads have written to it.
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
    # Random, so that many ranges do not reconnect at the same time.
    time.sleep(random.uniform(0, min(5.0, 0.05 * 2**cuts)))  # noqa: S311 - not used for security

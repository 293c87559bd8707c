"""All pictures of a table: fetched and decoded several at once, kept in one file until they are written."""

import asyncio
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO

from components.prepare_data.source import PictureReader
from fovea.errors import UserError
from fovea.fetch import FetchError
from fovea.pictures import PictureError, PictureLimits, decode_picture, encode_jpeg, normalise

# When the first so many pictures all fail, something else is wrong than the pictures.
_HOPELESS_AFTER = 200


@dataclass(frozen=True)
class Picture:
    """A usable picture: ``digest`` is that of the original's bytes; the JPEG lies in the spool."""

    digest: str
    offset: int
    length: int


class Spool:
    """JPEGs one after the other in a file, so that memory does not grow with their number."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._end = 0
        self._by_digest: dict[str, Picture] = {}

    def add(self, digest: str, jpeg: bytes) -> Picture:
        """Keep a picture; one that is there already is not written again."""
        if digest not in self._by_digest:
            self._file.seek(self._end)
            self._file.write(jpeg)
            self._by_digest[digest] = Picture(digest, self._end, len(jpeg))
            self._end += len(jpeg)
        return self._by_digest[digest]

    def read(self, picture: Picture) -> bytes:
        """Return a picture's JPEG."""
        self._file.seek(picture.offset)
        return self._file.read(picture.length)


async def collect_pictures(
    addresses: Iterable[str],
    reader: PictureReader,
    spool: Spool,
    *,
    limits: PictureLimits,
    longest_side: int,
    concurrency: int,
    progress: Callable[[int, int], None],
) -> dict[str, Picture | str]:
    """Fetch, decode, scale and keep the pictures; each address once.

    Returns:
        For each address its picture, or the reason why there is none (``picture_…``).

    Raises:
        UserError: none of the first pictures could be used, or S3 refuses.
    """
    todo = list(dict.fromkeys(addresses))
    found: dict[str, Picture | str] = {}
    waiting = iter(todo)

    async def work(threads: ThreadPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        for address in waiting:
            try:
                data = await reader.read(address)
                digest, jpeg = await loop.run_in_executor(threads, _prepare, data, limits, longest_side)
                found[address] = spool.add(digest, jpeg)
            except (FetchError, PictureError) as error:
                found[address] = f"picture_{error.reason}"
                _check_hope(found)
            progress(len(found), len(todo))

    # Pillow lets go of the interpreter while it decodes, so threads use all cores.
    with ThreadPoolExecutor(os.cpu_count(), "decode") as threads:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(concurrency, len(todo))):
                    group.create_task(work(threads))
        except BaseExceptionGroup as errors:
            # Whoever called waits for a UserError, or for what a signal raises, not for a group of them.
            raise errors.exceptions[0] from None
    return found


def _prepare(data: bytes, limits: PictureLimits, longest_side: int) -> tuple[str, bytes]:
    image = decode_picture(data, limits, longest_side)
    return hashlib.sha256(data).hexdigest(), encode_jpeg(normalise(image, longest_side))


def _check_hope(found: dict[str, Picture | str]) -> None:
    reasons = Counter(item for item in found.values() if isinstance(item, str))
    if len(found) != _HOPELESS_AFTER or reasons.total() < len(found):
        return
    told = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
    raise UserError(
        f"none of the first {_HOPELESS_AFTER} pictures can be used ({told}); check the addresses in the "
        "image column, the fetch profile and the network"
    )

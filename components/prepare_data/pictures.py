"""All pictures of a table: fetched and decoded many at once, and handed over one by one.

`stream_pictures` is the new way; `collect_pictures`, `Picture` and `Spool` stay until nothing uses them.
"""

import asyncio
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from typing import BinaryIO, Protocol

from PIL import Image

from components.prepare_data.picture_store import PictureStore
from components.prepare_data.source import PictureReader
from fovea.errors import UserError
from fovea.fetch import Fetcher, FetchError, FetchLimits
from fovea.pictures import PictureError, PictureLimits, decode_picture, encode_jpeg, normalise
from fovea.platform import FetchProfile

# When the first so many pictures all fail, something else is wrong than the pictures.
_HOPELESS_AFTER = 200


@dataclass(frozen=True)
class Wanted:
    """A picture to prepare: ``content`` where the table itself holds its bytes."""

    address: str
    content: bytes | None = None


@dataclass(frozen=True)
class Prepared:
    """A usable picture."""

    address: str
    digest: str
    """SHA-256 of the original's bytes, 64 hexadecimal digits."""
    jpeg: bytes
    width: int
    height: int
    """Of the JPEG, as are `width`; upright."""
    original_width: int
    original_height: int
    """Before scaling; upright, too."""
    fingerprint: bytes


@dataclass(frozen=True)
class Unusable:
    """Why there is no picture: ``reason`` is one of `FetchReason` or `PictureReason`, ``detail`` one line."""

    address: str
    reason: str
    detail: str


class Places(Protocol):
    """Where the addresses of a table lead."""

    def url(self, address: str) -> str | None:
        """Return the http(s) URL that an address stands for; None where `read` is to be used.

        Raises:
            FetchError: the address leads nowhere that this table may lead to.
        """

    def read(self, address: str) -> bytes:
        """Return what lies on disk or in S3; called in several threads at once.

        Raises:
            FetchError: there is none to be had at this address.
            UserError: S3 itself refuses or cannot be reached.
        """


def stream_pictures(
    wanted: Iterable[Wanted],
    places: Places,
    *,
    profile: FetchProfile,
    store: PictureStore | None,
    fingerprint: Callable[[Image.Image], bytes],
    longest_side: int,
    limits: PictureLimits | None = None,
    concurrency: int = 64,
) -> Generator[Prepared | Unusable]:
    """Fetch, decode, scale and encode pictures, and yield each as soon as it is ready, in no given order.

    ``wanted`` is read in the caller's own thread, a little ahead of what is yielded, so that neither it nor
    the results pile up; it should name each address once. Close the generator to stop early.

    Args:
        wanted: what to prepare.
        places: what the addresses stand for.
        profile: which hosts may be reached, and how.
        store: keeps what was fetched over HTTP; None to keep nothing.
        fingerprint: called with each picture, upright RGB and scaled, in several threads at once.
        longest_side: larger pictures are scaled down to this many pixels.
        limits: of the originals.
        concurrency: how many are fetched at the same time.

    Raises:
        UserError: none of the first pictures could be used, or S3 refuses.
    """
    # A plain version with the final interface.
    bounds = limits or PictureLimits()

    def one(item: Wanted) -> Prepared | Unusable:
        try:
            data = item.content
            if data is None:
                url = places.url(item.address)
                data = places.read(item.address) if url is None else asyncio.run(fetch(url))
            image = decode_picture(data, bounds, longest_side)
            original = image.size
            image = normalise(image, longest_side)
            digest = hashlib.sha256(data).hexdigest()
            return Prepared(
                item.address, digest, encode_jpeg(image), *image.size, *original, fingerprint(image)
            )
        except (FetchError, PictureError) as error:
            return Unusable(item.address, error.reason, str(error))

    async def fetch(url: str) -> bytes:
        async with Fetcher(profile, FetchLimits(max_bytes=bounds.max_bytes)) as fetcher:
            return (await fetcher.fetch(url)).content

    waiting = iter(wanted)
    running: set[Future[Prepared | Unusable]] = set()
    with ThreadPoolExecutor(concurrency) as threads:
        while True:
            running |= {threads.submit(one, item) for item in islice(waiting, concurrency - len(running))}
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)


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

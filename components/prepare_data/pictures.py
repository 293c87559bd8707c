"""Pictures of a table: fetched and decoded concurrently, and yielded one by one."""

import asyncio
import hashlib
import os
import queue
import sys
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import Protocol, Self

import pyarrow
from PIL import Image

from components.prepare_data.picture_store import PictureStore, Stored, group_reads
from fovea.errors import UserError
from fovea.fetch.client import Fetched, Fetcher, FetchError, FetchLimits
from fovea.fetch.profiles import FetchProfile
from fovea.images import PictureError, PictureLimits, decode_scaled, encode_jpeg
from fovea.memory import return_freed_memory, reuse_freed_memory

# If this many pictures fail first, the cause is not the pictures.
_HOPELESS_AFTER = 200

# The pictures that are looked up in the store in one query.
_BATCH = 128
_READERS = 8
_TICK_SECONDS = 1.0
_USABLE = ""
_FINGERPRINT_SIDE = 128

# Temporary failures, after which the picture may still exist.
_PASSING = {"connection_failed", "rate_limited", "server_error", "timeout"}


@dataclass(frozen=True)
class Wanted:
    """A picture to prepare. ``content`` is its bytes if the table itself contains them."""

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
    """Width and height of the JPEG, upright."""
    original_width: int
    original_height: int
    """Width and height before scaling, upright."""
    fingerprint: bytes


@dataclass(frozen=True)
class Unusable:
    """An unusable picture: ``reason`` is a `FetchReason` or `PictureReason`, ``detail`` is one line."""

    address: str
    reason: str
    detail: str


class Places(Protocol):
    """Resolves the addresses of a table."""

    def url(self, address: str) -> str | None:
        """Return the http(s) URL of an address; None if the picture is to be read with `read`.

        Raises:
            FetchError: The table may not refer to this address.
        """

    def read(self, address: str) -> bytes:
        """Read a picture from disk or S3. Called concurrently from several threads.

        Raises:
            FetchError: The picture does not exist or cannot be read.
            UserError: S3 refuses access or cannot be reached.
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

    ``wanted`` is read in the caller's thread, a little ahead of the results, so that memory stays bounded. It
    should contain each address once. Close the generator to stop early.

    Args:
        wanted: The pictures to prepare.
        places: Resolves their addresses.
        profile: The fetch profile: which hosts are allowed, and how they are reached.
        store: The store for originals fetched over HTTP; None to store nothing.
        fingerprint: Called with each picture, upright RGB and a few hundred pixels wide, in several threads.
        longest_side: The longest side of a prepared picture in pixels.
        limits: The limits of the originals.
        concurrency: The number of pictures that are fetched at the same time.

    Raises:
        UserError: None of the first pictures can be used, or S3 refuses access.
    """
    reuse_freed_memory()
    bounds = limits or PictureLimits()

    def prepare(address: str, original: bytes) -> Prepared:
        scaled = decode_scaled(original, bounds, longest_side)
        return Prepared(
            address,
            hashlib.sha256(original).hexdigest(),
            encode_jpeg(scaled.image),
            *scaled.image.size,
            *scaled.original_size,
            fingerprint(_reduced(scaled.image)),
        )

    fetcher = Fetcher(profile, FetchLimits(max_bytes=bounds.max_bytes), max_connections=concurrency)
    ahead = concurrency + 2 * _cores() + _BATCH
    waiting = iter(wanted)
    running = 0
    outcomes: Counter[str] = Counter()
    with _Crew(places, fetcher, store, prepare) as crew:
        while True:
            while running <= ahead - _BATCH and (batch := list(islice(waiting, _BATCH))):
                crew.submit(_plan(batch, places, store))
                running += len(batch)
            if not running:
                return
            done = crew.next_done()
            running -= 1
            if store is not None:
                _keep(done, store)
            outcomes[done.result.reason if isinstance(done.result, Unusable) else _USABLE] += 1
            _check_outcomes(outcomes)
            yield done.result


@dataclass
class _Job:
    """A picture to prepare: where it comes from, and its original if it is already known."""

    wanted: Wanted
    url: str | None = None
    stored: Stored | None = None
    fresh: bool = False
    original: bytes | None = None
    problem: FetchError | None = None


@dataclass(frozen=True)
class _Done:
    """A job's result, and the response to its HTTP request if there was one."""

    job: _Job
    result: Prepared | Unusable
    fetched: Fetched | None


def _plan(batch: Iterable[Wanted], places: Places, store: PictureStore | None) -> list[_Job]:
    """Determine where each picture comes from."""
    jobs = [_Job(item, original=item.content) for item in batch]
    for job in jobs:
        if job.original is None:
            try:
                job.url = places.url(job.wanted.address)
            except FetchError as error:
                job.problem = error
    if store is not None:
        known = store.lookup([job.url for job in jobs if job.url])
        for job in jobs:
            job.stored = known.get(job.url or "")
            job.fresh = job.stored is not None and store.is_fresh(job.stored)
    return jobs


def _keep(done: _Done, store: PictureStore) -> None:
    """Store what was fetched over HTTP. Unusable pictures are not stored, so the next run fetches them."""
    job, fetched = done.job, done.fetched
    if job.stored and job.original is None:
        store.forget(job.stored.pack)
    if fetched is None or job.url is None or isinstance(done.result, Unusable):
        return
    if fetched.unchanged and job.stored:
        store.confirm(job.stored)
    else:
        store.add(job.url, fetched.version, done.result.digest, fetched.content)


class _Crew:
    """Workers: an event loop in a thread that fetches, and as many threads that decode as there are cores.

    Pillow releases the GIL while it decodes, scales and encodes. Exceptions of `places`, of S3 and of this
    code are raised by `next_done`.
    """

    def __init__(
        self,
        places: Places,
        fetcher: Fetcher,
        store: PictureStore | None,
        prepare: Callable[[str, bytes], Prepared],
    ) -> None:
        self._places = places
        self._fetcher = fetcher
        self._store = store
        self._prepare = prepare
        self._readers = ThreadPoolExecutor(_READERS, "read")
        self._decoders = ThreadPoolExecutor(_cores(), "decode")
        self._results: queue.SimpleQueue[_Done | Exception] = queue.SimpleQueue()
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._thread = threading.Thread(target=self._work, name="fetch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()
        self._loop.close()
        self._readers.shutdown(cancel_futures=True)
        self._decoders.shutdown(cancel_futures=True)

    def submit(self, jobs: list[_Job]) -> None:
        """Start these jobs; `next_done` returns their results."""
        asyncio.run_coroutine_threadsafe(self._begin(jobs), self._loop)

    def next_done(self) -> _Done:
        """Wait for the next result. Meanwhile, the store uploads packs that are due."""
        while True:
            try:
                done = self._results.get(timeout=_TICK_SECONDS)
            except queue.Empty:
                if self._store is not None:
                    self._store.flush_if_due()
                continue
            if isinstance(done, Exception):
                raise done
            return done

    def _work(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._until_stopped())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())

    async def _until_stopped(self) -> None:
        async with self._fetcher:
            await self._stopping.wait()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

    async def _begin(self, jobs: list[_Job]) -> None:
        stored = [(job, job.stored) for job in jobs if job.stored]
        groups = group_reads([one for _, one in stored])
        await asyncio.gather(
            *(self._do(job) for job in jobs if not job.stored),
            *(self._do_stored([stored[place] for place in group]) for group in groups),
        )

    async def _do_stored(self, together: list[tuple[_Job, Stored]]) -> None:
        """Read originals from the store in one request, and continue with each."""
        jobs, near = [job for job, _ in together], [one for _, one in together]
        try:
            assert self._store is not None  # noqa: S101 - only a store returns Stored
            originals = await self._loop.run_in_executor(self._readers, self._store.read, near)
        except Exception as error:
            self._results.put(error)
            return
        for job, original in zip(jobs, originals, strict=True):
            job.original = original
        await asyncio.gather(*map(self._do, jobs))

    async def _do(self, job: _Job) -> None:
        address, fetched = job.wanted.address, None
        result: Prepared | Unusable
        try:
            original, fetched = await self._original(job)
            result = await self._loop.run_in_executor(self._decoders, self._prepare, address, original)
        except (FetchError, PictureError) as error:
            result = Unusable(address, error.reason, " ".join(str(error).split()))
        except Exception as error:
            self._results.put(error)
            return
        self._results.put(_Done(job, result, fetched))

    async def _original(self, job: _Job) -> tuple[bytes, Fetched | None]:
        """Return a picture's original, and the response to its HTTP request if there was one."""
        if job.problem is not None:
            raise job.problem
        if job.original is not None and (job.stored is None or job.fresh):
            return job.original, None
        if job.url is None:
            read = self._loop.run_in_executor(self._readers, self._places.read, job.wanted.address)
            return await read, None
        if job.stored is None or job.original is None:
            fetched = await self._fetcher.fetch(job.url)
            return fetched.content, fetched
        try:
            fetched = await self._fetcher.fetch(job.url, job.stored.version)
        except FetchError as error:
            if error.reason not in _PASSING:
                raise
            # The stored original stays valid while its server cannot be reached.
            return job.original, None
        return (job.original if fetched.unchanged else fetched.content), fetched


def _reduced(image: Image.Image) -> Image.Image:
    """Return a picture a few hundred pixels wide: every other pixel, averaged over small squares."""
    if min(image.size) < 4 * _FINGERPRINT_SIDE:
        return image.reduce(max(1, max(image.size) // _FINGERPRINT_SIDE))
    half = image.resize((image.width // 2, image.height // 2), Image.Resampling.NEAREST)
    return half.reduce(max(half.size) // _FINGERPRINT_SIDE)


def give_back_freed_memory() -> None:
    """Return freed memory that the C library and Arrow hold to the system, so that peaks do not add up."""
    pyarrow.default_memory_pool().release_unused()
    return_freed_memory()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _check_outcomes(outcomes: Counter[str]) -> None:
    if outcomes.total() == _HOPELESS_AFTER and not outcomes[_USABLE]:
        counts = ", ".join(f"{reason} {count}" for reason, count in outcomes.most_common() if count)
        raise UserError(
            f"none of the first {_HOPELESS_AFTER} pictures can be used ({counts}); check the addresses in "
            "the image column, the fetch profile and the network"
        )

"""All pictures of a table: fetched and decoded many at once, and handed over one by one."""

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

# When the first so many pictures all fail, something else is wrong than the pictures.
_HOPELESS_AFTER = 200

# What is looked up in the store, and read from it, together.
_BATCH = 128
_READERS = 8
_TICK_SECONDS = 1.0
_USABLE = ""
_FINGERPRINT_SIDE = 128

# Reasons that say nothing about whether a picture is still there.
_PASSING = {"connection_failed", "rate_limited", "server_error", "timeout"}


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
        fingerprint: called with each picture, upright RGB and some hundred pixels wide, in several threads.
        longest_side: larger pictures are scaled down to this many pixels.
        limits: of the originals.
        concurrency: how many are fetched at the same time.

    Raises:
        UserError: none of the first pictures could be used, or S3 refuses.
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
    """A picture on its way: where it comes from, and the original where there is one already."""

    wanted: Wanted
    url: str | None = None
    stored: Stored | None = None
    fresh: bool = False
    original: bytes | None = None
    problem: FetchError | None = None


@dataclass(frozen=True)
class _Done:
    """A job's result, and what came over HTTP for it."""

    job: _Job
    result: Prepared | Unusable
    fetched: Fetched | None


def _plan(batch: Iterable[Wanted], places: Places, store: PictureStore | None) -> list[_Job]:
    """Find out where each picture comes from."""
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
    """Tell the store what came over HTTP; what cannot be used is not kept, and fetched again next time."""
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
    """Fetches in an event loop in a thread of its own, and decodes in as many threads as there are cores.

    Pillow lets go of Python's global lock while it decodes, scales and encodes. What `places`, S3 or this
    code itself fails with comes out of `next_done`.
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
        """Begin with these; each comes out of `next_done`."""
        asyncio.run_coroutine_threadsafe(self._begin(jobs), self._loop)

    def next_done(self) -> _Done:
        """Wait for the next result; meanwhile the store may write what has waited long enough."""
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
        """Read some originals from the store in one go, and go on with each."""
        jobs, near = [job for job, _ in together], [one for _, one in together]
        try:
            assert self._store is not None  # noqa: S101 - for the types: something is stored
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
        """Return a picture's original, and what was fetched for it."""
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
            # A server that cannot be asked just now does not take back what it gave.
            return job.original, None
        return (job.original if fetched.unchanged else fetched.content), fetched


def _reduced(image: Image.Image) -> Image.Image:
    """Return a picture some hundred pixels wide: every other pixel, averaged over small squares."""
    if min(image.size) < 4 * _FINGERPRINT_SIDE:
        return image.reduce(max(1, max(image.size) // _FINGERPRINT_SIDE))
    half = image.resize((image.width // 2, image.height // 2), Image.Resampling.NEAREST)
    return half.reduce(max(half.size) // _FINGERPRINT_SIDE)


def give_back_freed_memory() -> None:
    """Give back to the system what the C library and Arrow keep, so that phases' peaks do not add up."""
    pyarrow.default_memory_pool().release_unused()
    return_freed_memory()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _check_outcomes(outcomes: Counter[str]) -> None:
    if outcomes.total() == _HOPELESS_AFTER and not outcomes[_USABLE]:
        told = ", ".join(f"{reason} {count}" for reason, count in outcomes.most_common() if count)
        raise UserError(
            f"none of the first {_HOPELESS_AFTER} pictures can be used ({told}); check the addresses in the "
            "image column, the fetch profile and the network"
        )

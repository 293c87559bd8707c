"""One thread that generates; requests that wait at the same time are answered together."""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

from fovea.inference import Answer, Sample
from serving.errors import RequestError

logger = logging.getLogger("serving")


class Generates(Protocol):
    """What is needed of a `fovea.inference.Predictor`."""

    def generate_batch(self, samples: Sequence[Sample], max_new_tokens: int = ...) -> list[Answer]:
        """Answer prepared requests in one batch."""


@dataclass(frozen=True)
class _Job:
    sample: Sample
    max_new_tokens: int
    future: Future[Answer] = field(default_factory=Future)


class Batcher:
    """Runs a model in a thread of its own, so that the event loop is never held up by it.

    Args:
        predictor: what answers a batch.
        max_batch_size: how many requests are answered together at most.
        max_waiting: how many may wait; more are refused with 429 at once.
    """

    def __init__(self, predictor: Generates, max_batch_size: int = 16, max_waiting: int = 256) -> None:
        self._predictor = predictor
        self._max_batch_size = max_batch_size
        self._max_waiting = max_waiting
        self._waiting: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="generate", daemon=True)
        self._thread.start()

    async def generate(self, samples: Sequence[Sample], max_new_tokens: int) -> list[Answer]:
        """Answer prepared requests; they may share a batch with those of other callers.

        Raises:
            RequestError: 429, more are waiting than may; 503, the server is stopping.
        """
        jobs = [_Job(sample, max_new_tokens) for sample in samples]
        with self._changed:
            if self._closed:
                raise _stopping()
            if len(self._waiting) + len(jobs) > self._max_waiting:
                raise RequestError("too many requests are waiting; ask again in a moment", status=429)
            self._waiting.extend(jobs)
            self._changed.notify()
        try:
            return list(await asyncio.gather(*(asyncio.wrap_future(job.future) for job in jobs)))
        finally:
            # A caller that went away frees its places in the queue.
            for job in jobs:
                job.future.cancel()

    def close(self) -> None:
        """Refuse what waits, and wait for the batch that is being answered."""
        with self._changed:
            self._closed = True
            for job in self._waiting:
                if job.future.set_running_or_notify_cancel():
                    job.future.set_exception(_stopping())
            self._waiting.clear()
            self._changed.notify()
        self._thread.join(timeout=30)

    def _run(self) -> None:
        while (batch := self._next_batch()) is not None:
            try:
                answers = self._predictor.generate_batch(
                    [job.sample for job in batch], batch[0].max_new_tokens
                )
            except Exception as error:
                logger.exception("a batch of %d failed", len(batch))
                for job in batch:
                    job.future.set_exception(error)
            else:
                for job, answer in zip(batch, answers, strict=True):
                    job.future.set_result(answer)

    def _next_batch(self) -> list[_Job] | None:
        """Wait for work; None once closed. A batch has one limit of tokens: that of the oldest job."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return None
                first = self._waiting[0]
                together = [job for job in self._waiting if job.max_new_tokens == first.max_new_tokens]
                chosen = together[: self._max_batch_size]
                taken = set(map(id, chosen))
                self._waiting = deque(job for job in self._waiting if id(job) not in taken)
                running = [job for job in chosen if job.future.set_running_or_notify_cancel()]
                if running:
                    return running


def _stopping() -> RequestError:
    return RequestError("the server is stopping; ask again in a moment", status=503)

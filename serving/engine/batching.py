"""Batches: one thread generates, and requests that wait at the same time are answered together."""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol

from fovea.inference import OnStep, Sample
from fovea.phi3v.modeling import END_OF_ANSWER_IDS
from fovea.task import Answer
from serving.errors import RequestError
from serving.middleware import metrics

logger = logging.getLogger("serving")

OnToken = Callable[[int], None]


class Generates(Protocol):
    """What is needed of a `fovea.inference.Predictor`."""

    def generate_batch(
        self, samples: Sequence[Sample], max_new_tokens: Sequence[int], on_step: OnStep
    ) -> list[Answer]:
        """Answer prepared requests in one batch."""


@dataclass(frozen=True)
class BatchLimits:
    """Bounds of the batches and of the queue.

    Args:
        max_batch_size: how many requests are answered together at most.
        max_waiting: how many more may wait; others are refused with 429 at once.
        fill_seconds: how long a batch that is not full waits for requests that are being prepared.
        hang_seconds: the time at work without a token after which the model counts as hung.
    """

    max_batch_size: int = 16
    max_waiting: int = 256
    fill_seconds: float = 0.05
    hang_seconds: float = 300.0


@dataclass(eq=False)
class _Job:
    """A prepared request until it is answered."""

    sample: Sample
    max_new_tokens: int
    admitted: float
    on_token: OnToken | None
    future: Future[Answer] = field(default_factory=Future)
    abandoned: bool = False
    """The client has closed the connection: the answer is not needed."""
    told: int = 0
    """How many tokens `on_token` was called with; a second attempt does not repeat them."""
    started: float = 0.0

    def fail(self, error: Exception) -> None:
        with suppress(InvalidStateError):
            self.future.set_exception(error)


class Batcher:
    """Runs a model in its own thread, so that it never blocks the event loop.

    Args:
        predictor: what answers a batch.
        limits: bounds of the batches and of the queue.
        name: the model's, in the metrics.
        probe: a request that can be answered. Where a batch fails it distinguishes a request that the model
            cannot answer from a model that can answer nothing any more.
    """

    def __init__(
        self,
        predictor: Generates,
        limits: BatchLimits | None = None,
        *,
        name: str = "",
        probe: Sample | None = None,
    ) -> None:
        self.limits = limits or BatchLimits()
        self._predictor = predictor
        self._name = name
        self._probe = probe
        self._waiting: deque[_Job] = deque()
        self._admitted = 0
        self._preparing = 0
        self._running = 0
        self._changed = threading.Condition()
        self._closed = False
        self._broken = False
        self._progress = time.monotonic()
        self._seconds_per_answer = 0.0
        self._thread = threading.Thread(target=self._run, name="generate", daemon=True)
        self._thread.start()

    @contextmanager
    def admit(self, count: int) -> Iterator[None]:
        """Reserve places for ``count`` requests, from before they are prepared until they are answered.

        Raises:
            RequestError: 429, there are fewer places; 503, the server is stopping or has failed.
        """
        with self._changed:
            self._check_room(count)
            self._admitted += count
            self._count()
        try:
            yield
        finally:
            with self._changed:
                self._admitted -= count
                self._count()

    def check_room(self) -> None:
        """Check that one request could be taken on now.

        Raises:
            RequestError: as `admit` does.
        """
        with self._changed:
            self._check_room(1)

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """Announce a request, so that a batch that is not full waits for it."""
        with self._changed:
            self._preparing += 1
        try:
            yield
        finally:
            with self._changed:
                self._preparing -= 1
                self._changed.notify_all()

    async def generate(
        self,
        sample: Sample,
        max_new_tokens: int,
        *,
        admitted: float | None = None,
        on_token: OnToken | None = None,
    ) -> Answer:
        """Answer a prepared request; it may share a batch with those of other clients.

        Args:
            sample: the request.
            max_new_tokens: the length of the answer at most.
            admitted: when the request came in (`time.monotonic`), for the metrics.
            on_token: is called with each token, in the generating thread.

        Raises:
            RequestError: 503, the server is stopping; 500, the model failed.
        """
        job = _Job(sample, max_new_tokens, admitted or time.monotonic(), on_token)
        with self._changed:
            self._refuse_if_over()
            self._waiting.append(job)
            self._changed.notify_all()
        try:
            return await asyncio.wrap_future(job.future)
        finally:
            # A client that has closed the connection frees its place in the batch.
            job.abandoned = True

    @property
    def alive(self) -> bool:
        """Whether the model answers, or will: False once it has failed for good, or hangs."""
        if self._broken or not (self._thread.is_alive() or self._closed):
            return False
        idle = not (self._running or self._waiting)
        return idle or time.monotonic() - self._progress < self.limits.hang_seconds

    def close(self) -> None:
        """Refuse the requests that wait, and finish the batch that is being answered."""
        with self._changed:
            self._closed = True
            self._fail_waiting(_stopping())
            self._changed.notify_all()
        self._thread.join(timeout=30)

    def _check_room(self, count: int) -> None:
        self._refuse_if_over()
        if self._admitted + count > self.limits.max_waiting + self.limits.max_batch_size:
            raise RequestError(
                "too many requests are waiting; ask again in a moment",
                status=429,
                retry_after=min(60.0, self._admitted * self._seconds_per_answer),
            )

    def _refuse_if_over(self) -> None:
        if self._closed:
            raise _stopping()
        if self._broken or not self._thread.is_alive():
            raise RequestError("the model has failed and is being restarted", status=503, retry_after=30)

    def _fail_waiting(self, error: Exception) -> None:
        for job in self._waiting:
            job.fail(error)
        self._waiting.clear()

    def _count(self) -> None:
        metrics.RUNNING.labels(self._name).set(self._running)
        metrics.WAITING.labels(self._name).set(max(0, self._admitted - self._running))

    def _run(self) -> None:
        batch: list[_Job] | None = []
        try:
            while not self._broken and (batch := self._next_batch()) is not None:
                self._work(batch)
        finally:
            # After close, or where the loop has died: no request may wait for ever.
            with self._changed:
                self._broken = self._broken or not self._closed
                error = RequestError("the model has failed", status=503, retry_after=30)
                for job in batch or []:
                    job.fail(error)
                self._fail_waiting(error)

    def _next_batch(self) -> list[_Job] | None:
        """Return the next batch, oldest requests first, once there is one; None once closed."""
        size = self.limits.max_batch_size
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                self._changed.wait_for(
                    lambda: len(self._waiting) >= size or not self._preparing or self._closed,
                    self.limits.fill_seconds,
                )
                if self._closed:
                    return None
                batch: list[_Job] = []
                while self._waiting and len(batch) < size:
                    job = self._waiting.popleft()
                    if not job.abandoned and job.future.set_running_or_notify_cancel():
                        batch.append(job)
                if batch:
                    self._progress = time.monotonic()
                    return batch

    def _work(self, batch: list[_Job]) -> None:
        started = time.monotonic()
        with self._changed:
            self._running = len(batch)
            self._count()
        metrics.BATCH_SIZE.labels(self._name).observe(len(batch))
        for job in batch:
            job.started = started
            metrics.QUEUE_TIME.labels(self._name).observe(started - job.admitted)
        try:
            self._answer(batch)
        finally:
            taken = (time.monotonic() - started) / len(batch)
            self._seconds_per_answer = 0.8 * self._seconds_per_answer + 0.2 * taken
            with self._changed:
                self._running = 0
                self._count()

    def _answer(self, batch: list[_Job]) -> None:
        try:
            answers = self._predictor.generate_batch(
                [job.sample for job in batch],
                [job.max_new_tokens for job in batch],
                _Steps(self, batch).step,
            )
        except Exception:
            logger.exception("a batch of %d failed", len(batch))
        else:
            for job, answer in zip(batch, answers, strict=True):
                self._finish(job, answer)
            return
        if len(batch) > 1:
            # Only the request that cannot be answered fails.
            for job in batch:
                self._answer([job])
            return
        batch[0].fail(RequestError("the model failed at this request", status=500))
        self._check()

    def _check(self) -> None:
        """Stop for good if the model cannot answer even the request that it answered at the start."""
        if self._probe is None or self._broken:
            return
        try:
            self._predictor.generate_batch([self._probe], [1], lambda tokens: [False])
        except Exception:
            logger.exception("the model answers nothing any more")
            self._broken = True

    def _finish(self, job: _Job, answer: Answer) -> None:
        # Counted first, so that a client that has its answer finds it in the metrics.
        if job.abandoned:
            metrics.SUCCESS.labels(self._name, "abort").inc()
        else:
            self._count_answer(job, answer)
        with suppress(InvalidStateError):
            job.future.set_result(answer)

    def _count_answer(self, job: _Job, answer: Answer) -> None:
        now = time.monotonic()
        metrics.SUCCESS.labels(self._name, answer.finish_reason).inc()
        metrics.PROMPT_TOKENS.labels(self._name).inc(answer.prompt_tokens)
        metrics.PROMPT_LENGTH.labels(self._name).observe(answer.prompt_tokens)
        metrics.ANSWER_LENGTH.labels(self._name).observe(answer.completion_tokens)
        metrics.LATENCY.labels(self._name).observe(now - job.admitted)
        metrics.INFERENCE_TIME.labels(self._name).observe(now - job.started)
        if answer.fields is None:
            metrics.UNPARSED.labels(self._name).inc()

    def _stepped(self) -> float:
        """Note that the model made a step; return how long it took."""
        now = time.monotonic()
        taken, self._progress = now - self._progress, now
        return taken


class _Steps:
    """Follows a batch: passes tokens on as they come, and ends requests that were abandoned."""

    def __init__(self, batcher: Batcher, batch: list[_Job]) -> None:
        self._batcher = batcher
        self._batch = batch
        self._ended = [False] * len(batch)
        self._steps = 0

    def step(self, tokens: list[int]) -> list[bool]:
        name, taken = self._batcher._name, self._batcher._stepped()
        self._steps += 1
        if self._steps > 1:
            metrics.TOKEN_TIME.labels(name).observe(taken)
        made = 0
        for row, (job, token) in enumerate(zip(self._batch, tokens, strict=True)):
            if self._ended[row]:
                continue
            made += 1
            if self._steps > job.told:
                self._tell(job, token, name)
            self._ended[row] = token in END_OF_ANSWER_IDS or self._steps >= job.max_new_tokens
        metrics.GENERATION_TOKENS.labels(name).inc(made)
        return [job.abandoned for job in self._batch]

    def _tell(self, job: _Job, token: int, name: str) -> None:
        job.told = self._steps
        if self._steps == 1:
            metrics.FIRST_TOKEN.labels(name).observe(time.monotonic() - job.admitted)
        if job.on_token is not None and token not in END_OF_ANSWER_IDS:
            job.on_token(token)


def _stopping() -> RequestError:
    return RequestError("the server is stopping; ask again in a moment", status=503)

"""The model as it is served, whichever protocol a request came by."""

import asyncio
import io
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from PIL import Image

from fovea.evaluation.calibration import Calibration
from fovea.images import PictureLimits
from fovea.inference import Predictor, Sample
from fovea.task import Answer
from serving.engine.batching import Batcher, BatchLimits, OnToken
from serving.engine.pictures import Picture, PictureFetcher, decode
from serving.errors import RequestError
from serving.middleware import metrics

MAX_TOKENS = 4096
"""Prompt and answer together: up to here Phi-3-Vision keeps its short rotary factors."""

# Training and evaluation take pictures of any shape, so the server does, too.
PICTURE_LIMITS = PictureLimits(max_bytes=20 << 20, min_side=1)

# How many batches' worth of pictures are ready as crops, which are far larger than the files.
_BATCHES_AHEAD = 3


@dataclass(frozen=True)
class Question:
    """A prompt and the pictures that it shows."""

    prompt: str
    pictures: Sequence[Picture]
    max_new_tokens: int


@dataclass
class ServedModel:
    """A loaded model, its name and its digest.

    Args:
        name: what clients call it.
        digest: the model's.
        predictor: the model.
        calibration: what its confidences come from; None where it gives none.
        limits: of the batches.
        workers: threads that decode pictures and cut them into crops.
        fetcher: of pictures by address; None where they are not fetched.
        max_request_seconds: how long a request may take; clients can ask for less.
    """

    name: str
    digest: str
    predictor: Predictor
    limits: BatchLimits = field(default_factory=BatchLimits)
    workers: int = 4
    fetcher: PictureFetcher | None = None
    max_request_seconds: float = 60.0
    calibration: Calibration | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        probe = self._warm_up()
        self.batcher = Batcher(self.predictor, self.limits, name=self.name, probe=probe)
        self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="prepare")
        self._ahead = asyncio.Semaphore(_BATCHES_AHEAD * self.limits.max_batch_size)

    def calibration_for(self, prompt: str) -> Calibration | None:
        """Return what confidences come from, for the question they were calibrated on; None for others."""
        return self.calibration if prompt == self.predictor.task.prompt() else None

    async def answer(self, questions: Sequence[Question], seconds: float) -> list[Answer | RequestError]:
        """Answer questions; one that cannot be answered fails alone, with its own error in its place.

        Args:
            questions: of one request.
            seconds: how long all may take.

        Raises:
            RequestError: 429, 500, 503 and 504, whose cause is not the question.
        """
        async with self._admitted(len(questions), seconds) as admitted:
            found = await asyncio.gather(
                *(self._answer(question, admitted) for question in questions), return_exceptions=True
            )
        for each in found:
            if isinstance(each, BaseException) and not (
                isinstance(each, RequestError) and each.status == 400
            ):
                raise each
        return [each for each in found if isinstance(each, Answer | RequestError)]

    async def answer_one(self, question: Question, seconds: float, on_token: OnToken | None = None) -> Answer:
        """Answer a question; ``on_token`` is called with each token, in the generating thread.

        Raises:
            RequestError: there is no answer, and why.
        """
        async with self._admitted(1, seconds) as admitted:
            return await self._answer(question, admitted, on_token)

    async def stream(self, question: Question, seconds: float) -> AsyncIterator[str | Answer]:
        """Answer a question with pieces of text as they come, and at last the whole answer.

        Raises:
            RequestError: there is no answer, and why.
        """
        loop, tokens = asyncio.get_running_loop(), asyncio.Queue[int | None]()

        def on_token(token: int) -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(tokens.put_nowait, token)

        work = asyncio.create_task(self.answer_one(question, seconds, on_token))
        work.add_done_callback(lambda _: tokens.put_nowait(None))
        ids: list[int] = []
        sent = ""
        try:
            while (token := await tokens.get()) is not None:
                ids.append(token)
                text = self._text(ids)
                # A character of several tokens is complete only with the last of them.
                if text.startswith(sent) and len(text) > len(sent) and not text.endswith("\ufffd"):
                    yield text[len(sent) :]
                    sent = text
            answer = await work
            if answer.text.startswith(sent) and len(answer.text) > len(sent):
                yield answer.text[len(sent) :]
            yield answer
        finally:
            work.cancel()

    def _text(self, ids: list[int]) -> str:
        return str(self.predictor.processor.tokenizer.decode(ids, skip_special_tokens=True))

    def close(self) -> None:
        """Finish the batch that is being answered, and end the threads."""
        self.batcher.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    @asynccontextmanager
    async def _admitted(self, count: int, seconds: float) -> AsyncIterator[float]:
        seconds = min(seconds, self.max_request_seconds)
        with self.batcher.admit(count):
            try:
                async with asyncio.timeout(seconds):
                    yield time.monotonic()
            except TimeoutError:
                raise RequestError(f"not answered within {seconds:g} seconds", status=504) from None

    async def _answer(self, question: Question, admitted: float, on_token: OnToken | None = None) -> Answer:
        pictures = [await self._fetched(picture) for picture in question.pictures]
        async with self._ahead:
            with self.batcher.preparing():
                sample = await asyncio.get_running_loop().run_in_executor(
                    self._pool, self._prepare, question, pictures
                )
            return await self.batcher.generate(
                sample, question.max_new_tokens, admitted=admitted, on_token=on_token
            )

    async def _fetched(self, picture: Picture) -> Picture:
        if not picture.is_address:
            return picture
        if self.fetcher is None:
            raise picture.refusal(
                "this server does not fetch pictures from addresses; send the picture itself, as "
                "data:image/jpeg;base64,…"
            )
        return await self.fetcher.fetch(picture)

    def _prepare(self, question: Question, pictures: Sequence[Picture]) -> Sample:
        with metrics.PREPARE_TIME.time():
            images = [decode(picture, PICTURE_LIMITS) for picture in pictures]
            sample = self.predictor.prepare(question.prompt, images)
        if sample.tokens + question.max_new_tokens > MAX_TOKENS:
            raise RequestError(
                f"the request takes {sample.tokens} tokens, pictures included, and asks for "
                f"{question.max_new_tokens} more; {MAX_TOKENS} are allowed together"
            )
        return sample

    def _warm_up(self) -> Sample:
        """Answer about a real file, alone and in a full batch, so that a model that cannot is never ready.

        On a GPU it also makes the memory of a full batch be taken now, and not by the first requests.
        """
        file = io.BytesIO()
        Image.new("RGB", (64, 64), "grey").save(file, "PNG")
        question = Question(self.predictor.task.prompt(), [Picture("warm-up", file.getvalue())], 2)
        sample = self._prepare(question, question.pictures)
        for size in (1, self.limits.max_batch_size):
            self.predictor.generate_batch([sample] * size, max_new_tokens=2)
        return sample

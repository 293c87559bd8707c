"""What waits is answered together, who goes away is let go, and the event loop is never held up."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch

from fovea.inference import OnStep, Sample
from fovea.task import Answer
from serving.engine.batching import Batcher, BatchLimits
from serving.errors import RequestError

FAILS_IN_COMPANY, FAILS, KILLS = -1, -2, -3


def sample(number: int) -> Sample:
    return Sample(torch.tensor([number]), torch.empty(0), torch.empty(0))


class Held:
    """Makes a step of a batch whenever it is let to; remembers what it was asked."""

    def __init__(self, steps: int = 1) -> None:
        self.batches: list[list[int]] = []
        self.limits: list[list[int]] = []
        self.begun = threading.Event()
        self.let = threading.Semaphore(0)
        self.steps = steps
        self.stopped: list[list[bool]] = []

    def generate_batch(
        self, samples: Sequence[Sample], max_new_tokens: Sequence[int], on_step: OnStep
    ) -> list[Answer]:
        numbers = [int(sample.input_ids[0]) for sample in samples]
        self.batches.append(numbers)
        self.limits.append(list(max_new_tokens))
        self.begun.set()
        for step in range(self.steps):
            self.let.acquire()
            if FAILS in numbers or (FAILS_IN_COMPANY in numbers and len(numbers) > 1):
                raise RuntimeError("out of memory")
            if KILLS in numbers:
                raise SystemExit
            self.stopped.append(list(on_step([number * 100 + step for number in numbers])))
            if all(self.stopped[-1]):
                break
        return [
            Answer(f"{number} {limit}", None, "", 1, 1, "stop")
            for number, limit in zip(numbers, max_new_tokens, strict=True)
        ]


@pytest.fixture
def held() -> Iterator[Held]:
    model = Held()
    yield model
    model.let.release(100)


async def start(
    batcher: Batcher,
    held: Held,
    number: int,
    limit: int = 8,
    on_token: Callable[[int], None] | None = None,
) -> "asyncio.Task[Answer]":
    task = asyncio.create_task(batcher.generate(sample(number), limit, on_token=on_token))
    await asyncio.sleep(0)
    if not held.begun.is_set():
        await asyncio.to_thread(held.begun.wait)
    return task


async def texts(*tasks: "asyncio.Task[Answer]") -> list[str]:
    return [(await task).text for task in tasks]


def test_what_waits_is_answered_together_each_with_its_limit(held: Held) -> None:
    async def scenario() -> None:
        batcher = Batcher(held, BatchLimits(max_batch_size=3))
        tasks = [await start(batcher, held, number, limit=number + 4) for number in range(1, 6)]
        held.let.release(3)
        assert await texts(*tasks) == ["1 5", "2 6", "3 7", "4 8", "5 9"]
        assert held.batches == [[1], [2, 3, 4], [5]]

    asyncio.run(scenario())


def test_a_batch_waits_a_moment_for_what_is_prepared(held: Held) -> None:
    async def scenario() -> None:
        batcher = Batcher(held, BatchLimits(max_batch_size=3, fill_seconds=60))
        with batcher.preparing(), batcher.preparing():
            first = asyncio.create_task(batcher.generate(sample(1), 8))
            with batcher.preparing():
                await asyncio.sleep(0)
                assert held.batches == []
            second = asyncio.create_task(batcher.generate(sample(2), 8))
            await asyncio.sleep(0)
        held.let.release(2)
        assert await texts(first, second) == ["1 8", "2 8"]
        assert held.batches == [[1, 2]]

    asyncio.run(scenario())


def test_a_full_batch_waits_for_nothing(held: Held) -> None:
    async def scenario() -> None:
        batcher = Batcher(held, BatchLimits(max_batch_size=2, fill_seconds=60))
        with batcher.preparing():
            tasks = [asyncio.create_task(batcher.generate(sample(number), 8)) for number in (1, 2)]
            held.let.release(1)
            assert await texts(*tasks) == ["1 8", "2 8"]

    asyncio.run(scenario())


def test_too_many_are_refused_before_they_are_prepared(held: Held) -> None:
    async def scenario() -> None:
        batcher = Batcher(held, BatchLimits(max_batch_size=1, max_waiting=2))
        with batcher.admit(2):
            with pytest.raises(RequestError) as caught, batcher.admit(2):
                pass
            assert (caught.value.status, caught.value.retry_after) == (429, 0)
            with batcher.admit(1), pytest.raises(RequestError), batcher.admit(1):
                pass
        with batcher.admit(3):
            pass

    asyncio.run(scenario())


def test_who_goes_away_is_not_answered(held: Held) -> None:
    async def scenario() -> None:
        batcher = Batcher(held)
        first = await start(batcher, held, 1)
        gone = await start(batcher, held, 2)
        stays = await start(batcher, held, 3)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        held.let.release(2)
        assert await texts(first, stays) == ["1 8", "3 8"]
        assert held.batches == [[1], [3]]

    asyncio.run(scenario())


def test_who_goes_away_while_he_is_answered_frees_the_batch() -> None:
    async def scenario() -> None:
        held = Held(steps=1000)
        batcher = Batcher(held)
        gone = await start(batcher, held, 1)
        held.let.release(3)
        while len(held.stopped) < 3:
            await asyncio.sleep(0)
        gone.cancel()
        await asyncio.wait({gone})
        held.let.release(1000)
        await asyncio.to_thread(batcher.close)
        assert held.stopped[-1] == [True]
        assert len(held.stopped) < 10

    asyncio.run(scenario())


def test_tokens_are_told_as_they_come() -> None:
    async def scenario() -> None:
        held, told = Held(steps=3), []
        batcher = Batcher(held)
        task = await start(batcher, held, 7, on_token=told.append)
        held.let.release(2)
        while len(told) < 2:
            await asyncio.sleep(0)
        assert told == [700, 701]
        assert not task.done()
        held.let.release(1)
        await task
        assert told == [700, 701, 702]

    asyncio.run(scenario())


def test_a_request_the_model_cannot_bear_fails_alone(held: Held) -> None:
    async def scenario() -> None:
        batcher = Batcher(held, probe=sample(0))
        first = await start(batcher, held, 1)
        bad, good = await start(batcher, held, FAILS), await start(batcher, held, 2)
        bearable = await start(batcher, held, FAILS_IN_COMPANY)
        held.let.release(100)
        assert await texts(first, good, bearable) == ["1 8", "2 8", "-1 8"]
        with pytest.raises(RequestError, match="failed at this request") as caught:
            await bad
        assert caught.value.status == 500
        assert batcher.alive

    asyncio.run(scenario())


def test_a_model_that_answers_nothing_any_more_is_dead(held: Held) -> None:
    async def scenario() -> None:
        batcher = Batcher(held, probe=sample(FAILS))
        bad = await start(batcher, held, FAILS)
        waiting = await start(batcher, held, 1)
        held.let.release(100)
        for task in (bad, waiting):
            with pytest.raises(RequestError):
                await task
        await asyncio.to_thread(batcher._thread.join)
        assert not batcher.alive
        with pytest.raises(RequestError) as caught, batcher.admit(1):
            pass
        assert caught.value.status == 503

    asyncio.run(scenario())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_loop_that_dies_fails_those_who_wait(held: Held) -> None:
    async def scenario() -> None:
        batcher = Batcher(held)
        running = await start(batcher, held, KILLS)
        waiting = await start(batcher, held, 1)
        held.let.release(100)
        for task in (running, waiting):
            with pytest.raises(RequestError) as caught:
                await task
            assert caught.value.status == 503
        await asyncio.to_thread(batcher._thread.join)
        assert not batcher.alive

    asyncio.run(scenario())


def test_busy_is_not_hung(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now)
        held.steps = 3
        batcher = Batcher(held, BatchLimits(hang_seconds=10))
        now += 1000
        assert batcher.alive  # idle
        task = await start(batcher, held, 1)
        for _ in range(2):
            now += 9
            assert batcher.alive  # working
            held.let.release(1)
            seen = len(held.stopped)
            while len(held.stopped) == seen:
                await asyncio.sleep(0)
        now += 11
        assert not batcher.alive  # no token for too long
        held.let.release(1)
        await task
        assert batcher.alive

    asyncio.run(scenario())


def test_closing_finishes_what_runs_and_refuses_what_waits(held: Held) -> None:
    async def scenario() -> None:
        batcher = Batcher(held)
        running = await start(batcher, held, 1)
        waiting = await start(batcher, held, 2)
        closing = asyncio.create_task(asyncio.to_thread(batcher.close))
        with pytest.raises(RequestError) as caught:
            await waiting
        assert caught.value.status == 503
        held.let.release()
        assert await texts(running) == ["1 8"]
        await closing
        with pytest.raises(RequestError):
            await batcher.generate(sample(3), 8)

    asyncio.run(scenario())

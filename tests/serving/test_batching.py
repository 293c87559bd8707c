"""What waits is answered together, and the event loop is never held up."""

import asyncio
import threading
from collections.abc import Iterator, Sequence

import pytest
import torch

from fovea.inference import Answer, Sample
from serving.batching import Batcher
from serving.errors import RequestError


def sample(number: int) -> Sample:
    return Sample(torch.tensor([number]), torch.empty(0), torch.empty(0))


class Held:
    """Answers a batch once it is let to; remembers what it was asked."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.begun = threading.Event()
        self.let = threading.Semaphore(0)

    def generate_batch(self, samples: Sequence[Sample], max_new_tokens: int = 64) -> list[Answer]:
        numbers = [int(sample.input_ids[0]) for sample in samples]
        self.batches.append(numbers)
        self.begun.set()
        self.let.acquire()
        if -1 in numbers:
            raise RuntimeError("out of memory")
        return [Answer(f"{number} {max_new_tokens}", None, "", 1, 1, "stop") for number in numbers]


@pytest.fixture
def held() -> Iterator[Held]:
    model = Held()
    yield model
    model.let.release(100)


async def start(batcher: Batcher, held: Held, *numbers: int, limit: int = 8) -> "asyncio.Task[list[Answer]]":
    task = asyncio.create_task(batcher.generate([sample(number) for number in numbers], limit))
    await asyncio.sleep(0)
    if not held.begun.is_set():
        await asyncio.to_thread(held.begun.wait)
    return task


def texts(answers: list[Answer]) -> list[str]:
    return [answer.text for answer in answers]


def test_what_waits_is_answered_together(held: Held) -> None:
    async def scenario() -> None:
        batcher = Batcher(held, max_batch_size=3)
        first = await start(batcher, held, 1)
        waiting = [await start(batcher, held, 2), await start(batcher, held, 3, 4, 5)]
        held.let.release(3)
        assert texts(await first) == ["1 8"]
        assert [texts(await task) for task in waiting] == [["2 8"], ["3 8", "4 8", "5 8"]]
        assert held.batches == [[1], [2, 3, 4], [5]]

    asyncio.run(scenario())


def test_a_batch_has_one_limit_and_the_oldest_is_first(held: Held) -> None:
    async def scenario() -> None:
        batcher = Batcher(held)
        await start(batcher, held, 0)
        tasks = [await start(batcher, held, number, limit=8 + number % 2) for number in range(1, 5)]
        held.let.release(3)
        assert [texts(await task) for task in tasks] == [["1 9"], ["2 8"], ["3 9"], ["4 8"]]
        assert held.batches == [[0], [1, 3], [2, 4]]

    asyncio.run(scenario())


def test_too_many_waiting_are_refused_and_nothing_of_theirs_is_kept(held: Held) -> None:
    async def scenario() -> None:
        batcher = Batcher(held, max_waiting=2)
        first = await start(batcher, held, 1)
        second = await start(batcher, held, 2)
        with pytest.raises(RequestError) as caught:
            await batcher.generate([sample(3), sample(4)], 8)
        assert caught.value.status == 429
        held.let.release(2)
        await first
        await second
        assert held.batches == [[1], [2]]

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
        assert texts(await first) + texts(await stays) == ["1 8", "3 8"]
        assert held.batches == [[1], [3]]

    asyncio.run(scenario())


def test_a_batch_that_fails_does_not_end_the_thread(held: Held) -> None:
    async def scenario() -> None:
        batcher = Batcher(held)
        bad = await start(batcher, held, -1)
        good = await start(batcher, held, 1)
        held.let.release(2)
        with pytest.raises(RuntimeError, match="out of memory"):
            await bad
        assert texts(await good) == ["1 8"]

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
        assert texts(await running) == ["1 8"]
        await closing
        with pytest.raises(RequestError):
            await batcher.generate([sample(3)], 8)

    asyncio.run(scenario())

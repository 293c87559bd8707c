"""The server at more than it can answer: it refuses the rest and recovers."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator

import httpx
import psutil
import pytest

from benchmarks.serving import Load, Loader, bodies, measure
from fovea.task import product_task
from tests.serving.conftest import ANSWER, RunningServer, idle, running_server, wait_until
from tests.tiny_model import write_tiny_model

PLACES = 24 + 8


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("load")
    model = write_tiny_model(folder / "model", answer=ANSWER, task=product_task())
    options = ("--model-dir", str(model), "--max-batch-size", "8", "--max-waiting", "24")
    with running_server(folder / "server", *options) as started:
        yield started


def overload(
    server: RunningServer, times: float, seconds: float, measuring: float
) -> tuple[float, Load, list[int]]:
    """Put ``times`` the server's capacity on it for ``seconds``.

    Returns:
        The capacity in answers a second, measured for ``measuring`` seconds; what the overload came to; the
        resident bytes all along.
    """
    process, memory = psutil.Process(server.process.pid), list[int]()
    requests = bodies(192)

    async def watched(loader: Loader, per_second: float) -> None:
        load = asyncio.create_task(loader.open(per_second, seconds))
        while not load.done():
            memory.append(process.memory_info().rss)
            await asyncio.wait({load}, timeout=seconds / 200)
        await load

    def put(work: Callable[[Loader], Awaitable[None]]) -> Load:
        return asyncio.run(measure("ours", "", server.address, requests, work))

    put(lambda each: each.closed(PLACES, 1.0))  # a first time takes longer
    capacity = put(lambda each: each.closed(PLACES, measuring)).answers_per_second
    return capacity, put(lambda each: watched(each, times * capacity)), memory


def check(server: RunningServer, found: Load) -> None:
    assert found.failed == 0
    assert found.refused > 0
    assert found.answers > 0
    # It recovers: a request is answered at once, and nothing is left over.
    started = time.monotonic()
    server.client.post("/v1/models/fovea:predict", content=bodies(192)[0]).raise_for_status()
    assert time.monotonic() - started < 30
    wait_until(lambda: idle(server))
    assert "Traceback" not in server.log.read_text()


def test_a_moment_of_overload(server: RunningServer) -> None:
    _, found, _ = overload(server, times=4, seconds=4.0, measuring=1.0)
    check(server, found)


@pytest.mark.prove
@pytest.mark.timeout(1200)
def test_ten_minutes_of_overload(server: RunningServer) -> None:
    capacity, found, memory = overload(server, times=1.5, seconds=600.0, measuring=20.0)
    early, late = memory[len(memory) // 5], max(memory[-len(memory) // 5 :])
    print(f"capacity {capacity:.1f}/s; {found}; memory {early >> 20} to {late >> 20} MiB")
    check(server, found)
    # It answers on at about its own speed (other work on the machine may slow it down), and nobody waits for
    # much longer than a full queue takes at the speed it had.
    assert found.answers_per_second > capacity / 3
    assert found.p99 is not None
    assert found.p99 < 4 * PLACES / min(capacity, found.answers_per_second) + 1
    assert late < 1.1 * early + (16 << 20)
    assert httpx.get(f"{server.address}/v2/health/live", trust_env=False).status_code == 200

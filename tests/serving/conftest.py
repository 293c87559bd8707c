"""A real model server, started as it is in a container, and what is needed to ask it."""

import base64
import io
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from fovea.task import product_task
from tests.tiny_model import write_tiny_model

ANSWER = "Product: Wool|Silk scarf,|bag, Category: SCARVES,|BAGS, Full Price: 120.0|340.0"
REPOSITORY = Path(__file__).resolve().parents[2]


def picture(number: int) -> Image.Image:
    """A picture of its own shape and colours for every number."""
    random = np.random.default_rng(number)
    width, height = random.integers(20, 260, 2)
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:] = random.integers(0, 256, 3)
    pixels[height // 4 : height // 2, width // 4 : width // 2] = random.integers(0, 256, 3)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str = "PNG") -> str:
    """An image as a file, in base64."""
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return base64.b64encode(buffer.getvalue()).decode()


@dataclass(frozen=True)
class RunningServer:
    """A server that answers."""

    address: str
    process: "subprocess.Popen[bytes]"
    log: Path
    client: httpx.Client

    def predict(self, pictures: Sequence[str], **parameters: int) -> httpx.Response:
        """Ask over V1 about base64 pictures."""
        body = {"instances": [{"image": {"b64": text}} for text in pictures], "parameters": parameters}
        return self.client.post("/v1/models/fovea:predict", json=body)


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait up to half a minute for ``condition`` to hold."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def metric(server: RunningServer, name: str) -> float:
    """The sum of the series of /metrics whose lines begin with ``name``."""
    lines = server.client.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def idle(server: RunningServer) -> bool:
    """Whether no request runs or waits; the counts fall a moment after the answer has gone out."""
    return metric(server, "vllm:num_requests_running") + metric(server, "vllm:num_requests_waiting") == 0


StartServer = Callable[..., AbstractContextManager[RunningServer]]


@contextmanager
def running_server(folder: Path, *options: str) -> Iterator[RunningServer]:
    """Start ``python -m serving`` with ``options`` and wait until it answers."""
    folder.mkdir(parents=True, exist_ok=True)
    address, log = folder / "address", folder / "log"
    command = [sys.executable, "-m", "serving", *options]
    command += ["--host", "127.0.0.1", "--http-port", "0", "--device", "cpu", "--address-file", str(address)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    try:
        while not address.exists():
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        with httpx.Client(base_url=address.read_text(), timeout=60, trust_env=False) as client:
            yield RunningServer(address.read_text(), process, log, client)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that answers the task, by what it sees."""
    return write_tiny_model(tmp_path_factory.mktemp("model"), answer=ANSWER, task=product_task())


@pytest.fixture(scope="session")
def server(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server on that model, for the session."""
    with running_server(tmp_path_factory.mktemp("server"), "--model-dir", str(model_folder)) as started:
        yield started


@pytest.fixture
def start_server(tmp_path: Path) -> StartServer:
    """Start a server of the test's own with further options."""
    return lambda *options: running_server(tmp_path / "server", *options)

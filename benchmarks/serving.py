"""Measure the server under load, compared with the same model in a plain KServe model.

    python -m benchmarks.serving compare FOLDER
    python -m benchmarks.serving compare --size published --device cuda --dtype bfloat16

FOLDER contains a model, such as that of the last local run. Without it, a model with random weights
is created: each of its answers is noise of maximum length, so that every answer takes the same work.
Both servers answer the same pictures under the same loads, alternating; the plain one prepares and generates
one request after the other, on the event loop.
Closed loop: a fixed number of clients, each sending the next request after its answer. Open loop: requests
arrive at random (a Poisson process) at a fraction of the server's closed-loop throughput, regardless of
answers. The bound is the rate of the library in batches without a server, with pictures decoded and cropped
beforehand: no server can be faster.
"""

import asyncio
import base64
import io
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.workload import Device, Size, Type, device_name
from fovea.errors import UserError

CLIENTS = [1, 4, 16, 64]
SHARES = [0.5, 0.9, 1.5]
_JSON = {"content-type": "application/json"}
_PATH = "/v1/models/fovea:predict"
_PICTURES = 64
_BOUND_BATCH = 16
SYNTHETIC_CROPS = 4


@dataclass(frozen=True)
class Load:
    """One row: a server under one load. Times are in seconds; ``refused`` are the answers 429."""

    server: str
    load: str
    seconds: float
    answers: int
    refused: int
    failed: int
    answers_per_second: float
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None
    others_p99: float | None = None
    """The number of other answers while one waited: a wait that does not depend on the machine's speed."""


def bodies(side: int) -> list[bytes]:
    """Return requests with different pictures, JPEG files of ``side`` by ``side`` pixels."""
    from PIL import Image

    made = []
    for number in range(_PICTURES):
        noise = Image.effect_noise((side // 8, side // 8), 60 + number % 40).resize((side, side))
        file = io.BytesIO()
        Image.merge("RGB", [noise, noise.rotate(90), noise.rotate(180)]).save(file, "JPEG")
        picture = base64.b64encode(file.getvalue()).decode()
        made.append(json.dumps({"instances": [{"image": {"b64": picture}}]}).encode())
    return made


def write_model(folder: Path, size: str) -> None:
    """Write a model that can be served: random weights, with a tokenizer and a task.

    Args:
        folder: a new folder.
        size: as in `benchmarks.synthetic.configuration`.

    Raises:
        UserError: the disk has too little space.
    """
    from benchmarks.synthetic import configuration
    from benchmarks.synthetic_checkpoint import write_synthetic_checkpoint
    from fovea.phi3v import Phi3VImageProcessor, Phi3VProcessor
    from fovea.task import product_task
    from sample.tokenizer import make_tokenizer

    write_synthetic_checkpoint(folder, size)
    task, config = product_task(), configuration(size)
    pictures = Phi3VImageProcessor(
        num_crops=SYNTHETIC_CROPS,
        crop_size=config.vision_config.image_size,
        num_img_tokens=config.tokens_per_side**2,
    )
    Phi3VProcessor(pictures, make_tokenizer([task.prompt(), task.template])).save_pretrained(folder)
    task.save(folder)


def bound(folder: Path, device: str, dtype: str, requests: Sequence[bytes]) -> float:
    """Return the pictures per second that the library answers in batches, decoded and cropped beforehand."""
    import torch
    from PIL import Image

    from fovea.inference import Predictor

    predictor = Predictor.load(folder, device=device, dtype=dtype)
    prompt, samples = predictor.task.prompt(), []
    for each in requests:
        file = base64.b64decode(json.loads(each)["instances"][0]["image"]["b64"])
        samples.append(predictor.prepare(prompt, [Image.open(io.BytesIO(file)).convert("RGB")]))
    predictor.generate_batch(samples[:_BOUND_BATCH])
    started = time.perf_counter()
    for first in range(0, len(samples), _BOUND_BATCH):
        predictor.generate_batch(samples[first : first + _BOUND_BATCH])
    taken = time.perf_counter() - started
    del predictor
    torch.cuda.empty_cache()  # the servers need the GPU's memory; does nothing without a GPU
    return len(requests) / taken


class Loader:
    """Sends requests to a server, and records the time of each answer.

    It uses aiohttp, which takes far less time per request than httpx: the clients share the server's cores,
    and their own delays would count as the server's.
    """

    def __init__(self, client: aiohttp.ClientSession, requests: Sequence[bytes]) -> None:
        self._client = client
        self._requests = requests
        self._next = 0
        self.times: list[float] = []
        self.others: list[int] = []
        """For each answer: the number of other answers while it was waiting."""
        self.refused = 0
        self.failed = 0

    async def ask(self) -> None:
        """Send a request for the next picture."""
        body = self._requests[self._next % len(self._requests)]
        self._next += 1
        started, before = time.perf_counter(), len(self.times)
        try:
            async with self._client.post(_PATH, data=body, headers=_JSON) as response:
                await response.read()
        except aiohttp.ClientError:
            self.failed += 1
            return
        if response.status == 200:
            self.others.append(len(self.times) - before)
            self.times.append(time.perf_counter() - started)
        elif response.status == 429:
            self.refused += 1
        else:
            self.failed += 1

    async def closed(self, clients: int, seconds: float) -> None:
        """Run a number of clients, each sending the next request after its answer."""
        end = time.perf_counter() + seconds

        async def one() -> None:
            while time.perf_counter() < end:
                await self.ask()

        await asyncio.gather(*(one() for _ in range(clients)))

    async def open(self, per_second: float, seconds: float, seed: int = 0) -> None:
        """Send requests at random times, regardless of answers."""
        lot, tasks = random.Random(seed), set[asyncio.Task[None]]()  # noqa: S311
        end = time.perf_counter() + seconds
        arrival = time.perf_counter()
        while (arrival := arrival + lot.expovariate(per_second)) < end:
            await asyncio.sleep(max(0.0, arrival - time.perf_counter()))
            if time.perf_counter() > end:
                break  # this machine cannot send that many
            tasks.add(asyncio.create_task(self.ask()))
        await asyncio.gather(*tasks)


async def measure(
    server: str,
    load: str,
    address: str,
    requests: Sequence[bytes],
    work: Callable[[Loader], Awaitable[None]],
) -> Load:
    """Put a load on a server; the time is measured until the last answer."""
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(600)
    async with aiohttp.ClientSession(address, connector=connector, timeout=timeout) as client:
        loader = Loader(client, requests)
        started = time.perf_counter()
        await work(loader)
        taken = time.perf_counter() - started
    times, cuts = loader.times, _percentiles(loader.times)
    others = _percentiles(loader.others)
    return Load(
        server=server,
        load=load,
        seconds=taken,
        answers=len(times),
        refused=loader.refused,
        failed=loader.failed,
        answers_per_second=len(times) / taken,
        p50=cuts[49] if cuts else None,
        p95=cuts[94] if cuts else None,
        p99=cuts[98] if cuts else None,
        others_p99=others[98] if others else None,
    )


def _percentiles(values: Sequence[float]) -> list[float] | None:
    """Return the 99 percentiles; None if there are too few values."""
    return statistics.quantiles(values, n=100, method="inclusive") if len(values) > 1 else None


@contextmanager
def started(command: Sequence[str]) -> Iterator[str]:
    """Run a server for the block and yield its address."""
    with tempfile.TemporaryDirectory() as name:
        address, log = Path(name) / "address", Path(name) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-m", *command, "--address-file", str(address)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
            )
        try:
            while not address.exists():
                if process.poll() is not None:
                    raise UserError(f"the server did not start: {log.read_text()[-500:]}")
                time.sleep(0.1)
            yield address.read_text()
        finally:
            process.terminate()
            process.wait(60)


def loads(
    addresses: dict[str, str], requests: Sequence[bytes], clients: Sequence[int], seconds: float
) -> Iterator[Load]:
    """Measure the servers under all loads, alternating, so that disturbances affect both."""

    def put(server: str, load: str, work: Callable[[Loader], Awaitable[None]]) -> Load:
        return asyncio.run(measure(server, load, addresses[server], requests, work))

    for server in addresses:
        put(server, "warm-up", lambda each: each.closed(4, min(3.0, seconds)))
    capacity = dict.fromkeys(addresses, 0.0)
    for number in clients:
        for server in addresses:
            row = put(server, f"closed, {number}", partial(Loader.closed, clients=number, seconds=seconds))
            capacity[server] = max(capacity[server], row.answers_per_second)
            yield row
    for share in SHARES:
        for server in addresses:
            rate = share * capacity[server]
            work = partial(Loader.open, per_second=rate, seconds=seconds)
            yield put(server, f"open, {share:g} x capacity", work)


def table(rows: Sequence[Load], best: float, about: str) -> Table:
    """Return the rows as a table."""
    made = Table(title=f"Answers under load\n{about}")
    made.caption = (
        f"The bound: the library alone answers {best:.3g} per second, in batches of {_BOUND_BATCH}, "
        "pictures prepared beforehand."
    )
    for heading in (
        "server",
        "load",
        "answers/s",
        "of the bound",
        "p50 ms",
        "p95 ms",
        "p99 ms",
        "429",
        "failed",
    ):
        made.add_column(heading, justify="left" if heading in ("server", "load") else "right")
    for row in rows:
        made.add_row(
            row.server,
            row.load,
            f"{row.answers_per_second:.3g}",
            f"{row.answers_per_second / best:.0%}",
            *("–" if time is None else f"{time * 1000:,.0f}" for time in (row.p50, row.p95, row.p99)),
            str(row.refused),
            str(row.failed),
        )
    return made


app = typer.Typer(add_completion=False, help=__doc__, pretty_exceptions_enable=False)

FolderArgument = Annotated[
    Path | None, typer.Argument(help="A model's folder; default: a new one.", exists=True, file_okay=False)
]
DeviceOption = Annotated[Device, typer.Option(help="Where the model runs.")]
TypeOption = Annotated[Type, typer.Option(help="Dtype of weights and pixels.")]


@app.command()
def compare(
    folder: FolderArgument = None,
    size: Annotated[Size, typer.Option(help="Size of the model to create.")] = Size.MIDDLING,
    device: DeviceOption = Device.CPU,
    dtype: TypeOption = Type.FLOAT32,
    clients: Annotated[list[int], typer.Option(help="Concurrent clients; can be repeated.")] = CLIENTS,
    seconds: Annotated[float, typer.Option(help="Duration of each load.", min=0.1)] = 15.0,
    side: Annotated[int, typer.Option(help="Pixels of the pictures' sides.", min=32)] = 672,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the results.")] = None,
) -> None:
    """Compare our server with the plain one, under the same loads."""
    requests = bodies(side)
    with ExitStack() as made:
        if folder is None:
            folder = Path(made.enter_context(tempfile.TemporaryDirectory(prefix="fovea-"))) / "model"
            write_model(folder, size)
            what = f"{size} model with random weights, num_crops {SYNTHETIC_CROPS}"
        else:
            what = folder.name
        best = bound(folder, device, dtype, requests)
        rows = _rows(folder, device, dtype, requests, clients, seconds)
        # The machine may have been busier at the start than now.
        best = max(best, bound(folder, device, dtype, requests))
    about = f"{what}; {device_name(device)}, {dtype}; pictures of {side} x {side}, {seconds:g} s per row"
    Console(width=None if sys.stdout.isatty() else 120).print(table(rows, best, about))
    if json_file is not None:
        numbers: dict[str, Any] = {"about": about, "bound": best, "rows": [asdict(row) for row in rows]}
        json_file.write_text(json.dumps(numbers, indent=2) + "\n")


def _rows(
    folder: Path,
    device: Device,
    dtype: Type,
    requests: Sequence[bytes],
    clients: Sequence[int],
    seconds: float,
) -> list[Load]:
    shared = ["--device", device.value, "--dtype", dtype.value]
    plain = ["benchmarks.plain_server", str(folder), *shared]
    ours = ["serving", "--host", "127.0.0.1", "--http-port", "0", "--model-dir", str(folder), *shared]
    with started(plain) as plain_address, started(ours) as our_address:
        found = loads({"plain": plain_address, "ours": our_address}, requests, clients, seconds)
        total = 2 * (len(clients) + len(SHARES))
        return list(track(found, "measuring …", total=total, console=Console(stderr=True), transient=True))


@app.callback()
def _commands() -> None:
    """Make `compare` a subcommand, although it is the only one."""


def main() -> None:
    """Run the command; print errors that the user can fix as one line."""
    try:
        app()
    except UserError as error:
        typer.echo(f"benchmark: {error}", err=True)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()

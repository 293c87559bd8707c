"""Measure speed and memory of the data preparation.

    python -m benchmarks.prepare_data speed      pictures per second from a web server, and alternatives
    python -m benchmarks.prepare_data memory     of the complete step, with few rows and with many
    python -m benchmarks.prepare_data reading    pictures per second that `datasets` streams from S3

The web server, S3 and the measured work share this machine's cores. In addition to pictures per second, which
other work on the machine affects, the tables show processor time per picture, which is hardly affected.
"""

import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Annotated, Any

import boto3
import psutil  # type: ignore[import-untyped]
import pyarrow
import pyarrow.parquet
import requests  # type: ignore[import-untyped]
import typer
from botocore.config import Config
from datasets import Image as DatasetsImage
from datasets import load_dataset
from PIL import Image
from rich.console import Console, Group
from rich.table import Table

from benchmarks.photographs import SIZES, write_photographs
from benchmarks.picture_server import serve_pictures
from components.prepare_data.near_duplicates import fingerprint
from components.prepare_data.picture_store import PictureStore, open_store
from components.prepare_data.pictures import Prepared, Wanted, stream_pictures
from components.prepare_data.shards import ROWS_PER_SHARD, schema
from fovea.errors import UserError
from fovea.fetch.profiles import FetchProfile
from fovea.images import JPEG_QUALITY, PictureLimits, decode_scaled, encode_jpeg
from fovea.memory import reuse_freed_memory
from fovea.storage import Storage, split_uri
from fovea.task import product_task
from pipelines.local.s3 import serve_s3

LONGEST_SIDE = 1344
LATENCIES = [0, 20, 100]
Sizes = tuple[tuple[int, int], ...]
ROWS = [3000, 20_000, 100_000]

# Even the fewest rows' originals fill everything that is limited in bytes, mainly the store's packs: further
# growth is due to the rows.
_SIDE = 256
LOOPBACK = FetchProfile.model_validate({"allowed_networks": ["127.0.0.0/8"]})

_DIFFERENT = 64
"""Number of pictures to draw; the server makes a different one of them for every URL."""
_SEQUENTIAL_SHARE = 8
"""The sequential script is slow and gets a fraction of the URLs."""


@dataclass(frozen=True)
class Rate:
    """The speed of one variant."""

    pictures_per_second: float
    own_ms: float
    """Processor time per picture."""
    servers_ms: float
    """That of the web server and S3, which normally run on other machines."""


@dataclass(frozen=True)
class Speed:
    """One row. None: it could not be installed."""

    latency_ms: int
    bound: Rate
    unkept: Rate
    """Without the picture store, which the alternatives do not have."""
    first: Rate
    again: Rate
    img2dataset: Rate | None
    sequential: Rate


def measure_speed(latencies: Sequence[int], pictures: int, other: Path | None, sizes: Sizes) -> list[Speed]:
    """Measure every variant at every latency, alternating."""
    rows = []
    with tempfile.TemporaryDirectory() as name, _embedded_s3(Path(name)) as root:
        folder = Path(name) / "pictures"
        folder.mkdir()
        write_photographs(folder, _DIFFERENT, sizes)
        for latency in latencies:
            with serve_pictures(folder, latency / 1000) as site:
                rows.append(_at_latency(site, latency, pictures, folder, f"{root}/{latency}", other))
    return rows


def _at_latency(site: str, latency: int, pictures: int, folder: Path, root: str, other: Path | None) -> Speed:
    urls = [f"{site}/{number}.jpg" for number in range(pictures)]
    before = _bound(folder, pictures)
    unkept = _rate(pictures, lambda: sum(len(picture.jpeg) for picture in _stream(urls, None)))
    first = _stored(urls, root)
    again = _stored(urls, root)
    theirs = None if other is None else _img2dataset(other, urls)
    some = urls[: max(1, pictures // _SEQUENTIAL_SHARE)]
    sequential = _rate(len(some), lambda: _sequential(some))
    # Otherwise a temporary slowdown of the machine would affect only one of them.
    bound = _mean(before, _bound(folder, pictures))
    return Speed(latency, bound, unkept, first, again, theirs, sequential)


def _rate(pictures: int, work: Callable[[], object]) -> Rate:
    servers = psutil.Process().children(recursive=True)
    start, own, others = time.perf_counter(), time.process_time(), _processor_seconds(servers)
    work()
    return Rate(
        pictures / (time.perf_counter() - start),
        1000 * (time.process_time() - own) / pictures,
        1000 * (_processor_seconds(servers) - others) / pictures,
    )


def _processor_seconds(processes: Sequence[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def _mean(one: Rate, other: Rate) -> Rate:
    return Rate(*((mine + theirs) / 2 for mine, theirs in zip(astuple(one), astuple(other), strict=True)))


def _bound(folder: Path, pictures: int) -> Rate:
    """Only decode, scale and encode, on all cores."""
    reuse_freed_memory()
    originals = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]

    def prepare(number: int) -> bytes:
        original = originals[number % len(originals)]
        return encode_jpeg(decode_scaled(original, PictureLimits(), LONGEST_SIDE).image)

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return _rate(pictures, lambda: sum(len(jpeg) for jpeg in threads.map(prepare, range(pictures))))


class _Web:
    def url(self, address: str) -> str:
        return address

    def read(self, address: str) -> bytes:
        raise NotImplementedError


def _stored(urls: Sequence[str], root: str) -> Rate:
    """Prepare as the step does: through the picture store, with fingerprints, to this disk."""
    storage = Storage()
    with tempfile.TemporaryDirectory() as name:

        def work() -> None:
            with (
                open_store(storage, root, "default", Path(name)) as store,
                (Path(name) / "spool").open("wb") as spool,
            ):
                for picture in _stream(urls, store):
                    spool.write(picture.jpeg)

        return _rate(len(urls), work)


def _stream(urls: Sequence[str], store: PictureStore | None) -> Iterator[Prepared]:
    for found in stream_pictures(
        map(Wanted, urls),
        _Web(),
        profile=LOOPBACK,
        store=store,
        fingerprint=fingerprint,
        longest_side=LONGEST_SIDE,
    ):
        if not isinstance(found, Prepared):
            raise UserError(f"{found.address}: {found.detail}")
        yield found


def _sequential(urls: Sequence[str]) -> None:
    """Fetch and prepare one picture after the other, as a simple script would."""
    with tempfile.TemporaryDirectory() as folder:
        for number, url in enumerate(urls):
            response = requests.get(url, timeout=30)
            response.raise_for_status()
            image = Image.open(io.BytesIO(response.content)).convert("RGB")
            image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
            image.save(f"{folder}/{number}.jpg", quality=JPEG_QUALITY)


_IMG2DATASET = """
import json, os, sys, time
from img2dataset import download

if __name__ == "__main__":
    options, folder = json.loads(sys.argv[1]), sys.argv[2]
    for number, urls in enumerate(("one.txt", "all.txt")):
        start, processor = time.perf_counter(), sum(os.times()[:4])
        download(url_list=f"{folder}/{urls}", output_folder=f"{folder}/{number}", **options)
        print("seconds", time.perf_counter() - start, sum(os.times()[:4]) - processor)
"""


def _img2dataset(python: Path, urls: Sequence[str]) -> Rate:
    """Run img2dataset with one process per core; the time for a single picture is subtracted."""
    cores = os.cpu_count() or 1
    options = {
        "processes_count": cores,
        "thread_count": 64,
        # As many parts as processes, so that all of them work.
        "number_sample_per_shard": -(-len(urls) // cores),
        "image_size": LONGEST_SIDE,
        "resize_mode": "keep_ratio_largest",
        "resize_only_if_bigger": True,
        "encode_quality": JPEG_QUALITY,
        "enable_wandb": False,
    }
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "one.txt").write_text(urls[0])
        (Path(folder) / "all.txt").write_text("\n".join(urls))
        script = Path(folder) / "run.py"
        script.write_text(_IMG2DATASET)
        told = ""

        def work() -> None:
            nonlocal told
            told = _run([str(python), str(script), json.dumps(options), folder])

        servers_ms = _rate(len(urls), work).servers_ms
        one, all_of_them = (
            [float(word) for word in line.split()[1:]]
            for line in told.splitlines()
            if line.startswith("seconds")
        )
        made = len(list((Path(folder) / "1").rglob("*.jpg")))
    if made != len(urls):
        raise UserError(f"img2dataset made {made} of {len(urls)} pictures")
    seconds, processor = (more - less for more, less in zip(all_of_them, one, strict=True))
    return Rate(len(urls) / seconds, 1000 * processor / len(urls), servers_ms)


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"{command[0]} ended with status {done.returncode}: {last}")
    return done.stdout


@contextmanager
def _installed_img2dataset() -> Iterator[Path | None]:
    """Yield the Python of a virtual environment with img2dataset; None if it cannot be installed."""
    with tempfile.TemporaryDirectory() as name:
        python = Path(name) / "bin" / "python"
        try:
            _run([sys.executable, "-m", "venv", name])
            _run([str(python), "-m", "pip", "install", "-q", "img2dataset"])
        except UserError as error:
            typer.echo(f"img2dataset cannot be installed and is skipped: {error}", err=True)
            yield None
        else:
            yield python


@contextmanager
def _embedded_s3(folder: Path) -> Iterator[str]:
    """Serve S3 on this machine, and yield the URI of a bucket."""
    with serve_s3(folder / "s3") as server:
        os.environ.update(server.environment())
        boto3.Session().client("s3").create_bucket(Bucket="benchmark")
        yield "s3://benchmark"


@dataclass(frozen=True)
class Memory:
    """One row: the complete step on a number of rows with small pictures."""

    rows: int
    peak_bytes: int
    seconds: float


_STEP = """
import sys, time
from pathlib import Path
from components.prepare_data.step import prepare_data_step
from fovea.steps import RunContext

folder, root = Path(sys.argv[1]), sys.argv[2]
start = time.perf_counter()
prepare_data_step(
    RunContext(artifact_root=root, run_id="benchmark"),
    {"source": str(folder / "products.csv"), "fetch_profile": "loopback"},
    folder / "dataset.json",
)
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
print("measured", time.perf_counter() - start, int(peak.split()[1]) * 1024)
"""


def measure_memory(rows: Sequence[int], side: int) -> list[Memory]:
    """Run the complete step in a separate process for each number of rows, with square pictures."""
    with tempfile.TemporaryDirectory() as name, _embedded_s3(Path(name)) as root:
        folder = Path(name) / "pictures"
        folder.mkdir()
        write_photographs(folder, 16 * _DIFFERENT, sizes=((side, side),))
        os.environ["FOVEA_PLATFORM"] = f"{name}/platform.yaml"
        Path(os.environ["FOVEA_PLATFORM"]).write_text(
            "fetch_profiles: {loopback: {allowed_networks: [127.0.0.0/8]}}"
        )
        with serve_pictures(folder, 0) as site:
            return [_with_rows(number, site, f"{root}/{number}", Path(name)) for number in rows]


def _with_rows(rows: int, site: str, root: str, folder: Path) -> Memory:
    with (folder / "products.csv").open("w") as file:
        print("product_code,title,category3_code,full_price,currency_code,imageurl", file=file)
        for number in range(rows):
            values = f"P{number},Lamp {number},LAMPS,{number % 900 + 1}.50,EUR"
            print(f"{values},{site}/{number}.jpg", file=file)
    told = _run([sys.executable, "-c", _STEP, str(folder), root])
    _, seconds, peak = next(line for line in told.splitlines() if line.startswith("measured")).split()
    return Memory(rows, int(peak), float(seconds))


@dataclass(frozen=True)
class Reading:
    """One row, in pictures per second."""

    what: str
    pictures_per_second: float


def measure_reading(pictures: int) -> list[Reading]:
    """Stream a split from S3, shuffled, as a training could, with pictures as bytes and decoded."""
    with tempfile.TemporaryDirectory() as name, _embedded_s3(Path(name)) as root:
        folder = Path(name) / "shards"
        folder.mkdir()
        _write_split(folder, pictures)
        Storage().upload_folder(folder, f"{root}/shards/")
        urls = [_presigned(uri) for uri in Storage().list(f"{root}/shards/")]

        def stream(*, decode: bool) -> tuple[list[str], float]:
            split = load_dataset("parquet", data_files=urls, split="train", streaming=True)
            split = split.cast_column("image", DatasetsImage(decode=decode)).shuffle(seed=1, buffer_size=200)
            order, start, end = [], time.perf_counter(), 0.0
            for row in split:
                order.append(row["row_id"])
                # The time of the last picture: `datasets` sleeps for five seconds after it.
                end = time.perf_counter()
            return order, len(order) / (end - start)

        stream(decode=False)
        (order, encoded), (same, decoded) = stream(decode=False), stream(decode=True)
        if order != same or order == sorted(order) or len(order) != pictures:
            raise UserError("a shuffle with the same seed gave another order, or none")
    return [Reading("as JPEG", encoded), Reading("decoded", decoded)]


def _write_split(folder: Path, pictures: int) -> None:
    """Write shards as the step does: the same columns, a thousand rows each, in groups of a hundred."""
    with tempfile.TemporaryDirectory() as name:
        write_photographs(Path(name), _DIFFERENT)
        originals = [path.read_bytes() for path in sorted(Path(name).glob("*.jpg"))]
    jpegs = [encode_jpeg(decode_scaled(data, PictureLimits(), LONGEST_SIDE).image) for data in originals]
    columns = schema(product_task())
    for start in range(0, pictures, ROWS_PER_SHARD):
        rows = [
            {
                "row_id": f"{number:09}",
                "product_id": f"P{number}",
                "product_group": f"P{number}",
                "image": {"bytes": jpegs[number % len(jpegs)], "path": f"{number}.jpg"},
                "title": f"Lamp {number}",
                "category3_code": "LAMPS",
                "full_price": 1.5,
                "currency": "EUR",
            }
            for number in range(start, min(start + ROWS_PER_SHARD, pictures))
        ]
        table = pyarrow.Table.from_pylist(rows, columns)
        pyarrow.parquet.write_table(table, folder / f"train-{start:06}.parquet", row_group_size=100)


def _presigned(uri: str) -> str:
    """Return a presigned URL, valid for an hour: `datasets` supports HTTPS, and S3 only with s3fs."""
    bucket, key = split_uri(uri)
    client = boto3.Session().client("s3", config=Config(signature_version="s3v4"))
    url: str = client.generate_presigned_url("get_object", {"Bucket": bucket, "Key": key}, ExpiresIn=3600)
    return url


def speed_tables(rows: list[Speed], sizes: Sizes) -> Group:
    """Return the rows as tables."""
    measures = ", ".join(f"{width} x {height}" for width, height in sizes)
    wall = Table(title=f"Pictures per second on {_machine()}\n{measures}, to at most {LONGEST_SIDE}")
    wall.caption = (
        "bound: only decoding, scaling and encoding, on all cores; % of it.\n"
        "first: originals are written to the picture store. again: they are read from it."
    )
    processor = Table(title="Processor time per picture, ms: own + that of the web server and S3")
    processor.caption = "%: the bound's own time relative to it; the rate if no core ever waited."
    for table in (wall, processor):
        for heading in ("latency", "bound", "no store", "first", "again", "img2dataset", "sequential"):
            table.add_column(heading, justify="right")
    for row in rows:
        ways = (row.unkept, row.first, row.again, row.img2dataset, row.sequential)
        speeds = ["–" if way is None else _speed(way, row.bound) for way in ways]
        wall.add_row(f"{row.latency_ms} ms", f"{row.bound.pictures_per_second:.1f}", *speeds)
        times = ["–" if way is None else _processor_time(way, row.bound) for way in ways]
        processor.add_row(f"{row.latency_ms} ms", f"{row.bound.own_ms:.1f}", *times)
    return Group(wall, processor)


def _speed(way: Rate, bound: Rate) -> str:
    share = way.pictures_per_second / bound.pictures_per_second
    return f"{way.pictures_per_second:.1f} {share:>4.0%}"


def _processor_time(way: Rate, bound: Rate) -> str:
    return f"{way.own_ms:.1f} + {way.servers_ms:.1f} {bound.own_ms / way.own_ms:>4.0%}"


def memory_table(rows: list[Memory]) -> Table:
    """Return the rows as a table."""
    table = Table(title=f"The whole step, small pictures,\non {_machine()}")
    for heading in ("rows", "peak MiB", "s", "rows/s"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            f"{row.rows:,}",
            f"{row.peak_bytes / 2**20:.0f}",
            f"{row.seconds:.1f}",
            f"{row.rows / row.seconds:.0f}",
        )
    return table


def reading_table(rows: list[Reading]) -> Table:
    """Return the rows as a table."""
    table = Table(title=f"Streamed with datasets from S3, shuffled,\non {_machine()}")
    for heading in ("pictures", "pictures/s"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(row.what, f"{row.pictures_per_second:.0f}")
    return table


def _machine() -> str:
    return f"{os.cpu_count()} cores"


app = typer.Typer(add_completion=False, help=__doc__, pretty_exceptions_enable=False)

JsonOption = Annotated[Path | None, typer.Option("--json", help="File for the results.")]


@app.command("speed")
def speed_command(
    latency: Annotated[
        list[int], typer.Option(help="Milliseconds before the server answers.", min=0)
    ] = LATENCIES,
    pictures: Annotated[int, typer.Option(help="Pictures per measurement.", min=8)] = 600,
    scaling: Annotated[
        bool, typer.Option(help="Half of the pictures must be scaled down; otherwise none.")
    ] = True,
    img2dataset: Annotated[bool, typer.Option(help="Also install and measure img2dataset.")] = True,
    json_file: JsonOption = None,
) -> None:
    """Measure pictures per second from a web server: the step, img2dataset, and a sequential script."""
    sizes = tuple(size for size in SIZES if scaling or max(size) <= LONGEST_SIDE)
    with _installed_img2dataset() if img2dataset else nullcontext() as other:
        rows = measure_speed(latency, pictures, other, sizes)
    _show(speed_tables(rows, sizes), rows, json_file)


@app.command("memory")
def memory_command(
    rows: Annotated[list[int], typer.Option(help="Number of rows; can be repeated.", min=400)] = ROWS,
    side: Annotated[int, typer.Option(help="Pixels of the pictures' sides.", min=32)] = _SIDE,
    json_file: JsonOption = None,
) -> None:
    """Measure the peak memory of the complete step, by rows."""
    measured = measure_memory(rows, side)
    _show(memory_table(measured), measured, json_file)


@app.command("reading")
def reading_command(
    pictures: Annotated[int, typer.Option(help="Number of pictures.", min=100)] = 2000,
    json_file: JsonOption = None,
) -> None:
    """Measure pictures per second that `datasets` streams from S3, and check the order of a seed."""
    rows = measure_reading(pictures)
    _show(reading_table(rows), rows, json_file)


def _show(table: Table | Group, rows: Sequence[Any], json_file: Path | None) -> None:
    # In a file or a log, do not wrap at a terminal's usual width.
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    if json_file is not None:
        made = {"machine": _machine(), "rows": [asdict(row) for row in rows]}
        json_file.write_text(json.dumps(made, indent=2) + "\n")


def main() -> None:
    """Run the command; print errors that the user can fix as one line."""
    try:
        app()
    except UserError as error:
        typer.echo(f"benchmark: {error}", err=True)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()

"""Compare uploads to and downloads from S3: ours, boto3's defaults and rclone copy, in one run.

    python -m benchmarks.storage [--gigabytes 2] [--files 4]

The server is `rclone serve s3` on this machine, which shares its cores and disk. Ours
computes and checks every file's SHA-256; rclone compares hashes of the server; boto3 checks only the
parts' checksums. Each uploads and downloads three times, in rotating order; the table
shows the best time.
"""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import boto3
import typer

from fovea.records import ModelRecord, now
from fovea.storage import Storage
from pipelines.local.s3 import find_rclone, serve_s3

_ROUNDS = 3


def _write_files(folder: Path, gigabytes: float, count: int) -> None:
    folder.mkdir()
    for number in range(count):
        left = int(gigabytes * 1e9 / count)
        with (folder / f"model-{number:05}.bin").open("wb") as file:
            while left > 0:
                left -= file.write(os.urandom(min(left, 16 << 20)))


def _ours(source: Path, target: Path) -> tuple[Callable[[], object], Callable[[], object]]:
    storage, records = Storage(), []

    def up() -> None:
        files = storage.upload_folder(source, "s3://ours/model/")
        records.append(
            ModelRecord(
                step="benchmark", step_version=1, input_key="0" * 64, uri="s3://ours/model/", files=files,
                parameters={}, parents={}, created_at=now(), run_id="", architecture="x", num_crops=1,
            )
        )  # fmt: skip

    return up, lambda: storage.download(records[-1], cache=target)


def _boto3(source: Path, target: Path) -> tuple[Callable[[], object], Callable[[], object]]:
    client = boto3.Session().client("s3")
    names = sorted(path.name for path in source.iterdir())

    def up() -> None:
        for name in names:
            client.upload_file(str(source / name), "boto3", name)

    def down() -> None:
        target.mkdir()
        for name in names:
            client.download_file("boto3", name, str(target / name))

    return up, down


def _rclone(source: Path, target: Path) -> tuple[Callable[[], object], Callable[[], object]]:
    environment = {
        **os.environ,
        "RCLONE_CONFIG": os.devnull,
        "RCLONE_S3_PROVIDER": "Rclone",
        "RCLONE_S3_ENDPOINT": os.environ["AWS_ENDPOINT_URL_S3"],
        "RCLONE_S3_ACCESS_KEY_ID": os.environ["AWS_ACCESS_KEY_ID"],
        "RCLONE_S3_SECRET_ACCESS_KEY": os.environ["AWS_SECRET_ACCESS_KEY"],
    }

    def copy(one: str, other: str) -> None:
        subprocess.run([find_rclone(), "copy", "--ignore-times", one, other], env=environment, check=True)  # noqa: S603

    return (
        lambda: copy(str(source), ":s3:rclone/model"),
        lambda: copy(":s3:rclone/model", str(target)),
    )


def _seconds(work: Callable[[], object]) -> float:
    # Earlier writes must not count towards this time.
    os.sync()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main(
    gigabytes: Annotated[float, typer.Option(help="Total size of the files.")] = 2.0,
    files: Annotated[int, typer.Option(help="Number of files.")] = 4,
    folder: Annotated[
        Path | None, typer.Option(help="A folder with space for five times as much; by default /tmp.")
    ] = None,
) -> None:
    """Print a table of upload and download rates in MB/s."""
    with tempfile.TemporaryDirectory(dir=folder) as name, serve_s3(Path(name) / "buckets") as server:
        os.environ.update(server.environment())
        source, target = Path(name) / "source", Path(name) / "target"
        _write_files(source, gigabytes, files)
        ways = {"ours": _ours, "boto3": _boto3, "rclone": _rclone}
        best: dict[str, list[float]] = {way: [float("inf")] * 2 for way in ways}
        for way in ways:
            boto3.Session().client("s3").create_bucket(Bucket=way)
        for number in range(_ROUNDS):
            order = [*ways][number:] + [*ways][:number]
            for way in order:
                for direction, work in enumerate(ways[way](source, target)):
                    best[way][direction] = min(best[way][direction], _seconds(work))
                shutil.rmtree(target)
    print(f"{'MB/s':12}{'up':>8}{'down':>8}")
    for way, seconds in best.items():
        print(f"{way:12}" + "".join(f"{gigabytes * 1000 / each:>8.0f}" for each in seconds))


if __name__ == "__main__":
    typer.run(main)

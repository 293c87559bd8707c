"""A preparation that is killed at any moment and started again: the same bytes, and nothing fetched twice."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from fovea.storage import Storage
from sample.catalogue import PLACEHOLDER, write_catalogue

KILLS = 10


class Feed:
    """The sample catalogue, served so slowly that there is time to be killed; counts what it sent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sent: list[str] = []
        self.url = ""

    def read(self, path: str) -> bytes | None:
        file = self.folder / path.lstrip("/")
        if not file.is_file():
            return None
        data = file.read_bytes()
        return data.replace(PLACEHOLDER.encode(), self.url.encode()) if file.suffix == ".csv" else data


@contextmanager
def served(folder: Path) -> Iterator[Feed]:
    feed = Feed(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None: ...

        def do_GET(self) -> None:
            time.sleep(0.1)
            path = urlsplit(self.path).path
            data = feed.read(path)
            self.send_response(200 if data is not None else 404)
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            self.wfile.write(data or b"")
            if data is not None:
                feed.sent.append(path)

    class Server(ThreadingHTTPServer):
        def handle_error(self, *args: object) -> None:
            """Say nothing of callers that were killed."""

    with Server(("127.0.0.1", 0), Handler) as server:
        feed.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield feed
        server.shutdown()


def start(feed: Feed, root: str, folder: Path) -> "subprocess.Popen[str]":
    (folder / "platform.yaml").write_text("fetch_profiles: {local: {allowed_networks: [127.0.0.0/8]}}")
    command = [sys.executable, "-m", "components", "prepare_data", "--source", f"{feed.url}/products.csv"]
    command += ["--artifact-root", root, "--fetch-profile", "local", "--longest-side", "224"]
    command += ["--min-rows", "5", "--fetch-concurrency", "4", "--dataset", str(folder / "dataset.json")]
    command += ["--report", str(folder / "report.html")]
    environment = {**os.environ, "FOVEA_PLATFORM": str(folder / "platform.yaml"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def shards(folder: Path) -> tuple[list[dict[str, object]], dict[str, object]]:
    record = json.loads((folder / "dataset.json").read_text())
    return record["files"], record["dropped"]


def stored(root: str) -> set[str]:
    """What the picture store has committed, as the feed's paths."""
    import pyarrow.parquet

    storage, found = Storage(), set[str]()
    for uri in storage.list(f"{root}/pictures/"):
        if "index" in uri:
            table = pyarrow.parquet.read_table(pyarrow.BufferReader(storage.read_bytes(uri)), columns=["url"])
            found |= {urlsplit(url).path for url in table.column("url").to_pylist()}
    return found


def kill_while_fetching(process: "subprocess.Popen[str]", feed: Feed, pictures: int) -> None:
    """Kill the process once the given number of further pictures were sent."""
    enough = len(feed.sent) + pictures
    while process.poll() is None and len(feed.sent) < enough:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)


def kill_while_writing(process: "subprocess.Popen[str]", seconds: float) -> None:
    """Kill so long after the rows were split, and the splits kept."""
    assert process.stdout is not None
    assert any(line.startswith("prepare_data: train ") for line in process.stdout)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)


@pytest.mark.prove
@pytest.mark.timeout(1800)
def test_killed_at_random_moments(s3: str, tmp_path: Path) -> None:
    write_catalogue(tmp_path / "catalogue", rows=300, seed=5)
    choice = random.Random(11)  # noqa: S311 - no secret
    kept: set[str] = set()
    for name in ("undisturbed", "killed"):
        (tmp_path / name).mkdir()
    with served(tmp_path / "catalogue") as feed:
        for name in ("undisturbed", "killed"):
            for kill in range(KILLS if name == "killed" else 0):
                before, sent = stored(f"{s3}/killed"), len(feed.sent)
                kept |= before
                with start(feed, f"{s3}/killed", tmp_path / "killed") as process:
                    if kill < KILLS - 3:
                        kill_while_fetching(process, feed, choice.randint(20, 160))
                    else:
                        kill_while_writing(process, choice.uniform(0, 0.2))
                assert process.returncode == -signal.SIGKILL
                assert not before & set(feed.sent[sent:]), "what was stored is not fetched again"
            with start(feed, f"{s3}/{name}", tmp_path / name) as process:
                said = process.communicate()[0]
            assert process.returncode == 0, said
    assert kept, "something was kept before it was killed"
    assert shards(tmp_path / "killed") == shards(tmp_path / "undisturbed")

"""A fast web server of pictures for benchmarks, in a separate process, with a fixed delay of each answer."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast


class _Pictures(asyncio.Protocol):
    """Answers ``/{number}.jpg`` with a different picture for each number, on persistent connections."""

    def __init__(self, pictures: list[bytes], wait: float) -> None:
        self._pictures = pictures
        self._wait = wait
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        *requests, self._received = (self._received + data).split(b"\r\n\r\n")
        for request in requests:
            asyncio.get_running_loop().call_later(self._wait, self._answer, request)

    def _answer(self, request: bytes) -> None:
        if self._transport.is_closing():
            return
        number = int(request.split(b" ", 2)[1].strip(b"/").partition(b".")[0])
        # Bytes after a picture's end change its digest but not its content.
        body = self._pictures[number % len(self._pictures)] + b"%09d" % number
        head = f"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n"
        self._transport.write(f'{head}ETag: "{number}"\r\n\r\n'.encode() + body)
        if b"connection: close" in request.lower():
            self._transport.close()


async def _serve(folder: Path, wait: float) -> None:
    pictures = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]
    server = await asyncio.get_running_loop().create_server(
        lambda: _Pictures(pictures, wait), "127.0.0.1", 0, backlog=1024
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextmanager
def serve_pictures(folder: Path, wait: float) -> Iterator[str]:
    """Serve a folder's JPEGs, each answer ``wait`` seconds after its request; yield the URL."""
    command = [sys.executable, "-m", "benchmarks.picture_server", str(folder), str(wait)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        try:
            assert process.stdout is not None  # noqa: S101 - for the types: it is a pipe
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]), float(sys.argv[2])))

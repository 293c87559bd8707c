"""An HTTP server whose answers tests write by hand: well-behaved, slow, broken or hostile."""

import asyncio
import ssl
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

Answer = Callable[["Request"], Awaitable[None]]


class Request:
    """One request: its path, its headers in lower case, and how often the path was asked for, from 1."""

    def __init__(self, path: str, headers: dict[str, str], number: int, writer: asyncio.StreamWriter) -> None:
        self.path = path
        self.headers = headers
        self.number = number
        self.writer = writer

    async def send(self, body: bytes = b"", status: str = "200 OK", **headers: object) -> None:
        """Answer as a good server does, with Content-Length; underscores in names become hyphens."""
        lines = [f"HTTP/1.1 {status}"] + [
            f"{name.replace('_', '-')}: {value}" for name, value in headers.items()
        ]
        await self.raw("\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body)

    async def raw(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.writer.write(data)
        await self.writer.drain()

    def drop(self) -> None:
        """Break the connection."""
        self.writer.close()


class FeedServer:
    """Serves on a loopback address in a thread: ``with FeedServer({"/a": answer}) as server``.

    Paths that are not among the answers go to ``otherwise``, else are not found.
    """

    def __init__(
        self,
        answers: dict[str, Answer],
        host: str = "127.0.0.1",
        port: int = 0,
        otherwise: Answer | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.answers = answers
        self.otherwise = otherwise
        self.asked: Counter[str] = Counter()
        self.headers: dict[str, dict[str, str]] = {}
        self.connections = 0
        self.most_at_once = 0
        self._at_once = 0
        self._host = host
        self._tls = tls
        self._port = port
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    @property
    def url(self) -> str:
        return f"http://{self._host}:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _work(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(
            asyncio.start_server(self._serve, self._host, self._port, ssl=self._tls)
        )
        self.port: int = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while not writer.is_closing():
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                path = head[0].split()[1]
                headers = {
                    name.lower(): value
                    for name, _, value in (line.partition(": ") for line in head[1:] if line)
                }
                self.asked[path] += 1
                self.headers[path] = headers
                self._at_once += 1
                self.most_at_once = max(self.most_at_once, self._at_once)
                try:
                    answer = self.answers.get(path) or self.otherwise or not_found
                    await answer(Request(path, headers, self.asked[path], writer))
                finally:
                    self._at_once -= 1
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


async def not_found(request: Request) -> None:
    await request.send(status="404 Not Found")


def says(body: bytes, status: str = "200 OK", **headers: object) -> Answer:
    """Return an answer that is always the same; with an ETag, 304 to whoever has it."""

    async def answer(request: Request) -> None:
        if "ETag" in headers and request.headers.get("if-none-match") == headers["ETag"]:
            await request.send(status="304 Not Modified")
        else:
            await request.send(body, status, **headers)

    return answer


def self_signed(name: str, folder: Path) -> Path:
    """Write a certificate of its own authority, and its key, into one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / "server.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return path

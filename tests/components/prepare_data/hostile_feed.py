"""A feed that does what no feed should, and what must be said of each of its pictures."""

import asyncio
import functools
import io
import socket
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from tests.feed_server import FeedServer, Request, says

HOST = "127.0.0.2"
"""Where it is served; a fetch profile must allow this address and no other."""


@functools.cache
def jpeg(number: int, size: tuple[int, int] = (80, 60)) -> bytes:
    colours = np.random.default_rng(number).integers(0, 255, (3, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(colours).resize(size).save(buffer, "JPEG")
    return buffer.getvalue()


def bomb() -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


async def slow(request: Request) -> None:
    body = jpeg(1)
    await request.raw(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode())
    for start in range(0, len(body), 100):
        await request.raw(body[start : start + 100])
        await asyncio.sleep(0.005)


async def dropped_once(request: Request) -> None:
    body = jpeg(2)
    whole = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    await request.raw(whole if request.number > 1 else whole[:300])
    if request.number == 1:
        request.drop()


async def always_dropped(request: Request) -> None:
    request.drop()


async def busy_once(request: Request) -> None:
    if request.number == 1:
        await request.send(status="429 Too Many Requests", Retry_After=0)
    else:
        await request.send(jpeg(3))


async def endless(request: Request) -> None:
    await request.raw(b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n\r\n" + jpeg(4))
    while True:
        await request.raw(b"x" * 10_000)


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


@dataclass(frozen=True)
class Hostile:
    """The feed: for each address why there is no picture, empty where there is one; and what it leads to."""

    reasons: dict[str, str]
    inside: FeedServer
    """A server on another address of this machine, that must never be asked."""


@contextmanager
def hostile_feed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hostile]:
    real = socket.getaddrinfo

    def lookup(host, *args, **kwargs):  # type: ignore[no-untyped-def]
        """A name that sounds public, and leads inside when it comes to connecting."""
        return real("127.0.0.1" if host == "cdn.shop.test" else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    with FeedServer({}, otherwise=says(jpeg(9))) as inside:
        metadata = "http://169.254.169.254/latest/meta-data/iam/security-credentials/"
        answers = {
            "/good": (says(jpeg(0)), ""),
            "/slow": (slow, ""),
            "/dropped-once": (dropped_once, ""),
            "/busy-once": (busy_once, ""),
            "/moved": (says(b"", "302 Found", Location="/good"), ""),
            "/always-dropped": (always_dropped, "connection_failed"),
            "/busy": (says(b"", "429 Too Many Requests", Retry_After=9999), "rate_limited"),
            "/down": (says(b"", "503 Service Unavailable", Retry_After=0), "server_error"),
            "/to-metadata": (says(b"", "302 Found", Location=metadata), "forbidden_address"),
            "/to-loopback": (says(b"", "302 Found", Location=f"{inside.url}/x"), "forbidden_address"),
            "/round": (says(b"", "302 Found", Location="/round"), "too_many_redirects"),
            "/bomb": (says(bomb()), "too_many_pixels"),
            "/endless": (endless, "too_large"),
            "/svg": (says(SVG, Content_Type="image/svg+xml"), "not_a_picture"),
            "/empty": (says(b""), "not_a_picture"),
            "/page": (says(b"<html>Not here</html>"), "not_a_picture"),
            "/cut": (says(jpeg(5)[:-300]), "damaged"),
            "/gone": (says(b"", "410 Gone"), "not_found"),
        }
        with FeedServer({path: answer for path, (answer, _) in answers.items()}, HOST) as feed:
            reasons = {feed.url + path: reason for path, (_, reason) in answers.items()}
            reasons[f"http://cdn.shop.test:{inside.port}/x"] = "forbidden_address"
            reasons[f"{inside.url}/x"] = "forbidden_address"
            yield Hostile(reasons, inside)

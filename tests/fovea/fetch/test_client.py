"""Fetching, from real servers on the loopback interface."""

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fovea.fetch.client import Fetched, Fetcher, FetchError, FetchLimits, address_allowed, join_url
from fovea.fetch.profiles import FetchProfile
from tests.feed_server import self_signed

LOOPBACK = FetchProfile.model_validate({"allowed_networks": ["127.0.0.0/8"]})
QUICK = FetchLimits(max_bytes=10_000, total_seconds=10, idle_seconds=3, attempts=3, max_wait_seconds=2)

Handler = Callable[[str, dict[str, str], asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serve(
    handler: Handler, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """Serve HTTP with ``handler(path, headers, writer)``, which writes the raw response; yields the port."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            await handler(head[0].split()[1], headers, writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connected, host, port, ssl=tls)
    async with server:
        yield server.sockets[0].getsockname()[1]
        server.close()


def answer(body: bytes = b"", status: str = "200 OK", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def fetch(
    handler: Handler,
    path: str = "/",
    profile: FetchProfile = LOOPBACK,
    limits: FetchLimits = QUICK,
    url: str = "http://127.0.0.1:{port}",
) -> Fetched:
    async def run() -> Fetched:
        async with serve(handler) as port, Fetcher(profile, limits) as fetcher:
            return await fetcher.fetch(url.format(port=port) + path)

    return asyncio.run(run())


def reason(*args, **kwargs) -> str:  # type: ignore[no-untyped-def]
    with pytest.raises(FetchError) as caught:
        fetch(*args, **kwargs)
    return caught.value.reason


def test_brings_bytes_and_says_who_asks() -> None:
    seen = {}

    async def handler(path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        seen.update(headers)
        writer.write(answer(b"hello", Set_Cookie="a=b"))

    found = fetch(handler, "/x.jpg")
    assert found.content == b"hello"
    assert found.url.endswith("/x.jpg")
    assert seen["user-agent"].startswith("fovea/")
    assert seen["accept-encoding"] == "identity"
    assert seen["host"].startswith("127.0.0.1:")


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("404 Not Found", "not_found"),
        ("410 Gone", "not_found"),
        ("403 Forbidden", "refused"),
        ("304 X", "refused"),
    ],
)
def test_a_final_status_is_not_retried(status: str, expected: str) -> None:
    calls = []

    async def handler(path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        calls.append(path)
        writer.write(answer(status=status))

    assert reason(handler) == expected
    assert len(calls) == 1


@pytest.mark.parametrize("date", [False, True])
def test_waits_as_long_as_the_server_asks(date: bool) -> None:
    times: list[float] = []

    async def handler(path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        times.append(time.monotonic())
        later = format_datetime(datetime.now(UTC) + timedelta(seconds=1.9), usegmt=True) if date else "1"
        busy = answer(status="429 Too Many Requests", Retry_After=later)
        writer.write(busy if len(times) == 1 else answer(b"now"))

    assert fetch(handler).content == b"now"
    assert times[1] - times[0] >= (0.8 if date else 1.0)


@pytest.mark.parametrize(
    ("status", "wait", "expected", "calls"),
    [
        ("429 Too Many Requests", "3600", "rate_limited", 1),
        ("503 Service Unavailable", "0", "server_error", 3),
        ("503 Service Unavailable", "soon", "server_error", 3),
    ],
)
def test_gives_up_on_a_busy_server(status: str, wait: str, expected: str, calls: int) -> None:
    count = []

    async def handler(path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        count.append(path)
        writer.write(answer(status=status, Retry_After=wait))

    assert reason(handler) == expected
    assert len(count) == calls


def test_a_broken_connection_is_tried_again() -> None:
    calls = []

    async def handler(path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        calls.append(path)
        writer.write(answer(b"whole")[: -3 if len(calls) == 1 else None])

    assert fetch(handler).content == b"whole"
    assert len(calls) == 2


def test_a_port_where_nobody_listens() -> None:
    async def handler(path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None: ...

    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        assert reason(handler, url=f"http://127.0.0.1:{port}") == "connection_failed"


def test_an_endless_body_is_left_at_the_limit() -> None:
    sent = 0

    async def handler(path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b"x" * 1000)
            sent += 1000
            await writer.drain()

    assert reason(handler) == "too_large"
    assert sent < 20_000_000


def test_a_declared_size_over_the_limit_is_not_read() -> None:
    async def handler(path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10001\r\n\r\n")

    assert reason(handler) == "too_large"


def test_a_body_of_just_the_limit_is_taken() -> None:
    async def handler(path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        writer.write(answer(b"x" * 10_000))

    assert len(fetch(handler).content) == 10_000


def test_compressed_bodies_are_refused() -> None:
    async def handler(path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        writer.write(answer(b"\x1f\x8b", Content_Encoding="gzip"))

    assert reason(handler) == "bad_response"


@pytest.mark.parametrize("part", [b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n"])
def test_a_server_that_drips_hits_the_total_limit(part: bytes) -> None:
    """Each byte comes well within the idle limit, in the header or in the body."""

    async def handler(path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        writer.write(part)
        while not writer.is_closing():
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.05)

    start = time.monotonic()
    limits = QUICK.model_copy(update={"total_seconds": 0.5})
    assert reason(handler, limits=limits) == "timeout"
    assert time.monotonic() - start < 3


def test_a_silent_server_hits_the_idle_limit() -> None:
    async def handler(path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(1)

    limits = QUICK.model_copy(update={"idle_seconds": 0.1, "attempts": 1})
    assert reason(handler, limits=limits) == "timeout"


def test_follows_redirects_and_says_where_it_ended() -> None:
    async def handler(path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        hops = {"/a": "b?x=1", "/b?x=1": "/c"}
        found = answer(b"here")
        writer.write(answer(status="302 Found", Location=hops[path]) if path in hops else found)

    found = fetch(handler, "/a")
    assert found.content == b"here"
    assert found.url.endswith("/c")


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("http://169.254.169.254:{port}/latest/meta-data/", "forbidden_address"),
        ("http://[fd00:ec2::254]:{port}/", "forbidden_address"),
        ("http://[::ffff:169.254.169.254]:{port}/", "forbidden_address"),
        ("http://10.0.0.1:{port}/", "forbidden_address"),
        ("http://127.0.0.2:{port}/", "forbidden_address"),
        ("http://127.0.0.1:1/", "forbidden_address"),
        ("http://2130706434:{port}/", "forbidden_address"),
        ("//0:{port}/", "forbidden_address"),
        ("file:///etc/passwd", "invalid_url"),
        ("gopher://127.0.0.1:{port}/", "invalid_url"),
        ("http://[::1/", "invalid_url"),
        ("http://xn--/a.jpg", "invalid_url"),
        ("http://127.0.0.1:99999/", "invalid_url"),
        ("http://127.0.0.1:0/", "invalid_url"),
        (f"http://{'a' * 64}.example/", "invalid_url"),
        ("S3://bucket/a.jpg", "invalid_url"),
        ("/again", "too_many_redirects"),
    ],
)
def test_each_hop_of_a_redirect_is_checked(target: str, expected: str) -> None:
    calls = []

    async def handler(path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        calls.append(path)
        writer.write(answer(status="302 Found", Location=target.format(port=headers["host"].split(":")[1])))

    async def run() -> str:
        async with serve(handler) as port:
            # This server alone may be reached, at this very address and port.
            profile = FetchProfile.model_validate(
                {"allowed_networks": ["127.0.0.1/32"], "allowed_ports": [port]}
            )
            async with Fetcher(profile, QUICK) as fetcher:
                with pytest.raises(FetchError) as caught:
                    await fetcher.fetch(f"http://127.0.0.1:{port}/")
                return caught.value.reason

    assert asyncio.run(run()) == expected
    assert len(calls) == (1 if expected != "too_many_redirects" else QUICK.max_redirects + 1)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::1]", "[::ffff:7f00:1]"]
)
def test_loopback_is_forbidden_by_default(host: str) -> None:
    reached = []

    async def handler(path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        reached.append(path)

    assert reason(handler, profile=FetchProfile(), url=f"http://{host}:{{port}}") == "forbidden_address"
    assert not reached


def test_the_address_that_was_checked_is_the_one_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that answers differently the second time (DNS rebinding) changes nothing."""
    real, answers = socket.getaddrinfo, iter(["127.0.0.1", "127.0.0.2", "127.0.0.2"])

    def rebinding(host, *args, **kwargs):  # type: ignore[no-untyped-def]
        return real(next(answers) if host == "shop.test" else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    hosts = []

    async def good(path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        hosts.append(headers["host"])
        writer.write(answer(b"good"))

    async def evil(path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        writer.write(answer(b"evil"))

    async def run() -> bytes:
        profile = FetchProfile.model_validate({"allowed_networks": ["127.0.0.1/32"]})
        async with serve(good) as port, serve(evil, "127.0.0.2", port), Fetcher(profile, QUICK) as fetcher:
            found = (await fetcher.fetch(f"http://shop.test:{port}/")).content
            with pytest.raises(FetchError, match="fetch profile") as caught:
                await fetcher.fetch(f"http://shop.test:{port}/")
            assert caught.value.reason == "forbidden_address"
            assert hosts == [f"shop.test:{port}"]
            return found

    assert asyncio.run(run()) == b"good"


def test_a_forbidden_address_among_allowed_ones_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo

    def both(host, *args, **kwargs):  # type: ignore[no-untyped-def]
        hosts = ["10.0.0.1", "127.0.0.1"] if host == "shop.test" else [host]
        return [item for name in hosts for item in real(name, *args, **kwargs)]

    monkeypatch.setattr(socket, "getaddrinfo", both)

    async def handler(path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        writer.write(answer(b"good"))

    assert fetch(handler, url="http://shop.test:{port}").content == b"good"


def test_a_name_that_does_not_exist() -> None:
    async def handler(path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None: ...

    start = time.monotonic()
    limits = QUICK.model_copy(update={"attempts": 1})
    assert reason(handler, limits=limits, url="http://nowhere.invalid:{port}") == "connection_failed"
    assert time.monotonic() - start < 10


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")

    async def handler(path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        writer.write(answer(b"direct"))

    assert fetch(handler).content == b"direct"


def test_tls_is_checked_against_the_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    certificate = self_signed("shop.test", tmp_path)
    server_tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server_tls.load_cert_chain(certificate)
    names = []
    server_tls.sni_callback = lambda _socket, name, _context: names.append(name)
    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *a, **k: real("127.0.0.1" if ".test" in host else host, *a, **k)
    )

    async def handler(path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        writer.write(answer(headers["host"].encode()))

    async def run() -> None:
        trusting = ssl.create_default_context(cafile=str(certificate))
        limits = QUICK.model_copy(update={"attempts": 1})
        async with serve(handler, tls=server_tls) as port:
            async with Fetcher(LOOPBACK, limits, tls=trusting) as fetcher:
                found = await fetcher.fetch(f"https://shop.test:{port}/")
                assert found.content == f"shop.test:{port}".encode()
                assert names == ["shop.test"]
                with pytest.raises(FetchError, match="certificate") as caught:
                    await fetcher.fetch(f"https://other.test:{port}/")
                assert caught.value.reason == "connection_failed"
            async with Fetcher(LOOPBACK, limits) as fetcher:
                with pytest.raises(FetchError, match="certificate"):
                    await fetcher.fetch(f"https://shop.test:{port}/")

    asyncio.run(run())


EVERYTHING = FetchProfile.model_validate({"allowed_networks": ["0.0.0.0/0", "::/0"]})


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",  # noqa: S104 - an address to refuse
        "10.1.2.3",
        "100.64.0.1",
        "127.0.0.1",
        "169.254.1.1",
        "172.16.0.1",
        "192.0.2.1",
        "192.168.1.1",
        "198.18.0.1",
        "224.0.0.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::7f00:1",
        "::ffff:10.0.0.1",
        "64:ff9b::a00:1",
        "2002:7f00:1::",
        "2001:db8::1",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        "fc00::1",
        "fe80::1",
        "fec0::1",
        "ff02::1",
    ],
)
def test_what_is_not_public_needs_a_profile(address: str) -> None:
    assert not address_allowed(ip_address(address), 443, FetchProfile())


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",
        "169.254.170.2",
        "168.63.129.16",
        "100.100.100.200",
        "192.0.0.192",
        "fd00:ec2::254",
        "fd20:ce::254",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "2002:a9fe:a9fe::",
    ],
)
def test_metadata_addresses_are_never_allowed(address: str) -> None:
    assert not address_allowed(ip_address(address), 80, EVERYTHING)


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"])
def test_public_addresses_are_allowed(address: str) -> None:
    assert address_allowed(ip_address(address), 80, FetchProfile())
    assert not address_allowed(ip_address(address), 80, FetchProfile(allowed_ports=(443,)))


ANY_TEXT = st.text(st.characters(), max_size=40)


@given(start=st.sampled_from(["", "http://", "https://a.example:", "//", "http://xn--"]), text=ANY_TEXT)
def test_any_text_is_an_address_or_an_invalid_one(start: str, text: str) -> None:
    reasons = set()
    try:
        found = join_url("http://shop.example/feed.csv", start + text)
    except FetchError as error:
        found = ""
        reasons.add(error.reason)
    assert found.startswith("http") or reasons == {"invalid_url"}

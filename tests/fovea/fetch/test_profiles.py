"""What a fetch profile brings: other hosts, a proxy, authorities, secret headers; and manners."""

import asyncio
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from pathlib import Path
from typing import TypeVar

import pytest

from fovea.errors import UserError
from fovea.fetch import client as fetching
from fovea.fetch.client import Fetched, Fetcher, FetchError, FetchLimits, Version, address_allowed, user_agent
from fovea.fetch.profiles import FetchProfile
from tests.feed_server import FeedServer, Request, says, self_signed

T = TypeVar("T")

QUICK = FetchLimits(total_seconds=10, idle_seconds=3, attempts=1, max_wait_seconds=2)


def profile(**values: object) -> FetchProfile:
    return FetchProfile.model_validate({"allowed_networks": ["127.0.0.1/32"], **values})


def with_fetcher(
    profile: FetchProfile,
    work: Callable[[Fetcher], Awaitable[T]],
    limits: FetchLimits = QUICK,
    tls: ssl.SSLContext | None = None,
    max_connections: int = 16,
) -> T:
    async def run() -> T:
        async with Fetcher(profile, limits, tls=tls, max_connections=max_connections) as fetcher:
            return await work(fetcher)

    return asyncio.run(run())


def fetch(profile: FetchProfile, url: str, known: Version | None = None, **options: object) -> Fetched:
    return with_fetcher(profile, lambda fetcher: fetcher.fetch(url, known), **options)  # type: ignore[arg-type]


def reason(profile: FetchProfile, url: str) -> str:
    with pytest.raises(FetchError) as caught:
        fetch(profile, url)
    return caught.value.reason


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Names that are looked up here; others than these and addresses are not known."""
    table = {"shop.test": "127.0.0.1", "feed.shop.internal": "127.0.0.1", "inside.test": "127.0.0.3"}
    real = socket.getaddrinfo

    def lookup(host, *args, **kwargs):  # type: ignore[no-untyped-def]
        if host.endswith((".test", ".internal", ".example")) and host not in table:
            raise socket.gaierror(socket.EAI_NONAME, "not known")
        return real(table.get(host, host), *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    return table


def test_servers_are_told_whom_to_ask() -> None:
    with FeedServer({"/": says(b"x")}) as server:
        fetch(profile(contact="data@shop.example"), f"{server.url}/")
        assert server.headers["/"]["user-agent"] == user_agent("data@shop.example")
    assert user_agent("data@shop.example").endswith("(picture fetcher; data@shop.example)")


def test_hosts_that_may_lead_inside() -> None:
    with FeedServer({}, otherwise=says(b"x")) as server:
        hosts = FetchProfile(allowed_hosts=("*.shop.internal",))
        assert fetch(hosts, f"http://feed.shop.internal:{server.port}/").content == b"x"
        assert reason(hosts, f"http://shop.test:{server.port}/") == "forbidden_address"
        assert reason(hosts, f"{server.url}/") == "forbidden_address"
    everything = FetchProfile(allowed_hosts=("*",))
    assert not address_allowed(ip_address("169.254.169.254"), 80, everything, "anything")
    assert address_allowed(ip_address("10.0.0.1"), 80, everything, "anything")


def test_secret_headers_go_to_their_hosts_alone(tmp_path: Path, names: dict[str, str]) -> None:
    (tmp_path / "key").write_text("s3cret\n")
    header = {"name": "X-Key", "value_file": str(tmp_path / "key"), "hosts": ["shop.test"]}
    sending = profile(headers=[header | {"plain_http": True}])
    with FeedServer({}, otherwise=says(b"x")) as server:
        names["other.test"] = "127.0.0.1"
        server.answers["/moved"] = says(b"", "302 Found", Location=f"http://other.test:{server.port}/other")
        fetch(sending, f"http://shop.test:{server.port}/shop")
        fetch(sending, f"http://shop.test:{server.port}/moved")
        fetch(profile(headers=[header]), f"http://shop.test:{server.port}/plain")
        assert server.headers["/shop"]["x-key"] == "s3cret"
        assert server.headers["/moved"]["x-key"] == "s3cret"
        assert "x-key" not in server.headers["/other"]
        assert "x-key" not in server.headers["/plain"]
        with pytest.raises(FetchError) as caught:
            fetch(sending, f"http://shop.test:{server.port + 1 if server.port < 65535 else 1}/")
        assert "s3cret" not in str(caught.value)
    (tmp_path / "key").unlink()
    with pytest.raises(UserError, match="X-Key"):
        Fetcher(sending)


def test_a_company_has_authorities_of_its_own(tmp_path: Path) -> None:
    certificate = self_signed("shop.test", tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate)
    with FeedServer({"/": says(b"x")}, tls=tls) as server:
        url = f"https://shop.test:{server.port}/"
        assert reason(profile(), url) == "connection_failed"
        assert fetch(profile(ca_bundle=str(certificate)), url).content == b"x"
    with pytest.raises(UserError, match="ca_bundle"):
        Fetcher(profile(ca_bundle=str(tmp_path / "missing.pem")))
    (tmp_path / "junk.pem").write_text("junk")
    with pytest.raises(UserError, match=r"junk\.pem"):
        Fetcher(profile(ca_bundle=str(tmp_path / "junk.pem")))


async def forward(request: Request) -> None:
    """Answer like a proxy, by itself."""
    await request.send(f"{request.path} for {request.headers['host']}".encode())


def test_everything_goes_through_the_proxy(names: dict[str, str]) -> None:
    with FeedServer({}, otherwise=forward) as proxy:
        through = profile(proxy=proxy.url)
        assert fetch(through, "http://shop.test:99/a").content == b"http://shop.test:99/a for shop.test:99"
        proxy.answers["http://shop.test/b"] = says(b"", "302 Found", Location="http://inside.test/")
        before = proxy.asked.total()
        for url in (
            "http://shop.test/b",
            "http://inside.test/",
            "http://127.0.0.3/",
            "http://169.254.169.254/",
        ):
            assert reason(through, url) == "forbidden_address"
        assert proxy.asked.total() == before + 1
        assert reason(through, "http://nowhere.example/") == "connection_failed"


def test_names_that_only_the_proxy_knows() -> None:
    with FeedServer({}, otherwise=forward) as proxy:
        through = profile(proxy=proxy.url, allowed_hosts=["*"])
        assert fetch(through, "http://only.example/x").content == b"http://only.example/x for only.example"
        for host in ("metadata.google.internal", "METADATA.google.internal.", "169.254.169.254"):
            assert reason(through, f"http://{host}/") == "forbidden_address"


def test_a_proxy_that_refuses_is_told() -> None:
    with FeedServer({}, otherwise=says(b"", "403 Forbidden")) as proxy:
        with pytest.raises(FetchError, match="403") as caught:
            fetch(profile(proxy=proxy.url), "https://shop.test/a")
        assert caught.value.reason == "connection_failed"
        assert proxy.asked == {"shop.test:443": 1}


def test_what_has_not_changed_is_not_sent_again() -> None:
    stamp = "Wed, 01 Jul 2026 10:00:00 GMT"
    with FeedServer({"/": says(b"x", ETag='"1"', Last_Modified=stamp)}) as server:
        first = fetch(profile(), f"{server.url}/")
        assert first == Fetched(b"x", Version(f"{server.url}/", '"1"', stamp))
        again = fetch(profile(), f"{server.url}/", first.version)
        assert again.unchanged
        assert not again.content
        assert again.version == first.version
        assert server.headers["/"]["if-modified-since"] == stamp
        other = fetch(profile(), f"{server.url}/", Version(f"{server.url}/", '"2"'))
        assert other.content == b"x"
        assert not other.unchanged


def test_a_304_that_nobody_asked_for_is_refused() -> None:
    with FeedServer({"/": says(b"", "304 Not Modified")}) as server:
        for known in (None, Version(f"{server.url}/elsewhere", '"1"'), Version(f"{server.url}/")):
            with pytest.raises(FetchError, match="304") as caught:
                fetch(profile(), f"{server.url}/", known)
            assert caught.value.reason == "refused"


async def all_at_once(fetcher: Fetcher, urls: list[str]) -> list[str]:
    async def one(url: str) -> str:
        try:
            return (await fetcher.fetch(url)).content.decode()
        except FetchError as error:
            return error.reason

    return await asyncio.gather(*map(one, urls))


@pytest.mark.parametrize(("per_host", "at_all"), [(3, 16), (16, 3)])
def test_only_so_many_connections_at_a_time(per_host: int, at_all: int) -> None:
    async def answer(request: Request) -> None:
        await asyncio.sleep(0.01)
        await request.send(b"x")

    with FeedServer({}, otherwise=answer) as server:
        urls = [f"{server.url}/{number}" for number in range(30)]
        work = lambda fetcher: all_at_once(fetcher, urls)  # noqa: E731
        limited = profile(max_connections_per_host=per_host)
        assert set(with_fetcher(limited, work, max_connections=at_all)) == {"x"}
        assert server.most_at_once == 3
        assert server.connections == 3


def test_waiting_for_a_turn_is_not_within_the_time_limit() -> None:
    async def answer(request: Request) -> None:
        await asyncio.sleep(0.5)
        await request.send(b"x")

    with FeedServer({}, otherwise=answer) as server:
        urls = [f"{server.url}/{number}" for number in range(9)]
        limits = FetchLimits(total_seconds=4, attempts=1)
        found = with_fetcher(
            profile(max_connections_per_host=1), lambda fetcher: all_at_once(fetcher, urls), limits
        )
        assert found == ["x"] * 9


def test_what_a_server_asks_of_one_is_meant_for_all() -> None:
    times = []

    async def answer(request: Request) -> None:
        times.append(time.monotonic())
        if len(times) == 1:
            await request.send(status="429 Too Many Requests", Retry_After=1)
        else:
            await request.send(b"x")

    with FeedServer({}, otherwise=answer) as server:
        urls = [f"{server.url}/{number}" for number in range(4)]
        limits = QUICK.model_copy(update={"attempts": 2})
        found = with_fetcher(
            profile(max_connections_per_host=1), lambda fetcher: all_at_once(fetcher, urls), limits
        )
    assert found == ["x"] * 4
    assert times[1] - times[0] >= 0.9


def test_a_host_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "_GIVE_UP_SECONDS", 0.0)
    monkeypatch.setattr(fetching, "_GIVE_UP_FAILURES", 5)

    async def drop(request: Request) -> None:
        request.drop()

    async def one_by_one(fetcher: Fetcher) -> list[str]:
        return [(await all_at_once(fetcher, [f"{server.url}/{number}"]))[0] for number in range(20)]

    with FeedServer({}, otherwise=drop) as server:
        assert with_fetcher(profile(), one_by_one) == ["connection_failed"] * 20
        assert server.asked.total() == 5
    # One answer in between, even a refusal, and it is asked on.
    with FeedServer({"/3": says(b"", "404 Not Found")}, otherwise=drop) as server:
        with_fetcher(profile(), one_by_one)
        assert server.asked.total() == 9


def test_connections_are_used_again_and_closed_ones_are_not() -> None:
    async def answer(request: Request) -> None:
        await request.send(b"x", Connection="close" if request.path == "/last" else "keep-alive")

    async def work(fetcher: Fetcher) -> None:
        for path in ("/1", "/2", "/last", "/3", "/4"):
            assert (await fetcher.fetch(server.url + path)).content == b"x"

    with FeedServer({}, otherwise=answer) as server:
        with_fetcher(profile(), work)
        assert server.connections == 2

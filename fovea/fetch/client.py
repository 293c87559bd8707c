"""HTTP from untrusted places: which addresses may be reached, how much is read, and for how long.

Which address a name stands for is looked up here, checked, and that very address is connected to: a name that
resolves to something else a moment later changes nothing. TLS and the Host header keep the name. Redirects
are followed one by one, and each new connection is checked the same way. It stands on httpcore and not on an
httpx client, which would bring proxies of the environment, cookies and decompression.

A host is not overrun: so many connections at a time and no more, a pause for all where it asks for one, and
an end of asking where it has not answered for long.
"""

import asyncio
import io
import socket
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from types import TracebackType
from typing import BinaryIO, Literal, Self
from urllib.parse import urljoin

import httpcore
import httpx
from pydantic import BaseModel, ConfigDict, Field
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    wait_random_exponential,
)

from fovea import __version__
from fovea.errors import UserError
from fovea.fetch.profiles import FetchProfile, host_matches

FetchReason = Literal[
    "invalid_url",
    "forbidden_address",
    "connection_failed",
    "not_found",
    "refused",
    "rate_limited",
    "server_error",
    "too_many_redirects",
    "too_large",
    "timeout",
    "bad_response",
]
"""Why nothing was fetched. ``connection_failed`` covers names that do not resolve, refused and broken
connections and failed TLS; ``refused`` every other status than 2xx, 404, 410, 429 and 5xx."""

_IPAddress = IPv4Address | IPv6Address

# Where clouds hand credentials to whatever runs on a machine. Most are link-local; these lie elsewhere too:
# AWS over IPv6 (fd00:ec2::/32), Google over IPv6, Alibaba, Azure's wire server, Oracle's older address.
_METADATA = tuple(
    ip_network(network)
    for network in (
        "169.254.0.0/16",
        "fd00:ec2::/32",
        "fd20:ce::254/128",
        "100.100.100.200/32",
        "168.63.129.16/32",
        "192.0.0.192/32",
    )
)
_GLOBAL_UNICAST_V6 = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")

# What those services are called, for a proxy that looks names up where this machine cannot.
_METADATA_NAMES = ("metadata", "metadata.google.internal", "instance-data", "instance-data.*")

_REDIRECTS = {301, 302, 303, 307, 308}

# A host that failed this often in a row, over so many seconds, is not asked again.
_GIVE_UP_FAILURES = 50
_GIVE_UP_SECONDS = 60.0


class FetchError(Exception):
    """Nothing was fetched: ``reason`` is for counting, the message for people."""

    def __init__(
        self,
        reason: FetchReason,
        url: str,
        detail: str,
        *,
        retry: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(f"{url}: {detail}")
        self.reason = reason
        self.retry = retry
        self.retry_after = retry_after


class FetchLimits(BaseModel):
    """How much one fetch may take. The times are in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_bytes: int = Field(default=32 << 20, gt=0)
    total_seconds: float = Field(default=60.0, gt=0)
    """For everything together: names, connections, redirects, retries and the waits between them."""
    idle_seconds: float = Field(default=15.0, gt=0)
    """For one connection attempt, and for each wait for data."""
    max_redirects: int = Field(default=5, ge=0)
    attempts: int = Field(default=4, ge=1)
    max_wait_seconds: float = Field(default=20.0, ge=0)
    """The longest wait between two attempts; a server that asks for a longer one is not asked again."""


@dataclass(frozen=True)
class Version:
    """Which version of a resource somebody has, as its server named it; empty where it did not."""

    url: str
    """Where it was found, after redirects."""
    etag: str = ""
    last_modified: str = ""

    def conditions(self, url: str) -> list[tuple[str, str]]:
        """Return the headers that ask ``url`` for another version than this one only."""
        if url != self.url:
            return []
        named = (("If-None-Match", self.etag), ("If-Modified-Since", self.last_modified))
        return [(name, value) for name, value in named if value]


@dataclass(frozen=True)
class Fetched:
    """What a fetch brought."""

    content: bytes
    version: Version
    unchanged: bool = False
    """The server said that the version one has is still right; ``content`` is empty then."""

    @property
    def url(self) -> str:
        """Where it was found, after redirects."""
        return self.version.url


def user_agent(contact: str = "") -> str:
    """Return how servers are told who asks."""
    return f"fovea/{__version__} (picture fetcher{'; ' + contact if contact else ''})"


def address_allowed(address: _IPAddress, port: int, profile: FetchProfile, host: str = "") -> bool:
    """Return whether a connection to this address and port may be made; ``host`` is the name it stands for.

    Public unicast addresses may be reached, and the profile's networks and hosts; metadata addresses never,
    whatever the profile says. An IPv6 address that carries an IPv4 address (mapped, 6to4, NAT64) is judged
    by that.
    """
    inner = _inner_ipv4(address)
    if inner is not None:
        address = inner
    if any(address in network for network in _METADATA):
        return False
    if profile.allowed_ports is not None and port not in profile.allowed_ports:
        return False
    return (
        _is_public(address)
        or any(address in network for network in profile.allowed_networks)
        or host_matches(host, profile.allowed_hosts)
    )


def _inner_ipv4(address: _IPAddress) -> IPv4Address | None:
    if isinstance(address, IPv4Address):
        return None
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour


def _is_public(address: _IPAddress) -> bool:
    if isinstance(address, IPv6Address) and (address not in _GLOBAL_UNICAST_V6 or address.teredo):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved)


async def _resolve(host: str, port: int) -> list[_IPAddress]:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        # A name that does not exist is final; a name server that does not answer may answer later.
        retry = getattr(error, "errno", None) == socket.EAI_AGAIN
        raise FetchError(
            "connection_failed", host, f"the name cannot be resolved ({error})", retry=retry
        ) from error
    return [ip_address(str(item[4][0]).partition("%")[0]) for item in found]


def _forbidden(host: str, port: int) -> FetchError:
    return FetchError(
        "forbidden_address",
        f"{host}:{port}",
        "leads to no address and port that the fetch profile allows; public addresses are allowed "
        "by default, others in the platform's configuration (fetch_profiles)",
    )


class _CheckedBackend(httpcore.AsyncNetworkBackend):
    """Connects to allowed addresses only: looks the name up, checks, and connects to what was checked."""

    def __init__(self, profile: FetchProfile) -> None:
        self._profile = profile
        self._backend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        addresses = await _resolve(host, port)
        allowed = [address for address in addresses if address_allowed(address, port, self._profile, host)]
        if addresses and not allowed:
            raise _forbidden(host, port)
        error: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in allowed:
            try:
                return await self._backend.connect_tcp(
                    str(address), port, timeout, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as failed:
                error = failed
        raise error


class _Host:
    """How one host has behaved, and how many may ask it at a time."""

    def __init__(self, max_connections: int) -> None:
        self.turns = asyncio.Semaphore(max_connections)
        self.quiet_until = 0.0
        self._failures = 0
        self._failing_since = 0.0

    def note(self, error: FetchError | None, now: float) -> None:
        """Remember how a fetch ended; a server that says no is one that answers."""
        if error is None or not (error.retry or error.reason == "timeout"):
            self._failures = 0
            return
        if not self._failures:
            self._failing_since = now
        self._failures += 1

    def given_up(self, now: float) -> bool:
        return self._failures >= _GIVE_UP_FAILURES and now - self._failing_since >= _GIVE_UP_SECONDS


class Fetcher:
    """Fetches from untrusted places, several at once; use it as an asynchronous context manager."""

    def __init__(
        self,
        profile: FetchProfile,
        limits: FetchLimits | None = None,
        *,
        max_connections: int = 16,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Prepare a fetcher; ``tls`` replaces the certificates that are trusted by default.

        Raises:
            UserError: a file that the profile names cannot be read.
        """
        self.limits = limits or FetchLimits()
        self._profile = profile
        # Bodies are taken as they come: a compressed one could be endless in few bytes.
        self._headers = [
            ("User-Agent", user_agent(profile.contact)),
            ("Accept", "*/*"),
            ("Accept-Encoding", "identity"),
        ]
        self._secrets = [(header, header.value()) for header in profile.headers]
        self._hosts = defaultdict[str, _Host](lambda: _Host(profile.max_connections_per_host))
        self._turns = asyncio.Semaphore(max_connections)
        self._max_idle = max_connections
        self._idle: list[tuple[tuple[bytes, bytes, int | None], httpcore.AsyncConnectionInterface]] = []
        # Makes connections only: it would look at every connection and request for each new one.
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=tls or _trusted(profile),
            proxy=httpcore.Proxy(profile.proxy) if profile.proxy else None,
            keepalive_expiry=15.0,
            # A proxy is the platform's own choice; what it is asked for is checked by `_check_for_proxy`.
            network_backend=None if profile.proxy else _CheckedBackend(profile),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._idle:
            await self._idle.pop()[1].aclose()

    async def fetch(self, url: str, known: Version | None = None) -> Fetched:
        """Return what lies at ``url``, or that it is still the ``known`` version.

        Raises:
            FetchError: nothing was fetched, with the reason.
        """
        body = io.BytesIO()
        found = await self._fetch(url, body, known)
        return Fetched(body.getvalue(), found or known or Version(url), unchanged=found is None)

    async def fetch_into(self, url: str, sink: BinaryIO) -> str:
        """Write what lies at ``url`` into ``sink``, a seekable file, and return the URL after redirects.

        Raises:
            FetchError: nothing was fetched, with the reason; ``sink`` may hold a part.
        """
        found = await self._fetch(url, sink, None)
        return found.url if found else url

    async def _fetch(self, url: str, sink: BinaryIO, known: Version | None) -> Version | None:
        """Fetch within the time limit; None where the known version is still the right one."""
        address = _parse_url(url)
        host = self._hosts[address.host]
        now = asyncio.get_running_loop().time
        if host.given_up(now()):
            raise FetchError(
                "connection_failed",
                url,
                f"not asked for: nothing came from this host for {_GIVE_UP_SECONDS:g} seconds",
            )
        retrying = AsyncRetrying(
            stop=stop_after_attempt(self.limits.attempts),
            wait=self._wait,
            retry=retry_if_exception(self._worth_retrying),
            reraise=True,
        )
        failed: FetchError | None = None
        try:
            async with asyncio.timeout(self.limits.total_seconds) as deadline:
                found: Version | None = await retrying(self._attempt, address, sink, known, deadline)
                return found
        except TimeoutError:
            failed = FetchError("timeout", url, f"not fetched within {self.limits.total_seconds:g} seconds")
            raise failed from None
        except FetchError as error:
            failed = error
            raise
        finally:
            host.note(failed, now())

    async def _attempt(
        self, address: httpx.URL, sink: BinaryIO, known: Version | None, deadline: asyncio.Timeout
    ) -> Version | None:
        sink.seek(0)
        sink.truncate()
        for _ in range(self.limits.max_redirects + 1):
            found = await self._one_hop(address, sink, known, deadline)
            if not isinstance(found, httpx.URL):
                return found
            address = found
        detail = f"redirects more than {self.limits.max_redirects} times"
        raise FetchError("too_many_redirects", str(address), detail)

    async def _one_hop(
        self, address: httpx.URL, sink: BinaryIO, known: Version | None, deadline: asyncio.Timeout
    ) -> Version | httpx.URL | None:
        """Fetch into ``sink``; return what was found, where it redirects to, or None if it is known."""
        url = str(address)
        idle = self.limits.idle_seconds
        conditions = known.conditions(url) if known else []
        try:
            async with (
                self._turn(address.host, deadline),
                self._connection(address) as connection,
                connection.stream(
                    "GET",
                    _target(address),
                    headers=[*self._headers, *self._secret_headers(address), *conditions],
                    extensions={"timeout": {"connect": idle, "read": idle, "write": idle}},
                ) as response,
            ):
                headers = httpx.Headers(response.headers)
                if response.status in _REDIRECTS and "location" in headers:
                    return _parse_url(join_url(url, headers["location"]))
                if response.status == httpx.codes.NOT_MODIFIED and conditions:
                    return None
                self._check_status(address, response.status, headers)
                await self._read(url, headers, response.aiter_stream(), sink)
                return Version(url, headers.get("etag", ""), headers.get("last-modified", ""))
        except httpcore.TimeoutException as error:
            raise FetchError("timeout", url, f"no answer within {idle:g} seconds", retry=True) from error
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.ProxyError) as error:
            detail = f"{type(error).__name__}: {error}"
            raise FetchError("connection_failed", url, detail, retry=True) from error

    @asynccontextmanager
    async def _turn(self, name: str, deadline: asyncio.Timeout) -> AsyncIterator[None]:
        """Wait for one of the host's connections; that is our own doing, and not within the time limit."""
        host, now = self._hosts[name], asyncio.get_running_loop().time
        start, end = now(), deadline.when() or 0.0
        deadline.reschedule(None)
        async with host.turns, self._turns:
            while host.quiet_until > now():
                await asyncio.sleep(host.quiet_until - now())
            deadline.reschedule(end + now() - start)
            yield

    @asynccontextmanager
    async def _connection(self, address: httpx.URL) -> AsyncIterator[httpcore.AsyncConnectionInterface]:
        """Give a connection to where a URL leads, one that was used before if there is one."""
        if self._profile.proxy:
            await self._check_for_proxy(address)
        origin = (address.raw_scheme, address.raw_host, address.port)
        connection = None
        for place in reversed(range(len(self._idle))):
            if self._idle[place][0] == origin:
                connection = self._idle.pop(place)[1]
                if not connection.has_expired():
                    break
                await connection.aclose()
                connection = None
        connection = connection or self._pool.create_connection(_target(address).origin)
        try:
            yield connection
        finally:
            if not connection.is_idle():
                await connection.aclose()
            else:
                self._idle.append((origin, connection))
                if len(self._idle) > self._max_idle:
                    await self._idle.pop(0)[1].aclose()

    async def _check_for_proxy(self, address: httpx.URL) -> None:
        """Check where a name leads before a proxy is asked for it: the proxy looks it up by itself."""
        host, port = address.host, address.port or (443 if address.scheme == "https" else 80)
        if host_matches(host, _METADATA_NAMES):
            raise _forbidden(host, port)
        try:
            addresses = await _resolve(host, port)
        except FetchError:
            if host_matches(host, self._profile.allowed_hosts):
                return
            raise
        if not all(address_allowed(found, port, self._profile, host) for found in addresses):
            raise _forbidden(host, port)

    def _secret_headers(self, address: httpx.URL) -> list[tuple[str, str]]:
        return [
            (header.name, value)
            for header, value in self._secrets
            if host_matches(address.host, header.hosts) and (header.plain_http or address.scheme == "https")
        ]

    async def _read(
        self, url: str, headers: httpx.Headers, chunks: AsyncIterator[bytes], sink: BinaryIO
    ) -> None:
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise FetchError("bad_response", url, "is sent compressed, though that was not asked for")
        too_large = FetchError("too_large", url, f"is larger than {self.limits.max_bytes:,} bytes")
        declared = headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > self.limits.max_bytes:
            raise too_large
        size = 0
        async for chunk in chunks:
            size += len(chunk)
            if size > self.limits.max_bytes:
                raise too_large
            sink.write(chunk)

    def _check_status(self, address: httpx.URL, status: int, headers: httpx.Headers) -> None:
        if 200 <= status < 300:
            return
        url = str(address)
        detail = f"the server answers {status} {httpx.codes.get_reason_phrase(status)}".rstrip()
        if status in {404, 410}:
            raise FetchError("not_found", url, detail)
        if status == 429 or status >= 500:
            reason: FetchReason = "rate_limited" if status == 429 else "server_error"
            wait = _retry_after(headers.get("retry-after", ""))
            if wait is not None and wait <= self.limits.max_wait_seconds:
                # What it asks of one is meant for all.
                host = self._hosts[address.host]
                host.quiet_until = max(host.quiet_until, asyncio.get_running_loop().time() + wait)
            raise FetchError(reason, url, detail, retry=True, retry_after=wait)
        raise FetchError("refused", url, detail)

    def _wait(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, FetchError) and error.retry_after is not None:
            return error.retry_after
        return wait_random_exponential(multiplier=0.5, max=self.limits.max_wait_seconds)(state)

    def _worth_retrying(self, error: BaseException) -> bool:
        return (
            isinstance(error, FetchError)
            and error.retry
            and (error.retry_after or 0.0) <= self.limits.max_wait_seconds
        )


def join_url(base: str, reference: str) -> str:
    """Return the http or https address that ``reference`` means where ``base`` was found.

    Raises:
        FetchError: it is no such address.
    """
    try:
        joined = urljoin(base, reference)
    except ValueError as error:
        raise FetchError("invalid_url", reference, f"not a valid address ({error})") from error
    _parse_url(joined)
    return joined


def _trusted(profile: FetchProfile) -> ssl.SSLContext:
    """Return the public authorities (certifi's) and the profile's own."""
    context = httpx.create_ssl_context(trust_env=False)
    if profile.ca_bundle:
        try:
            context.load_verify_locations(profile.ca_bundle)
        except OSError as error:
            raise UserError(
                f"{profile.ca_bundle}: cannot be read as certificates in PEM ({error}); correct ca_bundle in "
                "the platform's configuration"
            ) from error
    return context


def _target(address: httpx.URL) -> httpcore.URL:
    return httpcore.URL(
        scheme=address.raw_scheme, host=address.raw_host, port=address.port, target=address.raw_path
    )


def _parse_url(url: str) -> httpx.URL:
    try:
        address = httpx.URL(url)
    except (httpx.InvalidURL, UnicodeError) as error:
        raise FetchError("invalid_url", url, f"not a valid address ({error})") from error
    if address.scheme not in {"http", "https"} or not address.host:
        raise FetchError("invalid_url", url, "not an http or https address")
    return address


def _retry_after(value: str) -> float | None:
    """Return the seconds that a Retry-After header asks to wait: it holds a number or a date."""
    if value.strip().isdecimal():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())

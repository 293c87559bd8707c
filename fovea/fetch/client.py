"""An HTTP client for untrusted addresses: limits on addresses, sizes and times.

Names are resolved here, the addresses are checked, and the connection is made to the checked address: a name
that resolves differently a moment later has no effect. TLS and the Host header use the name. Redirects are
followed one by one, and each new connection is checked in the same way. The client uses httpcore rather than
httpx, which would add proxies of the environment, cookies and decompression.

Hosts are not overloaded: connections are limited, a requested pause is respected, and a host that has not
responded for long is no longer requested.
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
"""Why a fetch failed. ``connection_failed`` includes names that do not resolve, refused and broken
connections and failed TLS; ``refused`` every status other than 2xx, 404, 410, 429 and 5xx."""

_IPAddress = IPv4Address | IPv6Address

# Addresses where clouds provide credentials to their machines. Most are link-local; these are not:
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

# The names of those services, for a proxy that resolves names which this machine cannot.
_METADATA_NAMES = ("metadata", "metadata.google.internal", "instance-data", "instance-data.*")

_MAX_PORT = 65535

_REDIRECTS = {301, 302, 303, 307, 308}

# After this many failures in a row, over this many seconds, a host is no longer requested.
_GIVE_UP_FAILURES = 50
_GIVE_UP_SECONDS = 60.0


class FetchError(Exception):
    """A fetch failed: ``reason`` is for statistics, the message for users."""

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
    """Limits of one fetch. Times are in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_bytes: int = Field(default=32 << 20, gt=0)
    total_seconds: float = Field(default=60.0, gt=0)
    """For the whole fetch: names, connections, redirects, retries and the waits between them."""
    idle_seconds: float = Field(default=15.0, gt=0)
    """For one connection attempt, and for each wait for data."""
    max_redirects: int = Field(default=5, ge=0)
    attempts: int = Field(default=4, ge=1)
    max_wait_seconds: float = Field(default=20.0, ge=0)
    """The longest wait between two attempts; a server that asks for a longer one is not tried again."""


@dataclass(frozen=True)
class Version:
    """The version of a resource, as stated by its server; empty if it states none."""

    url: str
    """The URL after redirects."""
    etag: str = ""
    last_modified: str = ""

    def conditions(self, url: str) -> list[tuple[str, str]]:
        """Return the headers that request ``url`` only if its version differs from this one."""
        if url != self.url:
            return []
        named = (("If-None-Match", self.etag), ("If-Modified-Since", self.last_modified))
        return [(name, value) for name, value in named if value]


@dataclass(frozen=True)
class Fetched:
    """The result of a fetch."""

    content: bytes
    version: Version
    unchanged: bool = False
    """Whether the known version is still current; ``content`` is empty then."""

    @property
    def url(self) -> str:
        """The URL after redirects."""
        return self.version.url


def user_agent(contact: str = "") -> str:
    """Return the User-Agent header."""
    return f"fovea/{__version__} (picture fetcher{'; ' + contact if contact else ''})"


def address_allowed(address: _IPAddress, port: int, profile: FetchProfile, host: str = "") -> bool:
    """Return whether a connection to this address and port is allowed; ``host`` is the resolved name.

    Public unicast addresses and the profile's networks and hosts are allowed; metadata addresses never are,
    regardless of the profile. An IPv6 address that embeds an IPv4 address (mapped, 6to4, NAT64) is judged
    by the embedded one.
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
    except UnicodeError as error:
        raise FetchError("invalid_url", host, f"not a valid host name ({error})") from error
    except socket.gaierror as error:
        # A name that does not exist is final; a name server that does not respond may respond later.
        retry = getattr(error, "errno", None) == socket.EAI_AGAIN
        raise FetchError(
            "connection_failed", host, f"the name cannot be resolved ({error})", retry=retry
        ) from error
    return [ip_address(str(item[4][0]).partition("%")[0]) for item in found]


def _forbidden(host: str, port: int) -> FetchError:
    return FetchError(
        "forbidden_address",
        f"{host}:{port}",
        "has no address and port that the fetch profile allows; public addresses are allowed "
        "by default, others in the platform's configuration (fetch_profiles)",
    )


class _CheckedBackend(httpcore.AsyncNetworkBackend):
    """Connects only to allowed addresses: resolves the name, checks, and connects to the checked address."""

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
    """The history of one host, and its limit of concurrent requests."""

    def __init__(self, max_connections: int) -> None:
        self.turns = asyncio.Semaphore(max_connections)
        self.quiet_until = 0.0
        self._failures = 0
        self._failing_since = 0.0

    def note(self, error: FetchError | None, now: float) -> None:
        """Record the result of a fetch; a server that refuses is one that responds."""
        if error is None or not (error.retry or error.reason == "timeout"):
            self._failures = 0
            return
        if not self._failures:
            self._failing_since = now
        self._failures += 1

    def given_up(self, now: float) -> bool:
        return self._failures >= _GIVE_UP_FAILURES and now - self._failing_since >= _GIVE_UP_SECONDS


class Fetcher:
    """Fetches from untrusted addresses, concurrently; use it as an asynchronous context manager."""

    def __init__(
        self,
        profile: FetchProfile,
        limits: FetchLimits | None = None,
        *,
        max_connections: int = 16,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Create a fetcher; ``tls`` replaces the default trusted certificates.

        Raises:
            UserError: a file that the profile names cannot be read.
        """
        self.limits = limits or FetchLimits()
        self._profile = profile
        # Bodies are not decompressed: a few compressed bytes could expand without end.
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
        # Used only to create connections: as a pool it would scan every connection and request each time.
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=tls or _trusted(profile),
            proxy=httpcore.Proxy(profile.proxy) if profile.proxy else None,
            keepalive_expiry=15.0,
            # The proxy is the platform's choice; `_check_for_proxy` checks the requested names.
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
        """Return the resource at ``url``, or that it is still the ``known`` version.

        Raises:
            FetchError: the fetch failed, with the reason.
        """
        body = io.BytesIO()
        found = await self._fetch(url, body, known)
        return Fetched(body.getvalue(), found or known or Version(url), unchanged=found is None)

    async def fetch_into(self, url: str, sink: BinaryIO) -> str:
        """Write the resource at ``url`` into ``sink``, a seekable file, and return the URL after redirects.

        Raises:
            FetchError: the fetch failed, with the reason; ``sink`` may contain a part.
        """
        found = await self._fetch(url, sink, None)
        return found.url if found else url

    async def _fetch(self, url: str, sink: BinaryIO, known: Version | None) -> Version | None:
        """Fetch within the time limit; return None if the known version is still current."""
        address = _parse_url(url)
        host = self._hosts[address.host]
        now = asyncio.get_running_loop().time
        if host.given_up(now()):
            raise FetchError(
                "connection_failed",
                url,
                f"not requested: this host has not responded for {_GIVE_UP_SECONDS:g} seconds",
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
        """Fetch into ``sink``; return the new version, the redirect's target, or None if unchanged."""
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
        """Wait for one of the host's connections; this wait does not count towards the time limit."""
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
        """Yield a connection to a URL's host, reusing an idle one if possible."""
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
        """Check the addresses of a name before a proxy is used, which resolves the name itself."""
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
            raise FetchError("bad_response", url, "is compressed although that was not requested")
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
                # A requested pause applies to all requests to the host.
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
    """Return the http or https URL of ``reference`` relative to ``base``.

    Raises:
        FetchError: it is not a valid URL.
    """
    try:
        joined = urljoin(base, reference)
    except ValueError as error:
        raise FetchError("invalid_url", reference, f"not a valid address ({error})") from error
    _parse_url(joined)
    return joined


def _trusted(profile: FetchProfile) -> ssl.SSLContext:
    """Return a context with the public CAs (certifi's) and those of the profile."""
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
        # httpx decodes an IDNA host only when it is asked for.
        host = address.host
    except (httpx.InvalidURL, ValueError) as error:
        raise FetchError("invalid_url", url, f"not a valid address ({error})") from error
    if address.scheme not in {"http", "https"} or not host:
        raise FetchError("invalid_url", url, "not an http or https address")
    if address.port is not None and not 0 < address.port <= _MAX_PORT:
        raise FetchError("invalid_url", url, f"the port {address.port} is not between 1 and {_MAX_PORT}")
    return address


def _retry_after(value: str) -> float | None:
    """Return the wait in seconds of a Retry-After header, which contains a number or a date."""
    if value.strip().isdecimal():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())

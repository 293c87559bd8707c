"""HTTP from untrusted places: which addresses may be reached, how much is read, and for how long.

Which address a name stands for is looked up here, checked, and that very address is connected to: a name that
resolves to something else a moment later changes nothing. TLS and the Host header keep the name. Redirects
are followed one by one, and each new connection is checked the same way. This stands on httpcore's connection
pool and not on an httpx client, which would bring proxies of the environment, cookies and decompression.
"""

import asyncio
import io
import socket
import ssl
from collections.abc import AsyncIterator, Iterable
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
from fovea.platform import FetchProfile

USER_AGENT = f"fovea/{__version__} (picture fetcher)"

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

_REDIRECTS = {301, 302, 303, 307, 308}
# Bodies are taken as they come: a compressed one could be endless in few bytes.
_HEADERS = [("User-Agent", USER_AGENT), ("Accept", "*/*"), ("Accept-Encoding", "identity")]


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
class Fetched:
    """What a fetch brought: ``url`` is where it was found, after redirects."""

    content: bytes
    url: str


def address_allowed(address: _IPAddress, port: int, profile: FetchProfile) -> bool:
    """Return whether a connection to this address and port may be made.

    Public unicast addresses may be reached, and the profile's networks; metadata addresses never, whatever
    the profile says. An IPv6 address that carries an IPv4 address (mapped, 6to4, NAT64) is judged by that.
    """
    inner = _inner_ipv4(address)
    if inner is not None:
        address = inner
    if any(address in network for network in _METADATA):
        return False
    if profile.allowed_ports is not None and port not in profile.allowed_ports:
        return False
    return _is_public(address) or any(address in network for network in profile.allowed_networks)


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
        error: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in self._allowed(host, port, await self._resolve(host, port)):
            try:
                return await self._backend.connect_tcp(
                    str(address), port, timeout, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as failed:
                error = failed
        raise error

    async def _resolve(self, host: str, port: int) -> list[_IPAddress]:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (socket.gaierror, UnicodeError) as error:
            # A name that does not exist is final; a name server that does not answer may answer later.
            retry = getattr(error, "errno", None) == socket.EAI_AGAIN
            raise FetchError(
                "connection_failed", host, f"the name cannot be resolved ({error})", retry=retry
            ) from error
        return [ip_address(str(item[4][0]).partition("%")[0]) for item in found]

    def _allowed(self, host: str, port: int, addresses: list[_IPAddress]) -> list[_IPAddress]:
        allowed = [address for address in addresses if address_allowed(address, port, self._profile)]
        if addresses and not allowed:
            raise FetchError(
                "forbidden_address",
                f"{host}:{port}",
                "leads to no address and port that the fetch profile allows; public addresses are allowed "
                "by default, others in the platform's configuration (fetch_profiles)",
            )
        return allowed


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
        """Prepare a fetcher; ``tls`` replaces the certificates that are trusted by default (certifi's)."""
        self.limits = limits or FetchLimits()
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=tls or httpx.create_ssl_context(trust_env=False),
            max_connections=max_connections,
            keepalive_expiry=15.0,
            network_backend=_CheckedBackend(profile),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._pool.aclose()

    async def fetch(self, url: str) -> Fetched:
        """Return what lies at ``url``.

        Raises:
            FetchError: nothing was fetched, with the reason.
        """
        body = io.BytesIO()
        found = await self.fetch_into(url, body)
        return Fetched(body.getvalue(), found)

    async def fetch_into(self, url: str, sink: BinaryIO) -> str:
        """Write what lies at ``url`` into ``sink``, a seekable file, and return the URL after redirects.

        Raises:
            FetchError: nothing was fetched, with the reason; ``sink`` may hold a part.
        """
        retrying = AsyncRetrying(
            stop=stop_after_attempt(self.limits.attempts),
            wait=self._wait,
            retry=retry_if_exception(self._worth_retrying),
            reraise=True,
        )
        try:
            async with asyncio.timeout(self.limits.total_seconds):
                return await retrying(self._attempt, url, sink)
        except TimeoutError:
            raise FetchError(
                "timeout", url, f"not fetched within {self.limits.total_seconds:g} seconds"
            ) from None

    async def _attempt(self, url: str, sink: BinaryIO) -> str:
        sink.seek(0)
        sink.truncate()
        for _ in range(self.limits.max_redirects + 1):
            target = await self._one_hop(url, sink)
            if target is None:
                return url
            url = target
        raise FetchError("too_many_redirects", url, f"redirects more than {self.limits.max_redirects} times")

    async def _one_hop(self, url: str, sink: BinaryIO) -> str | None:
        """Fetch ``url`` into ``sink``, or return where it redirects to."""
        address = _parse_url(url)
        idle = self.limits.idle_seconds
        try:
            async with self._pool.stream(
                "GET",
                httpcore.URL(
                    scheme=address.raw_scheme,
                    host=address.raw_host,
                    port=address.port,
                    target=address.raw_path,
                ),
                headers=_HEADERS,
                extensions={"timeout": {"connect": idle, "read": idle, "write": idle}},
            ) as response:
                headers = httpx.Headers(response.headers)
                if response.status in _REDIRECTS and "location" in headers:
                    return join_url(url, headers["location"])
                _check_status(url, response.status, headers)
                await self._read(url, headers, response.aiter_stream(), sink)
                return None
        except httpcore.TimeoutException as error:
            raise FetchError("timeout", url, f"no answer within {idle:g} seconds", retry=True) from error
        except (httpcore.NetworkError, httpcore.ProtocolError) as error:
            detail = f"{type(error).__name__}: {error}"
            raise FetchError("connection_failed", url, detail, retry=True) from error

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


def _parse_url(url: str) -> httpx.URL:
    try:
        address = httpx.URL(url)
    except (httpx.InvalidURL, UnicodeError) as error:
        raise FetchError("invalid_url", url, f"not a valid address ({error})") from error
    if address.scheme not in {"http", "https"} or not address.host:
        raise FetchError("invalid_url", url, "not an http or https address")
    return address


def _check_status(url: str, status: int, headers: httpx.Headers) -> None:
    if 200 <= status < 300:
        return
    detail = f"the server answers {status} {httpx.codes.get_reason_phrase(status)}".rstrip()
    if status in {404, 410}:
        raise FetchError("not_found", url, detail)
    if status == 429 or status >= 500:
        reason: FetchReason = "rate_limited" if status == 429 else "server_error"
        wait = _retry_after(headers.get("retry-after", ""))
        raise FetchError(reason, url, detail, retry=True, retry_after=wait)
    raise FetchError("refused", url, detail)


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

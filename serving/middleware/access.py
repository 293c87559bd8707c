"""API keys from a mounted Secret, and a rate for each."""

import hashlib
import hmac
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from fovea.errors import UserError
from serving.errors import RequestError
from serving.protocols.errors import error_response
from serving.protocols.protocol import Protocol, protocol_of

logger = logging.getLogger("serving")

MIN_KEY_LENGTH = 16

# The page, scrapes and the description of the routes reveal nothing about pictures or answers.
_OPEN = ("/", "/metrics", "/openapi.json")

_RELOAD_SECONDS = 1.0


class ApiKeys:
    """Named keys in files, read again when these change.

    Args:
        path: a folder with a file for each key, named as the key is, such as a mounted Secret; or one file
            with a line ``name: key`` for each.

    Raises:
        UserError: there is no key, or one is too short.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._digests = _read_keys(path)
        self._state = _state(path)
        self._looked = time.monotonic()

    def name_of(self, key: str) -> str | None:
        """Return the name of a key, or None where there is no such key, in the same time for any key."""
        self._reload()
        digest = _digest(key)
        found = None
        for name, known in self._digests.items():
            if hmac.compare_digest(digest, known):
                found = name
        return found

    def _reload(self) -> None:
        now = time.monotonic()
        if now - self._looked < _RELOAD_SECONDS:
            return
        self._looked = now
        try:
            state = _state(self._path)
            if state == self._state:
                return
            self._digests, self._state = _read_keys(self._path), state
            logger.info("API keys read again: %s", ", ".join(self._digests))
        except (OSError, UserError) as error:
            # The keys that were valid stay so: a change that is half done must lock no client out.
            logger.error("API keys were not read again: %s", error)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    # A mounted Secret holds ..data and the like next to the keys.
    return sorted(file for file in path.iterdir() if not file.name.startswith(".") and file.is_file())


def _state(path: Path) -> list[tuple[str, int, int]]:
    """Return what changes when a file does; stat follows a mounted Secret's links."""
    return [(file.name, file.stat().st_mtime_ns, file.stat().st_ino) for file in _files(path)]


def _read_keys(path: Path) -> dict[str, bytes]:
    try:
        if path.is_dir():
            keys = {file.name: file.read_text().strip() for file in _files(path)}
        else:
            lines = [line.strip() for line in path.read_text().splitlines()]
            pairs = [line.partition(":") for line in lines if line and not line.startswith("#")]
            keys = {name.strip(): key.strip() for name, _, key in pairs}
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"{path}: API keys cannot be read ({type(error).__name__}); mount the Secret, or correct "
            "--api-keys"
        ) from None
    short = [name for name, key in keys.items() if len(key) < MIN_KEY_LENGTH]
    if short or not keys:
        what = (
            f"the key {short[0]!r} is shorter than {MIN_KEY_LENGTH} characters" if short else "holds no key"
        )
        raise UserError(f"{path}: {what}; a file a key in a folder, or lines of name: key in a file")
    return {name: _digest(key) for name, key in keys.items()}


@dataclass
class _Bucket:
    left: float
    at: float = field(default_factory=time.monotonic)


class KeyCheck:
    """ASGI middleware that refuses requests without a key (401), and too many with one (429).

    Args:
        app: the application behind it.
        keys: the keys that are known.
        protocols: they say which of their paths need no key, and give the errors their formats.
        requests_per_minute: for each key; None sets no limit.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: ApiKeys,
        protocols: Sequence[Protocol],
        requests_per_minute: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._keys = keys
        self._protocols = protocols
        self._rate = requests_per_minute
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http" and self._needs_key(scope):
            try:
                self._check(scope)
            except RequestError as error:
                await error_response(self._protocols, scope["path"], error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _needs_key(self, scope: Scope) -> bool:
        path, method = scope["path"], scope["method"]
        if method == "OPTIONS" or path in _OPEN:
            return False
        protocol = protocol_of(self._protocols, path)
        return protocol is None or protocol.needs_key(method, path)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        scheme, _, key = headers.get("authorization", "").partition(" ")
        key = key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        name = self._keys.name_of(key) if key else None
        if name is None:
            raise RequestError(
                "an API key is needed: Authorization: Bearer …" if not key else "this API key is not known",
                status=401,
            )
        scope.setdefault("state", {}).setdefault("notes", {})["key"] = name
        self._take(name)

    def _take(self, name: str) -> None:
        if self._rate is None:
            return
        now = self._clock()
        bucket = self._buckets.setdefault(name, _Bucket(self._rate, now))
        bucket.left = min(self._rate, bucket.left + (now - bucket.at) * self._rate / 60)
        bucket.at = now
        if bucket.left < 1:
            wait = math.ceil((1 - bucket.left) * 60 / self._rate)
            raise RequestError(f"this key may ask {self._rate} times a minute", status=429, retry_after=wait)
        bucket.left -= 1

"""Bounds on the bodies of requests while they arrive: size and time of each, and the size of all."""

import asyncio
import time
from collections.abc import Callable, Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import RequestError
from serving.middleware.encoding import Decoder
from serving.protocols.errors import error_response
from serving.protocols.protocol import Protocol

MAX_BODY_BYTES = 64 << 20


class BodyLimit:
    """ASGI middleware that refuses bodies that are too large (413), too slow (408) or too many (429).

    A body in gzip is decoded as it arrives; the bounds are those of what it holds. Other encodings are
    refused (415).

    A declared length is refused before anything is read; a body without one, as soon as it is too long. While
    the queue is full no body is read, so that refusing a request takes no time from those that wait.

    Args:
        app: the application behind it.
        protocols: they give the errors their formats.
        max_bytes: of one body.
        max_total_bytes: of all bodies of requests that are not answered yet.
        seconds: how long a body may take to arrive.
        check_room: raises a `RequestError` while the queue is full.
    """

    def __init__(
        self,
        app: ASGIApp,
        protocols: Sequence[Protocol],
        max_bytes: int = MAX_BODY_BYTES,
        max_total_bytes: int = 1 << 30,
        seconds: float = 30.0,
        check_room: Callable[[], None] | None = None,
    ) -> None:
        self._app = app
        self._protocols = protocols
        self._max_bytes = max_bytes
        self._max_total_bytes = max_total_bytes
        self._seconds = seconds
        self._check_room = check_room
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        try:
            if self._check_room is not None and scope["method"] == "POST":
                self._check_room()
            decoder = Decoder(headers.get(b"content-encoding", b"").decode("latin-1"))
        except RequestError as error:
            await self._refuse(error, scope, receive, send)
            return
        declared = headers.get(b"content-length", b"0")
        if not declared.isdigit() or len(declared) > 18 or int(declared) > self._max_bytes:
            await self._refuse(self._too_large(), scope, receive, send)
            return
        size, complete = 0, False
        end = time.monotonic() + self._seconds

        async def bounded() -> Message:
            nonlocal size, complete
            if complete:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, end - time.monotonic()))
            except TimeoutError:
                raise RequestError(
                    f"the body did not arrive within {self._seconds:g} seconds", status=408
                ) from None
            complete = not message.get("more_body", False)
            body = decoder.decode(message.get("body", b""), self._max_bytes - size, last=complete)
            size += len(body)
            self._held += len(body)
            if size > self._max_bytes:
                raise self._too_large()
            if self._held > self._max_total_bytes:
                raise RequestError("too many requests are waiting; ask again in a moment", status=429)
            return {**message, "body": body}

        try:
            await self._app(scope, bounded, send)
        finally:
            self._held -= size

    async def _refuse(self, error: RequestError, scope: Scope, receive: Receive, send: Send) -> None:
        await error_response(self._protocols, scope["path"], error)(scope, receive, send)

    def _too_large(self) -> RequestError:
        return RequestError(
            f"the body is larger than {self._max_bytes:,} bytes; send fewer or smaller pictures at once",
            status=413,
        )

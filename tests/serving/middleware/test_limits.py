"""Bodies are bounded while they arrive: each one's size and time, and all together."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from serving.errors import RequestError
from serving.middleware.limits import BodyLimit
from serving.protocols.errors import error_response
from serving.protocols.registry import PROTOCOLS


async def reads(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that reads its body whole."""
    try:
        size = len(await Request(scope, receive).body())
    except RequestError as error:
        await error_response(PROTOCOLS, scope["path"], error)(scope, receive, send)
    else:
        await PlainTextResponse(str(size))(scope, receive, send)


async def ask(app: Any, parts: Sequence[bytes | None], headers: dict[str, str] | None = None) -> Message:
    """Send a body in parts; None is one that never comes. Return how the answer starts."""
    left = list(parts)
    sent: list[Message] = []

    async def receive() -> Message:
        part = left.pop(0)
        if part is None:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": part, "more_body": bool(left)}

    async def send(message: Message) -> None:
        sent.append(message)

    pairs = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    scope = {"type": "http", "method": "POST", "path": "/openai/v1/x", "headers": pairs}
    await app(scope, receive, send)
    return sent[0]


def run(app: Any, *parts: bytes | None, **headers: str) -> Message:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return asyncio.run(ask(app, parts, named))


def test_a_body_that_fits() -> None:
    assert run(BodyLimit(reads, PROTOCOLS, max_bytes=4), b"ab", b"cd")["status"] == 200


@pytest.mark.parametrize("declared", ["5", "-1", "a", "5 "])
def test_a_declared_length_is_refused_unread(declared: str) -> None:
    assert run(BodyLimit(reads, PROTOCOLS, max_bytes=4), content_length=declared)["status"] == 413


def test_a_length_that_is_not_declared_or_not_true() -> None:
    for headers in ({}, {"content_length": "1"}):
        message = run(BodyLimit(reads, PROTOCOLS, max_bytes=4), b"ab", b"cde", None, **headers)
        assert message["status"] == 413
        assert (b"connection", b"close") in message["headers"]


def test_a_body_that_does_not_come_to_its_end() -> None:
    message = run(BodyLimit(reads, PROTOCOLS, seconds=0.01), b"ab", None)
    assert message["status"] == 408
    assert (b"connection", b"close") in message["headers"]


def test_all_bodies_together() -> None:
    async def scenario() -> None:
        app = BodyLimit(reads, PROTOCOLS, max_bytes=4, max_total_bytes=6, seconds=60)
        slow = asyncio.create_task(ask(app, [b"abcd", None]))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert (await ask(app, [b"abc"]))["status"] == 429
        assert (await ask(app, [b"ab"]))["status"] == 200
        slow.cancel()
        await asyncio.wait({slow})
        assert (await ask(app, [b"abc"]))["status"] == 200
        assert app._held == 0

    asyncio.run(scenario())

"""Reading requests, and giving up the work when the client closes the connection."""

import asyncio
import math
from collections.abc import Coroutine
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from pydantic import BaseModel, ValidationError

from serving.engine.model import ServedModel
from serving.errors import CLIENT_GONE, RequestError
from serving.protocols.errors import describe_validation

T = TypeVar("T")
Body = TypeVar("Body", bound=BaseModel)

TIMEOUT_HEADER = "x-request-timeout"


async def _served(request: Request) -> ServedModel:
    served: ServedModel = request.app.state.served
    return served


Served = Annotated[ServedModel, Depends(_served)]
"""The type of a route's parameter that is given the model."""


async def read_body(request: Request, kind: type[Body]) -> Body:
    """Read a JSON body regardless of its content type: curl and others send none or a wrong one.

    Raises:
        RequestError: it is not what ``kind`` describes.
    """
    return parse(await request.body(), kind)


def parse(body: bytes, kind: type[Body]) -> Body:
    """Read JSON as ``kind``.

    Raises:
        RequestError: it is not what ``kind`` describes.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise describe_validation(error.errors(include_input=False, include_url=False)) from None


def seconds_for(request: Request, served: ServedModel) -> float:
    """Return how long a request may take: the header's seconds, where there is one.

    Raises:
        RequestError: the header holds no such number.
    """
    text = request.headers.get(TIMEOUT_HEADER)
    try:
        seconds = served.max_request_seconds if text is None else float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise RequestError(f"{TIMEOUT_HEADER}: must be seconds above 0", param=TIMEOUT_HEADER)
    return seconds


def note(request: Request, **values: Any) -> None:
    """Add values to the line that is logged of a request."""
    request.scope.setdefault("state", {}).setdefault("notes", {}).update(values)


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do the work of a request whose body was read; cancel it as soon as the client closes the connection.

    Raises:
        RequestError: the client has closed the connection.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise RequestError("the client has gone", status=CLIENT_GONE)
        return task.result()
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass

"""Error responses, each in the format of the protocol that the request's path belongs to."""

import math
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from serving.errors import CLIENT_GONE, RequestError
from serving.protocols.protocol import Error, Protocol, protocol_of


def add_error_handlers(app: FastAPI, protocols: Sequence[Protocol]) -> None:
    """Answer every exception of a route with an error response."""

    async def respond(request: Request, error: Exception) -> Response:
        response = error_response(protocols, request.url.path, _as_request_error(error))
        if isinstance(error, HTTPException):
            response.headers.update(error.headers or {})
        return response

    for kind in (RequestError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, respond)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)


def error_response(protocols: Sequence[Protocol], path: str, error: RequestError) -> JSONResponse:
    """Return the response for an error, in the format of the protocol that ``path`` belongs to."""
    headers = {}
    if error.status in (429, 503):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.status in (408, 413, 415):
        # The rest of the body is not read.
        headers["Connection"] = "close"
    protocol = protocol_of(protocols, path)
    body = (protocol.error if protocol else Error).of(error)
    return JSONResponse(body.model_dump(), error.status, headers)


def describe_validation(errors: Sequence[Any]) -> RequestError:
    """Turn pydantic's errors into one error that names each wrong part, and never repeats its content."""
    if errors[0]["type"] == "json_invalid":
        return RequestError("the body is not JSON")
    parts = [
        (".".join(str(item) for item in error["loc"] if item != "body"), error["msg"]) for error in errors
    ]
    shown = "; ".join(f"{where}: {what}" if where else what for where, what in parts[:5])
    return RequestError(shown[:1000], param=parts[0][0] or None)


def _as_request_error(error: Exception) -> RequestError:
    match error:
        case RequestError():
            return error
        case RequestValidationError():
            return describe_validation(error.errors())
        case HTTPException():
            return RequestError(str(error.detail), status=error.status_code)
    # The traceback is in the server's log; clients must not see what it holds.
    return RequestError("the server failed at this", status=500)


async def _on_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)

"""Errors a caller can mend, in the form that the protocol he speaks has for them."""

import logging
import math
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

logger = logging.getLogger("serving")

OPENAI_PREFIX = "/openai/"

CLIENT_GONE = 499
"""What is logged and counted where nobody was left to be answered."""

# OpenAI's type and code of an error, by status.
_OPENAI_KINDS = {
    401: ("authentication_error", "invalid_api_key"),
    404: ("not_found_error", "not_found"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
}


class RequestError(Exception):
    """A request that cannot be answered: status, a message for the caller, and which part is wrong."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        retry_after: float = 1.0,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.retry_after = retry_after
        """Seconds; told to the caller with 429 and 503."""


def add_error_handlers(app: FastAPI) -> None:
    """Answer each kind of refusal in one form: OpenAI's under /openai/, KServe's elsewhere."""
    app.add_exception_handler(RequestError, _on_request_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    app.add_exception_handler(Exception, _on_fault)


def describe_validation(errors: Sequence[Any]) -> RequestError:
    """Turn pydantic's errors into one refusal that names each wrong part, and never repeats its content."""
    if errors[0]["type"] == "json_invalid":
        return RequestError("the body is not JSON")
    parts = [
        (".".join(str(item) for item in error["loc"] if item != "body"), error["msg"]) for error in errors
    ]
    shown = "; ".join(f"{where}: {what}" if where else what for where, what in parts[:5])
    return RequestError(shown[:1000], param=parts[0][0] or None)


def error_response(path: str, error: RequestError) -> JSONResponse:
    """Return an error as the protocol of ``path`` has it."""
    headers = {}
    if error.status in (429, 503):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.status in (408, 413):
        # What is still on its way is not read.
        headers["Connection"] = "close"
    return JSONResponse(_content(path, error), error.status, headers)


def _content(path: str, error: RequestError) -> dict[str, Any]:
    if not path.startswith(OPENAI_PREFIX):
        return {"error": str(error)}
    usual = ("invalid_request_error", None) if error.status < 500 else ("server_error", None)
    kind, code = _OPENAI_KINDS.get(error.status, usual)
    return {"error": {"message": str(error), "type": kind, "param": error.param, "code": error.code or code}}


async def _on_request_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)  # noqa: S101 - registered for this class alone
    return error_response(request.url.path, error)


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101
    return error_response(request.url.path, describe_validation(error.errors()))


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101
    response = error_response(request.url.path, RequestError(str(error.detail), status=error.status_code))
    response.headers.update(error.headers or {})
    return response


async def _on_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)


async def _on_fault(request: Request, error: Exception) -> Response:
    # The server's log has the traceback; what it holds is not the caller's business.
    return error_response(request.url.path, RequestError("the server failed at this", status=500))

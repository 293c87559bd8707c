"""Errors a caller can mend, in the form that the protocol he speaks has for them."""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

OPENAI_PREFIX = "/openai/"


class RequestError(Exception):
    """A request that cannot be answered: status, a message for the caller, and which part is wrong."""

    def __init__(self, message: str, *, status: int = 400, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param


def add_error_handlers(app: FastAPI) -> None:
    """Answer each kind of refusal in one form: OpenAI's under /openai/, KServe's elsewhere."""
    app.add_exception_handler(RequestError, _on_request_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_error)


def describe_validation(errors: Sequence[Any]) -> RequestError:
    """Turn pydantic's errors into one refusal that names each wrong part, and never repeats its content."""
    if errors[0]["type"] == "json_invalid":
        return RequestError("the body is not JSON")
    parts = [
        (".".join(str(item) for item in error["loc"] if item != "body"), error["msg"]) for error in errors
    ]
    shown = "; ".join(f"{where}: {what}" if where else what for where, what in parts[:5])
    return RequestError(shown, param=parts[0][0] or None)


async def _on_request_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestError)  # noqa: S101 - registered for this class alone
    return _response(request, error.status, str(error), error.param)


async def _on_validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101
    refusal = describe_validation(error.errors())
    return _response(request, refusal.status, str(refusal), refusal.param)


async def _on_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101
    return _response(request, error.status_code, str(error.detail), None)


def _response(request: Request, status: int, message: str, param: str | None) -> JSONResponse:
    headers = {"Retry-After": "1"} if status == 429 else None
    if not request.url.path.startswith(OPENAI_PREFIX):
        return JSONResponse({"error": message}, status, headers)
    kind = "invalid_request_error" if status < 500 and status != 429 else "server_error"
    body = {"error": {"message": message, "type": kind, "param": param, "code": None}}
    return JSONResponse(body, status, headers)

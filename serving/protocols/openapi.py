"""The OpenAPI document: what FastAPI knows of the routes, and the bodies that they read by themselves."""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from fovea import __version__
from serving.protocols.schemas import ChatChunk, ChatRequest, Error, InferBody, OpenAIError, PredictRequest

_SCHEMAS = "#/components/schemas/"
_READ_BY_ROUTES = (PredictRequest, InferBody, ChatRequest, ChatChunk, Error, OpenAIError)

_MEANINGS = {
    400: "The request is not as described, or a picture cannot be used",
    404: "There is no such model",
    408: "The body did not arrive in time",
    413: "The body is too large",
    429: "Too many requests are waiting, or too many came with this key; see Retry-After",
    500: "A fault of the server",
    503: "The server is stopping, or the model has failed",
    504: "Not answered in time",
}


def errors(*statuses: int, kind: type[BaseModel] = Error) -> dict[int | str, dict[str, Any]]:
    """Return the error responses of a route."""
    schema = {"$ref": _SCHEMAS + kind.__name__}
    return {
        status: {"description": _MEANINGS[status], "content": {"application/json": {"schema": schema}}}
        for status in statuses
    }


def json_body(kind: type[BaseModel]) -> dict[str, Any]:
    """Return what a route says about a body that it reads by itself."""
    schema = {"$ref": _SCHEMAS + kind.__name__}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def document(app: FastAPI, *, with_keys: bool) -> Callable[[], dict[str, Any]]:
    """Return what makes an application's document, and remembers it."""

    def make() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _make(app, with_keys)
        return app.openapi_schema

    return make


def _make(app: FastAPI, with_keys: bool) -> dict[str, Any]:
    made = get_openapi(
        title="Fovea",
        version=__version__,
        description="Answers about pictures of products: KServe's V1 and V2, and OpenAI's chat completions.",
        routes=app.routes,
    )
    _, definitions = models_json_schema(
        [(kind, "validation") for kind in _READ_BY_ROUTES], ref_template=_SCHEMAS + "{model}"
    )
    schemas = made.setdefault("components", {}).setdefault("schemas", {})
    schemas.update(definitions["$defs"])
    # The routes read their parameters and bodies themselves: FastAPI's own refusal does not occur.
    for path in made["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    if with_keys:
        _add_keys(made)
    return made


def _add_keys(made: dict[str, Any]) -> None:
    made["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for name, path in made["paths"].items():
        for operation in path.values():
            if "requestBody" in operation or name == "/openai/v1/models":
                kind = "OpenAIError" if name.startswith("/openai/") else "Error"
                operation["security"] = [{"key": []}]
                operation["responses"]["401"] = {
                    "description": "An API key is needed",
                    "content": {"application/json": {"schema": {"$ref": _SCHEMAS + kind}}},
                }

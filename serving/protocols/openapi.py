"""The OpenAPI document: what FastAPI knows of the routes, and the bodies that they read themselves."""

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from fovea import __version__
from serving.protocols.protocol import Error, ErrorBody, Protocol

_SCHEMAS = "#/components/schemas/"

_MEANINGS = {
    400: "The request is not as described, or a picture cannot be used",
    401: "An API key is needed",
    404: "There is no such model",
    408: "The body did not arrive in time",
    413: "The body is too large",
    415: "The body is compressed in another way than gzip",
    429: "Too many requests are waiting, or too many came with this key; see Retry-After",
    500: "A fault of the server",
    503: "The server is stopping, or the model has failed",
    504: "Not answered in time",
}


def errors(*statuses: int, kind: type[ErrorBody] = Error) -> dict[int | str, dict[str, Any]]:
    """Return the error responses of a route."""
    return {status: _error(status, kind) for status in statuses}


def json_body(kind: type[BaseModel]) -> dict[str, Any]:
    """Return the description of a JSON body that a route reads itself."""
    schema = {"$ref": _SCHEMAS + kind.__name__}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def describe(protocols: Sequence[Protocol], *, with_keys: bool) -> dict[str, Any]:
    """Return the OpenAPI document of protocols.

    Args:
        protocols: those of the server.
        with_keys: whether it asks for API keys.
    """
    routes = APIRouter()
    for protocol in protocols:
        routes.include_router(protocol.router)
    made = get_openapi(
        title="Fovea",
        version=__version__,
        description=f"Answers about pictures, over {', '.join(protocol.title for protocol in protocols)}.",
        routes=routes.routes,
    )
    bodies = [body for protocol in protocols for body in (*protocol.bodies, protocol.error)]
    _, definitions = models_json_schema(
        [(body, "validation") for body in dict.fromkeys(bodies)], ref_template=_SCHEMAS + "{model}"
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
        _add_keys(made, protocols)
    return made


def _error(status: int, kind: type[ErrorBody]) -> dict[str, Any]:
    schema = {"$ref": _SCHEMAS + kind.__name__}
    return {"description": _MEANINGS[status], "content": {"application/json": {"schema": schema}}}


def _add_keys(made: dict[str, Any], protocols: Sequence[Protocol]) -> None:
    made["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for protocol in protocols:
        for path in filter(protocol.has, made["paths"]):
            for method, operation in made["paths"][path].items():
                if protocol.needs_key(method.upper(), path):
                    operation["security"] = [{"key": []}]
                    operation["responses"]["401"] = _error(401, protocol.error)

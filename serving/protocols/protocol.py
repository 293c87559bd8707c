"""A protocol as one object: its routes, the bodies they read, the format of its errors."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Self

from fastapi import APIRouter
from pydantic import BaseModel

from serving.errors import RequestError


class ErrorBody(BaseModel):
    """Base class of error formats: the JSON body of every response that is an error."""

    @classmethod
    @abstractmethod
    def of(cls, error: RequestError) -> Self:
        """Return the body for an error."""


class Error(ErrorBody):
    """Why a request was refused, over V1 and V2."""

    error: str

    @classmethod
    def of(cls, error: RequestError) -> Self:
        """Return the body for an error."""
        return cls(error=str(error))


@dataclass(frozen=True)
class Protocol:
    """A protocol that clients can use. `serving.protocols.registry` lists those of the server.

    Args:
        title: its name in the description of the API.
        prefix: the first part of its paths. Errors under it have its format, also where there is no route.
        router: its routes, with their whole paths; they get the model by `serving.protocols.requests.Served`.
        bodies: schemas of bodies that the routes read or stream themselves, which FastAPI does not see.
        error: the format of its errors.
        keyless: paths below the prefix, as patterns of `fnmatch`, that GET reaches without an API key.
    """

    title: str
    prefix: str
    router: APIRouter
    bodies: tuple[type[BaseModel], ...] = ()
    error: type[ErrorBody] = Error
    keyless: tuple[str, ...] = ()

    def has(self, path: str) -> bool:
        """Whether a path belongs to this protocol."""
        return path == self.prefix or path.startswith(self.prefix + "/")

    def needs_key(self, method: str, path: str) -> bool:
        """Whether a path of this protocol asks for an API key, where the server has keys."""
        patterns = (self.prefix + pattern for pattern in self.keyless)
        return method not in ("GET", "HEAD") or not any(fnmatchcase(path, pattern) for pattern in patterns)


def protocol_of(protocols: Sequence[Protocol], path: str) -> Protocol | None:
    """Return the protocol that a path belongs to; None for paths of none, such as the page's."""
    return next((protocol for protocol in protocols if protocol.has(path)), None)

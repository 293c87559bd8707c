"""Fetch profiles: which addresses pictures and tables may be fetched from, and how."""

from fnmatch import fnmatchcase
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

from fovea.errors import UserError


def host_matches(host: str, patterns: tuple[str, ...]) -> bool:
    """Return whether a host is one of these names; ``*`` in a pattern stands for anything."""
    return any(fnmatchcase(host.lower().rstrip("."), pattern.lower()) for pattern in patterns)


class SecretHeader(BaseModel):
    """A header whose value lies in a file, such as a mounted key of a Secret."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern="^[A-Za-z0-9-]+$")
    value_file: Path
    hosts: tuple[str, ...] = Field(min_length=1)
    """The only hosts that it is sent to; ``*.shop.example`` for all below."""
    plain_http: bool = False
    """Send it over http:// too, where others on the way can read it."""

    def value(self) -> str:
        """Read the header's value; no message ever shows it.

        Raises:
            UserError: the file cannot be read, or holds no header's value.
        """
        try:
            text = self.value_file.read_text("ascii").strip()
        except (OSError, UnicodeError) as error:
            raise UserError(
                f"{self.value_file}: the value of the header {self.name} cannot be read "
                f"({type(error).__name__}); mount the Secret, or correct value_file"
            ) from None
        if not text or not text.isprintable():
            raise UserError(f"{self.value_file}: must hold the header {self.name}'s value, on one line")
        return text


class FetchProfile(BaseModel):
    """Which addresses pictures and tables may be fetched from, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    allowed_networks: tuple[IPv4Network | IPv6Network, ...] = ()
    """Networks that may be reached although they are not public; metadata addresses never may."""
    allowed_hosts: tuple[str, ...] = ()
    """Names that may lead to any address but metadata's; ``*.shop.internal`` for all below."""
    allowed_ports: tuple[int, ...] | None = None
    """The only ports that may be reached; None for any."""
    proxy: str | None = None
    """``http://host:port`` of a proxy that everything goes through. Names are looked up and checked here
    first; those of ``allowed_hosts`` that are not known here are left to the proxy."""
    ca_bundle: Path | None = None
    """A PEM file of authorities that are trusted besides the public ones."""
    headers: tuple[SecretHeader, ...] = ()
    max_connections_per_host: int = Field(default=32, ge=1)
    contact: str = Field(default="", pattern="^[ -~]*$")
    """As the platform's ``contact``, for this profile alone."""

    @field_validator("proxy")
    @classmethod
    def _is_plain_proxy(cls, proxy: str | None) -> str | None:
        parts = urlsplit(proxy or "http://none")
        if parts.scheme != "http" or not parts.hostname or parts.username is not None:
            raise ValueError("write http://host:port, without a user or password")
        return proxy

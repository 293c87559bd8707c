"""Fetch profiles: the addresses that pictures and tables may be fetched from, and how."""

from fnmatch import fnmatchcase
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

from fovea.errors import UserError


def host_matches(host: str, patterns: tuple[str, ...]) -> bool:
    """Return whether a host matches one of the patterns; ``*`` matches anything."""
    return any(fnmatchcase(host.lower().rstrip("."), pattern.lower()) for pattern in patterns)


class SecretHeader(BaseModel):
    """A header whose value is in a file, such as a mounted key of a Secret."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern="^[A-Za-z0-9-]+$")
    value_file: Path
    hosts: tuple[str, ...] = Field(min_length=1)
    """The only hosts that receive it; ``*.shop.example`` matches all subdomains."""
    plain_http: bool = False
    """Send it over unencrypted http:// as well."""

    def value(self) -> str:
        """Read the header's value, which no message ever shows.

        Raises:
            UserError: the file cannot be read, or does not contain a header value.
        """
        try:
            text = self.value_file.read_text("ascii").strip()
        except (OSError, UnicodeError) as error:
            raise UserError(
                f"{self.value_file}: the value of the header {self.name} cannot be read "
                f"({type(error).__name__}); mount the Secret, or correct value_file"
            ) from None
        if not text or not text.isprintable():
            raise UserError(
                f"{self.value_file}: must contain the value of the header {self.name}, on one line"
            )
        return text


class FetchProfile(BaseModel):
    """The addresses that pictures and tables may be fetched from, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    allowed_networks: tuple[IPv4Network | IPv6Network, ...] = ()
    """Networks that are allowed although they are not public; metadata addresses never are."""
    allowed_hosts: tuple[str, ...] = ()
    """Names with any address except metadata addresses; ``*.shop.internal`` matches all subdomains."""
    allowed_ports: tuple[int, ...] | None = None
    """The only allowed ports; None for any."""
    proxy: str | None = None
    """``http://host:port`` of a proxy for all requests. Names are resolved and checked here
    first; names in ``allowed_hosts`` that cannot be resolved here are left to the proxy."""
    ca_bundle: Path | None = None
    """A PEM file of CAs that are trusted in addition to the public ones."""
    headers: tuple[SecretHeader, ...] = ()
    max_connections_per_host: int = Field(default=32, ge=1)
    contact: str = Field(default="", pattern="^[ -~]*$")
    """The ``contact`` of this profile, instead of the platform's."""

    @field_validator("proxy")
    @classmethod
    def _is_plain_proxy(cls, proxy: str | None) -> str | None:
        parts = urlsplit(proxy or "http://none")
        if parts.scheme != "http" or not parts.hostname or parts.username is not None:
            raise ValueError("write http://host:port, without a user or password")
        return proxy

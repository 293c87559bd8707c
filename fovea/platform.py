"""What the platform decides, not a run: read from a mounted YAML file.

The file is ``$FOVEA_PLATFORM``, else ``/etc/fovea/platform.yaml``; without one, the defaults below hold::

    contact: data-team@shop.example          # told to every server that is fetched from
    run_url: https://kfp.shop.example/#/runs/details/{run_id}   # where a run is shown
    fetch_profiles:
      intranet:                              # a run names it: fetch_profile=intranet
        allowed_networks: [10.20.0.0/16]     # besides public addresses, which are always allowed
        allowed_hosts: ["*.shop.internal"]   # wherever these names lead
        allowed_ports: [443]
        ca_bundle: /etc/fovea/shop-ca.pem
        headers:
          - name: Authorization
            value_file: /var/run/secrets/feed/authorization
            hosts: [feed.shop.internal]
"""

import os
from fnmatch import fnmatchcase
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from fovea.errors import UserError

DEFAULT_PATH = Path("/etc/fovea/platform.yaml")


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


class Platform(BaseModel):
    """The platform's configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    contact: str = Field(default="", pattern="^[ -~]*$")
    """An address or URL that is told to the servers which pictures and tables are fetched from."""
    run_url: str = Field(default="", pattern=r"^(https?://[!-~]+)?$")
    """Where people see a run; ``{run_id}`` in it stands for the run's ID. Empty: nowhere."""
    fetch_profiles: dict[str, FetchProfile] = Field(default_factory=dict)

    def run_link(self, run_id: str) -> str:
        """Return where a run is shown; empty where the platform does not say."""
        return self.run_url.replace("{run_id}", run_id)

    def fetch_profile(self, name: str) -> FetchProfile:
        """Return a fetch profile; ``default`` is always there, and reaches public addresses only.

        Raises:
            UserError: the platform has no profile of this name.
        """
        profiles = {"default": FetchProfile(), **self.fetch_profiles}
        if name not in profiles:
            raise UserError(
                f"fetch_profile {name!r} is not configured on this platform; there are {sorted(profiles)}"
            )
        profile = profiles[name]
        return profile.model_copy(update={"contact": profile.contact or self.contact})


def load_platform() -> Platform:
    """Read the platform's configuration.

    Raises:
        UserError: the file that is named cannot be read or is not valid.
    """
    named = os.environ.get("FOVEA_PLATFORM")
    path = Path(named) if named else DEFAULT_PATH
    if not named and not path.exists():
        return Platform()
    try:
        return Platform.model_validate(yaml.safe_load(path.read_text()) or {})
    except ValidationError as error:
        # Not what was given instead: that may be a secret that does not belong there.
        wrong = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise UserError(f"{path}: is no configuration of the platform: {wrong}") from None
    except (OSError, yaml.YAMLError) as error:
        told = " ".join(str(error).split())
        raise UserError(f"{path}: the platform's configuration cannot be read: {told}") from error

"""What the platform decides, not a run: read from a mounted YAML file.

The file is ``$FOVEA_PLATFORM``, else ``/etc/fovea/platform.yaml``; without one, the defaults below hold::

    fetch_profiles:
      intranet:                          # a run names it: fetch_profile=intranet
        allowed_networks: [10.20.0.0/16] # besides public addresses, which are always allowed
        allowed_ports: [443]
"""

import os
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fovea.errors import UserError

DEFAULT_PATH = Path("/etc/fovea/platform.yaml")


class FetchProfile(BaseModel):
    """Which addresses pictures and tables may be fetched from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    allowed_networks: tuple[IPv4Network | IPv6Network, ...] = ()
    """Networks that may be reached although they are not public; metadata addresses never may."""
    allowed_ports: tuple[int, ...] | None = None
    """The only ports that may be reached; None for any."""


class Platform(BaseModel):
    """The platform's configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fetch_profiles: dict[str, FetchProfile] = Field(default_factory=dict)

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
        return profiles[name]


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
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise UserError(f"{path}: the platform's configuration cannot be read: {error}") from error

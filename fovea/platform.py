"""The platform's configuration: settings that a run must not change, read from a mounted YAML file.

The file is ``$FOVEA_PLATFORM``, or else ``/etc/fovea/platform.yaml``; without it, the defaults below apply::

    contact: data-team@shop.example          # sent to every server that is fetched from
    run_url: https://kfp.shop.example/#/runs/details/{run_id}   # linked from MLflow runs
    fetch_profiles:
      intranet:                              # selected by fetch_profile=intranet
        allowed_networks: [10.20.0.0/16]     # in addition to public addresses
        allowed_hosts: ["*.shop.internal"]   # at any address
        allowed_ports: [443]
        ca_bundle: /etc/fovea/shop-ca.pem
        headers:
          - name: Authorization
            value_file: /var/run/secrets/feed/authorization
            hosts: [feed.shop.internal]
"""

import os
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fovea.errors import UserError
from fovea.fetch.profiles import FetchProfile
from fovea.yaml_text import read_yaml

DEFAULT_PATH = Path("/etc/fovea/platform.yaml")


class Platform(BaseModel):
    """The platform's configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    contact: str = Field(default="", pattern="^[ -~]*$")
    """An address or URL that is sent to the servers from which pictures and tables are fetched."""
    run_url: str = Field(default="", pattern=r"^(https?://[!-~]+)?$")
    """The page of a run, with ``{run_id}`` as the placeholder of its ID. Empty: none."""
    fetch_profiles: dict[str, FetchProfile] = Field(default_factory=dict)

    def run_link(self, run_id: str) -> str:
        """Return the URL of a run's page; empty if the platform has none."""
        return self.run_url.replace("{run_id}", run_id)

    def fetch_profile(self, name: str) -> FetchProfile:
        """Return a fetch profile; ``default`` always exists, and reaches only public addresses.

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
        UserError: the file cannot be read or is invalid.
    """
    named = os.environ.get("FOVEA_PLATFORM")
    path = Path(named) if named else DEFAULT_PATH
    if not named and not path.exists():
        return Platform()
    try:
        return Platform.model_validate(read_yaml(path.read_text()) or {})
    except ValidationError as error:
        # Without the given value, which may be a misplaced secret.
        wrong = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise UserError(f"{path}: is not a valid platform configuration: {wrong}") from None
    except (OSError, yaml.YAMLError) as error:
        told = " ".join(str(error).split())
        raise UserError(f"{path}: the platform's configuration cannot be read: {told}") from error

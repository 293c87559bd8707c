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
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fovea.errors import UserError
from fovea.fetch.profiles import FetchProfile

DEFAULT_PATH = Path("/etc/fovea/platform.yaml")


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

"""What was looked at, and what was found."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: whether it is right, what was found, and what to do where it is not."""

    level: Literal["ok", "note", "missing"]
    what: str
    found: str
    remedy: str = ""

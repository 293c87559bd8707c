"""Findings of the doctor."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One check: whether it passed, what was found, and what to do if it failed."""

    level: Literal["ok", "note", "missing"]
    what: str
    found: str
    remedy: str = ""

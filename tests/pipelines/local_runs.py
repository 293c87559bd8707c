"""Local runs on a tiny model, in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

from tests.tiny_model import write_tiny_model

SETTINGS = {
    "num_crops": 1,
    "longest_side": 56,
    "validation_fraction": 0.2,
    "test_fraction": 0.2,
    "min_rows": 5,
    "num_train_epochs": 1,
    "max_new_tokens": 8,
    "min_samples": 5,
}


class Folder:
    """A state folder and a base model, and runs on them."""

    def __init__(self, root: Path, answer: str | None = None) -> None:
        self.state = root / "a state"
        self.base = write_tiny_model(root / "base", num_crops=1, answer=answer)

    def command(self, **settings: object) -> list[str]:
        values = {"base_model": self.base, **SETTINGS, **settings}
        pairs = [part for name, value in values.items() for part in ("--set", f"{name}={value}")]
        rows = ["--sample-rows", "60", "--state", str(self.state)]
        return [sys.executable, "-m", "cli.main", "run", *rows, *pairs]

    def run(self, **settings: object) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            self.command(**settings), env=environment(), capture_output=True, text=True, timeout=280
        )

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.state / "last-run" / "summary.json").read_text())

    def processes(self) -> list[list[str]]:
        """Return the command lines of the processes that work for a run in this folder."""
        found = []
        for process in psutil.process_iter(["cmdline", "environ", "status"]):
            about = [*(process.info["cmdline"] or []), *(process.info["environ"] or {}).values()]
            if process.info["status"] != psutil.STATUS_ZOMBIE and any(
                str(self.state) in text for text in about
            ):
                found.append(process.info["cmdline"])
        return found


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "110"}

"""What a server is told: what it serves, where, and within which bounds."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from fovea.records import EvaluationRecord
from serving.middleware.logs import LogFormat


def _usual_workers() -> int:
    """Return how many threads prepare pictures: a core is left to the thread that generates."""
    return max(1, min(8, (os.cpu_count() or 2) - 1))


@dataclass(frozen=True)
class ServerSettings:
    """What is served, and where.

    Args:
        model: the URI of a model's record (``s3://…/index/….json``), whose files are checked against it; or a
            local folder.
        digest: of the model in a local folder, where it is known already; else it is made of the files'.
        record: the URI or file of the record that a local folder's files are checked against.
        evaluation: the record of the model's evaluation, or its URI or file: confidences come from what it
            found. None gives none.
        name: the name that callers use.
        port: 0 takes a free one.
        host: ``0.0.0.0`` lets other machines in.
        compile: generate in a few shapes only, which a GPU's step from token to token is compiled for.
        max_waiting: how many pictures may wait beyond those that are answered; more are refused.
        workers: threads that decode pictures and cut them into crops.
        request_seconds: how long a request may take.
        hang_seconds: after so long without a token at work, the model counts as hung.
        grace_seconds: how long requests under way may take after SIGTERM.
        api_keys: a folder or file of keys (`serving.middleware.access.ApiKeys`); None asks for none.
        requests_per_minute: for each key.
        cors_origins: whose pages may ask from a browser.
        fetch_profile: of the platform's configuration, for pictures by address; None fetches none.
        log_format: lines for people, or JSON.
        address_file: where to write ``http://host:port`` once requests are taken.
        exit_with_parent: stop when standard input closes, as it does when the process that started this one
            ends.
    """

    model: str
    digest: str | None = None
    record: str | None = None
    evaluation: EvaluationRecord | str | None = None
    name: str = "fovea"
    port: int = 8080
    host: str = "127.0.0.1"
    device: str = "auto"
    dtype: str = "auto"
    compile: bool = False
    max_batch_size: int = 16
    max_waiting: int = 256
    workers: int = field(default_factory=_usual_workers)
    request_seconds: float = 60.0
    hang_seconds: float = 300.0
    grace_seconds: int = 30
    api_keys: Path | None = None
    requests_per_minute: int | None = None
    cors_origins: tuple[str, ...] = ()
    fetch_profile: str | None = None
    log_format: LogFormat = "line"
    address_file: Path | None = None
    exit_with_parent: bool = False

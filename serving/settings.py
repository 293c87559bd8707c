"""The settings of a server: what it serves, where, and within which bounds."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

LogFormat = Literal["line", "json"]


@dataclass(frozen=True)
class OptionNames:
    """The names of a field's command-line option, where these are not the field's own."""

    names: tuple[str, ...]


def _usual_workers() -> int:
    # One core is left to the thread that generates.
    return max(1, min(8, (os.cpu_count() or 2) - 1))


class ServerSettings(BaseModel):
    """The settings of a server.

    A field's docstring is its description. The options of ``python -m serving`` and of ``fovea serve`` are
    generated from the fields by `serving.options`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    model_uri: str | None = None
    """URI of a model's record, s3://…/index/….json; the digests of its files are checked."""

    model_dir: Path | None = None
    """Folder with a model, instead of a URI."""

    model_record: str | None = None
    """With a folder: URI or file of the record that its files are checked against."""

    evaluation: str | None = None
    """URI or file of the record of the model's evaluation, which confidences come from; without it there are
    none."""

    model_name: str = Field(default="fovea", min_length=1)
    """Name that clients use."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in."""

    port: Annotated[int, OptionNames(("--http-port", "--port"))] = Field(default=8080, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""

    device: str = "auto"
    """auto, cpu or cuda."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto is bfloat16 on a GPU and float32 on a CPU."""

    compile: bool = False
    """Generate in a few shapes only, and on a GPU compile the step from token to token for each; this was
    never run on a GPU."""

    max_batch_size: int = Field(default=16, ge=1)
    """How many requests are answered together."""

    max_waiting: int = Field(default=256, ge=0)
    """How many requests may wait beyond those; more are refused."""

    workers: int = Field(default_factory=_usual_workers, ge=1)
    """Threads that decode pictures and cut them into crops."""

    request_seconds: float = Field(default=60.0, gt=0)
    """The longest time a request may take."""

    hang_seconds: float = Field(default=300.0, gt=0)
    """The model counts as hung, and liveness fails, after this time at work without a token."""

    grace_seconds: int = Field(default=30, ge=0)
    """How long requests under way may take after SIGTERM."""

    api_keys: Path | None = None
    """A folder with a file for each key, such as a mounted Secret, or a file with lines of name: key. Without
    it, no key is asked for."""

    requests_per_minute: int | None = Field(default=None, ge=1)
    """How many requests each key may make in a minute; without it there is no limit."""

    cors_origins: Annotated[list[str], OptionNames(("--cors-origin",))] = []
    """Origin whose pages may ask from a browser, such as https://shop.example; can be given several times."""

    fetch_profile: str | None = None
    """Fetch pictures by address, by the rules of this profile of the platform's configuration; 'default'
    reaches public addresses. Without it none are fetched."""

    log_format: LogFormat = "line"
    """line for people, json for machines."""

    address_file: Path | None = None
    """File to write http://host:port to once requests are taken."""

    exit_with_parent: bool = False
    """Stop when standard input closes, as it does when the process that started this one ends."""

    @model_validator(mode="after")
    def _one_model(self) -> Self:
        if self.model_uri is not None and self.model_dir is not None:
            raise ValueError("give --model-uri or --model-dir, not both")
        return self

"""Running a step: find an earlier result or commit a new one, and report how it went.

A step's result is found by its input key, a digest of the step's name and version, its parameters and its
parents' digests. The index in S3 is the only cache.
"""

import importlib
import logging
import signal
import sys
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from pydantic import BaseModel, ConfigDict

from fovea.errors import UserError
from fovea.progress import Progress
from fovea.records import R, Record, StepInputs, now
from fovea.storage import Storage, index_uri, join_uri

logger = logging.getLogger("fovea")

_TRACEBACK_CHARACTERS = 4000


class Interrupted(BaseException):
    """The process received SIGTERM. Not an Exception, so that no error handler swallows it."""


class RunContext(BaseModel):
    """The run of a step, and where the run keeps its artifacts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    artifact_root: str
    """``s3://bucket/prefix`` of payloads, the index and the runs' reports."""
    run_id: str

    def run_uri(self, name: str) -> str:
        """Return the URI of a document of this run."""
        return join_uri(self.artifact_root, "runs", self.run_id, name)


@dataclass(frozen=True)
class Attempt:
    """One attempt at a step: where its payload goes, and S3."""

    payload: Path
    """An empty local folder; its content when the work is done is the record's payload."""
    storage: Storage
    context: RunContext
    task: str
    started: float = field(default_factory=time.monotonic)

    def progress(self, what: str) -> Progress:
        """Return a reporter of progress that names this task."""
        return Progress(logger, f"{self.task}: {what}")


class StepReport(BaseModel):
    """How one task of a run went; kept as ``runs/{run_id}/{task}.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    step: str
    seconds: float
    reused: bool
    digest: str
    record_uri: str


class Failure(BaseModel):
    """Why a run failed; kept as ``runs/{run_id}/failure.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    error: str
    kind: str
    traceback: str


def run_step(
    record_type: type[R],
    inputs: StepInputs,
    context: RunContext,
    work: Callable[[Attempt], Mapping[str, Any]],
    *,
    task: str = "",
    storage: Storage | None = None,
) -> R:
    """Return the step's record: an earlier one of the same inputs, or that of the work done now.

    ``work`` fills ``attempt.payload`` and returns the record's own fields. The payload is uploaded under a
    prefix of this attempt, and the record is written last. ``task`` names the step within the run where a
    graph has it twice.

    Raises:
        UserError: a record of another type has the inputs' key, or S3 cannot be reached.
    """
    task = task or inputs.step
    storage = storage or Storage()
    uri = index_uri(context.artifact_root, inputs.step, inputs.key)
    with reporting_failure(task, context, storage):
        started = time.monotonic()
        found = storage.find(context.artifact_root, inputs.step, inputs.key)
        if found is not None:
            logger.info("%s: reused what run %s made of the same inputs", task, found.run_id)
            record = found
        else:
            record = _attempt(record_type, inputs, context, work, task, storage)
        if not isinstance(record, record_type):
            raise UserError(f"{uri}: holds a {record.kind} record")
        report = StepReport(
            task=task,
            step=inputs.step,
            seconds=round(time.monotonic() - started, 2),
            reused=found is not None,
            digest=record.digest,
            record_uri=uri,
        )
        storage.write_bytes(context.run_uri(f"{task}.json"), report.model_dump_json().encode())
        return record


def _attempt(
    record_type: type[R],
    inputs: StepInputs,
    context: RunContext,
    work: Callable[[Attempt], Mapping[str, Any]],
    task: str,
    storage: Storage,
) -> Record:
    uri = payload_uri(context.artifact_root, inputs)
    with tempfile.TemporaryDirectory(prefix=f"fovea-{inputs.step}-") as folder:
        attempt = Attempt(Path(folder), storage, context, task)
        own = work(attempt)
        files = storage.upload_folder(attempt.payload, uri, attempt.progress("uploading files"))
        record = record_type(**made_of(inputs, context), uri=uri if files else "", files=files, **own)
        return storage.commit(context.artifact_root, record)


def payload_uri(artifact_root: str, inputs: StepInputs) -> str:
    """Return a new attempt's own prefix for its payload, so that two attempts never share a file."""
    return join_uri(artifact_root, inputs.step, f"{inputs.key[:16]}-{uuid.uuid4().hex[:8]}") + "/"


def made_of(inputs: StepInputs, context: RunContext) -> dict[str, Any]:
    """Return the fields of a record that say what made it."""
    return {
        "step": inputs.step,
        "step_version": inputs.version,
        "input_key": inputs.key,
        "parameters": inputs.parameters,
        "parents": inputs.parents,
        "created_at": now(),
        "run_id": context.run_id,
    }


@contextmanager
def reporting_failure(task: str, context: RunContext, storage: Storage) -> Iterator[None]:
    """Write ``failure.json`` under the run's prefix when the block fails or SIGTERM comes, and re-raise."""
    previous = signal.signal(signal.SIGTERM, _interrupt) if _in_main_thread() else None
    try:
        yield
    except (Exception, Interrupted) as error:
        failure = Failure(
            task=task,
            error=str(error) or type(error).__name__,
            kind="user" if isinstance(error, UserError) else type(error).__name__,
            traceback="" if isinstance(error, UserError) else traceback.format_exc()[-_TRACEBACK_CHARACTERS:],
        )
        try:
            storage.write_bytes(context.run_uri("failure.json"), failure.model_dump_json().encode())
        except UserError as second:
            # The first error matters more than the failure to record it.
            logger.warning("%s: the failure could not be recorded: %s", task, second)
        raise
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted("received SIGTERM")


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def configure_logging() -> None:
    """Log to standard output, one line an event; libraries from WARNING on."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True, stream=sys.stdout)
    # Progress bars are not readable in a log, and the steps report their progress.
    for library in ("transformers", "datasets"):
        if library in sys.modules:
            importlib.import_module(f"{library}.utils.logging").disable_progress_bar()
    logger.setLevel(logging.INFO)

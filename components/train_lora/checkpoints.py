"""Checkpoints in S3: files are written first and the record last, so that a record implies complete files.

checkpoints/train_lora/{input key}/{step}-{attempt}/…      the files
checkpoints/train_lora/{input key}/{step}-{attempt}.json   the record
"""

import logging
import uuid
from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from fovea.errors import UserError
from fovea.records import FileEntry, MlflowReference, StepInputs, now
from fovea.storage import Storage, join_uri, sha256_file

logger = logging.getLogger("fovea.train_lora")

_KEPT = 2
"""Two, so that there is another one if the newest is damaged in the store."""
_LIBRARIES = ("torch", "transformers", "peft", "accelerate")


class Checkpoint(BaseModel):
    """The record of a checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    inputs: StepInputs
    step: int
    max_steps: int
    processes: int
    uri: str
    files: tuple[FileEntry, ...]
    libraries: dict[str, str]
    created_at: datetime
    run_id: str
    mlflow: MlflowReference | None


class Checkpoints:
    """The checkpoints of one training, identified by its inputs."""

    def __init__(self, storage: Storage, artifact_root: str, inputs: StepInputs) -> None:
        self._storage = storage
        self._prefix = join_uri(artifact_root, "checkpoints", "train_lora", inputs.key) + "/"
        self._inputs = inputs

    def save(
        self,
        folder: Path,
        *,
        step: int,
        max_steps: int,
        processes: int,
        run_id: str,
        mlflow: MlflowReference | None,
    ) -> Checkpoint:
        """Upload a folder as the checkpoint after ``step`` steps, and delete those before the last two."""
        name = f"{step:08d}-{uuid.uuid4().hex[:8]}"
        uri = f"{self._prefix}{name}/"
        record = Checkpoint(
            inputs=self._inputs,
            step=step,
            max_steps=max_steps,
            processes=processes,
            uri=uri,
            files=self._storage.upload_folder(folder, uri),
            libraries=_libraries(),
            created_at=now(),
            run_id=run_id,
            mlflow=mlflow,
        )
        self._storage.write_bytes(f"{self._prefix}{name}.json", record.model_dump_json(indent=2).encode())
        for uri in self._records()[_KEPT:]:
            self._remove(uri.removesuffix(".json"))
        return record

    def newest(self, folder: Path) -> Checkpoint | None:
        """Download the newest complete checkpoint into ``folder``; return None if there is none."""
        for uri in self._records():
            try:
                record = read_checkpoint(self._storage, uri)
                self._check(record, uri)
                self.fetch(record, folder)
            except UserError as error:
                logger.warning("train_lora: skipped a checkpoint: %s", error)
            else:
                return record
        return None

    def named(self, uri: str, folder: Path) -> Checkpoint:
        """Download the checkpoint whose record is at ``uri`` into ``folder``.

        Raises:
            UserError: there is none, or it was made from other inputs; the difference is shown.
        """
        record = read_checkpoint(self._storage, uri)
        self._check(record, uri)
        self.fetch(record, folder)
        return record

    def fetch(self, record: Checkpoint, folder: Path) -> None:
        """Download a checkpoint's files and check them.

        Raises:
            UserError: a file is missing, or differs from the record.
        """
        for entry in record.files:
            path = folder / entry.path
            path.parent.mkdir(parents=True, exist_ok=True)
            self._storage.read_file(record.uri + entry.path, path)
            if sha256_file(path) != entry.sha256:
                raise UserError(f"{record.uri}{entry.path}: differs from its record")

    def remove_all(self) -> None:
        """Delete every checkpoint, after the adapter is complete."""
        for uri in self._records():
            self._remove(uri.removesuffix(".json"))

    def _check(self, record: Checkpoint, uri: str) -> None:
        difference = record.inputs.difference(self._inputs)
        if difference or record.inputs.key != self._inputs.key:
            raise UserError(
                f"{uri}: this checkpoint was made from other inputs: {difference or 'another input key'}; "
                "restore the parameters and data, or leave resume_from_checkpoint empty to start again"
            )

    def _records(self) -> list[str]:
        """Return the URIs of the records, newest first."""
        found = [uri for uri in self._storage.list(self._prefix) if uri.endswith(".json")]
        # The files are one level below.
        return sorted((uri for uri in found if "/" not in uri.removeprefix(self._prefix)), reverse=True)

    def _remove(self, name: str) -> None:
        try:
            # The record first: without it, the files are not a checkpoint.
            self._storage.delete([f"{name}.json"])
            self._storage.delete(list(self._storage.list(f"{name}/")))
        except UserError as error:
            logger.warning("train_lora: could not delete an old checkpoint: %s", error)


def read_checkpoint(storage: Storage, uri: str) -> Checkpoint:
    """Read a checkpoint's record.

    Raises:
        UserError: there is none at ``uri``.
    """
    try:
        return Checkpoint.model_validate_json(storage.read_bytes(uri))
    except ValidationError as error:
        raise UserError(f"{uri}: is not the record of a checkpoint ({error.errors()[0]['msg']})") from error


def changed_libraries(record: Checkpoint) -> Mapping[str, tuple[str, str]]:
    """Return the libraries whose version has changed: (then, now). Patch versions may differ."""
    present = _libraries()
    return {
        name: (record.libraries.get(name, "?"), present[name])
        for name in present
        if record.libraries.get(name) != present[name]
    }


def _libraries() -> dict[str, str]:
    return {name: version(name) for name in _LIBRARIES}

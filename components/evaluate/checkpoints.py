"""Checkpoints of an evaluation: answers in S3, from which an evaluation that was killed continues.

checkpoints/evaluate/{input key}/{split}-{first row}-{attempt}.parquet   answers to some rows
checkpoints/evaluate/{input key}/{split}-{first row}-{attempt}.json      the record, written last
"""

import hashlib
import io
import logging
import uuid
from collections.abc import Sequence
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as parquet
from pydantic import BaseModel, ConfigDict, ValidationError

from fovea.errors import UserError
from fovea.records import Sha256
from fovea.storage import Storage, join_uri

logger = logging.getLogger("fovea")


class Part(BaseModel):
    """The record of the answers to some consecutive rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    input_key: Sha256
    split: str
    first_row: int
    rows: int
    sha256: Sha256


class Parts:
    """The answers of an evaluation so far, found by its input key."""

    def __init__(self, storage: Storage, artifact_root: str, input_key: str) -> None:
        self._storage = storage
        self._input_key = input_key
        self._prefix = join_uri(artifact_root, "checkpoints", "evaluate", input_key) + "/"

    def save(self, table: pa.Table, split: str, first_row: int) -> None:
        """Store answers; the table has a column ``row_id``."""
        buffer = io.BytesIO()
        parquet.write_table(table, buffer, compression="zstd")
        data = buffer.getvalue()
        part = Part(
            input_key=self._input_key,
            split=split,
            first_row=first_row,
            rows=len(table),
            sha256=hashlib.sha256(data).hexdigest(),
        )
        # A random part, since two attempts may run at the same time.
        name = f"{self._prefix}{split}-{first_row:08d}-{uuid.uuid4().hex[:8]}"
        self._storage.write_bytes(f"{name}.parquet", data)
        self._storage.write_bytes(f"{name}.json", part.model_dump_json().encode())

    def load(self, split: str, row_ids: Sequence[str]) -> list[pa.Table]:
        """Return the answers to the first of these rows, without a gap; none where there are none.

        A part that is broken or of other inputs is ignored: its rows are answered again.
        """
        tables: list[pa.Table] = []
        done = 0
        for uri in self._storage.list(f"{self._prefix}{split}-"):
            if not uri.endswith(".json"):
                continue
            try:
                table = self._read(uri, split, done, row_ids)
            except (UserError, ValidationError, pa.ArrowException, KeyError) as error:
                logger.warning("evaluate: passed over what was answered before: %s", _line(error))
                continue
            if table is not None:
                tables.append(table)
                done += len(table)
        return tables

    def remove_all(self) -> None:
        """Delete all parts, once the evaluation is committed."""
        try:
            uris = list(self._storage.list(self._prefix))
            # The records first: a part without its record is ignored.
            self._storage.delete(sorted(uris, key=lambda uri: not uri.endswith(".json")))
        except UserError as error:
            logger.warning("evaluate: parts that are not needed any more stay: %s", error)

    def _read(self, uri: str, split: str, first_row: int, row_ids: Sequence[str]) -> pa.Table | None:
        """Return the part if it starts at ``first_row``; None otherwise."""
        part = Part.model_validate_json(self._storage.read_bytes(uri))
        if (part.split, part.first_row) != (split, first_row):
            return None
        data = self._storage.read_bytes(f"{uri.removesuffix('.json')}.parquet")
        if part.input_key != self._input_key or hashlib.sha256(data).hexdigest() != part.sha256:
            raise UserError(f"{uri}: its answers are not those that its record names")
        table = parquet.read_table(io.BytesIO(data))
        if table["row_id"].to_pylist() != list(row_ids[first_row : first_row + part.rows]):
            raise UserError(f"{uri}: is about other rows of the {split} split")
        return table


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]

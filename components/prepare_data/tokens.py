"""Lengths of training sequences, counted exactly with the base model's tokenizer and crop geometry.

Only the tokenizer's files are fetched, and no picture is decoded.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from components.prepare_data.workspace import Workspace
from fovea.errors import UserError
from fovea.records import ModelRecord, SequenceLengths, canonical_json
from fovea.storage import Storage
from fovea.task import Task

TOO_LONG = "too_long_for_context"

_BATCH = 1000
_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json")


def tokenizer_digest(base: ModelRecord) -> str:
    """Return ``sha256:…`` of the files that determine the lengths of a model's sequences."""
    found = {entry.path: entry.sha256 for entry in base.files if entry.path in _FILES}
    missing = [name for name in _FILES if name not in found]
    if missing:
        raise UserError(f"{base.uri}: the base model has no {', '.join(missing)}; import it again")
    return f"sha256:{hashlib.sha256(canonical_json(found)).hexdigest()}"


def fetch_tokenizer(base: ModelRecord, storage: Storage) -> Path:
    """Download a model's tokenizer into the cache, and return its folder."""
    return storage.download(base, pattern="*.json")


class Tokenizer:
    """A base model's tokenizer, and the longest sequence that the model is trained on."""

    def __init__(self, folder: Path, num_crops: int) -> None:
        """Load the tokenizer of the model in ``folder``."""
        # Imported here because torch takes seconds, and a preparation without a base model does not need it.
        from fovea.phi3v import Phi3VConfig, Phi3VProcessor
        from fovea.phi3v.lengths import SequenceLengths as Lengths

        self._lengths = Lengths(Phi3VProcessor.from_pretrained(folder), num_crops)
        self.num_crops = num_crops
        # Longer sequences get other rotary factors.
        self.context_tokens: int = Phi3VConfig.from_pretrained(folder).original_max_position_embeddings

    def count(self, texts: Sequence[str], sizes: Sequence[tuple[int, int]]) -> list[int]:
        """Return the lengths of training texts, each with a picture of a (width, height) in pixels."""
        return self._lengths.tokens(texts, sizes)


def count_tokens(workspace: Workspace, task: Task, tokenizer: Tokenizer) -> None:
    """Set the lengths of the kept rows, and leave out rows that are too long for the context."""
    for batch in workspace.rows.kept_in_batches(_BATCH):
        lengths = tokenizer.count(
            [task.training_text(row.values) for row in batch], [(row.width, row.height) for row in batch]
        )
        workspace.rows.set_tokens(zip((row.number for row in batch), lengths, strict=True))
    workspace.rows.leave_out_longer_than(tokenizer.context_tokens, TOO_LONG)


def summarise(workspace: Workspace, num_crops: int) -> SequenceLengths | None:
    """Summarise the lengths of the kept rows; None if they were not counted."""
    found = workspace.rows.summarise_tokens()
    return None if found is None else SequenceLengths(num_crops=num_crops, **found._asdict())

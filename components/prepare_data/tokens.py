"""How long training sequences are, exactly: by the base model's own tokenizer and crop geometry.

Only the tokenizer's files are fetched, and no picture is decoded for it.
"""

import hashlib
import json
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
    """Return ``sha256:…`` of all that decides how long a model's sequences are; its weights do not."""
    found = {entry.path: entry.sha256 for entry in base.files if entry.path in _FILES}
    missing = [name for name in _FILES if name not in found]
    if missing:
        raise UserError(f"{base.uri}: the base model has no {', '.join(missing)}; import it again")
    return f"sha256:{hashlib.sha256(canonical_json(found)).hexdigest()}"


def fetch_tokenizer(base: ModelRecord, storage: Storage) -> Path:
    """Bring a model's tokenizer into the cache, and return its folder."""
    return storage.download(base, pattern="*.json")


class Tokenizer:
    """A base model's tokenizer, and the longest sequence that its model is trained on."""

    def __init__(self, folder: Path, num_crops: int) -> None:
        """Load the tokenizer of the model in ``folder``."""
        # Imported here: torch takes seconds that a preparation without a base model need not wait for.
        from fovea.phi3v import Phi3VConfig, Phi3VProcessor
        from fovea.phi3v.lengths import SequenceLengths as Lengths

        self._lengths = Lengths(Phi3VProcessor.from_pretrained(folder), num_crops)
        self.num_crops = num_crops
        # Beyond it, the model encodes positions with other rotary factors.
        self.context_tokens: int = Phi3VConfig.from_pretrained(folder).original_max_position_embeddings

    def count(self, texts: Sequence[str], sizes: Sequence[tuple[int, int]]) -> list[int]:
        """Return the lengths of training texts, each with a picture of this width and height in pixels."""
        return self._lengths.tokens(texts, sizes)


def count_tokens(workspace: Workspace, task: Task, tokenizer: Tokenizer) -> None:
    """Fill ``tokens`` of the kept rows, and leave out those that would not fit the context."""
    db, last = workspace.db, -1
    while batch := db.execute(
        'SELECT number, "values", width, height FROM rows JOIN pictures USING (address) '
        "WHERE rows.reason IS NULL AND number > ? ORDER BY number LIMIT ?",
        (last, _BATCH),
    ).fetchall():
        texts = [task.training_text(json.loads(values)) for _, values, _, _ in batch]
        lengths = tokenizer.count(texts, [(width, height) for _, _, width, height in batch])
        db.executemany(
            "UPDATE rows SET tokens = ? WHERE number = ?",
            ((length, row[0]) for length, row in zip(lengths, batch, strict=True)),
        )
        last = batch[-1][0]
    db.execute("UPDATE rows SET reason = ? WHERE tokens > ?", (TOO_LONG, tokenizer.context_tokens))


def summarise(workspace: Workspace, num_crops: int) -> SequenceLengths | None:
    """Return how long the kept rows' sequences are; None where that was not counted."""
    db = workspace.db
    rows, total, longest = db.execute(
        "SELECT count(tokens), sum(tokens), max(tokens) FROM rows WHERE reason IS NULL"
    ).fetchone()
    if not rows:
        return None
    (median,) = db.execute(
        "SELECT tokens FROM rows WHERE reason IS NULL ORDER BY tokens LIMIT 1 OFFSET ?", ((rows - 1) // 2,)
    ).fetchone()
    return SequenceLengths(num_crops=num_crops, total=total, median=median, longest=longest)

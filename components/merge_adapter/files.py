"""The files beside the weights: as the base has them, but for what training decided."""

import json
import shutil
from pathlib import Path
from typing import Any

from fovea.errors import UserError
from fovea.task import Task

# Nothing that could be run or unpickled is taken over.
_TAKEN = ("*.json", "*.jinja", "*.txt", "*.model", "LICENSE*")
_END_OF_ANSWER = [32007, 32000]  # <|end|> and <|endoftext|>
_PADDING = 32000


def copy_files(base: Path, merged: Path, num_crops: int, task: Task) -> None:
    """Fill ``merged`` with what stands beside the base's weights.

    ``config.json``, the index of the shards and the tokenizer's files are copied verbatim. Corrected are
    ``generation_config.json`` (what ends an answer) and ``preprocessor_config.json`` (``num_crops`` as
    trained); ``task.json`` is new.

    Raises:
        UserError: the base lacks a file, or one is no JSON object.
    """
    for path in sorted({path for pattern in _TAKEN for path in base.glob(pattern)}):
        shutil.copyfile(path, merged / path.name)
    processor = _read(base / "preprocessor_config.json")
    _write(merged / "preprocessor_config.json", {**processor, "num_crops": num_crops})
    generation = _read(base / "generation_config.json", needed=False)
    _write(
        merged / "generation_config.json",
        {**generation, "eos_token_id": _END_OF_ANSWER, "pad_token_id": _PADDING},
    )
    task.save(merged)


def _read(path: Path, *, needed: bool = True) -> dict[str, Any]:
    if not needed and not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); import the base model again") from error


def _write(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n")

"""The work of merge_adapter: merge a base and an adapter, and verify the result."""

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.merge_adapter.card import model_card
from components.merge_adapter.lora import LoraAdapter
from components.merge_adapter.shards import Place, merge_file, places
from components.merge_adapter.verify import verify
from fovea.errors import UserError
from fovea.records import AdapterRecord, ModelRecord
from fovea.steps import Attempt
from fovea.task import Task

logger = logging.getLogger("fovea")

# Files that could be executed or unpickled are not copied.
_TAKEN = ("*.json", "*.jinja", "*.txt", "*.model", "LICENSE*")
_END_OF_ANSWER = [32007, 32000]  # <|end|> and <|endoftext|>
_PADDING = 32000


def merge(
    attempt: Attempt, adapter: AdapterRecord, base: ModelRecord, *, verified: bool
) -> Mapping[str, Any]:
    """Write the merged model to the attempt's payload; return the fields of its record.

    Raises:
        UserError: the adapter does not fit, or the merged model's outputs differ from base and adapter.
    """
    fetch = attempt.storage.download
    base_folder = fetch(base, progress=attempt.progress("fetching the base model"))
    adapter_folder = fetch(adapter, progress=attempt.progress("fetching the adapter"))
    changed = merge_folders(base_folder, adapter_folder, attempt.payload, attempt)
    copy_files(base_folder, attempt.payload, adapter.num_crops, adapter.task)
    (attempt.payload / "README.md").write_text(model_card(adapter, base, len(changed)))
    if verified:
        logger.info("merge_adapter: comparing the merged model with base and adapter")
        stored = next(iter(changed.values())).dtype
        difference = verify(base_folder, adapter_folder, attempt.payload, adapter.task, stored)
        logger.info("merge_adapter: logits agree, largest difference %.1e of the largest logit", difference)
    return {
        "architecture": base.architecture,
        "num_crops": adapter.num_crops,
        "task": adapter.task,
        "base": adapter.base,
        "adapter_digest": adapter.digest,
        "mlflow": adapter.mlflow,
    }


def merge_folders(
    base: Path, adapter: Path, merged: Path, attempt: Attempt | None = None
) -> Mapping[str, Place]:
    """Write the base's weights with the adapter merged into ``merged``; return the base's tensors.

    Raises:
        UserError: the adapter is not plain LoRA, or does not fit the base.
    """
    lora = LoraAdapter.load(adapter)
    files = sorted(base.glob("*.safetensors"))
    tensors = {name: place for path in files for name, place in places(path).items()}
    # Everything is checked before the first gigabyte is written.
    lora.check({name: (place.shape, place.dtype) for name, place in tensors.items()})
    progress = attempt.progress("merging files") if attempt else None
    for number, path in enumerate(files, start=1):
        merge_file(path, merged / path.name, lora)
        if progress is not None:
            progress(number, len(files))
    logger.info("merge_adapter: %d of %d tensors changed", len(lora.pairs), len(tensors))
    return {name: tensors[name] for name in lora.pairs}


def copy_files(base: Path, merged: Path, num_crops: int, task: Task) -> None:
    """Fill ``merged`` with the base's other files.

    ``config.json``, the index of the shards and the tokenizer's files are copied verbatim.
    ``generation_config.json`` (the end-of-answer tokens) and ``preprocessor_config.json`` (``num_crops`` as
    trained) are corrected; ``task.json`` is new.

    Raises:
        UserError: the base lacks a file, or one is not a JSON object.
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

"""The sample model: a small, trained Phi-3-Vision that ships with the project.

It has the architecture and classes of the published model, with small crops, few layers and a separate
tokenizer. It knows ordinary words for what it sees, but no catalogue. `sample.training` trains it.

It ships without the unused rows of embedding and head: Phi-3's vocabulary has 32,064 ids, and the
tokenizer uses about 1,500. All unused ids share one row, the last. `unpack_sample_model` writes the model
with the published vocabulary, as a folder that transformers loads.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from safetensors import safe_open

from fovea.errors import UserError

SHIPPED_FOLDER = Path(__file__).with_name("weights")
WEIGHTS_FILE = "model.safetensors"
RECIPE_KEY = "recipe"
"""The key of the weights' metadata for the training recipe, as JSON."""
MADE_FILE = "sample-model.json"
"""The file that records which weights and recipe a model's folder was made from."""

VOCABULARY_SIZE = 32064
FIRST_SPECIAL_ID = 32000
"""Ids from here on are Phi-3's special tokens; those below are learned or unused."""

_TOKENIZER_FILE = "tokenizer.json"
_UNUSED = "<unused_{}>"
_BY_VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")


def unpack_sample_model(out: Path, shipped: Path = SHIPPED_FOLDER) -> bool:
    """Write the sample model to ``out``, unless it exists already.

    Args:
        out: The model's folder; it appears when the model is complete.
        shipped: The folder of a model written by `sample.training.write_sample_model`.

    Returns:
        Whether it existed already.

    Raises:
        UserError: ``out`` contains something else.
    """
    made = {"weights": f"sha256:{weights_digest(shipped)}", **read_recipe(shipped / WEIGHTS_FILE)}
    if out.exists():
        if _read_made(out) == made:
            return True
        raise UserError(f"{out}: is not this sample model; remove it, or choose another folder with --out")
    part = out.with_name(f".{out.name}.partial")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(shipped, part)
    try:
        learned = _add_unused_tokens(part / _TOKENIZER_FILE)
        _repeat_unused_rows(part / WEIGHTS_FILE, learned)
        (part / MADE_FILE).write_text(json.dumps(made, indent=2) + "\n")
        part.replace(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return False


def weights_digest(shipped: Path = SHIPPED_FOLDER) -> str:
    """Return the SHA-256 of a model's weights, in the shipped form."""
    return hashlib.sha256((shipped / WEIGHTS_FILE).read_bytes()).hexdigest()


def read_recipe(weights: Path) -> dict[str, Any]:
    """Return ``{"recipe": …}``, the training recipe of the weights."""
    with safe_open(weights, framework="np") as file:
        return {RECIPE_KEY: json.loads(file.metadata()[RECIPE_KEY])}


def remove_unused_tokens(folder: Path) -> None:
    """Remove the unused tokens from a folder's tokenizer; `unpack_sample_model` adds them again."""
    tokenizer, vocabulary = _read_vocabulary(folder / _TOKENIZER_FILE)
    for name in [name for name, number in vocabulary.items() if name == _UNUSED.format(number)]:
        del vocabulary[name]
    _write_tokenizer(folder / _TOKENIZER_FILE, tokenizer)


def unused_tokens(learned: int) -> dict[str, int]:
    """Return the names and ids of the tokens between the learned and the special ones."""
    return {_UNUSED.format(number): number for number in range(learned, FIRST_SPECIAL_ID)}


def small_ids(learned: int) -> list[int]:
    """Return for each id of the published vocabulary its row in the shipped embedding and head.

    Learned ids are first, then the special ones. The last row is shared by all unused ids.
    """
    special = VOCABULARY_SIZE - FIRST_SPECIAL_ID
    return [
        *range(learned),
        *[learned + special] * (FIRST_SPECIAL_ID - learned),
        *range(learned, learned + special),
    ]


def _add_unused_tokens(path: Path) -> int:
    """Add the unused tokens to a tokenizer's file, and return the number of learned tokens."""
    tokenizer, vocabulary = _read_vocabulary(path)
    learned = sum(number < FIRST_SPECIAL_ID for number in vocabulary.values())
    vocabulary.update(unused_tokens(learned))
    _write_tokenizer(path, tokenizer)
    return learned


def _read_vocabulary(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    return tokenizer, tokenizer["model"]["vocab"]


def _write_tokenizer(path: Path, tokenizer: dict[str, Any]) -> None:
    path.write_text(json.dumps(tokenizer, ensure_ascii=False) + "\n", encoding="utf-8")


def _repeat_unused_rows(path: Path, learned: int) -> None:
    """Give embedding and head a row for each id of the published vocabulary."""
    # Imported here: importing torch takes seconds, which an existing model does not need.
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    for name in _BY_VOCABULARY:
        tensors[name] = tensors[name][small_ids(learned)].contiguous()
    # transformers does not load a file without this.
    save_file(tensors, path, {"format": "pt"})


def _read_made(folder: Path) -> object:
    try:
        return json.loads((folder / MADE_FILE).read_text())
    except (OSError, ValueError):
        return None

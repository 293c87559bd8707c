"""Find and read the files of a transformers checkpoint, without transformers."""

import json
from pathlib import Path
from typing import Any

from fovea.errors import UserError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def weight_files(folder: Path) -> list[Path]:
    """Return the weight files: one, or the shards in the index.

    Raises:
        UserError: there are none, one is missing, or the choice is ambiguous.
    """
    single, index = folder / SINGLE, folder / INDEX
    if single.is_file() and index.is_file():
        raise UserError(f"{folder}: contains both {SINGLE} and {INDEX}; remove the wrong one")
    if single.is_file():
        return [single]
    if not index.is_file():
        raise UserError(f"{folder}: contains neither {SINGLE} nor {INDEX}; pickled weights are not supported")
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise UserError(f"{index}: has no weight_map; download the model again")
    names = sorted(set(weight_map.values()))
    # A name with a path outside the folder would upload an arbitrary file.
    missing = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder}: lacks {', '.join(missing)}, which {INDEX} names; download the model again"
        )
    return [folder / name for name in names]


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        UserError: the file does not exist, or does not contain a JSON object.
    """
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path.parent}: not a Phi-3-Vision folder, {path.name} missing") from None
    except ValueError as error:
        raise UserError(f"{path}: is not JSON ({error}); download the model again") from error
    if not isinstance(document, dict):
        raise UserError(f"{path}: is not a JSON object; download the model again")
    return document

"""The files of a transformers checkpoint, read without transformers."""

import json
from pathlib import Path
from typing import Any

from fovea.errors import UserError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold the weights: one, or the shards that the index names.

    Raises:
        UserError: there are none, one is missing, or it is not clear which.
    """
    single, index = folder / SINGLE, folder / INDEX
    if single.is_file() and index.is_file():
        raise UserError(f"{folder}: holds both {SINGLE} and {INDEX}; take away the one that is not meant")
    if single.is_file():
        return [single]
    if not index.is_file():
        raise UserError(f"{folder}: holds no {SINGLE} and no {INDEX}; pickled weights are not read")
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise UserError(f"{index}: has no weight_map; fetch the model again")
    names = sorted(set(weight_map.values()))
    # A name that leads elsewhere would upload whatever lies there.
    missing = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder}: lacks {', '.join(missing)}, which {INDEX} names; fetch the model again")
    return [folder / name for name in names]


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object that a file holds.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path.parent}: not a Phi-3-Vision folder, {path.name} missing") from None
    except ValueError as error:
        raise UserError(f"{path}: is not JSON ({error}); fetch the model again") from error
    if not isinstance(document, dict):
        raise UserError(f"{path}: is not a JSON object; fetch the model again")
    return document

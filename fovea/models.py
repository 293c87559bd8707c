"""Base models: how one comes into S3, where every later step finds it by its record."""

import hashlib
import json
import tempfile
from pathlib import Path

from fovea.errors import UserError
from fovea.records import ModelRecord, canonical_json, input_key, now
from fovea.steps import RunContext
from fovea.storage import Storage, join_uri, sha256_file

STEP = "import_model"
VERSION = 1
_NEEDED = ("config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")
_WANTED = ("*.json", "*.safetensors", "*.txt", "*.model", "LICENSE*", "*.md")


def import_model(folder: Path, context: RunContext, storage: Storage) -> ModelRecord:
    """Upload a Phi-3-Vision folder and commit its record; what is there already is not uploaded again.

    Python files are left behind and ``auto_map`` is taken out of every configuration: nothing of a checkpoint
    is ever run.

    Raises:
        UserError: the folder is not a Phi-3-Vision checkpoint in safetensors.
    """
    config = _check(folder)
    paths = sorted({path for pattern in _WANTED for path in folder.glob(pattern)})
    with tempfile.TemporaryDirectory(prefix="fovea-import-") as name:
        staged = Path(name)
        for path in paths:
            _stage(path, staged / path.name)
        digests = {path.name: sha256_file(path) for path in paths}
        content = hashlib.sha256(canonical_json(digests)).hexdigest()
        key = input_key(STEP, VERSION, {}, {"content": f"sha256:{content}"})
        found = storage.find(context.artifact_root, STEP, key)
        if isinstance(found, ModelRecord):
            return found
        uri = join_uri(context.artifact_root, STEP, key[:16]) + "/"
        record = ModelRecord(
            step=STEP,
            step_version=VERSION,
            input_key=key,
            uri=uri,
            files=storage.upload_folder(staged, uri),
            parameters={},
            parents={"content": f"sha256:{content}"},
            created_at=now(),
            run_id=context.run_id,
            architecture=config["architectures"][0],
            num_crops=json.loads((staged / "preprocessor_config.json").read_text()).get("num_crops", 16),
        )
        committed = storage.commit(context.artifact_root, record)
    if not isinstance(committed, ModelRecord):
        raise UserError(f"{uri}: another record than a model's lies at its key; remove it and import again")
    return committed


def _check(folder: Path) -> dict[str, list[str]]:
    missing = [name for name in _NEEDED if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder}: not a Phi-3-Vision folder, {', '.join(missing)} missing")
    if not list(folder.glob("*.safetensors")):
        raise UserError(f"{folder}: holds no *.safetensors; pickled weights are not read")
    config: dict[str, list[str]] = {}
    for name in _NEEDED:
        try:
            document = json.loads((folder / name).read_bytes())
        except ValueError as error:
            raise UserError(f"{folder / name}: is not JSON ({error}); fetch the model again") from error
        config = document if name == "config.json" else config
    if config.get("architectures") != ["Phi3VForCausalLM"]:
        raise UserError(
            f"{folder}: is a {config.get('architectures')}, only Phi3VForCausalLM can be fine-tuned"
        )
    return config


def _stage(source: Path, target: Path) -> None:
    if source.suffix == ".json":
        document = json.loads(source.read_text())
        if isinstance(document, dict) and "auto_map" in document:
            del document["auto_map"]
            target.write_text(json.dumps(document, indent=2) + "\n")
            return
    target.symlink_to(source.resolve())

"""Base models: how one comes into S3, where every later step finds it by its record."""

import hashlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from fovea.checkpoint_files import read_json, weight_files
from fovea.errors import UserError
from fovea.hub import download_model, is_hub_name
from fovea.records import ModelRecord, StepInputs, canonical_json
from fovea.steps import RunContext, made_of, payload_uri
from fovea.storage import Storage, sha256_file

STEP = "import_model"
VERSION = 1

# Beside the weights; Python files and anything pickled stay behind.
_WANTED = ("*.json", "*.txt", "*.model", "*.jinja", "LICENSE*", "*.md")


def import_model(
    source: Path | str,
    context: RunContext,
    storage: Storage,
    progress: Callable[[int, int], None] | None = None,
) -> ModelRecord:
    """Upload a Phi-3-Vision checkpoint and commit its record; what is there already is not uploaded again.

    Names, shapes and types of the tensors, and that tokenizer and image processor fit, are checked first.
    Python files are left behind and ``auto_map`` is taken out of every configuration: nothing of a checkpoint
    is ever run.

    Args:
        source: a folder, or ``owner/name@commit`` on a Hugging Face hub, whose digests are then checked.
        context: where the record goes.
        storage: S3.
        progress: takes how many files are uploaded, and how many there are.

    Raises:
        UserError: there is no such model, or it is not a whole Phi-3-Vision checkpoint in safetensors.
    """
    folder = Path(source)
    if not folder.is_dir():
        if not is_hub_name(str(source)):
            raise UserError(
                f"{source}: there is no such folder; from a hub, name the commit, too: owner/name@commit "
                "with its 40 hexadecimal digits"
            )
        folder = download_model(str(source), (*_WANTED, "*.safetensors"))
    paths = sorted({path for pattern in _WANTED for path in folder.glob(pattern)} | set(weight_files(folder)))
    digests = {path.name: sha256_file(path) for path in paths}
    content = f"sha256:{hashlib.sha256(canonical_json(digests)).hexdigest()}"
    inputs = StepInputs(step=STEP, version=VERSION, parameters={}, parents={"content": content})
    found = storage.find(context.artifact_root, STEP, inputs.key)
    if isinstance(found, ModelRecord):
        return found
    # Imported here: torch takes seconds that a model imported before need not wait for.
    from fovea.phi3v.checkpoint import check_checkpoint

    config = check_checkpoint(folder)
    with tempfile.TemporaryDirectory(prefix="fovea-import-") as name:
        staged = Path(name)
        for path in paths:
            _stage(path, staged / path.name)
        uri = payload_uri(context.artifact_root, inputs)
        origin = {"source": str(source)} if is_hub_name(str(source)) else {}
        record = ModelRecord(
            **{**made_of(inputs, context), "parameters": origin},
            uri=uri,
            files=storage.upload_folder(staged, uri, progress),
            architecture=config.architectures[0],
            num_crops=read_json(folder / "preprocessor_config.json").get("num_crops", 16),
        )
        committed = storage.commit(context.artifact_root, record)
    if not isinstance(committed, ModelRecord):
        raise UserError(f"{uri}: another record than a model's lies at its key; remove it and import again")
    return committed


def _stage(source: Path, target: Path) -> None:
    """Put a file into the folder that is uploaded; a configuration without what names code."""
    if source.suffix == ".json":
        document = json.loads(source.read_bytes())
        if isinstance(document, dict) and "auto_map" in document:
            del document["auto_map"]
            target.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
            return
    target.symlink_to(source.resolve())

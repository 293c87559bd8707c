"""Import base models into S3, where later steps find them by their record."""

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

# The files besides the weights; Python files and pickles are not imported.
_WANTED = ("*.json", "*.txt", "*.model", "*.jinja", "LICENSE*", "*.md")


def import_model(
    source: Path | str,
    context: RunContext,
    storage: Storage,
    progress: Callable[[int, int], None] | None = None,
) -> ModelRecord:
    """Upload a Phi-3-Vision checkpoint and commit its record; existing files are not uploaded again.

    Names, shapes and types of the tensors are checked first, and that tokenizer and image processor match.
    Python files are skipped and ``auto_map`` is removed from every configuration: no code of a checkpoint
    is ever executed.

    Args:
        source: a folder, or ``owner/name@commit`` on a Hugging Face hub, whose digests are then checked.
        context: the artifact root and run of the record.
        storage: S3.
        progress: receives the number of uploaded files and the total.

    Raises:
        UserError: the model does not exist, or is not a complete Phi-3-Vision checkpoint in safetensors.
    """
    folder = Path(source)
    if not folder.is_dir():
        if not is_hub_name(str(source)):
            raise UserError(
                f"{source}: there is no such folder; for a hub, add the commit: owner/name@commit "
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
    # Imported here: torch takes seconds, which an already imported model does not need.
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
        raise UserError(f"{uri}: its key has a record of another kind; remove it and import again")
    return committed


def _stage(source: Path, target: Path) -> None:
    """Copy a file into the folder to upload; references to code are removed from a configuration."""
    if source.suffix == ".json":
        document = json.loads(source.read_bytes())
        if isinstance(document, dict) and "auto_map" in document:
            del document["auto_map"]
            target.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
            return
    target.symlink_to(source.resolve())

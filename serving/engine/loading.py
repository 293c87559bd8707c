"""Finding a model: its files, its digest, and the evaluation that its confidences come from."""

import logging
from dataclasses import dataclass
from pathlib import Path

from fovea.errors import UserError
from fovea.progress import Progress
from fovea.records import EvaluationRecord, ModelRecord, read_record, sha256_digest
from fovea.storage import Storage, sha256_file

logger = logging.getLogger("serving")


@dataclass(frozen=True)
class LocatedModel:
    """A model on this disk.

    Args:
        name: what clients call it.
        folder: where its files are.
        digest: of the model.
        evaluation: what its confidences come from; None gives none.
    """

    name: str
    folder: Path
    digest: str
    evaluation: EvaluationRecord | None = None


def locate_model(model: str, cache: Path | None = None, record: str | None = None) -> tuple[Path, str]:
    """Return a model's local folder, and its digest.

    Args:
        model: a record's URI, whose files are downloaded and checked; or a folder, whose digest is made of
            those of its files.
        cache: where to keep what is downloaded.
        record: of a folder, the URI or file of the record that its files are checked against, such as where
            KServe's storage initialiser has downloaded them.

    Raises:
        UserError: there is no such record, or a file is not the one it names.
    """
    if model.startswith("s3://"):
        storage = Storage()
        found = ModelRecord.from_json(storage.read_bytes(model), source=model)
        progress = Progress(logger, "downloading the model: files")
        return storage.download(found, cache, progress=progress), found.digest
    folder = Path(model)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder}: no model here; give the URI of a model's record or a folder with config.json"
        )
    if record is not None:
        return folder, _checked(folder, record)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = [
        {
            "path": path.relative_to(folder).as_posix(),
            "size": path.stat().st_size,
            "sha256": sha256_file(path),
        }
        for path in paths
    ]
    return folder, sha256_digest({"files": files})


def find_evaluation(source: str, digest: str) -> EvaluationRecord:
    """Return the record of a model's evaluation.

    Args:
        source: its URI or file.
        digest: of the model.

    Raises:
        UserError: there is no such record, or it is of another model.
    """
    if source.startswith("s3://"):
        found = EvaluationRecord.from_json(Storage().read_bytes(source), source=source)
    else:
        found = read_record(source, EvaluationRecord)
    if found.model_digest != digest:
        raise UserError(
            f"the evaluation is of model {found.model_digest}, not of {digest} that is served; give the one "
            "of this model, and of a folder the model's record with --model-record"
        )
    return found


def _checked(folder: Path, source: str) -> str:
    """Return the digest of a record whose files are in a folder.

    Raises:
        UserError: one does not, or is another one.
    """
    text = Storage().read_bytes(source) if source.startswith("s3://") else Path(source).read_bytes()
    record = ModelRecord.from_json(text, source=source)
    for entry in record.files:
        path = folder / entry.path
        if not path.is_file() or sha256_file(path) != entry.sha256:
            what = "is not what" if path.is_file() else "is missing, which"
            raise UserError(f"{path}: {what} {source} names; download the model again")
    return record.digest

"""Where a model comes from, and what it is known by."""

import logging
from pathlib import Path

from fovea.errors import UserError
from fovea.progress import Progress
from fovea.records import ModelRecord, sha256_digest
from fovea.storage import Storage, sha256_file

logger = logging.getLogger("serving")


def locate_model(model: str, cache: Path | None = None) -> tuple[Path, str]:
    """Return a model's local folder, and its digest.

    Args:
        model: a record's URI, whose files are downloaded and checked; or a folder, whose digest is made of
            those of its files.
        cache: where to keep what is downloaded.

    Raises:
        UserError: there is no such record, or a file is not the one it names.
    """
    if model.startswith("s3://"):
        storage = Storage()
        record = ModelRecord.from_json(storage.read_bytes(model), source=model)
        progress = Progress(logger, "downloading the model: files")
        return storage.download(record, cache, progress=progress), record.digest
    folder = Path(model)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder}: no model here; give the URI of a model's record or a folder with config.json"
        )
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

"""Download models from a Hugging Face hub: one commit, in safetensors, with every digest checked."""

import hashlib
import re
from pathlib import Path
from typing import Any

import huggingface_hub
import huggingface_hub.errors

from fovea.errors import UserError
from fovea.storage import sha256_file

_NAME = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)@(?P<commit>[0-9a-f]{40})", re.ASCII)


def is_hub_name(text: str) -> bool:
    """Return whether ``text`` is an owner, a name and a commit: ``owner/name@0123…`` (40 digits)."""
    return _NAME.fullmatch(text) is not None


def download_model(name: str, patterns: tuple[str, ...]) -> Path:
    """Download the files of a model that match ``patterns`` into the hub's cache; return their folder.

    `huggingface_hub` finds the hub and its credentials (``HF_ENDPOINT``, ``HF_TOKEN``,
    ``HF_HOME``). Cached files are not downloaded again, but their digests are checked again.

    Args:
        name: ``owner/name@commit``. A branch or tag is refused, because it can change.
        patterns: like ``*.safetensors``.

    Raises:
        UserError: the commit does not exist, the hub refuses or cannot be reached, or a file differs from
            the hub's digest.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise UserError(f"{name!r} is not owner/name@commit with the commit's 40 hexadecimal digits")
    repository, commit = match["repository"], match["commit"]
    try:
        info = huggingface_hub.HfApi().model_info(repository, revision=commit, files_metadata=True)
        folder = Path(
            huggingface_hub.snapshot_download(repository, revision=commit, allow_patterns=list(patterns))
        )
    except huggingface_hub.errors.GatedRepoError as error:
        raise UserError(f"{name}: the hub requires an account with access; set HF_TOKEN") from error
    except (huggingface_hub.errors.RepositoryNotFoundError, huggingface_hub.errors.RevisionNotFoundError):
        raise UserError(f"{name}: the hub has no such model or commit, or it requires HF_TOKEN") from None
    except (huggingface_hub.errors.HTTPError, OSError) as error:  # type: ignore[attr-defined]
        raise UserError(f"{name}: cannot be fetched from the hub: {_first_line(error)}") from error
    for file in info.siblings or []:
        path = folder / file.rfilename
        if path.is_file():
            _check(path, file, name)
    return folder


def _check(path: Path, file: Any, name: str) -> None:
    """Compare a file with the hub's digest: SHA-256 for large files, git's for the rest."""
    if file.lfs is not None:
        expected, found = file.lfs.sha256, sha256_file(path)
    else:
        data = path.read_bytes()
        expected = file.blob_id
        found = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    if expected != found:
        raise UserError(
            f"{name}: {file.rfilename} differs from the hub (digest {found[:12]}… instead of "
            f"{str(expected)[:12]}…); remove {path} and download it again"
        )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)

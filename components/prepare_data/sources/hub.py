"""Datasets of the Hugging Face hub, streamed without storing them on disk.

``hf://owner/name@revision/configuration:split``: only owner and name are required. The defaults are the
newest revision, the only or default configuration, and the split ``train``. The environment variables
``HF_ENDPOINT`` and ``HF_TOKEN`` configure the hub's address and a token.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from components.prepare_data.sources.tables import SourceRow, arrow_rows, check_columns
from fovea.errors import UserError
from fovea.fetch.client import FetchError

_BATCH_ROWS = 32
_URI = re.compile(
    r"hf://(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/:]+))?(?:/(?P<configuration>[^/:]+))?(?::(?P<split>\w+))?"
)


class HubDataset:
    """A split of a dataset on the hub, at one commit."""

    def __init__(self, name: str, commit: str, configuration: str | None, split: str) -> None:
        self.location = f"hf://datasets/{name}@{commit}/"
        self._name, self._commit = name, commit
        self._configuration, self._split = configuration, split

    @property
    def digest(self) -> str:
        """``sha256:…`` of the commit, the configuration and the split, which determine the rows."""
        identity = f"{self._name}@{self._commit}/{self._configuration or ''}:{self._split}"
        return f"sha256:{hashlib.sha256(identity.encode()).hexdigest()}"

    def rows(self, columns: Sequence[str], image_column: str) -> Iterator[SourceRow]:
        """Yield the rows with these columns; pictures stay encoded."""
        # Imported here because it takes seconds, and no other source needs it.
        from datasets import load_dataset

        with _explained(self.location):
            found: Any = load_dataset(
                self._name,
                self._configuration,
                split=self._split,
                revision=self._commit,
                streaming=True,
            )
            checked = False
            for table in found.with_format("arrow").iter(batch_size=_BATCH_ROWS):
                if not checked:
                    check_columns(self.location, columns, table.column_names)
                    checked = True
                yield from arrow_rows(table, columns, image_column)


def open_dataset(uri: str) -> HubDataset:
    """Find a dataset and the current commit of its revision.

    Raises:
        UserError: ``uri`` is invalid, the hub has no such dataset or revision, or cannot be reached.
    """
    match = _URI.fullmatch(uri)
    if match is None:
        raise UserError(
            f"{uri}: not a hub dataset; write hf://owner/name, or hf://owner/name@revision/config:split"
        )
    if Path(match["name"]).exists():
        # `datasets` would silently read the folder instead.
        raise UserError(
            f"{uri}: the working directory has a folder {match['name']}, which would be read instead; "
            "change the directory, or download the dataset and give its folder"
        )
    from huggingface_hub import HfApi

    with _explained(uri):
        commit = HfApi().dataset_info(match["name"], revision=match["revision"]).sha
    if not commit:
        raise UserError(f"{uri}: the hub gives no commit for it; give a revision: hf://owner/name@revision")
    return HubDataset(match["name"], commit, match["configuration"], match["split"] or "train")


def read_file(uri: str, max_bytes: int) -> bytes:
    """Return a file of a dataset's repository.

    Raises:
        FetchError: The file does not exist or is too large, or the hub cannot be reached.
    """
    from huggingface_hub import HfFileSystem

    files = HfFileSystem()
    try:
        if files.info(uri)["size"] > max_bytes:
            raise FetchError("too_large", uri, f"is larger than {max_bytes:,} bytes")
        data: bytes = files.cat_file(uri)
    except FileNotFoundError as error:
        raise FetchError("not_found", uri, "file not found") from error
    except ValueError as error:
        raise FetchError("invalid_url", uri, f"not a path of the hub ({_line(error)})") from error
    except OSError as error:  # the base class of huggingface_hub's errors
        raise FetchError("connection_failed", uri, f"the hub cannot be reached ({_line(error)})") from error
    return data


@contextmanager
def _explained(location: str) -> Iterator[None]:
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        yield
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{location}: the hub has no such dataset, or HF_TOKEN may not read it; check the name"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"{location}: the dataset has no such revision") from error
    except UserError:
        raise
    # `datasets` raises the errors of the libraries that it reads with.
    except Exception as error:
        raise UserError(f"{location}: cannot be read from the hub ({_line(error)})") from error


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]

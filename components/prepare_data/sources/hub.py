"""Datasets of the Hugging Face hub, streamed: nothing of them is kept on disk.

``hf://owner/name@revision/configuration:split``: all but owner and name may be left out, and are then the
newest revision, the only or default configuration, and the split ``train``. The hub's address and a token are
the platform's (``HF_ENDPOINT``, ``HF_TOKEN``).
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
        """``sha256:…`` of what the rows follow from: the commit, the configuration and the split."""
        said = f"{self._name}@{self._commit}/{self._configuration or ''}:{self._split}"
        return f"sha256:{hashlib.sha256(said.encode()).hexdigest()}"

    def rows(self, columns: Sequence[str], image_column: str) -> Iterator[SourceRow]:
        """Yield the rows in these columns; pictures stay encoded."""
        # Here: it takes seconds, which no other source need wait for.
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
    """Find a dataset, and which commit its revision stands for now.

    Raises:
        UserError: ``uri`` is none, the hub has no such dataset or revision, or does not answer.
    """
    match = _URI.fullmatch(uri)
    if match is None:
        raise UserError(
            f"{uri}: is no hub dataset; write hf://owner/name, or hf://owner/name@revision/config:split"
        )
    if Path(match["name"]).exists():
        # `datasets` would read that instead, without a word.
        raise UserError(
            f"{uri}: a folder {match['name']} lies in the working directory and would be taken for it; "
            "work in another directory, or download the dataset and give its folder"
        )
    from huggingface_hub import HfApi

    with _explained(uri):
        commit = HfApi().dataset_info(match["name"], revision=match["revision"]).sha
    if not commit:
        raise UserError(f"{uri}: the hub names no commit of it; give a revision: hf://owner/name@revision")
    return HubDataset(match["name"], commit, match["configuration"], match["split"] or "train")


def read_file(uri: str, max_bytes: int) -> bytes:
    """Return a file of a dataset's repository.

    Raises:
        FetchError: there is no such file, it is too large, or the hub does not answer.
    """
    from huggingface_hub import HfFileSystem

    files = HfFileSystem()
    try:
        if files.info(uri)["size"] > max_bytes:
            raise FetchError("too_large", uri, f"is larger than {max_bytes:,} bytes")
        data: bytes = files.cat_file(uri)
    except FileNotFoundError as error:
        raise FetchError("not_found", uri, "there is no such file") from error
    except ValueError as error:
        raise FetchError("invalid_url", uri, f"is no path of the hub ({_line(error)})") from error
    except OSError as error:  # huggingface_hub's errors are such
        raise FetchError("connection_failed", uri, f"the hub does not answer ({_line(error)})") from error
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
    # `datasets` raises what its readers raise: a dozen libraries' errors.
    except Exception as error:
        raise UserError(f"{location}: cannot be read from the hub ({_line(error)})") from error


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]

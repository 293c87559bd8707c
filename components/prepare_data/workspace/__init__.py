"""A temporary store for the rows and pictures of one preparation, on disk to bound memory.

Rows and what is known about pictures are in an SQLite database, the pictures' bytes in files next to it. Only
this package contains SQL.
"""

from pathlib import Path
from types import TracebackType
from typing import Self

from components.prepare_data.workspace.overview import LeftOutRow, Overview, SampleRow
from components.prepare_data.workspace.pictures import Pictures
from components.prepare_data.workspace.prints import Prints
from components.prepare_data.workspace.products import Assigned, Products
from components.prepare_data.workspace.rows import DatasetRow, Rows, SplitSize
from components.prepare_data.workspace.schema import create_database

__all__ = [
    "Assigned",
    "DatasetRow",
    "LeftOutRow",
    "Prints",
    "Products",
    "SampleRow",
    "SplitSize",
    "Workspace",
]


class Workspace:
    """The rows, pictures and products of one preparation. Use it only in the thread that created it."""

    def __init__(self, folder: Path) -> None:
        """Create an empty workspace in an existing folder."""
        self._db = create_database(folder / "workspace.sqlite")
        self.rows = Rows(self._db)
        self.pictures = Pictures(self._db, folder)
        self.prints = Prints(self._db)
        self.products = Products(self._db)
        self.overview = Overview(self._db)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()
        self.pictures.close()

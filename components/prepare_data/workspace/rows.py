"""The rows of the table: their values, why they are left out, and what is written to the dataset."""

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from fovea.task import FieldValue


class SplitSize(NamedTuple):
    """The kept rows of a split and their distinct products."""

    rows: int
    products: int


class PicturedRow(NamedTuple):
    """A kept row and the size of its JPEG."""

    number: int
    values: dict[str, FieldValue]
    width: int
    height: int


class TokenSummary(NamedTuple):
    """The lengths of the kept rows' training sequences."""

    total: int
    median: int
    longest: int


class DatasetRow(NamedTuple):
    """A kept row as the dataset contains it."""

    row_id: str
    product: str
    group: str
    values: dict[str, FieldValue]
    currency: str | None
    digest: str
    """SHA-256 of the picture's original."""


class Rows:
    """All rows of the source. A row is kept until a ``leave_out_…`` method gives it a reason."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def add(
        self,
        number: int,
        raw: Mapping[str, Any],
        *,
        product: str | None = None,
        address: str | None = None,
        values: Mapping[str, FieldValue] | None = None,
        currency: str | None = None,
        had_markup: bool = False,
        reason: str | None = None,
    ) -> None:
        """Add a row of the source: its cleaned values, or the ``reason`` why it is left out."""
        self._db.execute(
            'INSERT INTO rows (number, product, address, "values", currency, raw, markup, reason) '
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                number,
                product,
                address,
                None if values is None else json.dumps(dict(values), ensure_ascii=False),
                currency,
                _storable(json.dumps(dict(raw), ensure_ascii=False, default=str)),
                had_markup,
                reason,
            ),
        )

    def dropped_by_reason(self) -> dict[str, int]:
        """Return the number of rows left out for each reason, in alphabetical order."""
        found = self._db.execute(
            "SELECT reason, count(*) FROM rows WHERE reason IS NOT NULL GROUP BY reason ORDER BY reason"
        )
        return dict(found.fetchall())

    def kept_by_split(self) -> dict[str, SplitSize]:
        """Return the size of each split that has rows."""
        found = self._db.execute(
            "SELECT split, count(*), count(DISTINCT product) FROM rows "
            "WHERE reason IS NULL AND split IS NOT NULL GROUP BY split"
        )
        return {split: SplitSize(*size) for split, *size in found}

    def kept_by_currency(self) -> dict[str | None, int]:
        """Return the number of kept rows in each currency, the most frequent first."""
        found = self._db.execute(
            "SELECT currency, count(*) FROM rows WHERE reason IS NULL "
            "GROUP BY currency ORDER BY count(*) DESC, currency"
        )
        return dict(found.fetchall())

    def leave_out_unusable_pictures(self) -> None:
        """Leave out rows whose picture cannot be used; the reason is ``picture_`` and the picture's."""
        self._db.execute(
            "UPDATE rows SET reason = 'picture_' || pictures.reason FROM pictures "
            "WHERE rows.address = pictures.address AND rows.reason IS NULL AND pictures.reason IS NOT NULL"
        )

    def delete_without_picture(self) -> None:
        """Delete the kept rows whose picture has not been fetched."""
        self._db.execute(
            "DELETE FROM rows WHERE reason IS NULL AND address NOT IN (SELECT address FROM pictures)"
        )

    def set_row_ids(self, row_id: Callable[[str, str, Mapping[str, FieldValue], str | None], str]) -> None:
        """Set the ID of each kept row to ``row_id(product, digest of the picture, values, currency)``."""
        self._db.create_function(
            "row_id_of",
            4,
            lambda product, digest, values, currency: row_id(product, digest, json.loads(values), currency),
            deterministic=True,
        )
        self._db.execute(
            'UPDATE rows SET row_id = row_id_of(product, digest, "values", currency) FROM pictures '
            "WHERE rows.address = pictures.address AND rows.reason IS NULL"
        )

    def leave_out_duplicates(self, reason: str) -> None:
        """Leave out the kept rows that have the ID of an earlier one."""
        self._db.execute(
            "UPDATE rows SET reason = ? FROM ("
            "  SELECT number AS again, row_number() OVER (PARTITION BY row_id ORDER BY number) AS place"
            "  FROM rows WHERE reason IS NULL"
            ") WHERE number = again AND place > 1",
            (reason,),
        )

    def kept_in_batches(self, size: int) -> Iterator[list[PicturedRow]]:
        """Yield the kept rows in the source's order, at most ``size`` at a time.

        Rows may be changed between batches.
        """
        last = -1
        while batch := self._db.execute(
            'SELECT number, "values", width, height FROM rows JOIN pictures USING (address) '
            "WHERE rows.reason IS NULL AND number > ? ORDER BY number LIMIT ?",
            (last, size),
        ).fetchall():
            yield [
                PicturedRow(number, json.loads(values), width, height)
                for number, values, width, height in batch
            ]
            last = batch[-1][0]

    def set_tokens(self, lengths: Iterable[tuple[int, int]]) -> None:
        """Set the lengths of training sequences, given as (row number, tokens)."""
        self._db.executemany(
            "UPDATE rows SET tokens = ? WHERE number = ?", ((tokens, number) for number, tokens in lengths)
        )

    def leave_out_longer_than(self, tokens: int, reason: str) -> None:
        """Leave out rows with longer training sequences."""
        self._db.execute("UPDATE rows SET reason = ? WHERE tokens > ?", (reason, tokens))

    def summarise_tokens(self) -> TokenSummary | None:
        """Summarise the lengths of the kept rows; None if they were not counted."""
        rows, total, longest = self._db.execute(
            "SELECT count(tokens), sum(tokens), max(tokens) FROM rows WHERE reason IS NULL"
        ).fetchone()
        if not rows:
            return None
        (median,) = self._db.execute(
            "SELECT tokens FROM rows WHERE reason IS NULL ORDER BY tokens LIMIT 1 OFFSET ?",
            ((rows - 1) // 2,),
        ).fetchone()
        return TokenSummary(total, median, longest)

    def of_split(self, split: str) -> Iterator[DatasetRow]:
        """Yield the kept rows of a split, by ID."""
        found = self._db.execute(
            'SELECT row_id, rows.product, coalesce("group", rows.product), "values", currency, digest '
            "FROM rows JOIN pictures USING (address) "
            # The products of a group that was broken up are single products.
            "LEFT JOIN groups ON groups.product = rows.product AND groups.reason IS NULL "
            "WHERE rows.reason IS NULL AND split = ? ORDER BY row_id",
            (split,),
        )
        for row_id, product, group, values, currency, digest in found:
            yield DatasetRow(row_id, product, group, json.loads(values), currency, digest)


def _storable(text: str) -> str:
    """Return text with ``?`` for what SQLite cannot store: halves of surrogate pairs."""
    return text.encode("utf-8", "replace").decode()

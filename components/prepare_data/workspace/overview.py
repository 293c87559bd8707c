"""What the report, the dataset card and the preview show of the rows."""

import json
import sqlite3
from collections.abc import Iterator
from typing import Any, NamedTuple

from fovea.task import FieldValue


class Totals(NamedTuple):
    """Counts of the rows that were read, of those kept, and of distinct products and pictures."""

    read: int
    kept: int
    products: int
    pictures: int


class SampleRow(NamedTuple):
    """A kept row and its picture."""

    digest: str
    values: dict[str, FieldValue]
    split: str | None
    product: str
    tokens: int | None


class LeftOutRow(NamedTuple):
    """A row that was left out, and its picture if that could be used."""

    number: int
    raw: dict[str, Any]
    digest: str | None
    detail: str | None
    """Why the picture cannot be used, as one line."""


class LargeGroup(NamedTuple):
    """A group of products."""

    name: str
    products: int
    is_broken_up: bool


class CategoryCount(NamedTuple):
    """The kept rows of a category in one split, or in none ('')."""

    category: str
    split: str
    rows: int


class Overview:
    """Counts, distributions and samples of the rows."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def totals(self) -> Totals:
        """Count the rows, their products and the pictures."""
        found = self._db.execute(
            "SELECT count(*), count(*) FILTER (WHERE reason IS NULL), "
            "count(DISTINCT product) FILTER (WHERE reason IS NULL), "
            "(SELECT count(DISTINCT digest) FROM pictures WHERE digest IS NOT NULL) FROM rows"
        )
        return Totals(*found.fetchone())

    def count_markup(self) -> int:
        """Count the kept rows with a value in which HTML was decoded or removed."""
        found = self._db.execute("SELECT count(*) FROM rows WHERE reason IS NULL AND markup")
        return int(found.fetchone()[0])

    def first_raw(self, limit: int) -> list[dict[str, Any]]:
        """Return the first rows as the table has them."""
        found = self._db.execute("SELECT raw FROM rows ORDER BY number LIMIT ?", (limit,))
        return [json.loads(raw) for (raw,) in found]

    def tokens(self, split: str) -> Iterator[int]:
        """Yield the lengths of the kept rows of a split; of the rows without a split for ''."""
        found = self._db.execute(
            "SELECT tokens FROM rows WHERE reason IS NULL AND coalesce(split, '') = ? AND tokens IS NOT NULL",
            (split,),
        )
        for (tokens,) in found:
            yield tokens

    def amounts(self, field: str, currency: str | None, split: str) -> Iterator[float]:
        """Yield a field's amounts in the kept rows of a split and currency; '' for rows without a split."""
        found = self._db.execute(
            'SELECT amount FROM (SELECT json_extract("values", ?) AS amount FROM rows '
            "WHERE reason IS NULL AND coalesce(split, '') = ? AND currency IS ?) WHERE amount IS NOT NULL",
            (_json_path(field), split, currency),
        )
        for (amount,) in found:
            yield amount

    def category_counts(self, field: str) -> Iterator[CategoryCount]:
        """Yield the kept rows of each category and split, by split."""
        found = self._db.execute(
            "SELECT json_extract(\"values\", ?), coalesce(split, ''), count(*) FROM rows "
            "WHERE reason IS NULL GROUP BY 1, 2 "
            "ORDER BY CASE split WHEN 'train' THEN 0 WHEN 'validation' THEN 1 ELSE 2 END",
            (_json_path(field),),
        )
        yield from map(CategoryCount._make, found)

    def category_pictures(self, field: str, per_category: int) -> Iterator[tuple[str, str]]:
        """Yield (category, digest of a picture) for some pictures of each category."""
        yield from self._db.execute(
            "SELECT category, digest FROM (SELECT category, digest, "
            "row_number() OVER (PARTITION BY category ORDER BY row_id DESC) AS place FROM "
            '(SELECT json_extract("values", ?) AS category, address, row_id FROM rows WHERE reason IS NULL) '
            "JOIN pictures USING (address)) WHERE place <= ?",
            (_json_path(field), per_category),
        )

    def pictures(self, limit: int) -> list[str]:
        """Return the digests of distinct pictures of the kept rows, by row ID."""
        found = self._db.execute(
            "SELECT digest FROM rows JOIN pictures USING (address) WHERE rows.reason IS NULL "
            "GROUP BY digest ORDER BY min(row_id) LIMIT ?",
            (limit,),
        )
        return [digest for (digest,) in found]

    def samples(self, limit: int) -> list[SampleRow]:
        """Return kept rows, by row ID, from each split in turn."""
        return _samples(
            self._db.execute(
                'SELECT digest, "values", split, product, tokens FROM (SELECT *, '
                "row_number() OVER (PARTITION BY split ORDER BY row_id) AS place FROM rows "
                "WHERE reason IS NULL) JOIN pictures USING (address) ORDER BY place, split LIMIT ?",
                (limit,),
            )
        )

    def first_kept(self, limit: int) -> list[SampleRow]:
        """Return the first kept rows of the table."""
        return _samples(
            self._db.execute(
                'SELECT digest, "values", split, product, tokens FROM rows JOIN pictures USING (address) '
                "WHERE rows.reason IS NULL ORDER BY number LIMIT ?",
                (limit,),
            )
        )

    def largest_groups(self, limit: int) -> list[LargeGroup]:
        """Return the groups with the most products."""
        found = self._db.execute(
            'SELECT "group", count(*), max(reason) FROM groups GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT ?',
            (limit,),
        )
        return [LargeGroup(name, products, reason is not None) for name, products, reason in found]

    def group_members(self, group: str, limit: int) -> list[SampleRow]:
        """Return one kept row of each product of a group, with a linked picture if the product has one."""
        return _samples(
            self._db.execute(
                'SELECT digest, "values", split, product, tokens FROM (SELECT *, row_number() OVER '
                "(PARTITION BY product ORDER BY "
                "digest IN (SELECT one FROM links UNION SELECT other FROM links) DESC, number) AS place "
                "FROM groups JOIN rows USING (product) JOIN pictures USING (address) "
                'WHERE "group" = ? AND rows.reason IS NULL) WHERE place = 1 ORDER BY product LIMIT ?',
                (group, limit),
            )
        )

    def left_out(self, reason: str, limit: int) -> list[LeftOutRow]:
        """Return the first rows that were left out for a reason."""
        found = self._db.execute(
            "SELECT number, raw, digest, detail FROM rows LEFT JOIN pictures USING (address) "
            "WHERE rows.reason = ? ORDER BY number LIMIT ?",
            (reason, limit),
        )
        return [LeftOutRow(number, json.loads(raw), digest, detail) for number, raw, digest, detail in found]


def _samples(found: sqlite3.Cursor) -> list[SampleRow]:
    return [
        SampleRow(digest, json.loads(values), split, product, tokens)
        for digest, values, split, product, tokens in found
    ]


def _json_path(field: str) -> str:
    """Return SQLite's path of a field in a JSON object."""
    return f'$."{field}"'

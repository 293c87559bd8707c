"""The report of a preparation: what came in, what was left out and why, and what will be trained on."""

import json
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from components.prepare_data.report import statistics
from components.prepare_data.workspace import Workspace
from fovea.images import PictureLimits, decode_picture
from fovea.pages import charts, picture_url, render_page
from fovea.task import FieldValue, Task

if TYPE_CHECKING:
    from components.prepare_data.report.preview import Preview

TEMPLATE = Path(__file__).with_name("report.html.j2")
MAX_BYTES = 5_000_000
"""No report is larger, whatever the table holds."""

_PICTURE_BYTES = 3_000_000
_WALL, _SAMPLES, _CATEGORIES, _PER_CATEGORY, _REASONS, _EXAMPLES, _GROUPS, _MEMBERS = (
    48,
    24,
    20,
    8,
    40,
    4,
    12,
    6,
)
_SHOWN_COLUMNS = 12


@dataclass(frozen=True)
class Sample:
    """A kept row as it is trained on: ``answer`` as (text of the template, value) pairs."""

    picture: str | None
    answer: tuple[tuple[str, str], ...]
    split: str
    product: str
    tokens: int | None


@dataclass(frozen=True)
class Example:
    """A row that was left out, as the table has it."""

    number: int
    raw: Mapping[str, str]
    picture: str | None
    detail: str


@dataclass(frozen=True)
class Reason:
    """Why rows were left out."""

    name: str
    about: str
    explanation: str
    rows: int
    examples: tuple[Example, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of its examples."""
        return tuple(dict.fromkeys(column for example in self.examples for column in example.raw))


@dataclass(frozen=True)
class Category:
    """A category's rows by split, with some of its pictures."""

    name: str
    rows: Mapping[str, int]
    pictures: tuple[str, ...]

    @property
    def total(self) -> int:
        """Its rows in all splits."""
        return sum(self.rows.values())


@dataclass(frozen=True)
class Group:
    """Products whose pictures show the same."""

    products: int
    broken_up: bool
    members: tuple[Sample, ...]


def write_report(
    path: Path,
    *,
    workspace: Workspace,
    task: Task,
    source: str,
    settings: Mapping[str, Any],
    preview: "Preview | None" = None,
) -> None:
    """Write the report of a workspace whose rows are split: one HTML file of at most `MAX_BYTES`.

    Args:
        path: The file to write.
        workspace: What became of every row and picture.
        task: What is asked and answered.
        source: Where the table was found.
        settings: The parameters, to be shown.
        preview: What is told from the first rows, where the workspace holds no more; they need not be split.
    """
    budget = _PICTURE_BYTES
    while True:
        page = _Report(workspace, task, budget).render(source, settings, preview).encode()
        if len(page) <= MAX_BYTES or not budget:
            break
        budget = budget // 2 if budget > _PICTURE_BYTES // 8 else 0
    path.write_bytes(page)


class _Report:
    """Gathers what the page shows; pictures until their bytes together reach ``budget``."""

    def __init__(self, workspace: Workspace, task: Task, budget: int) -> None:
        self._workspace = workspace
        self._task = task
        self._left = budget

    def render(self, source: str, settings: Mapping[str, Any], preview: "Preview | None") -> str:
        lengths = statistics.numbers(self._workspace, "tokens")
        return render_page(
            TEMPLATE,
            preview=preview,
            source=statistics.shown(source),
            settings={name: statistics.shown(value) for name, value in settings.items()},
            task=self._task,
            counts=statistics.count(self._workspace),
            wall=self._wall(),
            samples=self._samples(),
            categories=[
                (name, len(found), self._categories(name, found))
                for name, found in statistics.categories(self._workspace, self._task)
            ],
            prices=[
                (name, currency, charts.histogram(amounts), _spreads(amounts))
                for name, currency, amounts in statistics.prices(self._workspace, self._task)
            ],
            lengths=(charts.histogram(lengths), _spreads(lengths)) if lengths else None,
            leaks=statistics.products_in_several_splits(self._workspace),
            groups=self._groups(),
            grouped=self._grouped(),
            reasons=self._reasons(),
        )

    def _wall(self) -> list[str]:
        """Return small squares of pictures from all over the dataset."""
        digests = self._workspace.db.execute(
            "SELECT digest FROM rows JOIN pictures USING (address) WHERE rows.reason IS NULL "
            "GROUP BY digest ORDER BY min(row_id) LIMIT ?",
            (_WALL,),
        ).fetchall()
        return [url for (digest,) in digests if (url := self._picture(digest, 112))]

    def _samples(self) -> list[Sample]:
        """Return kept rows, as many of each split as go by their order."""
        rows = self._workspace.db.execute(
            'SELECT digest, "values", split, product, tokens FROM (SELECT *, '
            "row_number() OVER (PARTITION BY split ORDER BY row_id) AS place FROM rows "
            "WHERE reason IS NULL) JOIN pictures USING (address) ORDER BY place, split LIMIT ?",
            (_SAMPLES,),
        ).fetchall()
        return [self._sample(*row, side=360) for row in rows]

    def _sample(
        self, digest: str, values: str, split: str | None, product: str, tokens: int | None, *, side: int
    ) -> Sample:
        return Sample(
            self._picture(digest, side),
            answer_parts(self._task, json.loads(values)),
            split or "",
            statistics.shown(product, 60),
            tokens,
        )

    def _categories(self, field: str, found: Mapping[str, Mapping[str, int]]) -> list[Category]:
        """Return the most frequent categories of a field."""
        shown = dict(list(found.items())[:_CATEGORIES])
        digests: dict[str, list[str]] = {category: [] for category in shown}
        for category, digest in self._workspace.db.execute(
            "SELECT category, digest FROM (SELECT category, digest, "
            "row_number() OVER (PARTITION BY category ORDER BY row_id DESC) AS place FROM "
            '(SELECT json_extract("values", ?) AS category, address, row_id FROM rows WHERE reason IS NULL) '
            "JOIN pictures USING (address)) WHERE place <= ?",
            (statistics.json_path(field), _PER_CATEGORY),
        ):
            if category in digests:
                digests[category].append(digest)
        return [
            Category(
                statistics.shown(category, 60),
                rows,
                tuple(url for digest in digests[category] if (url := self._picture(digest, 80))),
            )
            for category, rows in shown.items()
        ]

    def _grouped(self) -> dict[str, int]:
        groups, products, broken = self._workspace.db.execute(
            'SELECT count(DISTINCT "group"), count(*), '
            'count(DISTINCT "group") FILTER (WHERE reason IS NOT NULL) FROM groups'
        ).fetchone()
        return {"groups": groups, "products": products, "broken_up": broken}

    def _groups(self) -> list[Group]:
        """Return the largest groups."""
        groups = self._workspace.db.execute(
            'SELECT "group", count(*), max(reason) FROM groups GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT ?',
            (_GROUPS,),
        ).fetchall()
        return [Group(products, reason is not None, self._members(name)) for name, products, reason in groups]

    def _members(self, group: str) -> tuple[Sample, ...]:
        """Return one row for each of a group's first products: one whose picture links it to another."""
        rows = self._workspace.db.execute(
            'SELECT digest, "values", split, product, tokens FROM (SELECT *, row_number() OVER '
            "(PARTITION BY product ORDER BY digest IN (SELECT one FROM links UNION SELECT other FROM links) "
            "DESC, number) AS place FROM groups JOIN rows USING (product) JOIN pictures USING (address) "
            'WHERE "group" = ? AND rows.reason IS NULL) WHERE place = 1 ORDER BY product LIMIT ?',
            (group, _MEMBERS),
        ).fetchall()
        return tuple(self._sample(*row, side=200) for row in rows)

    def _reasons(self) -> list[Reason]:
        found = []
        for name, rows in list(statistics.count(self._workspace).dropped.items())[:_REASONS]:
            examples = self._examples(name)
            columns = examples[0].raw if examples else {}
            about, explanation = statistics.explain(name, columns)
            found.append(
                Reason(statistics.shown(name, 80), about, statistics.shown(explanation, 120), rows, examples)
            )
        return found

    def _examples(self, reason: str) -> tuple[Example, ...]:
        rows = self._workspace.db.execute(
            "SELECT number, raw, digest, detail FROM rows LEFT JOIN pictures USING (address) "
            "WHERE rows.reason = ? ORDER BY number LIMIT ?",
            (reason, _EXAMPLES),
        ).fetchall()
        return tuple(
            Example(
                number,
                {statistics.shown(column, 60): statistics.shown(value) for column, value in _columns(raw)},
                self._picture(digest, 112) if digest else None,
                statistics.shown(detail or ""),
            )
            for number, raw, digest, detail in rows
        )

    def _picture(self, digest: str, side: int) -> str | None:
        """Return a picture as a data URL; None once the budget is spent."""
        if self._left <= 0:
            return None
        picture = decode_picture(self._workspace.jpeg(digest), PictureLimits(min_side=1), side)
        url = picture_url(picture, side)
        self._left -= len(url)
        return url


def answer_parts(task: Task, values: Mapping[str, FieldValue]) -> tuple[tuple[str, str], ...]:
    """Return an answer as pairs of the template's text and the value that follows it."""
    parts = []
    for text, name, _, _ in string.Formatter().parse(task.template):
        value = task.fields[name].format(values[name]) if name is not None else ""
        parts.append((text, statistics.shown(value)))
    return tuple(parts)


def _columns(raw: str) -> Sequence[tuple[str, Any]]:
    return list(json.loads(raw).items())[:_SHOWN_COLUMNS]


def _spreads(series: Mapping[str, NDArray[np.float64]]) -> dict[str, statistics.Spread]:
    found = {name or "all": statistics.spread(values) for name, values in series.items()}
    if len(series) > 1:
        found["all"] = statistics.spread(np.concatenate(list(series.values())))
    return found

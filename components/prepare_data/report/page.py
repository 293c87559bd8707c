"""The report of a preparation: the rows that are kept, and the rows that are left out with the reasons."""

import string
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from components.prepare_data.report import statistics
from components.prepare_data.workspace import LeftOutRow, SampleRow, Workspace
from fovea.images import PictureLimits, decode_picture
from fovea.pages import charts, picture_url, render_page
from fovea.task import FieldValue, Task

if TYPE_CHECKING:
    from components.prepare_data.report.preview import Preview

TEMPLATE = Path(__file__).with_name("report.html.j2")
MAX_BYTES = 5_000_000
"""The largest size of a report, for any table."""

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
    """A kept row; ``answer`` contains (text of the template, value) pairs."""

    picture: str | None
    answer: tuple[tuple[str, str], ...]
    split: str
    product: str
    tokens: int | None


@dataclass(frozen=True)
class Example:
    """A row that is left out, as the table has it."""

    number: int
    raw: Mapping[str, str]
    picture: str | None
    detail: str


@dataclass(frozen=True)
class Reason:
    """A reason why rows are left out."""

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
    """A category: its rows by split and some of its pictures."""

    name: str
    rows: Mapping[str, int]
    pictures: tuple[str, ...]

    @property
    def total(self) -> int:
        """Its rows in all splits."""
        return sum(self.rows.values())


@dataclass(frozen=True)
class Group:
    """A group of products whose pictures look alike."""

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
    """Write the report as one HTML file of at most `MAX_BYTES`.

    Args:
        path: The file to write.
        workspace: The workspace. Its rows are split, unless there is a preview.
        task: The task.
        source: The location of the table.
        settings: The parameters to show.
        preview: The estimates for the whole table, if the workspace contains only its first rows.
    """
    budget = _PICTURE_BYTES
    while True:
        page = _Report(workspace, task, budget).render(source, settings, preview).encode()
        if len(page) <= MAX_BYTES or not budget:
            break
        budget = budget // 2 if budget > _PICTURE_BYTES // 8 else 0
    path.write_bytes(page)


class _Report:
    """The content of the page, with pictures of ``budget`` bytes in total."""

    def __init__(self, workspace: Workspace, task: Task, budget: int) -> None:
        self._workspace = workspace
        self._task = task
        self._left = budget

    def render(self, source: str, settings: Mapping[str, Any], preview: "Preview | None") -> str:
        lengths = statistics.token_lengths(self._workspace)
        return render_page(
            TEMPLATE,
            preview=preview,
            source=statistics.shown(source),
            settings={name: statistics.shown(value) for name, value in settings.items()},
            task=self._task,
            counts=statistics.count(self._workspace),
            wall=self._wall(),
            samples=[self._sample(row, 360) for row in self._workspace.overview.samples(_SAMPLES)],
            categories=[
                (name, len(found), self._categories(name, found))
                for name, found in statistics.categories(self._workspace, self._task)
            ],
            prices=[
                (name, currency, charts.histogram(amounts), _spreads(amounts))
                for name, currency, amounts in statistics.prices(self._workspace, self._task)
            ],
            lengths=(charts.histogram(lengths), _spreads(lengths)) if lengths else None,
            leaks=self._workspace.products.count_in_several_splits(),
            groups=self._groups(),
            grouped=self._workspace.products.count_groups(),
            reasons=self._reasons(),
            markup=self._workspace.overview.count_markup(),
        )

    def _wall(self) -> list[str]:
        """Return thumbnails of pictures from the whole dataset."""
        digests = self._workspace.overview.pictures(_WALL)
        return [url for digest in digests if (url := self._picture(digest, 112))]

    def _sample(self, row: SampleRow, side: int) -> Sample:
        return Sample(
            self._picture(row.digest, side),
            answer_parts(self._task, row.values),
            row.split or "",
            statistics.shown(row.product, 60),
            row.tokens,
        )

    def _categories(self, field: str, found: Mapping[str, Mapping[str, int]]) -> list[Category]:
        """Return the most frequent categories of a field."""
        shown = dict(list(found.items())[:_CATEGORIES])
        digests: dict[str, list[str]] = {category: [] for category in shown}
        for category, digest in self._workspace.overview.category_pictures(field, _PER_CATEGORY):
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

    def _groups(self) -> list[Group]:
        """Return the largest groups, each with one row of each of its first products."""
        overview = self._workspace.overview
        return [
            Group(
                group.products,
                group.is_broken_up,
                tuple(self._sample(row, 200) for row in overview.group_members(group.name, _MEMBERS)),
            )
            for group in overview.largest_groups(_GROUPS)
        ]

    def _reasons(self) -> list[Reason]:
        found = []
        for name, rows in list(statistics.count(self._workspace).dropped.items())[:_REASONS]:
            examples = tuple(map(self._example, self._workspace.overview.left_out(name, _EXAMPLES)))
            columns = examples[0].raw if examples else {}
            about, explanation = statistics.explain(name, columns)
            found.append(
                Reason(statistics.shown(name, 80), about, statistics.shown(explanation, 120), rows, examples)
            )
        return found

    def _example(self, row: LeftOutRow) -> Example:
        columns = islice(row.raw.items(), _SHOWN_COLUMNS)
        return Example(
            row.number,
            {statistics.shown(column, 60): statistics.shown(value) for column, value in columns},
            self._picture(row.digest, 112) if row.digest else None,
            statistics.shown(row.detail or ""),
        )

    def _picture(self, digest: str, side: int) -> str | None:
        """Return a picture as a data URL; None if the budget is spent."""
        if self._left <= 0:
            return None
        picture = decode_picture(self._workspace.pictures.jpeg(digest), PictureLimits(min_side=1), side)
        url = picture_url(picture, side)
        self._left -= len(url)
        return url


def answer_parts(task: Task, values: Mapping[str, FieldValue]) -> tuple[tuple[str, str], ...]:
    """Return an answer as pairs of the template's text and the value that follows."""
    parts = []
    for text, name, _, _ in string.Formatter().parse(task.template):
        value = task.fields[name].format(values[name]) if name is not None else ""
        parts.append((text, statistics.shown(value)))
    return tuple(parts)


def _spreads(series: statistics.Series) -> dict[str, statistics.Spread]:
    found = {name or "all": statistics.spread(values) for name, values in series.items()}
    if len(series) > 1:
        found["all"] = statistics.spread(np.concatenate(list(series.values())))
    return found

"""The pictures of a report: where the model is most wrong and where it is best, over all and by category."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as parquet

from components.evaluate.report.rows import AnsweredRows, shown, shown_value
from fovea.evaluation.metrics import slices
from fovea.images import PictureError, PictureLimits, decode_picture
from fovea.pages import picture_url
from fovea.predictions import Prediction
from fovea.records import DatasetRecord, EvaluationRecord
from fovea.storage import Storage
from fovea.task import Task
from fovea.task.fields import OTHER

WORST, BEST = 12, 8
"""Examples shown of all rows."""
WORST_OF_CATEGORY, BEST_OF_CATEGORY = 4, 2
"""Examples shown of each category."""
_SIDE = 256
_UNREADABLE_SHARE = 4
"""Of the worst, one in this many may be an unreadable answer: they all look alike."""


@dataclass(frozen=True)
class Said:
    """A field of an answer. ``note`` says how far a price is off."""

    field: str
    text: str
    right: bool
    note: str
    confidence: float | None


@dataclass(frozen=True)
class Reply:
    """What another model answered to the same picture."""

    model: str
    same: bool
    """Whether it is the challenger's answer."""
    fields: tuple[Said, ...]
    unreadable: str


@dataclass(frozen=True)
class Example:
    """A picture with its truth and what the challenger and the others said."""

    row_id: str
    product: str
    picture: str | None
    category: int
    overall: bool
    """Whether it is an example of all rows, or of its category only."""
    title: str
    truth: tuple[tuple[str, str], ...]
    said: tuple[Said, ...]
    unreadable: str
    error: str
    others: tuple[Reply, ...]


@dataclass(frozen=True)
class CategoryChoice:
    """A choice of the category filter, numbered from 1."""

    number: int
    name: str
    rows: int
    right: int
    """Rows with all fields right."""
    worst: int
    best: int


@dataclass(frozen=True)
class Gallery:
    """The examples, and the choices of the filter."""

    worst: tuple[Example, ...]
    best: tuple[Example, ...]
    categories: tuple[CategoryChoice, ...]
    rows: int
    right: int
    note: str
    """Why there are no pictures; empty where there are."""


def choose(
    models: Mapping[str, AnsweredRows],
    dataset: DatasetRecord,
    challenger: EvaluationRecord,
    storage: Storage,
    budget: int,
) -> Gallery:
    """Return the worst and the best answers of the challenger with their pictures.

    Args:
        models: The answers by model; the examples are the ``challenger``'s.
        dataset: Its shards hold the pictures.
        challenger: The challenger's evaluation, which names the split.
        storage: S3, which has the shards.
        budget: Bytes that all pictures may take, as text; examples of all rows come first.

    Raises:
        UserError: the shards are missing.
    """
    answered = models["challenger"]
    field = _category(answered.task)
    names = list(slices(answered.outcomes)[field]) if field else []
    numbers = {name: number for number, name in enumerate(names, start=1)}
    truths = [str(row.row.truth[field]) if field else "" for row in answered.rows]
    of_row = [numbers.get(truth, numbers.get(OTHER, 0)) for truth in truths]
    wrong, right = _ranked(answered)
    overall = {*_mixed(wrong, answered, WORST), *right[:BEST]}
    worst = _picked(wrong, of_row, overall, WORST_OF_CATEGORY)
    best = _picked(right, of_row, overall, BEST_OF_CATEGORY)
    wanted = sorted([*worst, *best], key=lambda place: place not in overall)
    same_data = dataset.digest == challenger.dataset_digest
    pictures = (
        _pictures(
            storage, dataset, challenger.split, [answered.rows[place].row.row_id for place in wanted], budget
        )
        if same_data and budget
        else {}
    )
    others = {
        name: {row.row.row_id: row for row in rows.rows}
        for name, rows in models.items()
        if name != "challenger"
    }

    def example(place: int) -> Example:
        row = answered.rows[place]
        replies = tuple(
            _reply(name, models[name], found[row.row.row_id], row)
            for name, found in others.items()
            if row.row.row_id in found
        )
        return _example(answered, row, pictures.get(row.row.row_id), of_row[place], place in overall, replies)

    rights = set(right)
    return Gallery(
        tuple(example(place) for place in worst),
        tuple(example(place) for place in best),
        tuple(
            CategoryChoice(
                number,
                shown(name, 40),
                of_row.count(number),
                sum(of_row[place] == number for place in rights),
                sum(of_row[place] == number for place in worst),
                sum(of_row[place] == number for place in best),
            )
            for name, number in numbers.items()
        ),
        len(of_row),
        len(right),
        "" if same_data else "The pictures are not shown: this is not the dataset that was asked about.",
    )


def _ranked(answered: AnsweredRows) -> tuple[list[int], list[int]]:
    """Return the places of rows with mistakes, the most and surest first, and of those without any."""
    fields = list(answered.task.fields)
    wrong, right = [], []
    for place, row in enumerate(answered.rows):
        mistakes = [name for name in fields if not answered.is_right(row, name)]
        sure = [answered.confidence(row, name) or 0.0 for name in mistakes or fields]
        error = _error(answered, place)
        if mistakes:
            wrong.append((-len(mistakes), -sum(sure) / len(sure), -error, place))
        else:
            right.append((-min(sure), error, place))
    return [each[-1] for each in sorted(wrong)], [each[-1] for each in sorted(right)]


def _category(task: Task) -> str | None:
    return next((name for name, field in task.fields.items() if field.is_category), None)


def _error(answered: AnsweredRows, place: int) -> float:
    """Return the sum of the relative errors of a row's amounts, each at most 10."""
    amounts = [name for name, field in answered.task.fields.items() if field.is_amount]
    return sum(min(10.0, float(answered.outcomes.fields[name]["ape"][place])) for name in amounts)


def _picked(ranked: Sequence[int], of_row: Sequence[int], overall: set[int], each: int) -> list[int]:
    """Return the places in ``overall`` and the first of each category, in their order."""
    taken: Counter[int] = Counter()
    found = []
    for place in ranked:
        taken[of_row[place]] += 1
        if place in overall or taken[of_row[place]] <= each:
            found.append(place)
    return found


def _mixed(wrong: Sequence[int], answered: AnsweredRows, count: int) -> list[int]:
    """Return the first mistakes; few of them could not be read, unless there are no others."""
    unreadable = [place for place in wrong if answered.rows[place].answer.parse_error is not None]
    readable = [place for place in wrong if answered.rows[place].answer.parse_error is None]
    few = unreadable[: max(count // _UNREADABLE_SHARE, count - len(readable))]
    return readable[: count - len(few)] + few


def _example(
    answered: AnsweredRows,
    row: Prediction,
    picture: str | None,
    category: int,
    overall: bool,
    others: tuple[Reply, ...],
) -> Example:
    task, truth = answered.task, row.row.truth
    title = next(iter(task.fields))
    return Example(
        row_id=shown(row.row.row_id, 14),
        product=shown(row.row.product_id, 24),
        picture=picture,
        category=category,
        overall=overall,
        title=shown_value(task, title, truth[title]),
        truth=tuple(
            (name.replace("_", " "), shown_value(task, name, truth[name], 60))
            for name in task.fields
            if name != title
        ),
        said=tuple(_said(answered, row)),
        unreadable="" if row.answer.parse_error is None else shown(row.answer.text, 240) or "(nothing)",
        error=shown(row.answer.parse_error or "", 160),
        others=others,
    )


def _reply(model: str, answered: AnsweredRows, row: Prediction, challengers: Prediction) -> Reply:
    unreadable = "" if row.answer.parse_error is None else shown(row.answer.text, 120) or "(nothing)"
    same = row.answer.text == challengers.answer.text
    return Reply(model, same, tuple(_said(answered, row)), unreadable)


def _said(answered: AnsweredRows, row: Prediction) -> Iterator[Said]:
    answer, truth = row.answer.fields, row.row.truth
    if answer is None:
        return
    for name, field in answered.task.fields.items():
        yield Said(
            name.replace("_", " "),
            shown_value(answered.task, name, answer[name], 90),
            answered.is_right(row, name),
            field.difference(truth[name], answer[name]),
            answered.confidence(row, name),
        )


def _pictures(
    storage: Storage, dataset: DatasetRecord, split: str, row_ids: Sequence[str], budget: int
) -> dict[str, str]:
    """Return pictures as small data URLs until they take up the budget, in the order of the rows."""
    folder = storage.download(dataset, pattern=f"{split}-*.parquet")
    found: dict[str, str] = {}
    for path in sorted(folder.glob(f"{split}-*.parquet")):
        found |= _of_shard(path, set(row_ids))
    kept, left = {}, budget
    for row_id in dict.fromkeys(row_ids):
        url = found.get(row_id, "")
        left -= len(url)
        if url and left >= 0:
            kept[row_id] = url
    return kept


def _of_shard(path: Path, wanted: set[str]) -> dict[str, str]:
    """Return the wanted pictures of one file, read a group of rows at a time."""
    found = {}
    with parquet.ParquetFile(path) as file:
        for number in range(file.num_row_groups):
            ids = file.read_row_group(number, columns=["row_id"])["row_id"].to_pylist()
            places = [place for place, row_id in enumerate(ids) if row_id in wanted]
            if places:
                images = file.read_row_group(number, columns=["image"])["image"].take(places)
                for place, image in zip(places, images.to_pylist(), strict=True):
                    if url := _shown_picture(image["bytes"]):
                        found[ids[place]] = url
    return found


def _shown_picture(data: bytes) -> str | None:
    try:
        return picture_url(decode_picture(data, PictureLimits(min_side=1), _SIDE), _SIDE)
    except PictureError:
        return None

"""The report of a run: one self-contained HTML file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as parquet

from components.evaluate.report.publish import NAME as EVALUATION_REPORT
from fovea.evaluation.text import rule_limit, rule_value
from fovea.images import PictureLimits, decode_picture
from fovea.pages import picture_url, render_page
from fovea.predictions import Prediction, fetch_predictions
from fovea.records import DatasetRecord, EvaluationRecord, Record
from fovea.storage import Storage, join_uri
from fovea.task import FieldValue, Task
from pipelines.local.state import write_whole
from pipelines.report import text
from pipelines.report.summary import Summary

TEMPLATE = Path(__file__).with_name("report.html.j2")
_THUMBNAIL = 320


@dataclass(frozen=True)
class FieldComparison:
    """A field of an answer, with the truth."""

    name: str
    answer: FieldValue | None
    truth: FieldValue
    right: bool


@dataclass(frozen=True)
class Example:
    """A held-out picture, as a data URL, and the challenger's answer."""

    row_id: str
    picture: str
    text: str
    fields: tuple[FieldComparison, ...]

    @property
    def right(self) -> bool:
        """Whether every field is right."""
        return all(field.right for field in self.fields)


def write_report(
    folder: Path, summary: Summary, examples: Sequence[Example], mistakes: Sequence[Example]
) -> Path:
    """Write ``report.html`` into ``folder``; every value is escaped."""
    page = render_page(
        TEMPLATE,
        summary=summary,
        examples=examples,
        mistakes=mistakes,
        figures=text,
        rule_value=rule_value,
        rule_limit=rule_limit,
    )
    return write_whole(folder / "report.html", page)


def choose_examples(
    records: Mapping[str, Record], storage: Storage, cache: Path, count: int = 8
) -> tuple[list[Example], list[Example]]:
    """Return the first held-out pictures with their answers, and the challenger's worst mistakes."""
    dataset, evaluation = records.get("prepare_data"), records.get("evaluate_challenger")
    if not isinstance(dataset, DatasetRecord) or not isinstance(evaluation, EvaluationRecord):
        return [], []
    task = dataset.task
    rows = fetch_predictions(storage, evaluation, task, cache)
    first = rows[:count]
    wrong = [row for row in rows[count:] if not all(field.right for field in _fields(row, task))]
    worst = sorted(wrong, key=lambda row: _badness(row, task), reverse=True)[:count]
    pictures = _pictures(
        storage, cache, dataset, evaluation.split, [each.row.row_id for each in first + worst]
    )
    made = [_example(row, task, _shown(pictures[row.row.row_id])) for row in first + worst]
    return made[: len(first)], made[len(first) :]


def save_picture(
    folder: Path, records: Mapping[str, Record], storage: Storage, cache: Path, row_id: str
) -> Path | None:
    """Write a held-out picture to ``held-out.jpg`` in ``folder``; None if there is none."""
    dataset, evaluation = records.get("prepare_data"), records.get("evaluate_challenger")
    if not isinstance(dataset, DatasetRecord) or not isinstance(evaluation, EvaluationRecord):
        return None
    found = _pictures(storage, cache, dataset, evaluation.split, [row_id])
    path = folder / "held-out.jpg"
    path.write_bytes(found[row_id])
    return path


def save_evaluation(folder: Path, storage: Storage, artifact_root: str, run_id: str) -> Path | None:
    """Write the run's evaluation report to ``evaluation.html`` in ``folder``; None if there is none."""
    uri = join_uri(artifact_root, "runs", run_id, EVALUATION_REPORT)
    if not run_id or not storage.exists(uri):
        return None
    path = folder / EVALUATION_REPORT
    path.write_bytes(storage.read_bytes(uri))
    return path


def _fields(each: Prediction, task: Task) -> tuple[FieldComparison, ...]:
    truth, answer = each.row.truth, each.answer.fields
    return tuple(
        FieldComparison(
            name=name,
            answer=(answer or {}).get(name),
            truth=truth[name],
            right=task.is_right(name, truth, answer),
        )
        for name in task.fields
    )


def _badness(each: Prediction, task: Task) -> float:
    """Return how many fields are wrong, plus the relative error of amounts as a fraction below 1."""
    fields = _fields(each, task)
    errors = [
        abs(float(field.answer) - float(field.truth)) / float(field.truth)
        for field in fields
        if task.fields[field.name].is_amount and field.answer is not None
    ]
    return sum(not field.right for field in fields) + min(0.99, sum(errors))


def _example(each: Prediction, task: Task, picture: str) -> Example:
    return Example(row_id=each.row.row_id, picture=picture, text=each.answer.text, fields=_fields(each, task))


def _pictures(
    storage: Storage, cache: Path, dataset: DatasetRecord, split: str, row_ids: Sequence[str]
) -> dict[str, bytes]:
    """Return pictures of a split by row."""
    folder = storage.download(dataset, cache, pattern=f"{split}-*.parquet")
    table = parquet.read_table(
        sorted(folder.glob(f"{split}-*.parquet")),
        columns=["row_id", "image"],
        filters=[("row_id", "in", list(row_ids))],
    )
    return {row["row_id"]: row["image"]["bytes"] for row in table.to_pylist()}


def _shown(data: bytes) -> str:
    return picture_url(decode_picture(data, PictureLimits(min_side=1), _THUMBNAIL), _THUMBNAIL)

"""The report of a run: one self-contained HTML file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet

from components.evaluate.report.publish import NAME as EVALUATION_REPORT
from fovea.evaluation.calibration import is_right
from fovea.evaluation.text import rule_limit, rule_value
from fovea.images import PictureLimits, decode_picture
from fovea.pages import picture_url, render_page
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
    folder = storage.download(evaluation, cache, pattern="predictions-*.parquet")
    rows = parquet.read_table(sorted(folder.glob("predictions-*.parquet"))).to_pylist()
    task = dataset.task
    first = rows[:count]
    wrong = [row for row in rows[count:] if not all(field.right for field in _fields(row, task))]
    worst = sorted(wrong, key=lambda row: _badness(row, task), reverse=True)[:count]
    pictures = _pictures(storage, cache, dataset, evaluation.split, [row["row_id"] for row in first + worst])
    made = [_example(row, task, _shown(pictures[row["row_id"]])) for row in first + worst]
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


def _fields(row: Mapping[str, Any], task: Task) -> tuple[FieldComparison, ...]:
    truth = {name: row[f"true_{name}"] for name in task.fields}
    answer = {name: row[f"predicted_{name}"] for name in task.fields}
    could_be_read = row["parse_error"] is None
    return tuple(
        FieldComparison(
            name=name,
            answer=answer[name],
            truth=truth[name],
            right=is_right(task, name, truth, answer if could_be_read else None),
        )
        for name in task.fields
    )


def _badness(row: Mapping[str, Any], task: Task) -> float:
    fields = _fields(row, task)
    prices = [
        abs(field.answer - field.truth) / field.truth
        for field in fields
        if isinstance(field.answer, float) and isinstance(field.truth, float)
    ]
    return sum(not field.right for field in fields) + min(0.99, sum(prices))


def _example(row: Mapping[str, Any], task: Task, picture: str) -> Example:
    return Example(row_id=row["row_id"], picture=picture, text=row["text"], fields=_fields(row, task))


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

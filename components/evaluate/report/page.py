"""The report of an evaluation: the verdict, a model compared with others, and examples with pictures."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from components.evaluate.report import examples, plots
from components.evaluate.report.rows import read_rows, shown
from fovea.evaluation.metrics import PARSE_RATE, TaskMetric, headlines, label, metrics_of
from fovea.evaluation.outcomes import BASELINES, Outcomes, read_baselines
from fovea.evaluation.text import UNKNOWN, figure_text, interval_text, rule_limit, rule_value
from fovea.pages import render_page
from fovea.pages.charts import amount
from fovea.pages.plots import Axis, Mark, mark, percent
from fovea.records import DatasetRecord, Decision, EvaluationRecord, Metrics, RuleResult
from fovea.storage import Storage
from fovea.task import Task
from fovea.task.fields import OTHER

TEMPLATE = Path(__file__).with_name("report.html.j2")
MAX_BYTES = 5_000_000
"""The largest size of a report."""

_PICTURE_BYTES = 3_000_000


@dataclass(frozen=True)
class Subject:
    """A model or a trivial baseline in a comparison. ``kind`` is its colour."""

    name: str
    kind: str
    metrics: Metrics
    parsed: Metrics | None = None
    trivial: bool = False


@dataclass(frozen=True)
class Cell:
    """A figure as text, its interval, and whether it is the best."""

    text: str
    interval: str
    best: bool = False


@dataclass(frozen=True)
class Comparison:
    """A figure of each subject, on one axis."""

    name: str
    note: str
    axis: Axis
    rows: tuple[tuple[Subject, Mark, Cell], ...]


@dataclass(frozen=True)
class Slice:
    """A figure of each model over a slice's rows."""

    name: str
    samples: int
    marks: tuple[Mark, ...]
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class SliceTable:
    """The slices by one figure, the worst first."""

    metric: str
    name: str
    axis: Axis
    rows: tuple[Slice, ...]


@dataclass(frozen=True)
class Rule:
    """A rule of the gate, written for people."""

    passed: bool
    is_condition: bool
    """Whether it is a condition rather than a limit on a figure."""
    description: str
    reason: str
    value: str
    interval: str
    compared: str
    rows: str
    limit: str

    @property
    def held(self) -> bool:
        """Whether it holds and has no figure to show."""
        return self.passed and (self.is_condition or self.value == UNKNOWN)


def write_report(
    path: Path,
    *,
    decision: Decision | None,
    base: EvaluationRecord,
    champion: EvaluationRecord | None,
    challenger: EvaluationRecord,
    dataset: DatasetRecord,
    storage: Storage,
) -> Path:
    """Write the report of a model's evaluation: one HTML file of at most `MAX_BYTES`, without any script.

    Args:
        path: The file to write.
        decision: The gate's verdict on the model; None without one.
        base: The evaluation of the model it was tuned from, which has the trivial baselines.
        champion: The champion's evaluation; None without one.
        challenger: The model's evaluation.
        dataset: The dataset of all evaluations.
        storage: S3, which has predictions and pictures.

    Returns:
        ``path``.

    Raises:
        UserError: an evaluation's payload or the dataset's pictures are missing or cannot be read.
    """
    if champion is not None and champion.model_digest == base.model_digest:
        champion = None
    report = _Report(decision, base, champion, challenger, dataset, storage)
    budget = _PICTURE_BYTES
    while True:
        page = report.render(budget).encode()
        if len(page) <= MAX_BYTES or not budget:
            break
        budget = budget // 2 if budget > _PICTURE_BYTES // 8 else 0
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(page)
    return path


class _Report:
    """Gathers what the page shows."""

    def __init__(
        self,
        decision: Decision | None,
        base: EvaluationRecord,
        champion: EvaluationRecord | None,
        challenger: EvaluationRecord,
        dataset: DatasetRecord,
        storage: Storage,
    ) -> None:
        self._decision, self._base, self._challenger = decision, base, challenger
        self._dataset, self._storage = dataset, storage
        self._models = {"challenger": challenger, "champion": champion, "base": base}
        self._rows = {
            name: read_rows(record, dataset.task, storage)
            for name, record in self._models.items()
            if record is not None
        }
        self._metrics = metrics_of(dataset.task)
        self._baselines = _read_baselines(base, dataset.task, storage)

    def render(self, budget: int) -> str:
        answered = self._rows["challenger"]
        return render_page(
            TEMPLATE,
            decision=self._decision,
            rules=_by_verdict(self._decision.rules) if self._decision else [],
            challenger=self._challenger,
            reason=shown(_without_verdict(self._decision.reason), 1000) if self._decision else "",
            task=shown(f"{self._dataset.task.name} {self._dataset.task.version}", 60),
            currency=shown(self._dataset.currency or "", 12),
            models={name: record for name, record in self._models.items() if record is not None},
            short=_short,
            headlines=list(self._headlines()),
            comparisons=[
                self._comparison(each) for name, each in self._metrics.items() if name != PARSE_RATE
            ],
            subjects=self._subjects(),
            tables=list(self._tables()),
            slices=list(self._slices()),
            amounts=[
                plots.amounts(name, self._rows, self._baselines)
                for name, field in self._dataset.task.fields.items()
                if field.is_amount
            ],
            confusions=[
                plots.matrix(name, answered.outcomes)
                for name, field in self._dataset.task.fields.items()
                if field.is_category
            ],
            calibration=plots.calibration(self._challenger.calibration, answered),
            gallery=examples.choose(self._rows, self._dataset, self._challenger, self._storage, budget),
        )

    def _subjects(self) -> list[Subject]:
        base, champion = self._base, self._models["champion"]
        found = [
            Subject(
                _baseline(name),
                "five",
                metrics,
                metrics,
                trivial=True,
            )
            for name, metrics in base.baselines.items()
        ]
        found.append(Subject("base", "two", base.metrics, base.parsed))
        if champion is not None:
            found.append(Subject("champion", "three", champion.metrics, champion.parsed))
        found.append(Subject("challenger", "one", self._challenger.metrics, self._challenger.parsed))
        return found

    def _headlines(self) -> Iterator[tuple[str, str, str, list[str]]]:
        """Yield figures of the challenger, each with the champion's and the best baseline's."""
        subjects = self._subjects()
        trivial = [subject for subject in subjects if subject.trivial]
        for name in headlines(self._dataset.task):
            metric, metrics = self._metrics[name], self._challenger.metrics
            others = [subject for subject in subjects if subject.name == "champion"]
            if name != PARSE_RATE:
                others += _best_of(metric, trivial)
            said = [f"{each.name} {figure_text(each.metrics.figures[name], metric.unit)}" for each in others]
            interval = interval_text(metrics.intervals.get(name), metric.unit)
            yield metric.title, figure_text(metrics.figures[name], metric.unit), interval, said

    def _comparison(self, metric: TaskMetric) -> Comparison:
        subjects = self._subjects()
        if self._challenger.shuffled is not None:
            subjects.append(Subject("shuffled", "four", self._challenger.shuffled))
        axis = _axis(metric, [subject.metrics for subject in subjects])
        best = _best(metric, [subject.metrics for subject in subjects])
        notes = [shown(self._dataset.currency or "", 12)] if metric.unit == "currency" else []
        notes += ["less is better"] if metric.lower_is_better else []
        return Comparison(
            metric.title,
            ", ".join(filter(None, notes)),
            axis,
            tuple(
                (
                    subject,
                    _mark(axis, subject.kind, metric, subject.metrics, subject.name),
                    _cell(metric, subject.metrics, best),
                )
                for subject in subjects
            ),
        )

    def _tables(self) -> Iterator[tuple[str, list[str], list[tuple[str, list[Cell | None]]]]]:
        """Yield the figures of all, over all rows and over those that could be read."""
        subjects = self._subjects()
        for rows in ("all", "parsed"):
            columns: dict[str, Metrics | None] = {
                subject.name: subject.metrics if rows == "all" else subject.parsed for subject in subjects
            }
            if rows == "all" and self._challenger.shuffled is not None:
                columns["shuffled"] = self._challenger.shuffled
            body = [
                (metric.title, _cells(metric, columns.values()))
                for name, metric in self._metrics.items()
                if not (rows == "parsed" and name == PARSE_RATE)
            ]
            counts = [Cell(f"{metrics.samples:,}", "") if metrics else None for metrics in columns.values()]
            yield rows, list(columns), [("Rows", counts), *body]

    def _slices(self) -> Iterator[tuple[str, str, str, list[str], list[SliceTable]]]:
        """Yield each sliced field's name, title and order, the models, and a table for each figure."""
        models = {name: record for name, record in self._models.items() if record is not None}
        for field in self._challenger.slices:
            ordered = self._dataset.task.fields[field].is_amount
            order = "in their order" if ordered else "the worst first"
            tables = [_slice_table(field, metric, models, ordered) for metric in self._metrics.values()]
            yield field, f"By {label(field).lower()}", order, list(models), tables


def _baseline(name: str) -> str:
    return shown(name.replace("_", " "), 40)


def _read_baselines(base: EvaluationRecord, task: Task, storage: Storage) -> dict[str, Outcomes]:
    if not base.baselines:
        return {}
    found = read_baselines(storage.download(base, pattern=BASELINES) / BASELINES, task)
    return {_baseline(name): outcomes for name, outcomes in found.items()}


def _slice_table(
    field: str, metric: TaskMetric, models: Mapping[str, EvaluationRecord], ordered: bool
) -> SliceTable:
    kinds = {"challenger": "one", "champion": "three", "base": "two"}
    own = models["challenger"].slices[field]
    by_model = {model: record.slices.get(field, {}) for model, record in models.items()}
    axis = _axis(metric, [metrics for slices in by_model.values() for metrics in slices.values()])
    order = list(own)
    if not ordered:
        sign = -1 if metric.lower_is_better else 1
        order.sort(
            key=lambda each: (each == OTHER, sign * own[each].figures[metric.name], -own[each].samples)
        )
    rows = []
    for each in order:
        found = {model: slices.get(each) for model, slices in by_model.items()}
        marks = [
            _mark(axis, kinds[model], metric, metrics, model)
            for model, metrics in reversed(found.items())
            if metrics is not None
        ]
        rows.append(
            Slice(shown(each, 60), own[each].samples, tuple(marks), tuple(_cells(metric, found.values())))
        )
    return SliceTable(metric.name, metric.title, axis, tuple(rows))


def _cells(metric: TaskMetric, columns: Iterable[Metrics | None]) -> list[Cell | None]:
    known = list(columns)
    best = _best(metric, [metrics for metrics in known if metrics is not None])
    return [None if metrics is None else _cell(metric, metrics, best) for metrics in known]


def _cell(metric: TaskMetric, metrics: Metrics, best: float | None) -> Cell:
    value = metrics.figures[metric.name]
    return Cell(
        figure_text(value, metric.unit),
        interval_text(metrics.intervals.get(metric.name), metric.unit),
        value == best,
    )


def _best(metric: TaskMetric, columns: Sequence[Metrics]) -> float | None:
    values = [float(metrics.figures[metric.name]) for metrics in columns]
    if len(set(values)) < 2:
        return None
    return min(values) if metric.lower_is_better else max(values)


def _best_of(metric: TaskMetric, subjects: Sequence[Subject]) -> list[Subject]:
    """Return the one whose figure is best, if there is any."""
    sign = -1 if metric.lower_is_better else 1
    return sorted(subjects, key=lambda each: -sign * each.metrics.figures[metric.name])[:1]


def _axis(metric: TaskMetric, columns: Sequence[Metrics]) -> Axis:
    """Return an axis from 0 that holds the figures; fractions that cannot be above 1 take all of 0 to 1."""
    if not metric.lower_is_better:
        return Axis.linear(0.0, 1.0, percent)
    values = [metrics.figures[metric.name] for metrics in columns]
    ends = [metrics.intervals[metric.name].high for metrics in columns if metric.name in metrics.intervals]
    return Axis.linear(0.0, max(*values, *ends, 0.01), amount if metric.unit == "currency" else percent)


def _mark(axis: Axis, kind: str, metric: TaskMetric, metrics: Metrics, who: str) -> Mark:
    value, interval = metrics.figures[metric.name], metrics.intervals.get(metric.name)
    text = f"{who}: {figure_text(value, metric.unit)}"
    if interval is None:
        return mark(axis, kind, value, None, text)
    text += f" ({interval_text(interval, metric.unit)})"
    return mark(axis, kind, value, (interval.low, interval.high), text)


def _without_verdict(reason: str) -> str:
    """Return the gate's reason without the verdict at its start, which is shown next to it."""
    return reason.removeprefix("passed: ").removeprefix("refused: ")


def _short(digest: str) -> str:
    """Return the start of a digest, enough to distinguish it."""
    return digest.removeprefix("sha256:")[:12]


def written(rule: RuleResult) -> Rule:
    """Return a rule as text: figures as percentages, differences in points."""
    compared = ""
    if rule.own is not None and rule.compared is not None:
        own, other = (figure_text(value, rule.unit) for value in (rule.own, rule.compared))
        compared = f"{own} against {other}"
    return Rule(
        passed=rule.passed,
        is_condition=not rule.metric,
        description=shown(rule.description, 160),
        reason=shown(rule.reason, 300) if not rule.passed or rule.value is None else "",
        value=rule_value(rule),
        interval=interval_text(rule.interval, rule.unit),
        compared=compared,
        rows="" if rule.samples is None else f"{rule.samples:,}",
        limit=("surely " if rule.against else "") + rule_limit(rule),
    )


def _by_verdict(rules: Iterable[RuleResult]) -> list[Rule]:
    """Return the rules with those that failed first, and the conditions that hold last."""
    return sorted(map(written, rules), key=lambda rule: (rule.passed, rule.is_condition))

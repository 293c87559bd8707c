"""Metrics of a task: those of its fields, named ``<field>.<metric>``, and the share of readable answers."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fovea.evaluation.outcomes import Outcomes, each_row_once
from fovea.records import Confusion, Metrics
from fovea.task import Task
from fovea.task.fields import OTHER, most_frequent
from fovea.task.metrics import NO_ANSWER, Array, Mask, MetricFunction, Unit

PARSE_RATE = "parse_rate"
RELIANCE = "picture_reliance"
"""The fall of the primary metric when the model is shown other products' pictures."""
COUNTS = ("samples", "groups")
"""Rows, and product groups, that the figures are computed on."""
UNREADABLE = "(unreadable)"
"""The name of answers without a category in a confusion matrix."""


@dataclass(frozen=True)
class TaskMetric:
    """A figure of a model's outcomes.

    Attributes:
        name: ``<field>.<metric>``, or ``parse_rate``.
        title: What reports call it.
        unit: ``fraction``, or ``currency`` for an amount of money.
        lower_is_better: Whether a smaller figure is better.
        function: From outcomes and weights (resamples, rows) to figures (resamples,).
    """

    name: str
    title: str
    unit: Unit
    lower_is_better: bool
    function: Callable[[Outcomes, Array], Array]


def metrics_of(task: Task) -> dict[str, TaskMetric]:
    """Return a task's metrics by name, in the order of reports."""
    found = [
        TaskMetric(
            f"{name}.{metric.name}",
            f"{label(name)} {metric.title}",
            metric.unit,
            metric.lower_is_better,
            _of_field(name, metric.function),
        )
        for name, field in task.fields.items()
        for metric in field.metrics
    ]
    found.append(TaskMetric(PARSE_RATE, "Answers that can be read", "fraction", False, _parse_rate))
    return {metric.name: metric for metric in found}


def _of_field(name: str, function: MetricFunction) -> Callable[[Outcomes, Array], Array]:
    return lambda outcomes, weights: function(outcomes.fields[name], weights)


def headlines(task: Task) -> list[str]:
    """Return the metrics of a summary: the first one of each field, and the share of readable answers."""
    firsts = [f"{name}.{field.metrics[0].name}" for name, field in task.fields.items() if field.metrics]
    return [*firsts, PARSE_RATE]


def label(field: str) -> str:
    """Return a field's name for people: ``full_price`` as ``Full price``."""
    return field.replace("_", " ").capitalize()


def _parse_rate(outcomes: Outcomes, weights: Array) -> Array:
    figures: Array = weights @ outcomes.parsed.astype(np.float64) / weights.sum(1)
    return figures


def primary_metric(task: Task) -> str:
    """Return the metric that says best whether the model looks at the picture.

    That is the share of right answers of the first category, or of the first field where there is none.
    """
    categories = [name for name, field in task.fields.items() if field.is_category]
    name = categories[0] if categories else next(iter(task.fields))
    return f"{name}.{task.fields[name].right_metric}"


def unit_of(task: Task, metric: str) -> Unit:
    """Return the unit of a metric, a count or `RELIANCE`."""
    if metric in COUNTS:
        return "count"
    found = metrics_of(task).get(metric)
    return found.unit if found else "fraction"


def figure(outcomes: Outcomes, name: str) -> float:
    """Return a figure over all rows.

    Raises:
        ValueError: there are no rows.
    """
    return float(metrics_of(outcomes.task)[name].function(outcomes, each_row_once(outcomes))[0])


def slices(outcomes: Outcomes) -> dict[str, dict[str, Mask]]:
    """Return the rows of each slice, by field and by name.

    They follow from the truths alone, and so are the same for every model on the same rows.
    """
    found = {name: field.slices(outcomes.fields[name]) for name, field in outcomes.task.fields.items()}
    return {name: masks for name, masks in found.items() if masks}


def with_intervals(metrics: Metrics) -> dict[str, float]:
    """Return counts and figures by name, and the ends of a figure's interval as ``…_low`` and ``…_high``."""
    ends = {
        f"{name}_{end}": value
        for name, interval in metrics.intervals.items()
        for end, value in interval.model_dump().items()
    }
    return {"samples": metrics.samples, "groups": metrics.groups, **metrics.figures, **ends}


def confusions(outcomes: Outcomes) -> dict[str, Confusion]:
    """Return how often each category was answered with which, for each field of categories.

    The 30 most frequent, and the rest as one: `OTHER` includes answers that are not a category of the
    split, `UNREADABLE` those that could not be read.
    """
    return {
        name: _confusion(outcomes, name) for name, field in outcomes.task.fields.items() if field.is_category
    }


def _confusion(outcomes: Outcomes, field: str) -> Confusion:
    columns = outcomes.fields[field]
    frequent = most_frequent(columns["truth"])
    places = {name: place for place, name in enumerate([*frequent, OTHER])}
    places[NO_ANSWER] = len(places)
    rows = np.zeros((len(places), len(places)), int)
    for truth, answer in zip(columns["truth"].tolist(), columns["answer"].tolist(), strict=True):
        rows[places.get(truth, len(frequent)), places.get(answer, len(frequent))] += 1
    shown = [place for place in range(len(places)) if rows[place].any() or rows[:, place].any()]
    names = (*frequent, OTHER, UNREADABLE)
    return Confusion(
        categories=tuple(names[place] for place in shown),
        rows=tuple(tuple(rows[place, shown].tolist()) for place in shown),
    )

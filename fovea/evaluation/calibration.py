"""Calibration: the probability that a field is right, from its score, fitted on held-out rows.

A score (`fovea.field_scores`) ranks answers, but networks are overconfident. On the validation split, a
logistic curve is fitted for each field: P(right) = 1 / (1 + exp(-(slope x +
intercept))), where x is the score's log-odds (Platt's scaling; J. Platt 1999, with his smoothed targets, so
that no finite sample makes it certain). Two parameters a field are what a few hundred rows can support:
isotonic regression on so few rows gives 0 or 1 at both ends.

`fovea.task.Task.is_right` defines what is right.
"""

import hashlib
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from fovea.task import Fields, Task

MIN_ROWS = 50
"""The fewest answers that a curve is fitted on."""
MIN_OF_EACH = 5
"""The fewest of them that must be right, and that must be wrong."""

# Beyond it, float32 and a few hundred rows cannot distinguish a probability from 1.
_MOST_LOG_ODDS = 14.0
_THRESHOLDS = 20
_ROUNDING = 1e-9


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Coverage(_Model):
    """Coverage and accuracy of the answers whose confidence is at least ``threshold``."""

    threshold: float = Field(ge=0, le=1)
    coverage: float = Field(ge=0, le=1)
    """Share of all rows whose confidence is ``threshold`` at least."""
    accuracy: float = Field(ge=0, le=1)
    """Share of those that are right."""
    expected: float = Field(ge=0, le=1)
    """Their mean confidence, which is the accuracy to expect; it rises with the threshold."""
    rows: int = Field(ge=1)
    """The number of those rows."""


class FieldCalibration(_Model):
    """The curve of one field, or why it has none."""

    slope: float | None = Field(default=None, gt=0)
    intercept: float | None = None
    rows: int = Field(ge=0)
    """Answers with a score that the curve was fitted on."""
    right: int = Field(ge=0)
    reason: str = ""
    """Why there is no curve; empty where there is one."""
    table: tuple[Coverage, ...] = ()
    """Accuracy against coverage on the rows it was fitted on, by rising threshold."""

    @model_validator(mode="after")
    def _curve_or_reason(self) -> "FieldCalibration":
        if (self.slope is None) != bool(self.reason) or (self.slope is None) != (self.intercept is None):
            raise ValueError("a field has either a slope and an intercept, or a reason why not")
        return self

    def confidence(self, score: float | None) -> float | None:
        """Return the probability that a field with this score is right; None where that is not known."""
        if self.slope is None or self.intercept is None or score is None or not score <= 0:
            return None
        return _sigmoid(self.slope * log_odds(score) + self.intercept)


class Calibration(_Model):
    """The calibration of a model's scores, by field. It belongs to one model, task and generation."""

    schema_version: Literal[1] = 1
    fields: dict[str, FieldCalibration]

    @cached_property
    def digest(self) -> str:
        """``sha256:…`` of its JSON."""
        return "sha256:" + hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    @property
    def is_empty(self) -> bool:
        """Whether no field has a curve."""
        return not self.known

    @property
    def known(self) -> frozenset[str]:
        """The fields that have a curve."""
        return frozenset(name for name, field in self.fields.items() if not field.reason)

    @property
    def reasons(self) -> dict[str, str]:
        """Why fields have no curve, by their names."""
        return {name: field.reason for name, field in self.fields.items() if field.reason}

    def confidence(self, field: str, score: float | None) -> float | None:
        """Return the probability that ``field`` is right; None where that is not known.

        Raises:
            KeyError: the task has no such field.
        """
        return self.fields[field].confidence(score)

    def confidences(self, scores: Mapping[str, float] | None) -> dict[str, float | None]:
        """Return the confidence of every field of the task, from the scores of an answer."""
        known = scores or {}
        return {name: field.confidence(known.get(name)) for name, field in self.fields.items()}

    def threshold_for(self, field: str, accuracy: float) -> Coverage | None:
        """Return the lowest confidence at which ``field`` is expected to have the wanted accuracy.

        None where no confidence suffices, or the field has no curve.
        """
        return threshold_for(self.fields[field].table, accuracy)


def fit_calibration(
    task: Task,
    truths: Sequence[Fields],
    answers: Sequence[Fields | None],
    scores: Sequence[Mapping[str, float] | None],
) -> Calibration:
    """Fit the curves on rows that the model is neither trained nor evaluated on.

    Args:
        task: The task.
        truths: The truths of the rows.
        answers: The answers to the rows; None for one that could not be read.
        scores: The scores of the answers' fields (``Answer.scores``).

    Returns:
        A curve for each field, or why it has none: fewer than `MIN_ROWS` answers with a score, fewer than
        `MIN_OF_EACH` right or wrong ones, or scores that do not rise with being right.

    Raises:
        ValueError: the sequences differ in length.
    """
    rows = list(zip(truths, answers, scores, strict=True))
    fitted = {}
    for name in task.fields:
        known = [
            (given[name], task.is_right(name, truth, answer))
            for truth, answer, given in rows
            if given is not None and name in given
        ]
        fitted[name] = _fit([score for score, _ in known], [right for _, right in known], len(rows))
    return Calibration(fields=fitted)


def coverage_table(
    confidences: Sequence[float | None], right: Sequence[bool], most: int = _THRESHOLDS
) -> tuple[Coverage, ...]:
    """Return accuracy against coverage, by rising threshold.

    Args:
        confidences: The confidence of each row; a row with None is never covered.
        right: Whether the rows' answers are right.
        most: The number of thresholds, spread evenly over the rows.

    Raises:
        ValueError: the sequences differ in length.
    """
    pairs = zip(confidences, right, strict=True)
    known = sorted((each, is_so) for each, is_so in pairs if each is not None)
    values = [each for each, _ in known]
    # Rows of the same confidence are on the same side of a threshold.
    places = {bisect_left(values, values[len(values) * step // most]) for step in range(most) if values}
    table = []
    for place in sorted(places):
        kept = [is_so for _, is_so in known[place:]]
        table.append(
            Coverage(
                threshold=values[place],
                coverage=len(kept) / len(confidences),
                accuracy=sum(kept) / len(kept),
                expected=min(1.0, sum(values[place:]) / len(kept)),
                rows=len(kept),
            )
        )
    return tuple(table)


def threshold_for(table: Sequence[Coverage], accuracy: float) -> Coverage | None:
    """Return the row of the lowest threshold whose ``expected`` accuracy reaches ``accuracy``, or None.

    The observed accuracy is not used: with few rows it fluctuates, and its maximum is chance.
    """
    return next((row for row in table if row.expected >= accuracy), None)


def log_odds(score: float) -> float:
    """Return log(p / (1 - p)) of a score log(p), clipped to what is numerically meaningful."""
    if score >= 0:
        return _MOST_LOG_ODDS
    return max(-_MOST_LOG_ODDS, min(_MOST_LOG_ODDS, score - math.log(-math.expm1(score))))


def _fit(scores: Sequence[float], right: Sequence[bool], rows: int) -> FieldCalibration:
    counts = {"rows": len(scores), "right": sum(right)}
    wrong = counts["rows"] - counts["right"]
    if len(scores) < MIN_ROWS:
        return FieldCalibration(**counts, reason=f"{len(scores)} answers to fit on, {MIN_ROWS} are needed")
    if min(counts["right"], wrong) < MIN_OF_EACH:
        few = f"{counts['right']} right and {wrong} wrong"
        return FieldCalibration(**counts, reason=f"{few} answers to fit on, {MIN_OF_EACH} of each are needed")
    slope, intercept = _logistic([log_odds(score) for score in scores], right)
    if slope <= 0:
        return FieldCalibration(**counts, reason="answers that it found likelier were not right more often")
    curve = FieldCalibration(slope=slope, intercept=intercept, **counts)
    confidences: list[float | None] = [curve.confidence(score) for score in scores]
    # Rows without a readable answer count, and no threshold covers them.
    missing = rows - len(scores)
    table = coverage_table(confidences + [None] * missing, [*right, *[False] * missing])
    return curve.model_copy(update={"table": table})


def _logistic(log_odds_of: Sequence[float], right: Sequence[bool]) -> tuple[float, float]:
    """Return slope and intercept of the likeliest logistic curve.

    The slope is 0 where x does not vary. The targets are Platt's, a little inside of 0 and 1, which keeps the
    optimum finite for data that a threshold separates without error.
    """
    # Imported here: it takes a second that only a fit needs.
    from sklearn.linear_model import LogisticRegression

    x, truth = np.asarray(log_odds_of, np.float64), np.asarray(right, bool)
    centre, scale = float(x.mean()), float(x.std())
    if scale < _ROUNDING:
        return 0.0, 0.0
    high, low = (truth.sum() + 1) / (truth.sum() + 2), 1 / ((~truth).sum() + 2)
    target = np.where(truth, high, low)
    # A target between 0 and 1 is the row once as right and once as wrong, by weight.
    model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-10, max_iter=1000)
    model.fit(
        np.tile((x - centre) / scale, 2)[:, None],
        np.repeat([True, False], len(x)),
        sample_weight=np.concatenate([target, 1 - target]),
    )
    slope = float(model.coef_[0, 0]) / scale
    return slope, float(model.intercept_[0]) - slope * centre


def _sigmoid(value: float) -> float:
    if value >= 0:
        return 1 / (1 + math.exp(-value))
    return math.exp(value) / (1 + math.exp(value))

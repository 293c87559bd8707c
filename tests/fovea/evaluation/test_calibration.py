"""Confidences are probabilities: on rows the curves were not fitted on, too."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fovea.evaluation.calibration import (
    MIN_OF_EACH,
    MIN_ROWS,
    Calibration,
    FieldCalibration,
    coverage_table,
    fit_calibration,
    log_odds,
)
from fovea.task import product_task

TASK = product_task()
TRUTH = {"product": "Wool scarf", "category": "SCARVES", "full_price": 100.0}
WRONG = {"product": "Belt", "category": "BELTS", "full_price": 500.0}


def simulated(rows: int, seed: int, slope: float = 0.6, intercept: float = -1.0) -> tuple[list, list, list]:
    """A model that is surer than it is right: at log-odds x it is right with sigmoid(slope x + intercept)."""
    random = np.random.default_rng(seed)
    x = random.normal(3, 2.5, rows)
    right = random.random(rows) < 1 / (1 + np.exp(-(slope * x + intercept)))
    scores = [dict.fromkeys(TASK.fields, -math.log1p(math.exp(-each))) for each in x]
    return [TRUTH] * rows, [TRUTH if each else WRONG for each in right], scores


def test_confidence_is_calibrated_on_rows_it_was_not_fitted_on() -> None:
    calibration = fit_calibration(TASK, *simulated(500, seed=3))
    _, answers, scores = simulated(20_000, seed=2)
    confidence = np.array([calibration.confidence("category", each["category"]) for each in scores])
    right = np.array([answer is TRUTH for answer in answers])
    for low in np.arange(0, 1, 0.1):
        taken = (confidence >= low) & (confidence < low + 0.1)
        if taken.sum() > 200:
            assert abs(confidence[taken].mean() - right[taken].mean()) < 0.08
    raw = np.exp([each["category"] for each in scores])
    assert abs(raw.mean() - right.mean()) > 0.1 > 0.03 > abs(confidence.mean() - right.mean())


def test_a_threshold_reaches_its_accuracy_on_other_rows() -> None:
    calibration = fit_calibration(TASK, *simulated(1000, seed=7))
    found = calibration.threshold_for("category", 0.9)
    assert found is not None
    _, answers, scores = simulated(20_000, seed=4)
    confidences = [calibration.confidence("category", each["category"]) for each in scores]
    right = [
        answer is TRUTH
        for answer, sure in zip(answers, confidences, strict=True)
        if sure and sure >= found.threshold
    ]
    assert sum(right) / len(right) == pytest.approx(0.9, abs=0.03)
    assert len(right) / len(answers) == pytest.approx(found.coverage, abs=0.05)
    assert calibration.threshold_for("category", 1.01) is None


SCORES = st.floats(-50, 0)


@settings(max_examples=60)
@given(
    rows=st.lists(st.tuples(SCORES, st.booleans()), min_size=MIN_ROWS, max_size=120),
    others=st.lists(st.floats(-1e308, 0), min_size=2, max_size=8),
)
def test_confidences_rise_within_0_and_1_and_survive_json(
    rows: list[tuple[float, bool]], others: list[float]
) -> None:
    calibration = fit_calibration(
        TASK,
        [TRUTH] * len(rows),
        [TRUTH if right else WRONG for _, right in rows],
        [{"category": score} for score, _ in rows],
    )
    field = calibration.fields["category"]
    found = [calibration.confidence("category", score) for score in sorted(others)]
    if field.reason:
        assert found == [None] * len(others)
    else:
        assert all(0 < each < 1 for each in found)
        assert found == sorted(found)
        assert [each.threshold for each in field.table] == sorted(each.threshold for each in field.table)
        assert field.table[0].coverage == 1
    assert Calibration.model_validate_json(calibration.model_dump_json()) == calibration
    # No row has a score of the other fields.
    assert calibration.confidence("product", -0.1) is None
    assert "0 answers" in calibration.reasons["product"]


@pytest.mark.parametrize(
    ("rows", "right", "reason"),
    [
        (MIN_ROWS - 1, 20, "49 answers to fit on"),
        (200, 200, "200 right and 0 wrong"),
        (200, 0, "0 right and 200 wrong"),
        (200, 200 - MIN_OF_EACH + 1, "196 right and 4 wrong"),
    ],
)
def test_too_little_to_fit_on_is_said_and_nothing_made_up(rows: int, right: int, reason: str) -> None:
    scores = [dict.fromkeys(TASK.fields, -0.01 * (1 + place)) for place in range(rows)]
    answers = [TRUTH if place < right else WRONG for place in range(rows)]
    calibration = fit_calibration(TASK, [TRUTH] * rows, answers, scores)
    assert calibration.is_empty
    assert reason in calibration.reasons["category"]
    assert calibration.confidences(scores[0]) == dict.fromkeys(TASK.fields)
    assert calibration.threshold_for("category", 0.1) is None


@pytest.mark.parametrize("score", [lambda place: -0.5, lambda place: -0.01 if place % 2 else -3.0])
def test_scores_that_say_nothing_of_being_right_give_no_curve(score) -> None:
    rows = range(100)
    answers = [WRONG if place % 2 else TRUTH for place in rows]
    calibration = fit_calibration(
        TASK, [TRUTH] * 100, answers, [{"category": score(place)} for place in rows]
    )
    assert "not right more often" in calibration.reasons["category"]


def test_answers_that_cannot_be_read_count_in_the_coverage_alone() -> None:
    truths, answers, scores = simulated(300, seed=5)
    calibration = fit_calibration(TASK, truths + [TRUTH] * 100, answers + [None] * 100, scores + [None] * 100)
    alone = fit_calibration(TASK, truths, answers, scores).fields["category"]
    field = calibration.fields["category"]
    assert (field.slope, field.intercept, field.rows) == (alone.slope, alone.intercept, 300)
    assert field.table[0].coverage == 0.75
    assert field.table[0].accuracy == alone.table[0].accuracy


def test_data_that_a_threshold_parts_without_error_is_not_certain() -> None:
    scores = [{"category": -0.0001 if place < 60 else -5.0} for place in range(80)]
    answers = [TRUTH if place < 60 else WRONG for place in range(80)]
    calibration = fit_calibration(TASK, [TRUTH] * 80, answers, scores)
    sure, unsure = (calibration.confidence("category", score) for score in (0.0, -50.0))
    assert sure is not None
    assert unsure is not None
    assert 0.95 < sure < 1
    assert 0 < unsure < 0.1


def test_the_coverage_table() -> None:
    table = coverage_table([0.9, None, 0.5, 0.5, 0.7], [True, True, False, True, True])
    assert [(each.threshold, each.coverage, each.accuracy, each.rows) for each in table] == [
        (0.5, 0.8, 0.75, 4),
        (0.7, 0.4, 1.0, 2),
        (0.9, 0.2, 1.0, 1),
    ]
    assert [each.expected for each in table] == pytest.approx([0.65, 0.8, 0.9])
    assert coverage_table([], []) == ()
    assert coverage_table([None], [True]) == ()
    assert len(coverage_table([place / 1000 for place in range(1000)], [True] * 1000)) == 20


def test_what_is_right() -> None:
    assert all(TASK.is_right(name, TRUTH, TRUTH) for name in TASK.fields)
    assert not any(TASK.is_right(name, TRUTH, WRONG) for name in TASK.fields)
    assert not any(TASK.is_right(name, TRUTH, None) for name in TASK.fields)
    for price, right in [(110.0, True), (90.0, True), (110.01, False), (89.99, False)]:
        assert TASK.is_right("full_price", TRUTH, TRUTH | {"full_price": price}) is right
    assert not TASK.is_right("product", TRUTH, TRUTH | {"product": "Wool Scarf"})
    stated = product_task(currency_column="currency")
    assert stated.is_right("full_price", TRUTH | {"currency": "EUR"}, TRUTH | {"currency": "EUR"})
    assert not stated.is_right("full_price", TRUTH | {"currency": "EUR"}, TRUTH | {"currency": "USD"})


def test_scores_that_are_no_log_probabilities_have_no_confidence() -> None:
    field = FieldCalibration(slope=1.0, intercept=0.0, rows=100, right=50)
    assert field.confidence(None) is None
    assert field.confidence(math.nan) is None
    assert field.confidence(0.5) is None
    assert field.confidence(math.log(0.3)) == pytest.approx(0.3)
    assert log_odds(0.0) == -log_odds(-1e6) == 14


@pytest.mark.parametrize(
    "changes",
    [{"slope": -1.0}, {"slope": None}, {"reason": "none"}, {"intercept": None}, {"slope": math.nan}],
)
def test_a_curve_is_whole_or_has_a_reason(changes: dict[str, object]) -> None:
    document = {"slope": 1.0, "intercept": 0.0, "rows": 100, "right": 50, **changes}
    with pytest.raises(ValidationError):
        FieldCalibration.model_validate_json(json.dumps(document))

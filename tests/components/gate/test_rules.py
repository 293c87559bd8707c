import itertools
import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.gate.rules import (
    CHECKS,
    Evidence,
    FigureRule,
    Judgement,
    Limits,
    default_rules,
    judge,
    judge_base,
)
from fovea.records import EvaluationRecord, GenerationParameters, Metrics, now
from fovea.steps import plain_line
from tests.some_metrics import some_metrics

BASE, TUNED, OTHER = (f"sha256:{digit * 64}" for digit in "abc")
RULES = default_rules(Limits())
BAD = {
    "parse_rate": 0.1,
    "title_exact": 0.0,
    "category_accuracy": 0.05,
    "price_median_ape": 1.0,
}
GOOD = {
    "parse_rate": 1.0,
    "title_exact": 0.8,
    "category_accuracy": 0.95,
    "price_median_ape": 0.07,
}


def evaluation(
    subject: str = "tuned", shuffled_category: float | None = 0.2, **changes: Any
) -> EvaluationRecord:
    figures = dict(GOOD if subject == "tuned" else BAD)
    figures |= {name: changes.pop(name) for name in list(changes) if name in figures}
    counts = {name: changes.pop(name) for name in ("samples", "products") if name in changes}
    metrics = some_metrics(**counts, **figures)
    shuffled = (
        None
        if shuffled_category is None
        else metrics.model_copy(update={"category_accuracy": shuffled_category})
    )
    fields: dict[str, Any] = {
        "step": "evaluate",
        "step_version": 1,
        "input_key": "0" * 64,
        "uri": "s3://fovea/evaluate/x/",
        "files": (),
        "parameters": {},
        "parents": {},
        "created_at": now(),
        "run_id": "run",
        "model_digest": TUNED if subject == "tuned" else BASE,
        "dataset_digest": OTHER,
        "task_digest": OTHER,
        "split": "test",
        "generation": GenerationParameters(max_new_tokens=64, num_crops=4, dtype="float32"),
        "metrics": metrics,
        "shuffled": shuffled,
        "chance_category_accuracy": 0.2,
    }
    return EvaluationRecord(**{**fields, **changes})


def evidence(**changes: Any) -> Evidence:
    fields: dict[str, Any] = {
        "candidate": evaluation(),
        "base": evaluation("base", shuffled_category=0.05),
        "model_digest": TUNED,
        "base_digest": BASE,
    }
    return Evidence(**{**fields, **changes})


def refused_by(judgement: Judgement) -> set[str]:
    assert judgement.passed is not any(not result.passed for result in judgement.rules)
    return {result.name for result in judgement.rules if not result.passed}


def test_a_good_model_passes() -> None:
    judgement = judge(evidence(), RULES)
    assert judgement.passed
    assert refused_by(judgement) == set()
    assert judgement.reason == f"passed: all {len(RULES)} rules hold"


def test_the_base_is_refused_by_what_the_rules_ask_for() -> None:
    judgement = judge_base(evaluation("base", shuffled_category=0.05), RULES)
    assert not judgement.passed
    assert {"parse_rate", "category_accuracy", "price_error", "picture_reliance"} <= refused_by(judgement)


def test_a_base_that_is_good_enough_is_not_refused_for_being_the_base() -> None:
    assert judge_base(evaluation("base", **GOOD), RULES).passed


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"samples": 199}, "samples"),
        ({"parse_rate": 0.97}, "parse_rate"),
        ({"category_accuracy": 0.89}, "category_accuracy"),
        ({"price_median_ape": 0.16}, "price_error"),
        ({"shuffled_category": 0.7}, "picture_reliance"),
        ({"shuffled_category": None}, "picture_reliance"),
        ({"chance_category_accuracy": 0.95}, "beats_majority"),
    ],
)
def test_each_rule_refuses_by_its_name(changes: dict[str, Any], rule: str) -> None:
    tuned = evaluation(**changes)
    base = evaluation("base", samples=tuned.metrics.samples)
    judgement = judge(evidence(candidate=tuned, base=base), RULES)
    assert refused_by(judgement) == {rule}
    assert rule in judgement.reason


def test_every_failed_rule_is_reported() -> None:
    judgement = judge(evidence(candidate=evaluation(parse_rate=0.5, price_median_ape=0.9)), RULES)
    assert refused_by(judgement) == {"parse_rate", "price_error"}
    assert len(judgement.rules) == len(RULES)


def test_not_better_than_the_base_is_refused() -> None:
    judgement = judge(evidence(base=evaluation("base", **GOOD)), RULES)
    assert refused_by(judgement) == {"beats_base_on_category", "beats_base_on_price"}


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"dataset_digest": TUNED}, "dataset"),
        ({"task_digest": TUNED}, "task"),
        ({"split": "validation"}, "split"),
        (
            {"generation": GenerationParameters(max_new_tokens=64, num_crops=1, dtype="float32")},
            "generation parameters",
        ),
        ({"samples": 299}, "number of samples"),
        ({"products": 249}, "number of products"),
        ({"step_version": 2}, "version of the evaluation"),
    ],
)
def test_what_differs_between_the_two_evaluations_refuses(changes: dict[str, Any], what: str) -> None:
    judgement = judge(evidence(base=evaluation("base", **changes)), RULES)
    assert refused_by(judgement) == {"comparable"}
    assert what in judgement.reason


@pytest.mark.parametrize(
    ("changes", "rules"),
    [
        ({"model_digest": OTHER}, {"evaluated_this_model"}),
        ({"base_digest": OTHER}, {"compared_with_its_base"}),
        ({"base_digest": None}, {"compared_with_its_base"}),
        ({"model_digest": None}, {"records_readable", "evaluated_this_model", "differs_from_base"}),
        ({"model_digest": BASE}, {"evaluated_this_model", "differs_from_base"}),
        ({"unreadable": ("model: no JSON",)}, {"records_readable"}),
        (
            {"base": None},
            {
                "records_readable",
                "comparable",
                "compared_with_its_base",
                "beats_base_on_category",
                "beats_base_on_price",
            },
        ),
    ],
)
def test_another_model_or_no_record_refuses(changes: dict[str, Any], rules: set[str]) -> None:
    assert refused_by(judge(evidence(**changes), RULES)) == rules


def test_without_any_evidence_everything_is_refused() -> None:
    nothing = Evidence(candidate=None, base=None, model_digest=None, base_digest=None)
    assert refused_by(judge(nothing, RULES)) == {rule.name for rule in RULES}


def test_no_rules_refuse() -> None:
    judgement = judge(evidence(), ())
    assert not judgement.passed
    assert "no rules" in judgement.reason


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf, "0.99", True])
@pytest.mark.parametrize("name", ["samples", "parse_rate", "category_accuracy", "price_median_ape"])
def test_a_figure_that_is_missing_or_not_a_finite_number_refuses(name: str, value: Any) -> None:
    # Such a record cannot be read from JSON; the rules must not depend on that.
    tuned = evaluation()
    fields = tuned.metrics.model_dump()
    if value is None:
        del fields[name]
    else:
        fields[name] = value
    broken = tuned.model_copy(update={"metrics": Metrics.model_construct(**fields)})
    judgement = judge(evidence(candidate=broken), RULES)
    caught = {
        rule.name: result
        for rule, result in zip(RULES, judgement.rules, strict=True)
        if isinstance(rule, FigureRule) and rule.figure == name
    }
    assert not judgement.passed
    assert caught
    assert all(not result.passed and result.value is None for result in caught.values())
    assert all("missing" in result.reason or "not a finite" in result.reason for result in caught.values())


@pytest.mark.parametrize("name", ["category_accuracy", "price_median_ape"])
def test_a_figure_of_the_base_that_is_not_finite_refuses(name: str) -> None:
    base = evaluation("base")
    fields = base.metrics.model_dump() | {name: math.nan}
    broken = base.model_copy(update={"metrics": Metrics.model_construct(**fields)})
    assert not judge(evidence(base=broken), RULES).passed


@pytest.mark.parametrize("limit", [math.nan, math.inf, -math.inf])
def test_a_limit_that_is_not_finite_refuses(limit: float) -> None:
    rule = FigureRule("rule", "", "parse_rate", ">=", limit)
    assert not judge(evidence(), (rule,)).passed


FRACTION = st.floats(0, 1)
FIGURES = st.fixed_dictionaries(
    {
        "samples": st.integers(1, 1000),
        "parse_rate": FRACTION,
        "category_accuracy": FRACTION,
        "price_median_ape": st.floats(0, 3),
        "shuffled_category": FRACTION,
    }
)
LIMITS = st.builds(
    Limits,
    min_samples=st.integers(1, 500),
    min_parse_rate=FRACTION,
    min_category_accuracy=FRACTION,
    max_price_median_ape=st.floats(0, 2),
    min_picture_reliance=st.floats(0, 0.5),
)


def judged(figures: dict[str, Any], base: dict[str, Any], limits: Limits) -> Judgement:
    base = {**base, "samples": figures["samples"]}
    return judge(
        evidence(candidate=evaluation(**figures), base=evaluation("base", **base)), default_rules(limits)
    )


@given(one=FIGURES, other=FIGURES, base=FIGURES, limits=LIMITS)
def test_a_worse_model_never_passes_where_a_better_one_is_refused(
    one: dict[str, Any], other: dict[str, Any], base: dict[str, Any], limits: Limits
) -> None:
    higher_is_better = {"samples", "parse_rate", "category_accuracy"}
    best = {name: (max if name in higher_is_better else min)(one[name], other[name]) for name in one}
    better = judged(best, base, limits)
    for worse in (judged(one, base, limits), judged(other, base, limits)):
        assert better.passed or not worse.passed
        # And rule by rule: what refuses the better model refuses the worse one too.
        assert refused_by(better) <= refused_by(worse)


@given(figures=FIGURES, base=FIGURES, limits=LIMITS, seed=st.integers(0, 1000))
def test_the_order_of_rules_does_not_matter(
    figures: dict[str, Any], base: dict[str, Any], limits: Limits, seed: int
) -> None:
    rules = list(default_rules(limits))
    random.Random(seed).shuffle(rules)  # noqa: S311
    base = {**base, "samples": figures["samples"]}
    case = evidence(candidate=evaluation(**figures), base=evaluation("base", **base))
    ordered, shuffled = judge(case, default_rules(limits)), judge(case, rules)
    assert ordered.passed == shuffled.passed
    assert sorted(ordered.rules, key=repr) == sorted(shuffled.rules, key=repr)


@given(figures=FIGURES, base=FIGURES)
def test_more_rules_never_let_more_through(figures: dict[str, Any], base: dict[str, Any]) -> None:
    base = {**base, "samples": figures["samples"]}
    case = evidence(candidate=evaluation(**figures), base=evaluation("base", **base))
    verdicts = [judge(case, RULES[:count]).passed for count in range(1, len(RULES) + 1)]
    assert all(earlier or not later for earlier, later in itertools.pairwise(verdicts))


def test_rules_have_names_of_their_own() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert RULES[: len(CHECKS)] == CHECKS


@given(text=st.text())
def test_a_plain_line_is_safe_as_a_pipeline_parameter(text: str) -> None:
    line = plain_line(text)
    assert "\n" not in line
    assert not set(line) & set("\"'`\\{}")
    assert eval(f"'{line}'") == line  # noqa: S307
    assert len(plain_line(text * 2000)) <= 1000

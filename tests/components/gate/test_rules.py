"""What the rules refuse, and that nothing gets past them by being broken, missing or itself."""

import dataclasses
import functools
import itertools
import math
import random
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.gate.checks import CHECKS
from components.gate.evidence import SHUFFLED, Evidence
from components.gate.parameters import CONDITIONS, GateParameters, RuleSpec
from components.gate.rules import Judgement, default_rules, judge, judge_base
from fovea.evaluation.metrics import metrics_of
from fovea.evaluation.outcomes import CHALLENGER
from fovea.records import GenerationParameters, Interval, Metrics, Record
from fovea.text import plain_line
from tests.components.gate.answerers import (
    BASE,
    BASELINES,
    CHAMPION,
    OTHER,
    TASK,
    TRUTHS,
    TUNED,
    Answers,
    Row,
    blind,
    catalogue,
    evidence,
    good,
    most_frequent,
    nothing,
)

METRICS = metrics_of(TASK)
RULES = default_rules(GateParameters(), TASK)
BY_NAME = {rule.name: rule for rule in RULES}
OF_CHAMPION = {"keeps_parse_rate", "keeps_category", "keeps_full_price"}
CASE = evidence(good())
WITH_CHAMPION = evidence(good(), champion=good(wrong=0.05, seed=9))


def refused_by(judgement: Judgement) -> set[str]:
    assert judgement.passed is not any(not result.passed for result in judgement.rules)
    return {result.name for result in judgement.rules if not result.passed}


@functools.cache
def good_judgement() -> Judgement:
    return judge(WITH_CHAMPION, RULES)


def changed(record: Any, **changes: Any) -> Any:
    """A record with other values, built without validation, and with the same digest: NaN has no JSON."""
    copy = record.model_copy(update=changes)
    if isinstance(record, Record):
        copy.__dict__["digest"] = record.digest
    return copy


def test_a_good_model_passes() -> None:
    judgement = good_judgement()
    assert refused_by(judgement) == set()
    assert judgement.reason == f"passed: all {len(RULES) + len(CHECKS)} rules hold"


def test_the_first_model_has_no_champion_to_keep_up_with() -> None:
    judgement = judge(CASE, RULES)
    assert judgement.passed
    by_name = {result.name: result for result in judgement.rules}
    for name in OF_CHAMPION:
        assert by_name[name].reason == "there is no champion: the registry has no model yet"
        assert by_name[name].value is None


NAMED: Mapping[str, tuple[Answers, set[str]]] = {
    "answers the most frequent product": (
        most_frequent(),
        {
            "category_accuracy",
            "full_price_median_ape",
            "picture_reliance",
            "beats_majority_category_on_category",
        },
    ),
    "answers nothing": (nothing(), {"parse_rate", "category_accuracy", "beats_base_on_category"}),
    # What it was asked is no answer: the parser's verdict on it stands for the model's.
    "copies the prompt": (nothing(), {"parse_rate", "full_price_median_ape", "beats_base_on_full_price"}),
    "ignores the picture": (
        blind(),
        {"picture_reliance", "category_accuracy", "beats_nearest_neighbour_on_category"},
    ),
}


@pytest.mark.parametrize("name", NAMED)
def test_models_that_are_worth_nothing_are_refused_by_name(name: str) -> None:
    answers, caught = NAMED[name]
    judgement = judge(evidence(answers), RULES)
    assert not judgement.passed
    assert caught <= refused_by(judgement)


def test_what_a_copied_prompt_is_worth() -> None:
    from fovea.task import product_task

    task = product_task()
    assert task.parse(task.prompt()).fields is None
    assert task.parse(task.question).fields is None


def test_a_model_that_is_right_without_looking_is_refused_for_just_that() -> None:
    # All products are of one category, so that a model need not look to be right of it.
    truths: list[Row] = [{**truth, "category": "BAGS"} for truth in TRUTHS]
    judgement = judge(evidence(good(truths, wrong=0.0), truths=truths), RULES)
    assert "picture_reliance" in refused_by(judgement)
    assert "category_accuracy" not in refused_by(judgement)


def test_a_model_that_is_worse_than_the_champion_is_refused() -> None:
    judgement = judge(evidence(good(wrong=0.09), champion=good(wrong=0.0)), RULES)
    assert refused_by(judgement) == {"keeps_category"}
    (result,) = (each for each in judgement.rules if each.name == "keeps_category")
    assert result.value is not None
    assert result.value < 0
    assert result.interval is not None
    assert result.interval.low < -0.03
    assert set(result.inputs) == {"champion", "challenger"}
    assert result.own is not None
    assert result.compared == 1.0


def test_a_good_base_is_not_beaten() -> None:
    judgement = judge(evidence(good(), base=good(seed=5)), RULES)
    assert refused_by(judgement) == {"beats_base_on_category", "beats_base_on_full_price"}


def test_the_base_is_refused_by_what_the_rules_ask_for() -> None:
    of_base = judge_base(CASE, RULES)
    assert {"parse_rate", "category_accuracy", "full_price_median_ape", "picture_reliance"} <= refused_by(
        of_base
    )
    assert judge_base(evidence(good(), base=good(seed=5)), RULES).passed


@pytest.mark.parametrize(
    ("limits", "rule"),
    [
        ({"min_samples": 241}, "samples"),
        ({"min_category_accuracy": 0.99}, "category_accuracy"),
        ({"max_price_median_ape": 0.01}, "full_price_median_ape"),
        ({"min_picture_reliance": 0.99}, "picture_reliance"),
        ({"champion_margin": 0.0}, "keeps_full_price"),
    ],
)
def test_each_limit_refuses_by_its_name(limits: dict[str, Any], rule: str) -> None:
    judgement = judge(WITH_CHAMPION, default_rules(GateParameters(**limits), TASK))
    assert rule in refused_by(judgement) <= {rule, *(OF_CHAMPION if "champion_margin" in limits else ())}
    assert rule in judgement.reason


@pytest.mark.parametrize("side", ["base", "champion"])
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
        ({"step_version": 3}, "version of the evaluation"),
    ],
)
def test_what_differs_between_evaluations_refuses(side: str, changes: dict[str, Any], what: str) -> None:
    case = dataclasses.replace(WITH_CHAMPION, **{side: changed(getattr(WITH_CHAMPION, side), **changes)})
    judgement = judge(case, RULES[:1])
    assert refused_by(judgement) == {"comparable"}
    assert f"model and {side} were evaluated with a different {what}" in judgement.reason


def test_other_rows_refuse() -> None:
    fewer = evidence(good(catalogue(230)), truths=catalogue(230))
    case = dataclasses.replace(
        CASE, base=fewer.base, outcomes={**CASE.outcomes, "base": fewer.outcomes["base"]}
    )
    found = {result.name: result.reason for result in judge(case, RULES).rules if not result.passed}
    assert "number of samples" in found["comparable"]
    assert "different rows" in found["beats_base_on_category"]


@pytest.mark.parametrize(
    ("changes", "rules"),
    [
        ({"model_digest": OTHER}, {"evaluated_this_model"}),
        ({"base_digest": OTHER}, {"compared_with_its_base"}),
        ({"base_digest": None}, {"compared_with_its_base"}),
        (
            {"model_digest": None},
            {"records_readable", "evaluated_this_model", "differs_from_base", "differs_from_champion"},
        ),
        ({"model_digest": BASE}, {"evaluated_this_model", "differs_from_base"}),
        ({"model_digest": CHAMPION}, {"evaluated_this_model", "differs_from_champion"}),
        ({"unreadable": ("model: no JSON",)}, {"records_readable"}),
        (
            {"champion": None},
            {"records_readable", "differs_from_champion", "comparable", "figures_agree"},
        ),
    ],
)
def test_another_model_or_no_record_refuses(changes: dict[str, Any], rules: set[str]) -> None:
    assert refused_by(judge(dataclasses.replace(WITH_CHAMPION, **changes), RULES[:1])) == rules


def test_the_champion_itself_is_refused() -> None:
    again = changed(WITH_CHAMPION.champion, model_digest=TUNED)
    judgement = judge(dataclasses.replace(WITH_CHAMPION, champion=again), RULES)
    assert refused_by(judgement) == {"differs_from_champion"}
    assert judgement.reason == "refused: differs_from_champion (the model is the champion already)"


def test_without_any_evidence_everything_is_refused() -> None:
    empty = Evidence(challenger=None, base=None, champion=None, model_digest=None, base_digest=None)
    assert refused_by(judge(empty, RULES)) == {rule.name for rule in (*CHECKS, *RULES)}


def test_no_rules_refuse() -> None:
    judgement = judge(CASE, ())
    assert not judgement.passed
    assert "no rules" in judgement.reason


BROKEN = [None, math.nan, math.inf, -math.inf, "0.99", True]


@pytest.mark.parametrize("who", ["challenger", "base", "champion"])
@pytest.mark.parametrize("name", METRICS)
def test_every_figure_that_is_missing_or_not_a_finite_number_refuses(who: str, name: str) -> None:
    # Such a record cannot be read from JSON; the gate must not depend on that.
    for value in BROKEN:
        whole = getattr(WITH_CHAMPION, who)
        figures: dict[str, Any] = {**whole.metrics.figures, name: value}
        if value is None:
            del figures[name]
        fields = {**whole.metrics.__dict__, "figures": figures}
        broken = changed(whole, metrics=Metrics.model_construct(**fields))
        case = dataclasses.replace(WITH_CHAMPION, **{who: broken})
        judgement = judge(case, RULES[:1])
        assert refused_by(judgement) == {"figures_agree"}, value
        assert name in judgement.reason


@pytest.mark.parametrize("interval", [None, Interval.model_construct(low=0.1, high=math.nan)])
def test_an_interval_that_is_missing_or_not_finite_refuses(interval: Interval | None) -> None:
    metrics = WITH_CHAMPION.challenger.metrics
    intervals = {**metrics.intervals, "product.f1": interval}
    if interval is None:
        del intervals["product.f1"]
    broken = changed(WITH_CHAMPION.challenger, metrics=changed(metrics, intervals=intervals))
    judgement = judge(dataclasses.replace(WITH_CHAMPION, challenger=broken), RULES[:1])
    assert refused_by(judgement) == {"figures_agree"}
    assert "the interval of product.f1 of challenger" in judgement.reason


def test_figures_that_are_not_the_predictions_refuse() -> None:
    metrics = CASE.challenger.metrics
    figures = {**metrics.figures, "product.exact": 1.0 - 1e-6}
    better = changed(CASE.challenger, metrics=changed(metrics, figures=figures))
    judgement = judge(dataclasses.replace(CASE, challenger=better), RULES)
    assert refused_by(judgement) == {"figures_agree"}
    assert "in the record and" in judgement.reason


@pytest.mark.parametrize(
    "name", [CHALLENGER, SHUFFLED, "base", "champion", *(f"baseline:{each}" for each in BASELINES)]
)
def test_predictions_or_baselines_that_are_missing_refuse(name: str) -> None:
    without = {who: found for who, found in WITH_CHAMPION.outcomes.items() if who != name}
    assert "figures_agree" in refused_by(
        judge(dataclasses.replace(WITH_CHAMPION, outcomes=without), RULES[:1])
    )
    if name.startswith("baseline:"):
        bare = changed(WITH_CHAMPION.base, baselines={})
        case = dataclasses.replace(WITH_CHAMPION, base=bare, outcomes=without)
        assert {"figures_agree", f"beats_{name.removeprefix('baseline:')}_on_full_price"} <= refused_by(
            judge(case, RULES)
        )


def test_a_model_without_a_shuffled_evaluation_is_refused() -> None:
    assert "figures_agree" in refused_by(
        judge(dataclasses.replace(CASE, challenger=changed(CASE.challenger, shuffled=None)), RULES)
    )


def spec(**asked: Any) -> RuleSpec:
    return RuleSpec.model_validate({"name": "mine", "metric": "category.accuracy", **asked})


@pytest.mark.parametrize(
    ("rule", "passed", "reason"),
    [
        (spec(slice="category=BAGS", at_least=0.9), True, "as ≥ 90.00 %"),
        (spec(slice="category=BAGS", at_least=0.999), False, "not ≥ 99.90 %"),
        (spec(slice="category=HATS", at_least=0.1), False, "there is no category 'HATS'"),
        (spec(slice="full_price=1", metric="full_price.median_ape", at_most=0.1), True, "as ≤ 10.00 %"),
        (spec(slice="full_price=5", at_least=0.1), False, "there is no full_price '5'"),
        (spec(slice="category=BELTS", at_least=0.1, min_samples=49), False, "rests on 48 rows, at least 49"),
        (spec(slice="category=BELTS", metric="samples", at_least=48), True, "as ≥ 48"),
        (spec(slice="category=BELTS", metric="groups", at_least=49), False, "not ≥ 49"),
        (spec(slice="category=SCARVES", metric="picture_reliance", at_least=0.3), True, "as ≥ 30.00 %"),
        (spec(slice="full_price=4", against="baseline:majority_category"), False, "not surely above"),
        (spec(slice="full_price=1", against="baseline:majority_category"), True, "surely above 0.00 points"),
        (spec(against="champion", margin=0.5), True, "surely above −50.00 points"),
        (spec(metric="product.f1", at_most=0.5), False, "not ≤ 50.00 %"),
    ],
)
def test_rules_on_slices_and_comparisons(rule: RuleSpec, passed: bool, reason: str) -> None:
    (*_, result) = judge(WITH_CHAMPION, [rule]).rules
    assert (result.name, result.passed) == ("mine", passed)
    assert reason in result.reason
    if passed and result.metric not in ("samples", "groups"):
        assert result.interval is not None
        assert result.interval.low <= result.value <= result.interval.high


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("parse_rate", "refused: parse_rate is "),
        ("parse", "refused: parse (parse_rate is "),
        ("readable", "refused: readable (parse_rate is "),
    ],
)
def test_a_reason_names_its_rule_once(name: str, said: str) -> None:
    rule = spec(name=name, metric="parse_rate", at_least=1.5)
    assert judge(WITH_CHAMPION, [rule], checks=()).reason.startswith(said)


def test_judging_twice_says_the_same() -> None:
    assert judge(WITH_CHAMPION, RULES) == good_judgement()


QUICK = settings(max_examples=12)
QUALITY = st.lists(st.integers(0, 3), min_size=20, max_size=20)
SMALL = catalogue(20)


def answered(quality: list[int], wrong_price: float = 0.01) -> Answers:
    """Answers of four grades: not to be read, wrong, nearly right, right."""
    grades: list[Any] = [
        lambda truth: None,
        lambda truth: {"product": "x", "category": "HATS", "full_price": wrong_price},
        lambda truth: {**truth, "product": "x", "full_price": float(truth["full_price"]) * 1.2},
        lambda truth: truth,
    ]
    return [grades[grade](truth) for grade, truth in zip(quality, SMALL, strict=True)]


def loosely(
    quality: list[int], base: list[int], champion: list[int] | None = None, wrong_price: float = 0.01
) -> Judgement:
    """Judge by rules that small samples can pass."""
    limits = GateParameters(
        min_samples=5,
        min_parse_rate=0.7,
        min_category_accuracy=0.5,
        max_price_median_ape=0.3,
        min_picture_reliance=0.1,
        champion_margin=0.3,
    )
    case = evidence(
        answered(quality, wrong_price),
        base=answered(base),
        champion=answered(champion) if champion else None,
        truths=SMALL,
    )
    return judge(case, default_rules(limits, TASK), resamples=100)


@QUICK
@given(
    one=QUALITY,
    other=QUALITY,
    base=st.just([0] * 20) | QUALITY,
    champion=st.none() | QUALITY,
    too_high=st.booleans(),
)
def test_a_worse_model_never_passes_where_a_better_one_is_refused(
    one: list[int], other: list[int], base: list[int], champion: list[int] | None, too_high: bool
) -> None:
    wrong_price = 0.01
    if too_high:
        # A price far too high counts for worse than one that cannot be read, so the two do not meet.
        wrong_price, one, other = 9e6, [max(1, grade) for grade in one], [max(1, grade) for grade in other]
    best = loosely([max(pair) for pair in zip(one, other, strict=True)], base, champion, wrong_price)
    for quality in (one, other):
        # Rule by rule: what refuses the better model refuses the worse one too.
        assert refused_by(best) <= refused_by(loosely(quality, base, champion, wrong_price))


@QUICK
@given(quality=QUALITY, order=st.permutations(range(len(RULES))), seed=st.integers(0, 1000))
def test_the_order_of_rules_does_not_matter(quality: list[int], order: list[int], seed: int) -> None:
    case = evidence(answered(quality), truths=SMALL)
    checks = list(CHECKS)
    random.Random(seed).shuffle(checks)  # noqa: S311
    ordered = judge(case, RULES, resamples=50)
    shuffled = judge(case, [RULES[place] for place in order], checks, resamples=50)
    assert ordered.passed == shuffled.passed
    assert sorted(ordered.rules, key=repr) == sorted(shuffled.rules, key=repr)


def test_more_rules_never_let_more_through() -> None:
    for case in (WITH_CHAMPION, evidence(blind())):
        results = judge(case, RULES).rules
        passed = [all(each.passed for each in results[:count]) for count in range(1, len(results) + 1)]
        assert all(earlier or not later for earlier, later in itertools.pairwise(passed))


def test_rules_have_names_of_their_own() -> None:
    assert len({rule.name for rule in (*CHECKS, *RULES)}) == len(RULES) + len(CHECKS)
    assert tuple(check.name for check in CHECKS) == CONDITIONS


@settings(max_examples=50)
@given(text=st.text())
def test_a_plain_line_is_safe_as_a_pipeline_parameter(text: str) -> None:
    line = plain_line(text)
    assert "\n" not in line
    assert not set(line) & set("\"'`\\{}")
    assert eval(f"'{line}'") == line  # noqa: S307
    assert len(plain_line(text * 2000)) <= 1000

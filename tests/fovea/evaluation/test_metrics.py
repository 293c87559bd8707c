import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error, mean_absolute_percentage_error

from fovea.errors import UserError
from fovea.evaluation import intervals
from fovea.evaluation.intervals import bootstrap, measure, paired_bootstrap
from fovea.evaluation.metrics import figure, metrics_of, primary_metric, slices
from fovea.evaluation.outcomes import Outcomes
from fovea.predictions import Prediction, Row, read_predictions, shuffled, write_predictions
from fovea.task import Answer, Task, TextField, product_task
from fovea.task.fields import OTHER, token_f1
from fovea.task.metrics import NO_ANSWER

TASK = product_task()
METRICS = metrics_of(TASK)


def fields(product: str, category: str, price: float) -> dict[str, Any]:
    return {"product": product, "category": category, "full_price": price}


TRUTHS = [
    fields("Red Bag", "BAGS", 100.0),
    fields("Blue Bag", "BAGS", 200.0),
    fields("Boot", "SHOES", 400.0),
    fields("Belt", "BELTS", 50.0),
]
ANSWERS = [
    fields("Red Bag", "BAGS", 110.0),  # all right, the price just within 10 %
    fields("Blue bag", "BAGS", 150.0),  # the title's case is wrong, the price 25 % off
    fields("Boot", "BAGS", 400.0),  # the category is wrong
    None,  # cannot be read
]
GROUPS = ["1", "2", "2", "3"]


def outcomes(truths: Any = TRUTHS, answers: Any = ANSWERS, groups: Any = GROUPS) -> Outcomes:
    return Outcomes.of(TASK, truths, answers, groups)


def test_figures_by_hand() -> None:
    measured = measure(outcomes(), resamples=0)
    assert measured.model_dump() == {
        "samples": 4,
        "groups": 3,
        "intervals": {},
        "figures": {
            "parse_rate": 0.75,
            "product.exact": 0.5,
            "product.f1": 0.75,
            "category.accuracy": 0.5,
            # BAGS is said three times and twice true: 4 / 5. SHOES and BELTS are never said.
            "category.macro_f1": pytest.approx(0.8 / 3),
            "full_price.median_ape": pytest.approx((0.1 + 0.25) / 2),
            "full_price.mean_ape": pytest.approx((0.1 + 0.25 + 0 + 1) / 4),
            "full_price.within_10_percent": 0.5,
            "full_price.mean_absolute_error": pytest.approx((10 + 50 + 0 + 50) / 4),
        },
    }


def test_the_right_answers_are_perfect_and_none_are_worthless() -> None:
    best = measure(outcomes(answers=TRUTHS))
    nothing = measure(outcomes(answers=[None] * 4))
    for name in METRICS:
        lower = METRICS[name].lower_is_better
        assert best.figures[name] == (0.0 if lower else 1.0)
        assert nothing.figures[name] == (1.0 if lower else 0.0) or name == "full_price.mean_absolute_error"
        assert best.intervals[name].low == best.intervals[name].high == best.figures[name]
    assert nothing.figures["full_price.mean_absolute_error"] == 187.5
    assert nothing.figures.keys() == METRICS.keys()


@pytest.mark.parametrize(
    ("truth", "answer", "f1"),
    [
        ("Red leather bag", "red BAG, leather", 1.0),
        ("Red leather bag", "Blue leather bag", 2 / 3),
        ("bag bag", "bag", 2 / 3),
        ("Tasche für Zürich", "TASCHE FÜR ZÜRICH", 1.0),
        ("bag", "boot", 0.0),
        ("***", "***", 1.0),
        ("***", "---", 0.0),
        ("***", "bag", 0.0),
    ],
)
def test_how_alike_titles_are(truth: str, answer: str, f1: float) -> None:
    assert token_f1(truth, answer) == pytest.approx(f1)


def test_there_must_be_rows_and_answers_to_all_of_them() -> None:
    with pytest.raises(ValueError, match="no rows"):
        measure(outcomes([], [], []))
    with pytest.raises(ValueError, match="longer"):
        outcomes(answers=TRUTHS + TRUTHS)
    task = Task(
        name="titles",
        version=1,
        question="What is this?",
        template="{title}",
        fields={"title": TextField(column="title")},
    )
    titles = Outcomes.of(task, [{"title": "a"}, {"title": "b"}], [{"title": "a"}, None], ["1", "2"])
    assert measure(titles, resamples=0).figures == {"title.exact": 0.5, "title.f1": 0.5, "parse_rate": 0.5}
    assert primary_metric(task) == "title.exact"
    assert slices(titles) == {}


FIELDS = st.builds(fields, st.sampled_from("ab"), st.sampled_from("xyz"), st.floats(0.01, 1e6))
ROWS = st.lists(st.tuples(FIELDS, st.none() | FIELDS, st.sampled_from("pqr")), min_size=1, max_size=20)


@given(rows=ROWS)
def test_figures_agree_with_scikit_learn(rows: list[tuple[Any, Any, str]]) -> None:
    truths, answers, groups = map(list, zip(*rows, strict=True))
    measured = measure(outcomes(truths, answers, groups), resamples=0)
    true = [truth["category"] for truth in truths]
    said = [answer["category"] if answer else NO_ANSWER for answer in answers]
    assert measured.figures["category.accuracy"] == pytest.approx(accuracy_score(true, said))
    occurring = sorted({*true, *said} - {NO_ANSWER})
    assert measured.figures["category.macro_f1"] == pytest.approx(
        f1_score(true, said, labels=occurring, average="macro", zero_division=0)
    )
    # What is not said counts as nothing: 100 % of the price.
    prices = [truth["full_price"] for truth in truths]
    predicted = [answer["full_price"] if answer else 0.0 for answer in answers]
    assert measured.figures["full_price.mean_ape"] == pytest.approx(
        mean_absolute_percentage_error(prices, predicted)
    )
    assert measured.figures["full_price.mean_absolute_error"] == pytest.approx(
        mean_absolute_error(prices, predicted)
    )
    errors = [abs(price - other) / price for price, other in zip(prices, predicted, strict=True)]
    assert measured.figures["full_price.median_ape"] == pytest.approx(statistics.median(errors))
    assert measured.groups == len(set(groups))


def test_every_metric_has_a_title_of_its_own() -> None:
    titles = [metric.title for metric in METRICS.values()]
    assert all(titles)
    assert len(set(titles)) == len(titles)


@given(rows=ROWS, data=st.data())
def test_weights_are_rows_taken_so_often(rows: list[tuple[Any, Any, str]], data: Any) -> None:
    of = outcomes(*map(list, zip(*rows, strict=True)))
    times = data.draw(st.lists(st.integers(0, 3), min_size=len(rows), max_size=len(rows)).filter(any))
    again = of.take(np.repeat(np.arange(len(rows)), times))
    for name, metric in METRICS.items():
        weighted = metric.function(of, np.array([times, [1] * len(rows)], np.float64))
        assert weighted.tolist() == pytest.approx([figure(again, name), figure(of, name)]), name


@given(rows=ROWS, place=st.integers(0, 19))
def test_losing_an_answer_never_improves_a_share(rows: list[tuple[Any, Any, str]], place: int) -> None:
    truths, answers, groups = map(list, zip(*rows, strict=True))
    before = measure(outcomes(truths, answers, groups), resamples=0)
    answers[place % len(answers)] = None
    after = measure(outcomes(truths, answers, groups), resamples=0)
    for name in (
        "parse_rate",
        "product.exact",
        "product.f1",
        "category.accuracy",
        "full_price.within_10_percent",
    ):
        assert after.figures[name] <= before.figures[name]


def test_a_price_in_another_currency_is_no_price() -> None:
    task = product_task(currency_column="currency_code")
    truths = [truth | {"currency": "EUR"} for truth in TRUTHS]
    answers = [truth | {"currency": "USD" if number else "EUR"} for number, truth in enumerate(TRUTHS)]
    measured = measure(Outcomes.of(task, truths, answers, GROUPS), resamples=0)
    assert (measured.figures["full_price.median_ape"], measured.figures["full_price.within_10_percent"]) == (
        1.0,
        0.25,
    )
    assert measured.figures["full_price.mean_absolute_error"] == (200 + 400 + 50) / 4


def simulated(generator: np.random.Generator, products: int) -> Outcomes:
    """Products of one to three rows, which are right or wrong together, and errors of a long tail."""
    product = np.repeat(np.arange(products), generator.integers(1, 4, products))
    right = (generator.random(products) < 0.7)[product]
    errors = generator.lognormal(-2, 1, products)[product]
    text = product.astype(np.str_)
    return Outcomes(
        task=TASK,
        row_ids=np.arange(len(product)).astype(np.str_),
        groups=text,
        parsed=right,
        fields={
            "product": {"exact": right, "f1": right.astype(float)},
            "category": {
                "truth": np.where(product % 3 == 0, "a", "b"),
                "answer": np.where(right == (product % 3 == 0), "a", "b"),
            },
            "full_price": {"truth": np.ones(len(product)), "ape": errors, "absolute_error": errors},
        },
    )


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    great = measure(simulated(generator, 300_000), resamples=0)
    names = ("category.accuracy", "category.macro_f1", "full_price.median_ape", "full_price.mean_ape")
    covered, naive, trials = dict.fromkeys(names, 0), 0, 300
    for _ in range(trials):
        sample = simulated(generator, 150)
        for name, interval in bootstrap(sample, names, resamples=250).items():
            covered[name] += interval.low <= great.figures[name] <= interval.high
        # What comes of taking rows of one product for independent ones.
        alone = Outcomes(**{**vars(sample), "groups": sample.row_ids})
        interval = bootstrap(alone, names[:1], resamples=250)[names[0]]
        naive += interval.low <= great.figures["category.accuracy"] <= interval.high
    # Of 300 trials at 95 %, fewer than 90.5 % or more than 99 % come once in a thousand times. Percentiles of
    # a mean with a long tail are a little narrow: 92 % in 2,000 trials.
    assert all(0.905 <= count / trials <= 0.99 for count in covered.values()), covered
    assert naive < min(covered.values())


def test_intervals_do_not_depend_on_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = simulated(np.random.default_rng(1), 40)
    whole = bootstrap(sample)
    monkeypatch.setattr(intervals, "_WEIGHTS_AT_ONCE", 7 * len(sample))
    for name, interval in bootstrap(sample).items():
        assert interval.model_dump() == pytest.approx(whole[name].model_dump())
    assert bootstrap(sample, seed=1) != whole
    narrow, wide = (bootstrap(sample, level=level)["full_price.mean_ape"] for level in (0.5, 0.99))
    assert wide.low < narrow.low < figure(sample, "full_price.mean_ape") < narrow.high < wide.high


def test_a_comparison_is_of_the_same_rows() -> None:
    first = simulated(np.random.default_rng(2), 100)
    prices = {**first.fields["full_price"], "ape": first.fields["full_price"]["ape"] + 0.01}
    worse = Outcomes(**{**vars(first), "fields": {**first.fields, "full_price": prices}})
    order = np.random.default_rng(3).permutation(len(first))
    paired = paired_bootstrap(worse.take(order), first, "full_price.mean_ape")
    # A hundredth more on every row is a hundredth more in every resample, however widely they differ.
    assert (paired.low, paired.difference, paired.high) == pytest.approx((0.01, 0.01, 0.01))
    unpaired = bootstrap(first)["full_price.mean_ape"]
    assert unpaired.high - unpaired.low > 0.03
    with pytest.raises(ValueError, match="different rows"):
        paired_bootstrap(first, first.take(order[1:]), "full_price.mean_ape")
    with pytest.raises(ValueError, match="different product groups"):
        paired_bootstrap(first, Outcomes(**{**vars(first), "groups": first.row_ids}), "full_price.mean_ape")


def test_slices_by_category_and_price_band() -> None:
    truths = [fields("a", f"C{number % 40:02}", number + 1.0) for number in range(100)]
    of = outcomes(truths, [None] * 100, [str(number) for number in range(100)])
    found = slices(of)
    assert {kind: sum(mask.sum() for mask in masks.values()) for kind, masks in found.items()} == {
        "category": 100,
        "full_price": 100,
    }
    # C00 to C19 stand three times, the others twice: ten of those are left over.
    assert [*found["category"]] == [*(f"C{number:02}" for number in range(30)), OTHER]
    assert found["category"][OTHER].sum() == 20
    assert [*found["full_price"]] == ["1.00 to 26.00", "26.00 to 51.00", "51.00 to 75.00", "75.00 to 100.00"]
    assert [mask.sum() for mask in found["full_price"].values()] == [25, 25, 24, 26]


def test_equal_prices_are_one_band() -> None:
    same = outcomes([fields("a", "A", 9.99)] * 3, [None] * 3, ["1", "2", "3"])
    assert {name: mask.sum() for name, mask in slices(same)["full_price"].items()} == {"9.99 to 9.99": 3}


def test_outcomes_come_back_from_a_table() -> None:
    made = outcomes()
    again = Outcomes.from_table(made.to_table(), TASK)
    assert measure(again) == measure(made)
    assert [again.row_ids.tolist(), again.groups.tolist(), again.parsed.tolist()] == [
        made.row_ids.tolist(),
        made.groups.tolist(),
        made.parsed.tolist(),
    ]


def test_outcomes_of_predictions(tmp_path: Path) -> None:
    predictions = [
        Prediction(
            Row(str(number), str(number), GROUPS[number], TRUTHS[number]),
            Answer("text", ANSWERS[number], None if ANSWERS[number] else "cannot be read", 1, 1, "stop"),
            shuffled_row_id=str(3 - number),
        )
        for number in range(4)
    ]
    write_predictions(tmp_path, TASK, predictions)
    paths = list(tmp_path.iterdir())
    read = read_predictions(paths, TASK)
    assert [(each.row, each.answer, each.shuffled_row_id) for each in read] == [
        (each.row, each.answer, each.shuffled_row_id) for each in predictions
    ]
    assert measure(Outcomes.of_predictions(TASK, read)) == measure(outcomes())
    shown = Outcomes.of_predictions(TASK, shuffled(read))
    assert measure(shown) == measure(outcomes(answers=ANSWERS[::-1]))
    parquet.write_table(pa.table({"row_id": ["1"]}), paths[0])
    with pytest.raises(UserError, match="no predictions can be read"):
        read_predictions(paths, TASK)

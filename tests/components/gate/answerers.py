"""Models to judge, by what they answer to a small catalogue, and the evidence that is left of them."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from components.gate.evidence import BASE_SHUFFLED, SHUFFLED, Evidence
from fovea.evaluation.baselines import baselines_of
from fovea.evaluation.intervals import measure
from fovea.evaluation.outcomes import CHALLENGER, Outcomes
from fovea.records import AbsentRecord, EvaluationRecord
from fovea.task import FieldValue, product_task
from tests.some_records import some_evaluation

TASK = product_task()
BASELINES = baselines_of(TASK)
BASE, TUNED, CHAMPION, OTHER = (f"sha256:{digit * 64}" for digit in "abcd")
NO_CHAMPION = AbsentRecord(reason="the registry has no model yet")

Row = dict[str, FieldValue]
Answers = Sequence[Row | None]
CATEGORIES = ["BAGS"] * 5 + ["SCARVES"] * 3 + ["BELTS"] * 2


def catalogue(rows: int = 240, seed: int = 0) -> list[Row]:
    """Products of three categories, half of them bags, at prices that follow from them and vary."""
    chance = random.Random(seed)  # noqa: S311
    middle = {"BAGS": 300.0, "SCARVES": 60.0, "BELTS": 120.0}
    found: list[Row] = []
    for number in range(rows):
        category = CATEGORIES[number % len(CATEGORIES)]
        price = round(middle[category] * chance.uniform(0.5, 1.5), 2)
        found.append({"product": f"{category} {number}", "category": category, "full_price": price})
    return found


TRUTHS = catalogue()


def good(truths: Sequence[Row] = TRUTHS, wrong: float = 0.04, seed: int = 1) -> Answers:
    """A model that looks: few categories are wrong, prices are off by a few per cent."""
    chance = random.Random(seed)  # noqa: S311
    answers: list[Row | None] = []
    for truth in truths:
        category = "HATS" if chance.random() < wrong else truth["category"]
        price = round(float(truth["full_price"]) * chance.uniform(0.92, 1.08), 2)
        answers.append({**truth, "category": category, "full_price": price})
    return answers


def most_frequent(truths: Sequence[Row] = TRUTHS) -> Answers:
    """A model that answers the most frequent product, whatever it is shown."""
    return [{"product": "BAGS 0", "category": "BAGS", "full_price": 290.0}] * len(truths)


def nothing(truths: Sequence[Row] = TRUTHS) -> Answers:
    """A model whose answers cannot be read: it says nothing, or what it was asked."""
    return [None] * len(truths)


def blind(truths: Sequence[Row] = TRUTHS, seed: int = 2) -> Answers:
    """A model that ignores the picture: its answers are as varied as the truths, and no more often right."""
    answers = list(truths)
    random.Random(seed).shuffle(answers)  # noqa: S311
    return answers


def outcomes(answers: Answers, truths: Sequence[Row] = TRUTHS) -> Outcomes:
    """What comes of these answers: each row is a product of its own."""
    return Outcomes.of(TASK, truths, answers, [f"product-{number}" for number in range(len(truths))])


def shown_others(answers: Answers) -> Answers:
    """What is answered to each row if it is shown the picture of another one, of another category."""
    return [*answers[5:], *answers[:5]]


def record(digest: str, found: Mapping[str, Outcomes], **changes: Any) -> EvaluationRecord:
    """The record of an evaluation: figures of ``own`` and ``shuffled``, and of baselines by their names."""
    fields: dict[str, Any] = {
        "uri": "s3://fovea/evaluate/x/",
        "model_digest": digest,
        "dataset_digest": OTHER,
        "task_digest": TASK.digest,
        "metrics": measure(found["own"], RESAMPLES),
        "shuffled": measure(found["shuffled"], RESAMPLES),
        "baselines": {name: measure(each, RESAMPLES) for name, each in found.items() if name in BASELINES},
    }
    return some_evaluation(**{**fields, **changes})


RESAMPLES = 60
"""Of the intervals in records, which no verdict rests on."""


def baselines(truths: Sequence[Row] = TRUTHS) -> dict[str, Outcomes]:
    """What the trivial answers reach: the last two guess from a product that is of the category or not."""
    near = [truths[(place + (10 if place % 3 else 5)) % len(truths)] for place in range(len(truths))]
    typical: list[Row] = [{**each, "full_price": 150.0} for each in near]
    found = (most_frequent(truths), typical, near)
    return {name: outcomes(answers, truths) for name, answers in zip(BASELINES, found, strict=True)}


def evidence(
    answers: Answers,
    *,
    base: Answers | None = None,
    champion: Answers | None = None,
    truths: Sequence[Row] = TRUTHS,
    **changes: Any,
) -> Evidence:
    """What the gate knows of a model with these answers, tuned from a base that answers nothing."""
    base = nothing(truths) if base is None else base
    challenger_found, base_found = (
        {"own": outcomes(each, truths), "shuffled": outcomes(shown_others(each), truths)}
        for each in (answers, base)
    )
    trivial = baselines(truths)
    found = {
        CHALLENGER: challenger_found["own"],
        SHUFFLED: challenger_found["shuffled"],
        "base": base_found["own"],
        BASE_SHUFFLED: base_found["shuffled"],
        **{f"baseline:{name}": each for name, each in trivial.items()},
    }
    fields: dict[str, Any] = {
        "challenger": record(TUNED, challenger_found),
        "base": record(BASE, base_found | trivial),
        "champion": NO_CHAMPION,
        "model_digest": TUNED,
        "base_digest": BASE,
        "outcomes": found,
    }
    if champion is not None:
        its = {"own": outcomes(champion, truths), "shuffled": outcomes(shown_others(champion), truths)}
        fields["champion"] = record(CHAMPION, its)
        found["champion"] = its["own"]
    return Evidence(**{**fields, **changes})

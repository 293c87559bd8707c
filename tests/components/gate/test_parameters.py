"""Rules as people write them: what is not known is an error that names the choices."""

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.gate.parameters import (
    GateParameters,
    GateRules,
    RuleSpec,
    opponents_of,
    parse_rules,
    read_rules,
)
from components.gate.rules import default_rules
from fovea.errors import UserError
from fovea.evaluation.metrics import metrics_of
from fovea.storage import Storage
from fovea.task import product_task

RULES = """
rules:
  - name: bags
    metric: category.accuracy
    slice: category=BAGS
    at_least: 0.85
  - name: keeps_full_price
    metric: full_price.median_ape
    slice: full_price=1
    against: champion
    margin: 0.02
"""
TASK = product_task()
DEFAULTS = default_rules(GateParameters(), TASK)
FIGURES = (*metrics_of(TASK), "picture_reliance", "samples", "groups")


def test_rules_stand_beside_the_default_ones_or_take_their_places() -> None:
    found = parse_rules(RULES, "rules.yaml").with_defaults(DEFAULTS)
    by_name = {rule.name: rule for rule in found}
    assert len(found) == len(DEFAULTS) + 1
    assert (by_name["bags"].comparison, by_name["bags"].limit) == (">=", 0.85)
    assert (by_name["keeps_full_price"].slice, by_name["keeps_full_price"].limit) == ("full_price=1", -0.02)
    alone = parse_rules("defaults: false\n" + RULES, "rules.yaml").with_defaults(DEFAULTS)
    assert [rule.name for rule in alone] == ["bags", "keeps_full_price"]
    assert GateRules().with_defaults(DEFAULTS) == DEFAULTS


def one(**asked: object) -> str:
    rule = {"name": "mine", "metric": "parse_rate", "at_least": 0.5, **asked}
    pairs = ", ".join(f"{key}: {value}" for key, value in rule.items() if value is not None)
    return f"rules: [{{{pairs}}}]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (one(metric="'Accuracy!'"), "should match pattern"),
        (one(at_leas=1), "unknown: at_leas; there are name, metric, slice"),
        ("rule: []", "unknown: rule; there are defaults, rules"),
        (one(name="comparable"), "one of the gate's own conditions"),
        (one(name="'Mine!'"), "should match pattern"),
        (one(at_most=0.7), "give one of at_least, at_most and against"),
        (one(at_least=None), "give one of at_least, at_most and against"),
        (one(margin=0.1), "margin goes with against"),
        (one(at_least=None, against="base", margin=-1), "greater than or equal to 0"),
        (one(at_least=".nan"), "finite number"),
        (one(at_least=".inf"), "finite number"),
        (one(min_samples=0), "greater than or equal to 1"),
        (f"rules: [{one()[8:-1]}, {one()[8:-1]}]", "two rules have the same name"),
        ("defaults: false", "there must be others"),
        ("- a", "must be a mapping with defaults, rules"),
        ("{", "is not YAML"),
        ("[" * 5000, "nested too deeply"),
        ("a: &a [x]\nb: [*a, *a]", "references"),
        ("#" * 70_000, "at most 65536"),
        ("rules: !!python/object/apply:os.system [ls]", "is not YAML"),
    ],
)
def test_what_is_wrong_is_said_with_the_choices(text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_rules(text, "gate_rules")
    assert str(caught.value).startswith("gate_rules: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (one(metric="accuracy"), f"unknown metric 'accuracy'; there are {', '.join(FIGURES)}"),
        (one(slice="colour=red"), "unknown slice 'colour=red'; there are category=…, full_price=…"),
        (one(slice="product=Bag"), "unknown slice 'product=Bag'; there are category=…, full_price=…"),
        (
            one(at_least=None, against="last"),
            f"unknown opponent 'last'; there are {', '.join(opponents_of(TASK))}",
        ),
        (one(at_least=None, against="base", metric="samples"), "samples cannot be compared"),
    ],
)
def test_what_is_not_of_the_task_is_said_with_the_choices(text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_rules(text, "gate_rules").check(TASK)
    assert str(caught.value).startswith("mine: ")
    assert message in str(caught.value)


@settings(max_examples=100)
@given(st.text(max_size=60) | st.sampled_from(RULES.split("\n")).map(lambda line: line * 2))
def test_any_text_is_rules_or_an_error_of_the_user(text: str) -> None:
    with contextlib.suppress(UserError):
        assert isinstance(parse_rules(text, "gate_rules"), GateRules)


def test_rules_by_uri(s3: str) -> None:
    Storage().write_bytes(f"{s3}/rules.yaml", RULES.encode())
    assert read_rules(f"{s3}/rules.yaml") == parse_rules(RULES, "")
    assert read_rules("  ") == GateRules()
    with pytest.raises(UserError, match=r"none\.yaml"):
        read_rules(f"{s3}/none.yaml")


def test_a_rule_survives_json() -> None:
    assert RuleSpec.model_validate_json(DEFAULTS[-1].model_dump_json()) == DEFAULTS[-1]

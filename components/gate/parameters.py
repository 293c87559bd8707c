"""Parameters of the gate: the limits of its default rules, and additional rules as YAML.

The YAML is validated before the run uses a GPU:

    defaults: true            # keep the default rules; false leaves only the conditions and these
    rules:
      - name: bags            # a rule with a default rule's name replaces it
        metric: category.accuracy
        slice: category=BAGS
        at_least: 0.85
      - name: cheap_prices
        metric: full_price.median_ape
        slice: full_price=1      # the cheapest quarter
        against: champion
        margin: 0.02          # worse by less than this; without it: better. At 95 %

`preflight` checks the rules, and the gate applies them.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from fovea.errors import UserError
from fovea.evaluation.baselines import baselines_of
from fovea.evaluation.metrics import COUNTS, RELIANCE, metrics_of
from fovea.parameters import NOT_IN_RESULT, Parameters, parse_parameters
from fovea.storage import Storage
from fovea.task import Task
from fovea.yaml_text import read_yaml

CONDITIONS = (
    "records_readable",
    "evaluated_this_model",
    "compared_with_its_base",
    "differs_from_base",
    "differs_from_champion",
    "comparable",
    "figures_agree",
)
"""The conditions of every judgement; no rule can have one of these names."""

_MOST_CHARACTERS = 64 * 1024
_MOST_RULES = 200
_DEEPEST = 10


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, values: Any) -> Any:
        unknown = set(values) - set(cls.model_fields) if isinstance(values, Mapping) else ()
        if unknown:
            raise ValueError(
                f"unknown: {', '.join(map(str, unknown))}; there are {_listed(cls.model_fields)}"
            )
        return values


class RuleSpec(_Strict):
    """A rule on a figure of the model: a limit, or a comparison on the same rows.

    Exactly one of ``at_least``, ``at_most`` and ``against`` is set.
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,59}$")]
    metric: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)?$", max_length=120)]
    """A metric of the task, ``picture_reliance``, ``samples`` or ``groups``."""
    slice: str = ""
    """``FIELD=NAME`` or ``FIELD=NUMBER``, the slice's place from 1; empty for all rows."""
    at_least: float | None = None
    at_most: float | None = None
    against: str = ""
    """``base``, ``champion`` or ``baseline:NAME``: the 95 % interval of the gain over it must be above 0."""
    margin: Annotated[float, Field(ge=0)] = 0.0
    """With ``against``: the interval must be above ``-margin`` instead. In the metric's unit."""
    min_samples: Annotated[int, Field(ge=1)] = 30
    """The fewest rows that the figure is computed on."""
    description: Annotated[str, Field(max_length=200)] = ""

    @field_validator("name")
    @classmethod
    def _no_condition(cls, value: str) -> str:
        if value in CONDITIONS:
            raise ValueError(f"{value} is one of the gate's own conditions, which no rule can replace")
        return value

    @model_validator(mode="after")
    def _one_question(self) -> Self:
        asked = [self.at_least is not None, self.at_most is not None, bool(self.against)]
        if sum(asked) != 1:
            raise ValueError("give one of at_least, at_most and against")
        if self.margin and not self.against:
            raise ValueError("margin goes with against")
        return self

    @property
    def comparison(self) -> Literal[">=", "<=", ">"]:
        """How the value compares with the limit; for ``against``, the lower end of the gain."""
        if self.against:
            return ">"
        return "<=" if self.at_most is not None else ">="

    @property
    def limit(self) -> float:
        """The limit of the value; for ``against``, of the lower end of the gain."""
        if self.against:
            return 0.0 - self.margin
        return self.at_least if self.at_least is not None else self.at_most or 0.0


class GateRules(_Strict):
    """Additional rules, with or without the gate's default rules."""

    defaults: bool = True
    rules: Annotated[tuple[RuleSpec, ...], Field(max_length=_MOST_RULES)] = ()

    @model_validator(mode="after")
    def _rules_with_names(self) -> Self:
        names = [rule.name for rule in self.rules]
        if len(set(names)) != len(names):
            raise ValueError("two rules have the same name")
        if not self.defaults and not self.rules:
            raise ValueError("without the default rules there must be others")
        return self

    def check(self, task: Task) -> Self:
        """Return these rules after checking that the task has everything they name.

        Raises:
            UserError: names the first unknown metric, slice or opponent, and the choices.
        """
        metrics, opponents = metrics_of(task), opponents_of(task)
        slices = [name for name, field in task.fields.items() if field.is_sliced]
        for rule in self.rules:
            field, _, name = rule.slice.partition("=")
            if rule.metric not in (*metrics, RELIANCE, *COUNTS):
                choices = _listed([*metrics, RELIANCE, *COUNTS])
                raise UserError(f"{rule.name}: unknown metric {rule.metric!r}; there are {choices}")
            if rule.slice and (field not in slices or not name):
                choices = _listed([f"{each}=…" for each in slices])
                raise UserError(f"{rule.name}: unknown slice {rule.slice[:60]!r}; there are {choices}")
            if rule.against and rule.against not in opponents:
                raise UserError(
                    f"{rule.name}: unknown opponent {rule.against[:60]!r}; there are {_listed(opponents)}"
                )
            if rule.against and rule.metric not in metrics:
                raise UserError(f"{rule.name}: {rule.metric} cannot be compared; use {_listed(metrics)}")
        return self

    def with_defaults(self, defaults: tuple[RuleSpec, ...]) -> tuple[RuleSpec, ...]:
        """Return the rules to apply; a rule replaces the default rule of the same name."""
        named = {rule.name: rule for rule in (*(defaults if self.defaults else ()), *self.rules)}
        return tuple(named.values())


def opponents_of(task: Task) -> tuple[str, ...]:
    """Return the names that a rule can compare the model with."""
    return ("base", "champion", *(f"baseline:{name}" for name in baselines_of(task)))


def _check_rules(text: str) -> str:
    """Refuse rules that cannot be read; preflight reads those in S3."""
    if not text.startswith("s3://"):
        try:
            read_rules(text)
        except UserError as error:
            raise ValueError(str(error)) from error
    return text


class GateParameters(Parameters):
    """Limits of the default rules. Accuracies, rates and errors are fractions."""

    min_samples: int = Field(default=200, ge=1)
    """Rows that the model must be evaluated on, at least."""
    min_parse_rate: float = Field(default=0.98, ge=0, le=1)
    """Share of answers that can be read, at least."""
    min_category_accuracy: float = Field(default=0.90, ge=0, le=1)
    """Share of right categories, at least."""
    max_price_median_ape: float = Field(default=0.15, ge=0)
    """Median relative price error, at most."""
    min_picture_reliance: float = Field(default=0.30, ge=0, le=1)
    """Fall in category accuracy when the model is shown other products' pictures, at least."""
    champion_margin: float = Field(default=0.03, ge=0, le=1)
    """How far the model may be behind the champion, as a fraction."""
    gate_rules: Annotated[
        str, NOT_IN_RESULT, Field(max_length=_MOST_CHARACTERS), AfterValidator(_check_rules)
    ] = ""
    """Additional rules as YAML, or the s3:// URI of such a document."""


def read_rules(given: str, storage: Storage | None = None) -> GateRules:
    """Return the rules of a parameter: YAML, or its ``s3://…`` URI; empty for the defaults.

    Raises:
        UserError: there is no such document, or it has unknown keys; the message names the choices.
    """
    if not given.strip():
        return GateRules()
    if given.startswith("s3://"):
        data = (storage or Storage()).read_bytes(given)
        return parse_rules(data.decode(errors="replace"), given)
    return parse_rules(given, "gate_rules")


def parse_rules(text: str, source: str) -> GateRules:
    """Read rules from YAML.

    Raises:
        UserError: the text is not YAML of rules; ``source`` names it in the message.
    """
    if len(text) > _MOST_CHARACTERS:
        raise UserError(f"{source}: has {len(text)} characters, at most {_MOST_CHARACTERS} are allowed")
    try:
        _check_plain(text, source)
        document = read_yaml(text)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{source}: is not YAML ({reason})") from error
    if not isinstance(document, dict):
        raise UserError(f"{source}: must be a mapping with {_listed(GateRules.model_fields)}")
    try:
        found: GateRules = parse_parameters(GateRules, document)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    return found


def _check_plain(text: str, source: str) -> None:
    """Refuse documents that are expensive to read: references (gigabytes) and deep nesting (minutes)."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise UserError(f"{source}: references (*name) are not allowed; write the rules out")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise UserError(f"{source}: is nested too deeply; there are {_listed(GateRules.model_fields)}")


def _listed(names: Any) -> str:
    return ", ".join(names)

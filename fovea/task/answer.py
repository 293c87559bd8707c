"""A model's answer, read by the task's parser."""

from dataclasses import dataclass, field
from typing import Literal

from fovea.task.fields import FieldValue

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Answer:
    """What a model answered, and the fields that the task's parser found in it.

    ``completion_tokens`` counts the token that ended the answer; ``finish_reason`` is ``length`` where none
    did. ``scores`` are the fields' log-probabilities (`fovea.field_scores`); None where the answer could not
    be read. Answers with the same text are equal: scores differ in their last digits with the batch.
    """

    text: str
    fields: dict[str, FieldValue] | None
    parse_error: str | None
    prompt_tokens: int
    completion_tokens: int
    finish_reason: FinishReason
    scores: dict[str, float] | None = field(default=None, compare=False)

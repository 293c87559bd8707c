"""A model's answer, read by the task's parser."""

from dataclasses import dataclass, field
from typing import Literal

from fovea.task.fields import FieldValue

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Answer:
    """A model's answer, with the result of the task's parser.

    ``completion_tokens`` includes the token that ended the answer; ``finish_reason`` is ``length`` if there
    was none. ``scores`` has the likelihood of each field (`fovea.field_scores`); it is None if the answer
    could not be parsed. Answers with the same text are equal: scores depend, in their last digits, on the
    rest of the batch.
    """

    text: str
    fields: dict[str, FieldValue] | None
    parse_error: str | None
    prompt_tokens: int
    completion_tokens: int
    finish_reason: FinishReason
    scores: dict[str, float] | None = field(default=None, compare=False)

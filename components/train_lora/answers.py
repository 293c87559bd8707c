"""Sample answers to validation pictures during the training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from PIL import Image

from fovea.inference import Predictor
from fovea.phi3v import Phi3VProcessor
from fovea.task import Answer, FieldValue, Task

_SPARE_TOKENS = 16
_BATCH = 8


@dataclass(frozen=True)
class Answered:
    """A validation row: its picture, the truth, and the model's answer."""

    row_id: str
    picture: Image.Image
    truth: str
    answer: str
    right: float
    """Share of the task's fields that are right; 0 if the answer cannot be parsed."""


class AnswerSamples:
    """A fixed sample of validation rows that is answered at each evaluation."""

    def __init__(self, rows: Dataset, count: int, processor: Phi3VProcessor, task: Task) -> None:
        """Take ``count`` rows, spread over the whole split."""
        count = min(count, len(rows))
        self._rows = rows.select([place * len(rows) // count for place in range(count)])
        self._processor = processor
        self._task = task
        truths = [self._task.answer(self._values(row)) for row in self._rows]
        self._max_new_tokens = (
            max(len(processor.tokenizer(truth).input_ids) for truth in truths) + _SPARE_TOKENS
        )

    def ask(self, model: Any) -> list[Answered]:
        """Generate the rows' answers with ``model``, the base model with its LoRA layers."""
        rows = list(self._rows)
        predictor = Predictor(model, self._processor, self._task)
        answers = predictor.answer([row["image"] for row in rows], self._max_new_tokens, _BATCH)
        return [self._judge(row, answer) for row, answer in zip(rows, answers, strict=True)]

    def _values(self, row: Any) -> dict[str, FieldValue]:
        return {name: row[name] for name in self._task.fields}

    def _judge(self, row: Any, answer: Answer) -> Answered:
        truth = self._task.answer(self._values(row))
        wanted, said = self._task.parse(truth).fields or {}, answer.fields or {}
        right = sum(name in said and said[name] == value for name, value in wanted.items()) / len(wanted)
        return Answered(row["row_id"], row["image"], truth, answer.text, right)


def figures(answered: Sequence[Answered]) -> dict[str, float]:
    """Return the share of right fields, and the share of answers with all fields right."""
    count = len(answered)
    return {
        "eval_answers_right": sum(each.right for each in answered) / count,
        "eval_answers_all_right": sum(each.right == 1 for each in answered) / count,
    }

"""From a prepared dataset to batches in which only the answer is supervised."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset

from fovea.errors import UserError
from fovea.phi3v import Phi3VProcessor
from fovea.task import Task

IGNORED = -100
"""The label of a position that is not trained on (PyTorch's cross entropy skips it)."""
ROW_IDS = "row_ids"
"""Under this name a batch holds its rows' IDs, for messages."""


def load_split(folder: Path, split: str) -> Dataset:
    """Read one split's Parquet shards, memory-mapped; pictures stay encoded until a row is asked for."""
    shards = sorted(str(path) for path in folder.glob(f"{split}-*.parquet"))
    if not shards:
        raise UserError(f"{folder}: the dataset has no {split} split; prepare it again with one")
    return load_dataset("parquet", data_files=shards, split="train", cache_dir=str(folder / ".arrow"))


class AnswerCollator:
    """Turns rows of a dataset into a batch of `Phi3VForCausalLM`'s arguments.

    The answer and the ``<|end|>`` behind it are supervised, and nothing else: prompt, picture and padding are
    masked by position, never by id, since padding and end of text may share one.
    """

    def __init__(self, processor: Phi3VProcessor, task: Task, num_crops: int) -> None:
        self._processor = processor
        self._task = task
        self._num_crops = num_crops

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Make a batch: the model's inputs, ``labels`` of the shape of ``input_ids``, and the rows' IDs.

        Raises:
            UserError: a row's prompt is not what its full text begins with, token for token.
        """
        texts = [self._task.training_text({name: row[name] for name in self._task.fields}) for row in rows]
        batch = dict(
            self._processor(
                text=texts,
                images=[[row["image"]] for row in rows],
                return_tensors="pt",
                padding=True,
                padding_side="right",
                num_crops=self._num_crops,
            )
        )
        labels = batch["input_ids"].clone()
        ends = batch["attention_mask"].sum(dim=1).tolist()
        for index, (end, length) in enumerate(zip(ends, self._answer_lengths(rows, texts), strict=True)):
            labels[index, : end - length] = IGNORED
            labels[index, end:] = IGNORED
        return {**batch, "labels": labels, ROW_IDS: [str(row["row_id"]) for row in rows]}

    def _answer_lengths(self, rows: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> list[int]:
        """Return the tokens of each row's answer, ``<|end|>`` included."""
        # A picture takes the same placeholders in prompt and text, so what follows its mark is enough.
        prompt, behind = self._prompt_ids, self._ids_behind_mark(texts)
        joined = [
            row["row_id"] for row, ids in zip(rows, behind, strict=True) if ids[: len(prompt)] != prompt
        ]
        if joined:
            raise UserError(
                f"row {joined[0]}: the tokenizer joins prompt and answer; end the prompt with a marker"
            )
        return [len(ids) - len(prompt) for ids in behind]

    @cached_property
    def _prompt_ids(self) -> list[int]:
        return self._ids_behind_mark([self._task.prompt()])[0]

    def _ids_behind_mark(self, texts: Sequence[str]) -> list[list[int]]:
        # One call for all: a call of the tokenizer costs more than a text.
        ids: list[list[int]] = self._processor.tokenizer(
            [text.split("<|image_1|>")[1] for text in texts]
        ).input_ids
        return ids

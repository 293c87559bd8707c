"""Batches from a prepared dataset: which rows fit, in which order, and which tokens are supervised.

The length of a sequence is computed from the picture's header, without decoding it.
"""

import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, load_dataset
from datasets import Image as ImageFeature
from PIL import Image
from transformers.trainer_pt_utils import LengthGroupedSampler, get_length_grouped_indices

from fovea.errors import UserError
from fovea.phi3v import Phi3VProcessor
from fovea.phi3v.lengths import SequenceLengths
from fovea.task import Task
from fovea.text import IMAGE_MARK

logger = logging.getLogger("fovea.train_lora")

IGNORED = -100
"""The label of a position that is not trained on (PyTorch's cross entropy skips it)."""
ROW_IDS = "row_ids"
"""The key for the row IDs of a batch, used in messages."""

_BATCH = 1000


def load_split(folder: Path, split: str) -> Dataset:
    """Read one split's Parquet shards, memory-mapped; pictures stay encoded until a row is accessed."""
    shards = sorted(str(path) for path in folder.glob(f"{split}-*.parquet"))
    if not shards:
        raise UserError(f"{folder}: the dataset has no {split} split; prepare it again with one")
    return load_dataset("parquet", data_files=shards, split="train", cache_dir=str(folder / ".arrow"))


class AnswerCollator:
    """Turns rows of a dataset into a batch of `Phi3VForCausalLM`'s arguments.

    The answer and the ``<|end|>`` after it are supervised, and nothing else: prompt, picture and padding are
    masked by position, not by id, because padding and end of text may share one.
    """

    def __init__(self, processor: Phi3VProcessor, task: Task, num_crops: int) -> None:
        self._processor = processor
        self._task = task
        self._num_crops = num_crops

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Create a batch: the model's inputs, ``labels`` of the shape of ``input_ids``, and the row IDs.

        Raises:
            UserError: a row's text does not start with the tokens of its prompt.
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
        """Return the number of tokens of each row's answer, including ``<|end|>``."""
        # A picture takes the same placeholders in prompt and text, so the text after its marker is enough.
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
        # One call for all texts: a tokenizer call costs more than a text.
        ids: list[list[int]] = self._processor.tokenizer(
            [text.split(IMAGE_MARK)[1] for text in texts]
        ).input_ids
        return ids


class EpochOrder(LengthGroupedSampler):  # type: ignore[misc]
    """transformers' grouping by length, with an order that depends only on the seed and the epoch.

    transformers draws from the global random state, which differs after a resume: the skipped batches would
    then not be those that were trained on.

    Args:
        lengths: tokens of each example.
        batch_size: examples of an optimiser step, on all devices together.
        seed: of the order.
        grouped: whether to group by length.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, grouped: bool = True) -> None:
        super().__init__(batch_size, lengths=list(lengths))
        self._seed = seed
        self._grouped = grouped
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next order."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        """Yield the indices of the epoch's examples, longest first: memory runs out early or never."""
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self.epoch)
        if not self._grouped:
            return iter(torch.randperm(len(self.lengths), generator=generator).tolist())
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=generator))


@dataclass(frozen=True)
class Extent:
    """The size of one example: tokens of its sequence, and crops of its picture with the global view."""

    tokens: int
    crops: int


def measure(rows: Dataset, processor: Phi3VProcessor, task: Task, num_crops: int) -> list[Extent]:
    """Return the extent of every row, in order, equal to what the processor will produce."""
    raw = rows.cast_column("image", ImageFeature(decode=False))
    lengths = SequenceLengths(processor, num_crops)
    extents: list[Extent] = []
    for start in range(0, len(raw), _BATCH):
        batch = raw[start : start + _BATCH]
        columns = [batch[name] for name in task.fields]
        texts = [
            task.training_text(dict(zip(task.fields, values, strict=True)))
            for values in zip(*columns, strict=True)
        ]
        sizes = [_size(picture["bytes"]) for picture in batch["image"]]
        found = zip(lengths.tokens(texts, sizes), sizes, strict=True)
        extents += [Extent(tokens, lengths.crops(*size)) for tokens, size in found]
    return extents


def _size(encoded: bytes) -> tuple[int, int]:
    """Return a picture's width and height, which its header says."""
    with Image.open(io.BytesIO(encoded)) as picture:
        return picture.size


def fitting(split: str, row_ids: Sequence[str], extents: Sequence[Extent], context_tokens: int) -> list[int]:
    """Return the places of the rows of at most ``context_tokens``; longer ones are left out, never cut.

    Beyond the context that the model was made with, a sequence is encoded with other rotary factors.

    Raises:
        UserError: no row fits.
    """
    kept = [place for place, extent in enumerate(extents) if extent.tokens <= context_tokens]
    too_long = sorted(set(range(len(extents))) - set(kept))
    if not kept:
        raise UserError(f"no row of the {split} split is within {context_tokens} tokens; lower num_crops")
    if too_long:
        names = ", ".join(row_ids[place] for place in too_long[:5])
        logger.warning(
            "train_lora: %d of %d rows of the %s split are longer than %d tokens and left out: %s%s",
            len(too_long),
            len(extents),
            split,
            context_tokens,
            names,
            " …" if len(too_long) > 5 else "",
        )
    return kept

"""How long training sequences are, told from the pictures' headers: none is decoded for it."""

import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image

from fovea.errors import UserError
from fovea.phi3v import Phi3VProcessor
from fovea.task import Task

logger = logging.getLogger("fovea.train_lora")

CONTEXT_TOKENS = 4096
"""The longest sequence that is trained on: beyond it, a sequence is encoded with other rotary factors."""

_BATCH = 1000


@dataclass(frozen=True)
class Extent:
    """What one example takes: tokens of its sequence, and crops of its picture with the global view."""

    tokens: int
    crops: int


def measure(rows: Dataset, processor: Phi3VProcessor, task: Task, num_crops: int) -> list[Extent]:
    """Return the extent of every row, in order, just as the processor would make it."""
    raw = rows.cast_column("image", ImageFeature(decode=False))
    extents = []
    for start in range(0, len(raw), _BATCH):
        batch = raw[start : start + _BATCH]
        columns = [batch[name] for name in task.fields]
        texts = [
            task.training_text(dict(zip(task.fields, values, strict=True)))
            for values in zip(*columns, strict=True)
        ]
        # The chunks before and after the picture are tokenised apart, as the processor does.
        befores, afters = zip(*(text.split("<|image_1|>") for text in texts), strict=True)
        lengths = [
            [len(ids) for ids in processor.tokenizer(list(part)).input_ids] for part in (befores, afters)
        ]
        for picture, before, after in zip(batch["image"], *lengths, strict=True):
            crops, tokens = _of_picture(picture["bytes"], processor, num_crops)
            extents.append(Extent(before + tokens + after, crops))
    return extents


def _of_picture(encoded: bytes, processor: Phi3VProcessor, num_crops: int) -> tuple[int, int]:
    images = processor.image_processor
    with Image.open(io.BytesIO(encoded)) as picture:
        columns, rows = images.crop_grid(*picture.size, num_crops)
    return 1 + columns * rows, images.num_image_tokens(rows * images.crop_size, columns * images.crop_size)


def fitting(split: str, row_ids: Sequence[str], extents: Sequence[Extent]) -> list[int]:
    """Return the places of the rows that fit the context; nothing is ever cut, so longer ones are left out.

    Raises:
        UserError: no row fits.
    """
    kept = [place for place, extent in enumerate(extents) if extent.tokens <= CONTEXT_TOKENS]
    too_long = sorted(set(range(len(extents))) - set(kept))
    if not kept:
        raise UserError(f"no row of the {split} split is within {CONTEXT_TOKENS} tokens; lower num_crops")
    if too_long:
        names = ", ".join(row_ids[place] for place in too_long[:5])
        logger.warning(
            "train_lora: %d of %d rows of the %s split are longer than %d tokens and left out: %s%s",
            len(too_long),
            len(extents),
            split,
            CONTEXT_TOKENS,
            names,
            " …" if len(too_long) > 5 else "",
        )
    return kept

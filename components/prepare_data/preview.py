"""What a preparation and a training would come to, told from a table's first rows."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from components.prepare_data import figures
from components.prepare_data.workspace import Workspace
from fovea.phi3v.image_processing import Phi3VImageProcessor, fit
from fovea.task import Task


@dataclass(frozen=True)
class Speed:
    """How fast a device trains the published model with LoRA, in tokens a second."""

    device: str
    tokens_per_second: float
    basis: str
    """Where the figure comes from."""


SPEEDS = (
    Speed(
        "A100 80 GB",
        12.1 * 2443 / 8,
        "Microsoft's measurement: 12.1 pictures a second of 2,443 tokens on eight, with flash attention",
    ),
    Speed(
        "H100, H200",
        12.1 * 2443 / 8 * 989 / 312,
        "reckoned: the A100's, times 3.2, by which its peak in bfloat16 is higher",
    ),
)
"""One device of each kind."""

# Names in capitals, numbers and markers take more tokens than English prose, at about four characters each.
_CHARACTERS_A_TOKEN = 3.0


@dataclass(frozen=True)
class ColumnUse:
    """What a column of the table is used for, with the first values that it holds."""

    use: str
    column: str
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Training:
    """How long a device would train."""

    speed: Speed
    hours: float


@dataclass(frozen=True)
class Preview:
    """What the first rows tell. What is said of all rows supposes that the rest is like them."""

    columns: tuple[ColumnUse, ...]
    counts: figures.Counts
    rows: int | None
    """Rows of the whole table; None where that is not known."""
    kept: int
    """Rows that would be kept, of ``rows`` or else of those that were read."""
    training_rows: int
    tokens: figures.Spread | None
    """Of an example; None where no row could be used."""
    counted: bool
    """Whether the tokens were counted with the model's tokenizer, or else the text's part is a guess."""
    epochs: float
    trainings: tuple[Training, ...]


def tell(
    workspace: Workspace,
    task: Task,
    *,
    uses: Mapping[str, str],
    rows: int | None,
    num_crops: int,
    training_share: float,
    epochs: float,
    own_speed: float | None = None,
) -> Preview:
    """Return what a workspace with a table's first rows says about the whole.

    Args:
        workspace: The first rows with their pictures; they need not be split.
        task: What is asked and answered.
        uses: The table's column for each use: the task's fields, ``picture``, ``product``, ``currency``.
        rows: How many rows the whole table has; None where that is not known.
        num_crops: The most crops that a picture is cut into.
        training_share: The share of the kept rows that is trained on.
        epochs: Passes over them.
        own_speed: Tokens a second of a device of one's own.
    """
    counts = figures.count(workspace)
    lengths, counted = _lengths(workspace, task, num_crops)
    kept = round((rows or counts.read) * counts.kept / counts.read) if counts.read else 0
    training_rows = round(kept * training_share)
    total = training_rows * epochs * float(lengths.mean()) if lengths.size else 0.0
    speeds = (*SPEEDS, Speed("yours", own_speed, "as you say")) if own_speed else SPEEDS
    return Preview(
        columns=tuple(ColumnUse(use, column, _values(workspace, column)) for use, column in uses.items()),
        counts=counts,
        rows=rows,
        kept=kept,
        training_rows=training_rows,
        tokens=figures.spread(lengths) if lengths.size else None,
        counted=counted,
        epochs=epochs,
        trainings=tuple(Training(speed, total / speed.tokens_per_second / 3600) for speed in speeds),
    )


def _lengths(workspace: Workspace, task: Task, num_crops: int) -> tuple[NDArray[np.float64], bool]:
    """Return the kept rows' tokens, and whether they were counted with the model's tokenizer."""
    counted = figures.numbers(workspace, "tokens")
    if counted:
        return np.concatenate(list(counted.values())), True
    processor = Phi3VImageProcessor(num_crops)
    found = []
    for values, width, height in workspace.db.execute(
        'SELECT "values", width, height FROM rows JOIN pictures USING (address) WHERE rows.reason IS NULL'
    ):
        # What the picture takes is exact; laying a blank one out is the surest way to know it.
        laid_out = fit(Image.new("1", (width, height)), processor.crop_size, num_crops)
        picture = processor.num_image_tokens(laid_out.height, laid_out.width)
        text = len(task.training_text(json.loads(values))) / _CHARACTERS_A_TOKEN
        found.append(picture + round(text))
    return np.array(found, np.float64), False


def _values(workspace: Workspace, column: str) -> tuple[str, ...]:
    """Return the first different values of a column."""
    found: dict[str, None] = {}
    for (raw,) in workspace.db.execute("SELECT raw FROM rows ORDER BY number LIMIT 20"):
        value = json.loads(raw).get(column)
        if value not in (None, ""):
            found[figures.shown(value, 60)] = None
    return tuple(found)[:3]

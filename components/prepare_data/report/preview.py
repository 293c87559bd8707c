"""The preview: estimates of a preparation and a training from a table's first rows."""

import io
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from components.prepare_data.cleaning import read_rows
from components.prepare_data.fetching import PICTURE_LIMITS, drop_duplicates, fetch_pictures
from components.prepare_data.parameters import PrepareDataParameters
from components.prepare_data.report import statistics
from components.prepare_data.sources.source import PicturePlaces, Source, open_source
from components.prepare_data.tokens import Tokenizer, count_tokens, fetch_tokenizer
from components.prepare_data.workspace import Workspace
from fovea.errors import UserError
from fovea.phi3v import Phi3VImageProcessor
from fovea.platform import load_platform
from fovea.records import ModelRecord
from fovea.storage import Storage
from fovea.task import Task


@dataclass(frozen=True)
class Speed:
    """The speed of LoRA training of the published model on a device, in tokens per second."""

    device: str
    tokens_per_second: float
    basis: str
    """The source of the figure."""


SPEEDS = (
    Speed(
        "A100 80 GB",
        12.1 * 2443 / 8,
        "measured by Microsoft: 12.1 pictures of 2,443 tokens per second on eight, with flash attention",
    ),
    Speed(
        "H100, H200",
        12.1 * 2443 / 8 * 989 / 312,
        "estimated: the A100's times 3.2, the ratio of their peaks in bfloat16",
    ),
)
"""Speeds of one device of each kind."""

_PICTURE_SECONDS = 40.0
_COUNT_SECONDS = 10.0
_BATCH = 1000

# English prose has about four characters per token; names in capitals, numbers and markers have fewer.
_CHARACTERS_A_TOKEN = 3.0


@dataclass(frozen=True)
class ColumnUse:
    """The use of a column of the table, and its first values."""

    use: str
    column: str
    examples: tuple[str, ...]


@dataclass(frozen=True)
class LeftOut:
    """A reason why rows are left out, with an example: the value of the column, or the whole row."""

    reason: str
    about: str
    explanation: str
    rows: int
    example: str


@dataclass(frozen=True)
class Training:
    """The training time on a device."""

    speed: Speed
    hours: float

    @property
    def duration(self) -> str:
        """The time in a readable form: ``8 min`` or ``3.2 h``."""
        return f"{self.hours:,.1f} h" if self.hours >= 1 else f"{60 * self.hours:.0f} min"


@dataclass(frozen=True)
class Preview:
    """The result of a preview. Estimates for the whole table assume that all rows are like the first."""

    columns: tuple[ColumnUse, ...]
    counts: statistics.Counts
    left_out: tuple[LeftOut, ...]
    rows: int | None
    """Rows of the whole table; None if unknown."""
    kept: int
    """Estimated kept rows, of ``rows`` or, if unknown, of the rows that were read."""
    training_rows: int
    tokens: statistics.Spread | None
    """Tokens per example; None if no row can be used."""
    counted: bool
    """Whether the model's tokenizer counted the tokens; otherwise those of the text are estimated."""
    epochs: float
    trainings: tuple[Training, ...]


@dataclass(frozen=True)
class Example:
    """A picture and its answer."""

    picture: Image.Image
    answer: str


@dataclass(frozen=True)
class Look:
    """A table's first rows and the preview of them, valid within the block of `look_at`."""

    workspace: Workspace
    task: Task
    location: str
    preview: Preview

    def examples(self, count: int) -> list[Example]:
        """Return the first kept rows."""
        return [
            Example(
                Image.open(io.BytesIO(self.workspace.pictures.jpeg(row.digest)), formats=["JPEG"]).convert(
                    "RGB"
                ),
                self.task.answer(row.values),
            )
            for row in self.workspace.overview.first_kept(count)
        ]


@contextmanager
def look_at(
    parameters: PrepareDataParameters,
    *,
    rows: int,
    epochs: float,
    base_model: str = "",
    own_speed: float | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[Look]:
    """Prepare a table's first rows temporarily, and estimate the result for the whole table.

    Args:
        parameters: The parameters of the preparation.
        rows: The number of rows to prepare.
        epochs: The number of passes over the training split.
        base_model: A model's folder or the URI of a base model's record, whose tokenizer counts the tokens.
        own_speed: The speed of the user's device in tokens per second.
        progress: Called with the number of finished pictures and the total.

    Raises:
        UserError: As for a preparation, or the base model does not exist.
    """
    storage = Storage()
    profile = load_platform().fetch_profile(parameters.fetch_profile)
    task = parameters.task()
    first = parameters.model_copy(update={"max_rows": min(rows, parameters.max_rows or rows)})
    tokenizer = _tokenizer(base_model, parameters.num_crops, storage) if base_model else None
    with (
        tempfile.TemporaryDirectory(prefix="fovea-preview-") as folder,
        Workspace(Path(folder)) as workspace,
        open_source(parameters.source, profile, storage) as source,
    ):
        read_rows(source, workspace, task, first)
        fetch_pictures(
            workspace,
            PicturePlaces(source.location, storage, PICTURE_LIMITS.max_bytes),
            profile=profile,
            store=None,
            longest_side=parameters.longest_side,
            concurrency=parameters.fetch_concurrency,
            progress=progress,
            seconds=_PICTURE_SECONDS,
        )
        drop_duplicates(workspace)
        if tokenizer is not None:
            count_tokens(workspace, task, tokenizer)
        preview = estimate(
            workspace,
            task,
            uses=statistics.uses(parameters, task),
            rows=_count_rows(source, parameters),
            num_crops=parameters.num_crops,
            training_share=1 - parameters.validation_fraction - parameters.test_fraction,
            epochs=epochs,
            own_speed=own_speed,
        )
        yield Look(workspace, task, source.location, preview)


def _tokenizer(base_model: str, num_crops: int, storage: Storage) -> Tokenizer:
    if base_model.startswith("s3://"):
        record = ModelRecord.from_json(storage.read_bytes(base_model), source=base_model)
        return Tokenizer(fetch_tokenizer(record, storage), num_crops)
    if not Path(base_model, "tokenizer.json").is_file():
        raise UserError(f"base_model: {base_model} is not a folder with a tokenizer; give a model's folder")
    return Tokenizer(Path(base_model), num_crops)


def _count_rows(source: Source, parameters: PrepareDataParameters) -> int | None:
    """Return the number of rows that a run would read; None if counting them takes too long."""
    if source.location.startswith("hf:"):
        return None
    column, end, count = parameters.product_column, time.monotonic() + _COUNT_SECONDS, 0
    for count, _ in enumerate(source.rows([column], column), start=1):
        if count == parameters.max_rows:
            return count
        if count % 1000 == 0 and time.monotonic() > end:
            return None
    return count


def estimate(
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
    """Estimate the preparation and training of a whole table from its first rows.

    Args:
        workspace: The first rows and their pictures. They need not be split.
        task: The task.
        uses: The table's column for each use: the task's fields, ``picture``, ``product``, ``currency``.
        rows: The number of rows of the whole table; None if unknown.
        num_crops: The largest number of crops per picture.
        training_share: The share of the kept rows in the training split.
        epochs: The number of passes over them.
        own_speed: The speed of the user's device in tokens per second.
    """
    counts = statistics.count(workspace)
    lengths, counted = _lengths(workspace, task, num_crops)
    kept = round((rows or counts.read) * counts.kept / counts.read) if counts.read else 0
    training_rows = round(kept * training_share)
    total = training_rows * epochs * float(lengths.mean()) if lengths.size else 0.0
    speeds = (*SPEEDS, Speed("yours", own_speed, "as you say")) if own_speed else SPEEDS
    return Preview(
        columns=tuple(
            ColumnUse(use, column, statistics.first_values(workspace, column)) for use, column in uses.items()
        ),
        counts=counts,
        left_out=tuple(
            _left_out(workspace, reason, number, uses) for reason, number in counts.dropped.items()
        ),
        rows=rows,
        kept=kept,
        training_rows=training_rows,
        tokens=statistics.spread(lengths) if lengths.size else None,
        counted=counted,
        epochs=epochs,
        trainings=tuple(Training(speed, total / speed.tokens_per_second / 3600) for speed in speeds),
    )


def _lengths(workspace: Workspace, task: Task, num_crops: int) -> tuple[NDArray[np.float64], bool]:
    """Return the kept rows' lengths, and whether the model's tokenizer counted them."""
    counted = statistics.token_lengths(workspace)
    if counted:
        return np.concatenate(list(counted.values())), True
    processor = Phi3VImageProcessor(num_crops)
    found = []
    side = processor.crop_size
    for row in chain.from_iterable(workspace.rows.kept_in_batches(_BATCH)):
        columns, rows = processor.crop_grid(row.width, row.height)
        picture = processor.num_image_tokens(rows * side, columns * side)
        text = len(task.training_text(row.values)) / _CHARACTERS_A_TOKEN
        found.append(picture + round(text))
    return np.array(found, np.float64), False


def _left_out(workspace: Workspace, reason: str, rows: int, uses: Mapping[str, str]) -> LeftOut:
    about, explanation = statistics.explain(reason, dict.fromkeys(uses.values()))
    (first,) = workspace.overview.left_out(reason, 1)
    example = first.detail or first.raw.get(about, first.raw)
    return LeftOut(reason, about, explanation, rows, statistics.shown(example, 120))

"""The work of prepare_data: read, clean, fetch, split, write."""

import asyncio
import logging
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from components.prepare_data.parameters import PrepareParameters
from components.prepare_data.pictures import Picture, Spool, collect_pictures
from components.prepare_data.rows import Row, clean_row
from components.prepare_data.shards import Sample, write_shards
from components.prepare_data.source import PictureReader, Table, open_table
from components.prepare_data.splits import SPLITS, assign_splits
from components.prepare_data.unusable import UnusableError
from fovea.errors import UserError
from fovea.fetch import Fetcher, FetchLimits
from fovea.pictures import PictureLimits
from fovea.platform import FetchProfile, load_platform
from fovea.records import DatasetRecord, Split, sha256_digest, write_record
from fovea.steps import Attempt, RunContext, parse_parameters, reporting_failure, run_step
from fovea.storage import Storage
from fovea.task import CategoryField, Task, product_task

STEP = "prepare_data"
VERSION = 1
"""Raised whenever the same inputs would give another dataset."""

PICTURE_LIMITS = PictureLimits()

# Where a table lies and how many pictures are fetched at once does not change what comes out.
_NOT_IN_THE_RESULT = {"source", "concurrency"}

logger = logging.getLogger("fovea")


def prepare_data_step(
    context: RunContext,
    parameters: Mapping[str, Any],
    dataset_record: str | Path,
    task: Task | None = None,
    storage: Storage | None = None,
) -> DatasetRecord:
    """Make a dataset of a table and its pictures, and write its record to ``dataset_record``.

    Raises:
        UserError: wrong parameters, a source that cannot be read, a missing column, mixed currencies, or too
            few rows for a split.
    """
    storage = storage or Storage()
    task = task or product_task()
    with reporting_failure(STEP, context, storage):
        wanted: PrepareParameters = parse_parameters(PrepareParameters, parameters)
        profile = load_platform().fetch_profile(wanted.fetch_profile)
        # The table is always read, since its content decides whether there is anything to do.
        with open_table(wanted.source, profile, storage) as table:
            record = run_step(
                DatasetRecord,
                step=STEP,
                version=VERSION,
                context=context,
                parameters=wanted.model_dump(mode="json", exclude=_NOT_IN_THE_RESULT),
                parents={"source": table.digest, "task": task.digest},
                work=lambda attempt: _prepare(attempt, table, task, wanted, profile),
                storage=storage,
            )
    write_record(record, dataset_record)
    return record


def _prepare(
    attempt: Attempt, table: Table, task: Task, parameters: PrepareParameters, profile: FetchProfile
) -> dict[str, Any]:
    dropped: Counter[str] = Counter()
    rows = _read_rows(table, task, parameters, dropped)
    currency = _one_currency(rows, table.location)
    with tempfile.TemporaryFile() as file:
        spool = Spool(file)
        pictures = asyncio.run(_fetch_pictures(rows, table, parameters, profile, attempt, spool))
        samples = _join_pictures(rows, pictures, dropped)
        splits = _split(samples, parameters)
        _check_sizes(splits, parameters, table.location, dropped)
        for split, members in splits.items():
            write_shards(members, split, attempt.payload, task, spool)
    _tell(splits, dropped)
    return {
        "task": task,
        "splits": {
            split: Split(rows=len(members), products=len({sample.row.product_id for sample in members}))
            for split, members in splits.items()
        },
        "dropped": dict(sorted(dropped.items())),
        "currency": currency,
        "categories": _categories(samples, task),
        "longest_side": parameters.longest_side,
    }


def _read_rows(table: Table, task: Task, parameters: PrepareParameters, dropped: Counter[str]) -> list[Row]:
    """Return the table's usable rows, without repetitions; what is left out is counted in ``dropped``."""
    columns = [parameters.image_column, parameters.product_column]
    columns += [parameters.currency_column] if parameters.currency_column else []
    columns += [field.column for field in task.fields.values()]
    rows: dict[str, Row] = {}
    for number, raw in enumerate(table.rows(list(dict.fromkeys(columns)))):
        if parameters.max_rows and number >= parameters.max_rows:
            break
        if raw is None:
            dropped["malformed_line"] += 1
            continue
        try:
            row = clean_row(raw, task, parameters)
        except UnusableError as error:
            dropped[error.reason] += 1
            continue
        key = _identity(row, row.picture)
        if key in rows:
            dropped["duplicate"] += 1
        rows.setdefault(key, row)
    if not rows:
        raise UserError(f"{table.location}: no row can be used ({_told(dropped) or 'it has none'})")
    return list(rows.values())


def _identity(row: Row, picture: str) -> str:
    """Return a digest of all that makes a row what it is."""
    return sha256_digest([row.product_id, picture, dict(row.values), row.currency]).removeprefix("sha256:")


def _one_currency(rows: Sequence[Row], location: str) -> str | None:
    counts = Counter(row.currency for row in rows)
    if len(counts) > 1:
        told = ", ".join(
            f"{currency or 'none named'} in {count} rows" for currency, count in counts.most_common()
        )
        raise UserError(
            f"{location}: prices are in several currencies ({told}), which would make them meaningless; "
            "give a table in one currency"
        )
    return next(iter(counts))


async def _fetch_pictures(
    rows: Sequence[Row],
    table: Table,
    parameters: PrepareParameters,
    profile: FetchProfile,
    attempt: Attempt,
    spool: Spool,
) -> dict[str, Picture | str]:
    limits = FetchLimits(max_bytes=PICTURE_LIMITS.max_bytes)
    async with Fetcher(profile, limits, max_connections=parameters.concurrency) as fetcher:
        return await collect_pictures(
            [row.picture for row in rows],
            PictureReader(table, fetcher, attempt.storage, PICTURE_LIMITS.max_bytes),
            spool,
            limits=PICTURE_LIMITS,
            longest_side=parameters.longest_side,
            concurrency=parameters.concurrency,
            progress=attempt.progress("pictures"),
        )


def _join_pictures(
    rows: Sequence[Row], pictures: Mapping[str, Picture | str], dropped: Counter[str]
) -> list[Sample]:
    """Return the rows that have a picture, by ``row_id``: well mixed, whatever the table's order."""
    samples: dict[str, Sample] = {}
    for row in rows:
        picture = pictures[row.picture]
        if isinstance(picture, str):
            dropped[picture] += 1
            continue
        row_id = _identity(row, picture.digest)[:24]
        if row_id in samples:
            dropped["duplicate"] += 1
        samples.setdefault(row_id, Sample(row_id, row, picture))
    return [samples[row_id] for row_id in sorted(samples)]


def _split(samples: Sequence[Sample], parameters: PrepareParameters) -> dict[str, list[Sample]]:
    assigned = assign_splits(
        ((sample.row.product_id, sample.picture.digest) for sample in samples),
        seed=parameters.seed,
        validation_fraction=parameters.validation_fraction,
        test_fraction=parameters.test_fraction,
    )
    splits: dict[str, list[Sample]] = {split: [] for split in SPLITS}
    for sample in samples:
        splits[assigned[sample.row.product_id]].append(sample)
    return splits


def _check_sizes(
    splits: Mapping[str, Sequence[Sample]],
    parameters: PrepareParameters,
    location: str,
    dropped: Counter[str],
) -> None:
    shares = {"train": 1.0, "validation": parameters.validation_fraction, "test": parameters.test_fraction}
    short = [
        f"{split} has {len(splits[split])}"
        for split in SPLITS
        if shares[split] and len(splits[split]) < parameters.min_rows
    ]
    if short:
        raise UserError(
            f"{location}: too few rows for a split ({', '.join(short)}; min_rows is {parameters.min_rows}). "
            f"Left out: {_told(dropped) or 'none'}. Give more rows, or other fractions or min_rows"
        )


def _categories(samples: Sequence[Sample], task: Task) -> dict[str, int]:
    names = [name for name, field in task.fields.items() if isinstance(field, CategoryField)]
    counts = Counter(str(sample.row.values[name]) for name in names for sample in samples)
    return dict(sorted(counts.items()))


def _told(dropped: Counter[str]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in dropped.most_common())


def _tell(splits: Mapping[str, Sequence[Sample]], dropped: Counter[str]) -> None:
    sizes = ", ".join(f"{split} {len(members)}" for split, members in splits.items())
    logger.info("%s: %s rows; left out: %s", STEP, sizes, _told(dropped) or "none")

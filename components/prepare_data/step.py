"""The step prepare_data: reads, cleans, fetches, counts, splits, writes the shards and the report."""

import logging
import tempfile
from collections import Counter
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from components.prepare_data.cleaning import format_reasons, read_rows
from components.prepare_data.fetching import PICTURE_LIMITS, drop_duplicates, fetch_pictures
from components.prepare_data.parameters import PrepareDataParameters
from components.prepare_data.picture_store import open_store
from components.prepare_data.pictures import give_back_freed_memory
from components.prepare_data.report import statistics
from components.prepare_data.report.card import write_card
from components.prepare_data.report.page import write_report
from components.prepare_data.shards import write_shards
from components.prepare_data.sources.source import PicturePlaces, Source, open_source
from components.prepare_data.splits import SPLITS, Assignments, SplitPlan, assign_splits
from components.prepare_data.tokens import (
    Tokenizer,
    count_tokens,
    fetch_tokenizer,
    summarise,
    tokenizer_digest,
)
from components.prepare_data.workspace import SplitSize, Workspace
from fovea import tracking
from fovea.errors import UserError
from fovea.fetch.profiles import FetchProfile
from fovea.parameters import parse_parameters
from fovea.platform import load_platform
from fovea.records import DatasetRecord, ModelRecord, Split, StepInputs, read_record, write_record
from fovea.steps import Attempt, RunContext, reporting_failure, run_step
from fovea.storage import Storage, join_uri
from fovea.task import Task

STEP = "prepare_data"
VERSION = 4
"""Increased when the same inputs would give another dataset."""

_EMPTY = SplitSize(rows=0, products=0)

logger = logging.getLogger("fovea")


def prepare_data_step(
    context: RunContext,
    parameters: Mapping[str, Any],
    dataset_record: str | Path,
    *,
    base_record: str | Path | None = None,
    report: str | Path | None = None,
    task: Task | None = None,
    storage: Storage | None = None,
) -> DatasetRecord:
    """Prepare a dataset from a table and its pictures.

    Args:
        context: The run.
        parameters: Fields of `PrepareDataParameters`.
        dataset_record: The path of the dataset's record to write.
        base_record: The base model's record, whose tokenizer counts the tokens; None to skip that.
        report: The path of the HTML report to write; None for no report.
        task: The task; None for the product catalogue's.
        storage: S3.

    Raises:
        UserError: A parameter is invalid, the source cannot be read or lacks a column, prices are in several
            currencies, or a split has too few rows.
    """
    storage = storage or Storage()
    with reporting_failure(STEP, context, storage):
        wanted = parse_parameters(PrepareDataParameters, parameters)
        profile = load_platform().fetch_profile(wanted.fetch_profile)
        base = read_record(base_record, ModelRecord) if base_record else None
        # The source is always read, because its digest is part of the key of the result.
        with open_source(wanted.source, profile, storage) as source:
            work = _Preparation(source, task or wanted.task(), wanted, profile, base, context, storage)
            record = run_step(DatasetRecord, work.inputs, context, work.run, storage=storage)
    write_record(record, dataset_record)
    if report is not None:
        _copy_report(storage, work.report_uri, Path(report))
    return record


class _Preparation:
    """One preparation: its inputs, and the work from there to the payload."""

    def __init__(
        self,
        source: Source,
        task: Task,
        wanted: PrepareDataParameters,
        profile: FetchProfile,
        base: ModelRecord | None,
        context: RunContext,
        storage: Storage,
    ) -> None:
        self._source, self._task, self._wanted, self._profile = source, task, wanted, profile
        self._base, self._context, self._storage = base, context, storage
        shaping = wanted.in_result()
        if base is None:
            del shaping["num_crops"]
        # The task names the columns, so another column of the same table makes another dataset.
        parents = {"source": source.digest, "task": task.document_digest}
        if base is not None:
            parents["tokenizer"] = tokenizer_digest(base)
        self.inputs = StepInputs(
            step=STEP,
            version=VERSION,
            parameters=shaping,
            parents=parents,
        )
        self.report_uri = join_uri(context.artifact_root, "reports", STEP, f"{self.inputs.key}.html")

    def run(self, attempt: Attempt) -> dict[str, Any]:
        """Write the attempt's payload, and return the fields of its record."""
        tracked = tracking.Run.open(
            self._wanted.experiment, STEP, {"step": STEP, "run_id": self._context.run_id}
        )
        try:
            with (
                tempfile.TemporaryDirectory(prefix=f"fovea-{STEP}-") as folder,
                Workspace(Path(folder)) as workspace,
            ):
                self._fill(workspace, Path(folder), attempt)
                for split in SPLITS:
                    write_shards(workspace, split, attempt.payload, self._task)
                write_card(
                    attempt.payload / "README.md",
                    workspace=workspace,
                    task=self._task,
                    settings=self.inputs.parameters,
                )
                self._publish_report(workspace, Path(folder) / "report.html", tracked)
                own = self._describe(workspace)
        except BaseException:
            tracked.finish(failed=True)
            raise
        tracked.finish()
        return {**own, "mlflow": tracked.reference}

    def _fill(self, workspace: Workspace, folder: Path, attempt: Attempt) -> None:
        """Decide for every row whether it is kept, and in which split."""
        read_rows(self._source, workspace, self._task, self._wanted)
        self._log_columns(workspace)
        self._fetch(workspace, folder, attempt)
        drop_duplicates(workspace)
        if self._base is not None:
            tokenizer = Tokenizer(fetch_tokenizer(self._base, self._storage), self._wanted.num_crops)
            count_tokens(workspace, self._task, tokenizer)
        self._split(workspace)
        splits = workspace.rows.kept_by_split()
        sizes = ", ".join(f"{split} {splits.get(split, _EMPTY).rows}" for split in SPLITS)
        logger.info(
            "%s: %s rows; left out: %s",
            STEP,
            sizes,
            format_reasons(workspace.rows.dropped_by_reason()) or "none",
        )

    def _log_columns(self, workspace: Workspace) -> None:
        """Log how the columns are used, so that a wrong one is noticed before pictures are fetched."""
        for use, column in statistics.uses(self._wanted, self._task).items():
            values = " · ".join(statistics.first_values(workspace, column)) or "nothing"
            logger.info("%s: column %s is used for %s: %s", STEP, statistics.shown(column), use, values)
        counts = statistics.count(workspace)
        left_out = format_reasons(counts.dropped) or "none"
        logger.info("%s: %d rows; left out before pictures are fetched: %s", STEP, counts.read, left_out)

    def _fetch(self, workspace: Workspace, folder: Path, attempt: Attempt) -> None:
        wanted = self._wanted
        recheck = timedelta(hours=wanted.recheck_hours)
        with open_store(
            self._storage, self._context.artifact_root, wanted.fetch_profile, folder, recheck
        ) as store:
            fetch_pictures(
                workspace,
                PicturePlaces(self._source.location, self._storage, PICTURE_LIMITS.max_bytes),
                profile=self._profile,
                store=store,
                longest_side=wanted.longest_side,
                concurrency=wanted.fetch_concurrency,
                progress=attempt.progress("pictures"),
            )
        give_back_freed_memory()

    def _split(self, workspace: Workspace) -> None:
        """Split the rows and store the assignments; start again if another run stored some meanwhile."""
        wanted = self._wanted
        plan = SplitPlan(wanted.seed, wanted.validation_fraction, wanted.test_fraction)
        kept = Assignments(self._storage, self._context.artifact_root, wanted.split_name, plan)
        while True:
            kept.load(workspace)
            assign_splits(workspace, plan)
            self._check_sizes(workspace)
            if kept.add(workspace):
                return

    def _check_sizes(self, workspace: Workspace) -> None:
        wanted = self._wanted
        shares = {"train": 1.0, "validation": wanted.validation_fraction, "test": wanted.test_fraction}
        splits = workspace.rows.kept_by_split()
        rows = {split: splits.get(split, _EMPTY).rows for split in SPLITS if shares[split]}
        short = [f"{split} has {count}" for split, count in rows.items() if count < wanted.min_rows]
        if short:
            left_out = format_reasons(workspace.rows.dropped_by_reason()) or "none"
            raise UserError(
                f"{self._source.location}: too few rows for a split ({', '.join(short)}; min_rows is "
                f"{wanted.min_rows}). Left out: {left_out}. Give more rows, or change the fractions or "
                "min_rows"
            )

    def _publish_report(self, workspace: Workspace, path: Path, tracked: tracking.Run) -> None:
        write_report(
            path,
            workspace=workspace,
            task=self._task,
            source=self._wanted.source,
            settings=self._wanted.model_dump(mode="json"),
        )
        self._storage.write_bytes(self.report_uri, path.read_bytes())
        tracked.log_params(
            {name: statistics.shown(value) for name, value in self._wanted.model_dump().items()}
        )
        rows = {split: size.rows for split, size in workspace.rows.kept_by_split().items()}
        left_out = sum(workspace.rows.dropped_by_reason().values())
        tracked.log_metrics({**rows, "left_out": left_out}, prefix="rows_")
        tracked.log_file(path)

    def _describe(self, workspace: Workspace) -> dict[str, Any]:
        splits = workspace.rows.kept_by_split()
        currencies = list(workspace.rows.kept_by_currency())
        return {
            "task": self._task,
            "splits": {split: Split(**splits.get(split, _EMPTY)._asdict()) for split in SPLITS},
            "dropped": workspace.rows.dropped_by_reason(),
            "currency": currencies[0] if len(currencies) == 1 else None,
            "categories": _categories(workspace, self._task),
            "longest_side": self._wanted.longest_side,
            "groups": workspace.products.count_groups(),
            "tokens": summarise(workspace, self._wanted.num_crops),
        }


def _categories(workspace: Workspace, task: Task) -> dict[str, int]:
    counts = Counter[str]()
    for _, found in statistics.categories(workspace, task):
        counts.update({name: sum(splits.values()) for name, splits in found.items()})
    return dict(sorted(counts.items()))


def _copy_report(storage: Storage, uri: str, path: Path) -> None:
    """Write the report of the run that made the dataset. If it was deleted, the dataset is not made again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found = storage.exists(uri)
    path.write_bytes(
        storage.read_bytes(uri) if found else b"<p>The report of this dataset was deleted.</p>\n"
    )

"""The report of an evaluation, published to the KFP UI, MLflow and S3."""

import html
import logging
from collections.abc import Mapping
from pathlib import Path

from fovea import tracking
from fovea.errors import UserError
from fovea.records import (
    AbsentRecord,
    DatasetRecord,
    Decision,
    EvaluationRecord,
    ModelRecord,
    read_optional_record,
    read_record,
)
from fovea.steps import RunContext, reporting_failure
from fovea.storage import Storage

TASK = "report_evaluation"
NAME = "evaluation.html"

logger = logging.getLogger("fovea")


def report_evaluation_step(
    *, records: Mapping[str, str | Path], report: str | Path, artifact_root: str, run_id: str
) -> Path:
    """Write the report of a model's evaluation; keep a copy in S3 and with the model's MLflow run.

    A report that cannot be made does not fail the run; the page then says why.

    Args:
        records: Files with the records: ``base``, ``champion`` and ``challenger`` (the evaluations),
            ``dataset``, ``model`` and ``decision``. The champion may be absent, and the decision missing.
        report: Where the page goes.
        artifact_root: ``s3://bucket/prefix`` of payloads and records.
        run_id: The run.
    """
    context, storage, path = RunContext(artifact_root=artifact_root, run_id=run_id), Storage(), Path(report)
    path.parent.mkdir(parents=True, exist_ok=True)
    with reporting_failure(TASK, context, storage):
        try:
            _write(records, path, storage)
        except UserError as error:
            logger.warning("%s: there is none: %s", TASK, error)
            path.write_text(f"<!doctype html><p>There is no report: {html.escape(str(error))}</p>\n")
        except Exception as error:  # A broken plot must not stop a deployment.
            logger.warning("%s: there is none", TASK, exc_info=True)
            path.write_text(f"<!doctype html><p>There is no report: {html.escape(repr(error))}</p>\n")
        storage.write_bytes(context.run_uri(NAME), path.read_bytes())
        logger.info("%s: %s", TASK, context.run_uri(NAME))
    return path


def _write(records: Mapping[str, str | Path], path: Path, storage: Storage) -> None:
    # Imported here: plots need libraries that no other step needs.
    from components.evaluate.report.page import write_report

    champion = read_optional_record(records["champion"], EvaluationRecord)
    write_report(
        path,
        decision=read_record(records["decision"], Decision) if Path(records["decision"]).exists() else None,
        base=read_record(records["base"], EvaluationRecord),
        champion=None if isinstance(champion, AbsentRecord) else champion,
        challenger=read_record(records["challenger"], EvaluationRecord),
        dataset=read_record(records["dataset"], DatasetRecord),
        storage=storage,
    )
    model = read_record(records["model"], ModelRecord)
    if model.mlflow is not None and tracking.is_on():
        named = path.with_name(NAME) if path.name != NAME else path
        named.write_bytes(path.read_bytes())
        tracking.Run.of(model.mlflow).log_file(named)

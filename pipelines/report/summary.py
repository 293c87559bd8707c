"""The results of a run, collected from its reports and records in S3."""

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from components.deploy.parameters import Deployment
from fovea.evaluation.metrics import headlines, metrics_of
from fovea.records import (
    AdapterRecord,
    DatasetRecord,
    Decision,
    EvaluationRecord,
    Metrics,
    ModelRecord,
    Record,
    RuleResult,
)
from fovea.steps import StepReport
from fovea.storage import Storage, join_uri
from fovea.task import FieldValue
from fovea.task.metrics import Unit
from pipelines.lifecycle.outcome import Outcome
from pipelines.local.state import write_whole

STEPS = (
    "prepare_data",
    "train_lora",
    "merge_adapter",
    "evaluate_base",
    "evaluate_challenger",
    "evaluate_champion",
    "gate",
    "deploy",
)
"""The tasks that write a report, in the order they run."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StepSummary(_Model):
    """The duration of a step, and whether it reused an earlier result."""

    seconds: float
    reused: bool


class FigureTitle(_Model):
    """A figure of the summary's table: its name in `Metrics.figures`, its title and its unit."""

    name: str
    title: str
    unit: Unit


class GateSummary(_Model):
    """The gate's verdict and its rules."""

    passed: bool
    reason: str
    rules: tuple[RuleResult, ...]
    base_passed: bool
    """Whether the same rules would let the base pass: then they have no effect."""
    base_reason: str


class EndpointSummary(_Model):
    """The deployed service, and its answer to a held-out picture."""

    service: str
    predict_path: str
    chat_path: str
    row_id: str
    answer: dict[str, FieldValue] | None
    truth: dict[str, FieldValue]
    probes: int
    agreed: int


class Summary(_Model):
    """The metrics of a run, written as ``summary.json``. Rates, accuracies and errors are fractions."""

    run_id: str
    state: Literal["succeeded", "not_deployed", "refused", "failed", "cancelled"]
    task: str
    """The task in which the run failed."""
    reason: str
    seconds: float
    finished_at: datetime
    settings: dict[str, Any]
    samples: int | None
    """Rows of the held-out split that the metrics are computed from."""
    models: dict[str, Metrics]
    """By ``base``, ``champion``, ``challenger``, ``shuffled`` (the challenger with other products'
    pictures), and by the names of the trivial baselines.
    """
    figures: tuple[FigureTitle, ...]
    """The figures that sum the models up, in the table's order."""
    gate: GateSummary | None
    endpoint: EndpointSummary | None
    steps: dict[str, StepSummary]
    digests: dict[str, str]
    """Of ``dataset``, ``base`` and ``model``, as far as the run got."""
    records: dict[str, str]
    """URIs of the records of this run, by step."""

    def write(self, folder: Path) -> Path:
        """Write ``summary.json`` into ``folder`` atomically."""
        text = json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False)
        return write_whole(folder / "summary.json", text + "\n")

    @classmethod
    def read(cls, folder: Path) -> "Summary | None":
        """Return the summary in ``folder``; None if no run has finished, or another version wrote it."""
        try:
            return cls.model_validate_json((folder / "summary.json").read_text())
        except (OSError, ValidationError):
            return None


def collect_summary(
    storage: Storage,
    artifact_root: str,
    run_id: str,
    outcome: Outcome,
    settings: Mapping[str, Any],
    seconds: float,
) -> tuple[Summary, dict[str, Record]]:
    """Return a run's summary and its records by step, as far as the run got."""
    reports = _reports(storage, artifact_root, run_id) if run_id else {}
    records = {
        name: Record.from_json(storage.read_bytes(report.record_uri), source=report.record_uri)
        for name, report in reports.items()
        if report.record_uri and name != "deploy"
    }
    models = _models(records)
    return Summary(
        run_id=run_id,
        state=outcome.state,
        task=outcome.task,
        reason=outcome.reason,
        seconds=round(seconds, 1),
        finished_at=outcome.finished_at,
        settings=dict(settings),
        samples=next((metrics.samples for metrics in reversed(models.values())), None),
        models=models,
        figures=_figures(records),
        gate=_gate(records),
        endpoint=_endpoint(storage, reports.get("deploy")),
        steps={
            name: StepSummary(seconds=report.seconds, reused=report.reused)
            for name, report in reports.items()
        },
        digests=_digests(records),
        records={name: report.record_uri for name, report in reports.items() if report.record_uri},
    ), records


def _reports(storage: Storage, artifact_root: str, run_id: str) -> dict[str, StepReport]:
    """Return the reports of the run's steps by task; the prefix also has other documents."""
    reports = {}
    for uri in storage.list(join_uri(artifact_root, "runs", run_id, "")):
        try:
            report = StepReport.model_validate_json(storage.read_bytes(uri))
        except ValidationError:
            continue
        reports[report.task] = report
    return {name: reports[name] for name in STEPS if name in reports}


def _models(records: Mapping[str, Record]) -> dict[str, Metrics]:
    models = {}
    base, champion, challenger = (
        records.get(f"evaluate_{name}") for name in ("base", "champion", "challenger")
    )
    if isinstance(base, EvaluationRecord):
        models = {**base.baselines, "base": base.metrics}
    if isinstance(champion, EvaluationRecord):
        models["champion"] = champion.metrics
    if isinstance(challenger, EvaluationRecord):
        models["challenger"] = challenger.metrics
        if challenger.shuffled is not None:
            models["shuffled"] = challenger.shuffled
    return models


def _figures(records: Mapping[str, Record]) -> tuple[FigureTitle, ...]:
    dataset = records.get("prepare_data")
    if not isinstance(dataset, DatasetRecord):
        return ()
    metrics = metrics_of(dataset.task)
    found = [metrics[name] for name in headlines(dataset.task)]
    return tuple(FigureTitle(name=each.name, title=each.title, unit=each.unit) for each in found)


def _gate(records: Mapping[str, Record]) -> GateSummary | None:
    decision = records.get("gate")
    if not isinstance(decision, Decision):
        return None
    return GateSummary(
        passed=decision.passed,
        reason=decision.reason,
        rules=decision.rules,
        base_passed=decision.base_passed,
        base_reason=decision.base_reason,
    )


def _digests(records: Mapping[str, Record]) -> dict[str, str]:
    digests = {}
    for record in records.values():
        if isinstance(record, DatasetRecord):
            digests["dataset"] = record.digest
        elif isinstance(record, AdapterRecord):
            digests["base"] = record.base.digest
        elif isinstance(record, ModelRecord):
            digests["model"] = record.digest
    return digests


def _endpoint(storage: Storage, report: StepReport | None) -> EndpointSummary | None:
    """Return what this run deployed; None if it deployed nothing, regardless of earlier runs."""
    if report is None or not report.record_uri:
        return None
    deployment = Deployment.model_validate_json(storage.read_bytes(report.record_uri))
    return EndpointSummary(
        service=deployment.service,
        predict_path=deployment.predict_path,
        chat_path=deployment.chat_path,
        row_id=deployment.example.row_id,
        answer=deployment.example.answer,
        truth=deployment.example.truth,
        probes=deployment.probes,
        agreed=deployment.agreed,
    )
